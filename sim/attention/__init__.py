"""Attention in torch: float references, the exact model, activations and reports of whole models."""
