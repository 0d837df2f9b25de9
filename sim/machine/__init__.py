"""Exact model of the joined machine: the decoder with its keys and values in pages (docs/machine.md)."""
