"""Sparse prefill attention: float reference, exact model, quantisation, cache and memory models."""
