"""Configuration of the decoder's hardware: the model's shape and how wide each unit is built."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

__all__ = ["DOTS", "PACKINGS", "DecoderConfig", "check_packing", "word_bits"]

PACKINGS = ("2bit", "5trit")
DOTS = ("planes", "adders")
FORMAT = 1  # raised when the hardware or its program changes, so that old digests no longer match


def check_packing(packing):
    """Raise ``ValueError`` unless ``packing`` is one of :data:`PACKINGS`."""
    if packing not in PACKINGS:
        raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, not {packing!r}")


def word_bits(packing, lane_width):
    """Bits of a word of ``lane_width`` weights; raises ``ValueError`` for an unknown packing."""
    check_packing(packing)
    return 2 * lane_width if packing == "2bit" else 8 * -(-lane_width // 5)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of the model and width of the units.

    Parameters
    ----------
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab : int
        The model: ``hidden = heads * head_dim``; ``kv_heads`` divides ``heads``.
    context : int
        Tokens that the KV cache holds.
    lanes : int
        Output rows that the ternary linear unit computes at once; even.
    lane_width : int
        Weights that one lane takes in a cycle; divides ``hidden`` and ``intermediate``.
    packing : str
        ``"2bit"`` (00 zero, 01 plus, 10 minus) or ``"5trit"`` (five weights in a byte).
    dot : str
        How a lane adds: ``"planes"`` (bitwise, fast to simulate) or ``"adders"`` (carry chains, small on an FPGA). Same results in
        as many cycles; with ``"adders"`` the vector unit's divider has shorter stages, and an operation takes three cycles more.
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
    vector_width: int = 16
    attention_heads: int = 1
    top_k: int = 16
    clock_hz: int = 80_000_000
    embed_shift: int = 8

    def __post_init__(self):
        def need(ok, text):
            if not ok:
                raise ValueError(text)

        for name in ("hidden", "intermediate", "layers", "heads", "kv_heads", "vocab", "lanes", "lane_width", "top_k", "clock_hz"):
            value = getattr(self, name)
            need(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
        need(_power_of_2(self.head_dim) and 4 <= self.head_dim <= 256,
             f"head_dim must be a power of 2 in 4..256, not {self.head_dim!r}")
        need(self.hidden == self.heads * self.head_dim,
             f"hidden must be heads * head_dim = {self.heads * self.head_dim}, not {self.hidden}")
        need(self.heads % self.kv_heads == 0, f"kv_heads must divide heads = {self.heads}, not {self.kv_heads}")
        need(isinstance(self.context, int) and 2 <= self.context <= 65535,
             f"context must be in 2..65535 tokens, not {self.context!r}")
        need(2 <= self.vocab <= 65535, f"vocab must be in 2..65535, not {self.vocab}")
        check_packing(self.packing)
        need(self.dot in DOTS, f"dot must be one of {', '.join(DOTS)}, not {self.dot!r}")
        need(self.lanes % 2 == 0, f"lanes must be even, not {self.lanes}")
        for name in ("hidden", "intermediate"):
            value = getattr(self, name)
            need(value % self.lane_width == 0, f"lane_width must divide {name} = {value}, not {self.lane_width}")
            need(value % self.lanes == 0, f"lanes must divide {name} = {value}, not {self.lanes}")
        need(self.kv_dim * 2 % self.lanes == 0,
             f"lanes must divide 2 * kv_heads * head_dim = {2 * self.kv_dim}, not {self.lanes}")
        need(_power_of_2(self.vector_width) and self.vector_width >= 2,
             f"vector_width must be a power of 2 and at least 2, not {self.vector_width!r}")
        for name in ("head_dim", "lane_width", "intermediate"):
            value = getattr(self, name)
            need(value % self.vector_width == 0, f"vector_width must divide {name} = {value}, not {self.vector_width}")
        need(self.vector_width % self.lanes == 0,
             f"vector_width must be a multiple of lanes = {self.lanes}, not {self.vector_width}")
        need(isinstance(self.attention_heads, int) and self.attention_heads > 0 and self.group % self.attention_heads == 0,
             f"attention_heads must divide heads / kv_heads = {self.group}, not {self.attention_heads!r}")
        need(self.top_k <= min(31, self.vocab), f"top_k must be in 1..31 and at most vocab = {self.vocab}, not {self.top_k}")
        need(0 <= self.embed_shift <= 24, f"embed_shift must be in 0..24, not {self.embed_shift!r}")
        widest = max(self.hidden, self.intermediate)
        for what, count, limit in (
            ("hidden (its cubed sums must fit 64 bits)", self.hidden, 16384),
            ("layers", self.layers, 1023),
            ("heads + 2 * kv_heads", self.heads + 2 * self.kv_heads, 256),
            ("max(hidden, intermediate) / vector_width", widest // self.vector_width, 1023),
            ("max(hidden, intermediate) / lane_width", widest // self.lane_width, 1023),
            ("max(qkv_rows, 2 * intermediate) / lanes", max(self.qkv_rows, 2 * self.intermediate) // self.lanes, 65535),
            ("words of norm gains, (layers * (3 * hidden + intermediate) + hidden) / vector_width", self.gain_words, 65536),
        ):
            need(count <= limit, f"{what} must be at most {limit}, not {count}")

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

    # -- shape of the hardware
    @property
    def array(self):
        """Multipliers of the attention unit: ``attention_heads * head_dim``."""
        return self.attention_heads * self.head_dim

    @property
    def gain_words(self):
        """Words of the ROM of norm gains: the four norms of each layer and the final norm."""
        return (self.layers * (3 * self.hidden + self.intermediate) + self.hidden) // self.vector_width

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
        """Signed bits of an element of the result buffer; the widest is ``relu(gate)^2 * up``."""
        return max((127 * self.hidden) ** 3, (1 << 18) - 1).bit_length() + 1

    @property
    def divider_bits(self):
        """Quotient bits in one cycle."""
        return 2 if self.dot == "adders" else 3

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
        return max(0, (32767 * 127 * self.hidden).bit_length() + 1 - 32)

    @property
    def weight_word_bits(self):
        """Bits of one word of a lane's weight ROM."""
        return word_bits(self.packing, self.lane_width)

    @property
    def weight_depth(self):
        """Words of one lane's weight ROM: the whole model."""
        return self.layers * self.layer_weights // (self.lanes * self.lane_width)

    # -- JSON
    def to_json(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value):
        """Raises ``ValueError`` for an unknown or missing field."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(value) - known):
            raise ValueError(f"unknown field of the decoder's configuration: {', '.join(unknown)}")
        missing = sorted(f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in value)
        if missing:
            raise ValueError(f"missing field of the decoder's configuration: {', '.join(missing)}")
        return cls(**value)

    def digest(self):
        """SHA-256 of the canonical JSON and the hardware's format number, in hexadecimal."""
        text = json.dumps({"format": FORMAT, "config": self.to_json()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


def _power_of_2(value):
    return isinstance(value, int) and value > 0 and value & (value - 1) == 0
