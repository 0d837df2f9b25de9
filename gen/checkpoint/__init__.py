"""Checkpoints in: files, weights, the integers that the hardware holds; published and random models."""
