"""Yosys, cell libraries, paths and areas of generated Verilog."""
