"""Decode attention over an INT8 KV cache, and the head that shares its multipliers."""

from intaglio.rtl.attention.narrow.unit import EMBEDDING_LATENCY, AttentionUnit, attend_cycles, head_cycles

__all__ = ["EMBEDDING_LATENCY", "AttentionUnit", "attend_cycles", "head_cycles"]
