"""Attention of a tile of keys at a time: tile engine, softmax, states of rows, results (docs/prefill.md). For small devices: ``narrow``."""
