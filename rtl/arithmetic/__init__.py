"""Arithmetic that several units share: numerics (also those of the exact models), dividers, logarithms, the scalar unit."""
