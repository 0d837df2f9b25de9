"""Sparse attention for long prompts: index unit, tile engine, KV cache, schedule (docs/prefill.md)."""
