"""Index of sparse attention: two passes over the keys, decision, selection, block map (docs/prefill.md)."""
