"""Generated Verilog under Verilator: builds, libraries, boards, cocotb, lint, netlists, and the transport ``sim``."""
