"""Hybrid INT8 matrix unit: packed DSP columns and LUT columns."""
