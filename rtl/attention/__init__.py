"""Decode attention over an INT8 KV cache, and the head that shares its multipliers."""

from intaglio.rtl.attention.cache import RAM_VERILOG
from intaglio.rtl.attention.unit import EMBEDDING_LATENCY, AttentionUnit, attend_cycles, head_cycles

__all__ = ["EMBEDDING_LATENCY", "RAM_VERILOG", "AttentionUnit", "attend_cycles", "head_cycles"]
