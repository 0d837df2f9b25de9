"""Configuration of the decoder's hardware: the model's shape and how wide each unit is built."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from intaglio.rtl.arithmetic.numerics import XS_BITS
from intaglio.rtl.arithmetic.silu import SILU_BITS
from intaglio.rtl.config.decoder_limits import ACTIVATIONS, ADAPTED_OPERATIONS, DOTS, PACKINGS, check, check_packing

__all__ = [
    "ACTIVATIONS",
    "ADAPTED_OPERATIONS",
    "DOTS",
    "PACKINGS",
    "DecoderConfig",
    "check_packing",
    "logit_shift",
    "word_bits",
]

_ADAPTER_FIELDS = ("rank", "adapters", "adapter_trits", "adapter_targets")
_USUAL_FIELDS = {  # told only where they differ
    "activation": "relu2",
    "sub_norms": 1,
    "tied_head": 1,
    "row_scales": 0,
    "batch": 1,
    "sequences": 1,
}
_GATE_FIELDS = ("gate_words", "gate_wake", "gate_isolation")
FORMAT = 2  # raised when the hardware or its program changes, so that old digests no longer match


def word_bits(packing, lane_width):
    """Bits of a word of ``lane_width`` weights; raises ``ValueError`` for an unknown packing, or one that needs another width."""
    check_packing(packing)
    if packing == "pairs" and lane_width % 2:
        raise ValueError(f"lane_width must be even where packing is pairs, not {lane_width}; 2bit and 5trit take any")
    return 8 * -(-lane_width // 5) if packing == "5trit" else 2 * lane_width


def logit_shift(hidden):
    """Right shift that brings a logit, ``|x16 . e8| <= 32767 * 127 * hidden``, into 32 signed bits."""
    return max(0, (32767 * 127 * hidden).bit_length() + 1 - 32)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of the model and width of the units.

    Parameters
    ----------
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab : int
        The model: ``hidden = heads * head_dim``; ``kv_heads`` divides ``heads``.
    activation : str
        Of the gate: ``"relu2"`` or ``"silu"``.
    sub_norms : int
        1: norms before the output and the down projection; 0: none, their inputs are quantised as they are.
    tied_head : int
        1: the head reads the embedding's memory; 0: it has one of its own.
    row_scales : int
        1: each row (token) of the embedding and of the head has a scale of its own; 0: each matrix has one.
    context : int
        Tokens of a sequence that the KV cache holds.
    sequences : int
        Sequences whose keys and values the cache holds at a time, 1 to 256.
    batch : int
        Tokens, of any sequences, that meet every weight word side by side, 1 to 32.
    lanes : int
        Output rows that the ternary linear unit computes at once; even.
    lane_width : int
        Weights that one lane takes in a cycle; divides ``hidden`` and ``intermediate``.
    packing : str
        ``"2bit"`` (00 zero, 01 plus, 10 minus), ``"5trit"`` (five weights in a byte) or ``"pairs"`` (two weights in four bits, as
        ``dot="tables"`` takes them, and only that).
    dot : str
        How a lane adds: ``"planes"`` (bitwise, fast to simulate), ``"adders"`` (carry chains, small on an FPGA of LUTs of four inputs)
        or ``"tables"`` (the sums of pairs of activations looked up, small where LUTs have six). Same results in as many cycles; but
        for ``"planes"`` the vector unit's divider has shorter stages, and an operation takes three cycles more.
    rom : str
        What the lanes' weight ROMs are made of: ``"image"`` (memories that read a file) or ``"logic"`` (gates, see docs/rom.md). Same
        words in the same cycles.
    vector_width : int
        Elements that the vector unit takes in a cycle; a power of 2 that divides ``head_dim`` and ``lane_width`` and is a
        multiple of ``lanes``.
    attention_heads : int
        Query heads that the attention unit serves at once with one key; divides ``heads / kv_heads``.
    top_k : int
        Candidates that the head keeps, 1 to 31 and at most ``vocab``.
    clock_hz : int
        The clock at which times are stated; the hardware itself does not depend on it.
    embed_shift : int
        Fraction bits of the embedding's scale (set by the generator).
    rank : int
        Rank of low-rank adapters; 0: no adapter hardware. A multiple of ``lanes`` that divides ``lane_width / 2`` or equals it.
    adapters : int
        Adapters that are resident, 1 to 16; there is memory for one more, into which an adapter is loaded.
    adapter_trits : int
        Balanced ternary digits of a value of a low-rank factor, 1 (ternary, as in TOM) to 5 (-121..121).
    adapter_targets : str
        The matrices that an adapter may change, of q, k, v, o, gate, up, down, with commas.
    gate_words : int
        Words of a weight bank whose power is switched: a power of 2; 0: one ROM a lane, always on. See docs/gating.md.
    gate_wake : int
        Cycles of power that a bank needs before it may be read, 0 to 254 and less than ``gate_words``.
    gate_isolation : int
        1: the output of a bank that is not awake is clamped to 0; 0: not.

    Raises
    ------
    ValueError
        A parameter is out of range, or a count does not fit its field of the layer program or its counter in a unit; the text
        says what must hold and what was given.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    lanes: int = 4
    lane_width: int = 64
    packing: str = "2bit"
    dot: str = "planes"
    rom: str = "image"
    vector_width: int = 16
    attention_heads: int = 1
    top_k: int = 16
    clock_hz: int = 80_000_000
    embed_shift: int = 8
    rank: int = 0
    adapters: int = 1
    adapter_trits: int = 1
    adapter_targets: str = "q,k,v,o,gate,up,down"
    gate_words: int = 0
    gate_wake: int = 8
    gate_isolation: int = 1
    activation: str = "relu2"
    sub_norms: int = 1
    tied_head: int = 1
    row_scales: int = 0
    sequences: int = 1
    batch: int = 1

    def __post_init__(self):
        check(self)

    # -- shape of the model
    @property
    def group(self):
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_dim(self):
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self):
        return self.hidden + 2 * self.kv_dim

    @property
    def layer_weights(self):
        """Ternary weights of one layer."""
        return self.hidden * (self.qkv_rows + self.hidden + 3 * self.intermediate)

    # -- words of the command and result streams
    @property
    def token_bits(self):
        """Bits of a token: at least 16, and one value, all ones, that is no token."""
        return max(16, self.vocab.bit_length())

    @property
    def position_bits(self):
        """Bits of a position beside a token in a result's first word."""
        return 32 - self.token_bits

    # -- shape of the hardware
    @property
    def array(self):
        """Multipliers of the attention unit: ``attention_heads * head_dim``."""
        return self.attention_heads * self.head_dim

    @property
    def gain_words(self):
        """Words of the ROM of norm gains: the four norms of each layer and the final norm.

        Without sub-norms two of each layer, and gains of 1 for the longest vector that has none.
        """
        if self.sub_norms:
            return (self.layers * (3 * self.hidden + self.intermediate) + self.hidden) // self.vector_width
        return ((2 * self.layers + 1) * self.hidden + max(self.hidden, self.intermediate)) // self.vector_width

    @property
    def head_groups(self):
        """Passes that the attention unit needs for all query heads; also words of its operand memory."""
        return self.hidden // self.array

    @property
    def accumulator_bits(self):
        """Signed bits of a ternary dot product: ``|sum| <= 127 * inputs``."""
        return (127 * max(self.hidden, self.intermediate)).bit_length() + 1

    @property
    def gate_bits(self):
        """Signed bits of a gate or up projection: ``|sum| <= 127 * hidden``."""
        return (127 * self.hidden).bit_length() + 1

    @property
    def result_bits(self):
        """Signed bits of an element of the result buffer; the widest is ``relu(gate)^2 * up`` or ``silu(gate) * up``."""
        largest = 127 * self.hidden
        widest = largest**3 if self.activation == "relu2" else largest << (SILU_BITS - 1)
        return max(widest, (1 << 18) - 1).bit_length() + 1

    @property
    def shift_bits(self):
        """Bits of the shift that makes an element of the residual or of the result buffer a vector element."""
        return (max(32, self.result_bits) - XS_BITS).bit_length()

    @property
    def divider_bits(self):
        """Quotient bits in one cycle."""
        return 3 if self.dot == "planes" else 2

    @property
    def score_shift(self):
        """Right shift that brings ``q . k`` (16 by 8 bits) into 18 signed bits."""
        return max(0, (32767 * 127 * self.head_dim).bit_length() + 1 - 18)

    @property
    def value_bits(self):
        """Signed bits of an accumulated value: ``|sum| <= 32767 * 127 * context``."""
        return (32767 * 127 * self.context).bit_length() + 1

    @property
    def logit_shift(self):
        """Right shift that brings a logit into 32 signed bits."""
        return logit_shift(self.hidden)

    @property
    def weight_word_bits(self):
        """Bits of one word of a lane's weight ROM."""
        return word_bits(self.packing, self.lane_width)

    @property
    def weight_depth(self):
        """Words of one lane's weight ROM: the whole model."""
        return self.layers * self.layer_weights // (self.lanes * self.lane_width)

    # -- shape of the adapters
    @property
    def adapted(self):
        """The operations of :data:`ADAPTED_OPERATIONS` that have room for an adapter."""
        targets = self.adapter_targets.split(",")
        return tuple(names for names in ADAPTED_OPERATIONS if self.rank and set(names) & set(targets))

    @property
    def adapter_limit(self):
        """Largest value of ``adapter_trits`` balanced ternary digits."""
        return (3**self.adapter_trits - 1) // 2

    @property
    def lane_sum_bits(self):
        """Signed bits of a lane's sum: of a row, or of a row of a low-rank factor with its digits."""
        return (127 * max(self.hidden, self.intermediate) * (self.adapter_limit if self.rank else 1)).bit_length() + 1

    @property
    def adapter_rows(self):
        """Rows and words of one lane's adapter memory by operation, ``{names: (rows, inputs, words of A, words of B)}``."""
        shapes = dict(
            zip(
                ADAPTED_OPERATIONS,
                (
                    (self.qkv_rows, self.hidden),
                    (self.hidden, self.hidden),
                    (2 * self.intermediate, self.hidden),
                    (self.hidden, self.intermediate),
                ),
                strict=True,
            )
        )
        out = {}
        for names in self.adapted:
            rows, inputs = shapes[names]
            a = len(names) * self.rank // self.lanes * self.adapter_trits * inputs // self.lane_width
            b = -(-(rows // self.lanes * self.adapter_trits) // (self.lane_width // self.rank))
            out[names] = (rows, inputs, a, b)
        return out

    @property
    def adapter_words(self):
        """Words of ``2 * lane_width`` bits of one adapter in one lane's memory."""
        return self.layers * sum(a + b for _, _, a, b in self.adapter_rows.values())

    @property
    def adapter_scales(self):
        """Scales of one adapter: one for each matrix of the adapted operations."""
        return self.layers * sum(map(len, self.adapted))

    @property
    def gate_banks(self):
        """Banks of a lane's weight ROM whose power is switched; 0 without gating."""
        return -(-self.weight_depth // self.gate_words) if self.gate_words else 0

    # -- JSON
    def to_json(self):
        """Without the fields of what is not there, so that digests do not depend on them."""
        absent = (() if self.rank else _ADAPTER_FIELDS) + (() if self.gate_words else _GATE_FIELDS)
        absent += tuple(name for name, usual in _USUAL_FIELDS.items() if getattr(self, name) == usual)
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in absent}

    @classmethod
    def from_json(cls, value):
        """Raises ``ValueError`` for an unknown or missing field."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(value) - known):
            raise ValueError(f"unknown field of the decoder's configuration: {', '.join(unknown)}")
        missing = sorted(
            f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in value
        )
        if missing:
            raise ValueError(f"missing field of the decoder's configuration: {', '.join(missing)}")
        return cls(**value)

    def digest(self):
        """SHA-256 of the canonical JSON and the hardware's format number, in hexadecimal."""
        text = json.dumps({"format": FORMAT, "config": self.to_json()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)
