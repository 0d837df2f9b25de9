"""AXI4, AXI4-Lite and AXI4-Stream as signatures, the register block, and the streams between units."""
