"""Designs out: Verilog, ROM images, manifest and what else a folder of output has."""
