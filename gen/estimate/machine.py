"""A machine that is only estimated: the decoder's units, as wide as wanted, and their cycles.

The layer program is the decoder's own and is walked by :func:`~intaglio.gen.cycles.decoder.token_cycles`; the closed forms of the units are
those of the RTL with three numbers that the RTL has fixed at 1, 1 and 0: ``attention_units`` and ``attention_tokens`` side by side, and
the ``reach`` of wires. With these, :class:`WideTiming` gives the RTL's cycles exactly (tested), so that what a projection adds is in
three short functions below.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import QuantisedModel, default_row_scales
from intaglio.gen.cycles.decoder import Timing, TokenCycles, token_cycles
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import PRESETS, widths_of
from intaglio.rtl.arithmetic.numerics import Scalar
from intaglio.rtl.attention.narrow.array import tree_stages
from intaglio.rtl.attention.narrow.unit import HEAD_DRAIN, KEY_DRAIN, SCALE_STAGES, VALUE_DRAIN
from intaglio.rtl.config.decoder import DOTS, DecoderConfig
from intaglio.rtl.control.program import Instruction

__all__ = ["MACHINES", "Machine", "WideTiming", "machine_for", "stand_in"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Widths of the units for one model; the names that closed forms use are those of :class:`~intaglio.rtl.config.decoder.DecoderConfig`.

    Parameters
    ----------
    model : ModelConfig
    context : int
        Tokens that the KV cache holds.
    lanes : int
        Rows of a ternary matrix that are computed at once (in TOM: lanes x units).
    lane_width : int
        Weights that each takes in a cycle. Rows and inputs are filled up with zeros where they do not divide.
    vector_width : int
        Elements that the vector unit takes in a cycle; a power of 2 that divides ``head_dim``.
    attention_heads : int
        Query heads that share a key in one attention unit; divides ``heads / kv_heads``.
    attention_units : int
        Attention units, each with KV heads of its own; divides ``heads / attention_heads``.
    attention_tokens : int
        Keys, then values, of each head that an attention unit takes in a cycle; rows of the embedding in the head.
    top_k, clock_hz : int
    reach : int
        Cycles that an operation of the ternary units or of the attention units takes longer for pipelined wires across the die.
    dot : str
        As of the decoder's configuration: with ``"adders"`` the vector unit's divider is slower.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    model: ModelConfig
    context: int
    lanes: int
    lane_width: int
    vector_width: int
    attention_heads: int
    attention_units: int = 1
    attention_tokens: int = 1
    top_k: int = 16
    clock_hz: int = 500_000_000
    reach: int = 0
    dot: str = "planes"

    def __post_init__(self) -> None:
        for name, least, most in (
            ("context", 2, self.model.max_position_embeddings),
            ("lanes", 2, 1 << 16),
            ("lane_width", 1, 1 << 16),
            ("vector_width", 2, self.head_dim),
            ("attention_heads", 1, self.heads // self.kv_heads),
            ("attention_units", 1, self.heads),
            ("attention_tokens", 1, 1 << 16),
            ("top_k", 1, min(31, self.vocab)),
            ("clock_hz", 1, 10**11),
            ("reach", 0, 1000),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be an integer in {least}..{most}, not {value!r}")
        if self.dot not in DOTS:
            raise ValueError(f"dot must be one of {', '.join(DOTS)}, not {self.dot!r}")
        if self.vector_width & (self.vector_width - 1) or self.head_dim % self.vector_width:
            raise ValueError(
                f"vector_width must be a power of 2 that divides head_dim = {self.head_dim}, not {self.vector_width}"
            )
        if self.heads // self.kv_heads % self.attention_heads:
            raise ValueError(
                f"attention_heads must divide heads / kv_heads = {self.heads // self.kv_heads}, not {self.attention_heads}"
            )
        if self.heads // self.attention_heads % self.attention_units:
            raise ValueError(
                f"attention_units must divide heads / attention_heads = {self.heads // self.attention_heads}, "
                f"not {self.attention_units}"
            )

    hidden = property(lambda self: self.model.hidden_size)
    intermediate = property(lambda self: self.model.intermediate_size)
    layers = property(lambda self: self.model.num_hidden_layers)
    heads = property(lambda self: self.model.num_attention_heads)
    kv_heads = property(lambda self: self.model.num_key_value_heads)
    head_dim = property(lambda self: self.model.head_dim)
    vocab = property(lambda self: self.model.vocab_size)
    kv_dim = property(lambda self: self.kv_heads * self.head_dim)
    qkv_rows = property(lambda self: self.hidden + 2 * self.kv_dim)
    divider_bits = DecoderConfig.divider_bits
    activation = property(lambda self: self.model.hidden_act)
    sub_norms = property(lambda self: int(self.model.sub_norms))
    row_scales = property(lambda self: default_row_scales(self.model))
    rank, adapted = property(lambda self: 0), property(lambda self: ())  # no adapters
    batch, sequences = property(lambda self: 1), property(lambda self: 1)  # one token at a time, of one text

    @property
    def gate_words(self) -> int:
        """Banks are taken as awake: gating changes the power, not these cycles."""
        return 0

    @property
    def layer_weights(self) -> int:
        """Ternary weights of one layer."""
        return self.hidden * (self.qkv_rows + self.hidden + 3 * self.intermediate)

    @property
    def array(self) -> int:
        """Elements of the query heads that are served at once."""
        return self.attention_units * self.attention_heads * self.head_dim

    @property
    def head_groups(self) -> int:
        """Passes over the cache that all query heads need."""
        return self.hidden // self.array

    @property
    def multipliers(self) -> int:
        """16 x 8 bit multipliers of the attention units."""
        return self.array * self.attention_tokens

    def program(self) -> list[Instruction]:
        """The layer program; its constants, on which no cycle depends, are 1."""
        return layer_program(stand_in(self))

    def token_cycles(
        self, position: int, *, want: bool = True, program: Sequence[Instruction] | None = None
    ) -> TokenCycles:
        """:class:`~intaglio.gen.cycles.decoder.TokenCycles` of the token at ``position``; without ``want`` it ends before the head."""
        return token_cycles(
            stand_in(self), position, want=want, program=program or self.program(), timing=WideTiming(self)
        )


def stand_in(config: Machine | DecoderConfig) -> QuantisedModel:
    """A model without weights, of which the layer program and the walk through its cycles can be made; its constants are 1."""
    one = Scalar.of_float(1.0)
    layer = SimpleNamespace(constants=dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), one))
    fields = {
        "config": config,
        "embed_scale": 1,
        "layers": [layer] * config.layers,
        "logit_constant": one,
        "residual_epsilon": one,
        "attention_epsilon": one,
        "gated_epsilon": one,
    }
    return cast(QuantisedModel, SimpleNamespace(**fields))


class WideTiming(Timing):
    """The units' closed forms with several attention units, several tokens at once, and the reach of wires."""

    def linear(self, word: Instruction, adapter: bool = False) -> int:
        return super().linear(word, adapter) + self.config.reach

    def attend(self, position: int) -> int:
        """Keys and values ``attention_tokens`` at a time; the maximum over them and the sum of their values take a tree each."""
        c = self.config
        tokens = -(-(position + 1) // c.attention_tokens)
        return (
            2 * tokens
            + 1
            + KEY_DRAIN
            + tree_stages(c.head_dim)
            + VALUE_DRAIN
            + 2 * tree_stages(c.attention_tokens)
            + c.reach
        )

    def head(self) -> int:
        """``attention_tokens`` words at a time, each with a list of candidates of its own; the lists are merged one entry a cycle."""
        c = self.config
        words = -(-c.vocab * c.head_groups // c.attention_tokens)
        merge = c.attention_tokens * c.top_k if c.attention_tokens > 1 else 0
        return (
            words
            + HEAD_DRAIN
            + tree_stages(c.head_dim)
            + tree_stages(c.attention_heads * c.attention_units)
            + SCALE_STAGES * c.row_scales
            + merge
            + c.reach
        )


# TOM gives 16 lanes x 10 units at 500 MHz; 128 weights a cycle follow from its speed, and its dense products (attention) share the ternary
# units' adder trees, so the attention units have as many multipliers as there are weights a cycle. Vector width and reach are ours.
MACHINES: dict[str, dict[str, Any]] = {
    "tom": {
        "lanes": 160,
        "lane_width": 128,
        "vector_width": 128,
        "attention_heads": "all",
        "attention_units": "all",
        "attention_tokens": "units",
        "context": 1024,
        "clock_hz": 500_000_000,
        "reach": 8,
    }
}


def machine_for(model: ModelConfig, preset: str, **changes: int) -> Machine:
    """The :class:`Machine` of a model and a preset of :data:`MACHINES` or of the decoder's; ``changes`` change single fields.

    Raises
    ------
    ValueError
        The preset or a field is unknown, or the widths do not fit.
    """
    known = [field.name for field in dataclasses.fields(Machine) if field.name != "model"]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"a width must be one of {', '.join(known)}, not {unknown[0]!r}")
    if preset not in MACHINES and preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join([*MACHINES, *PRESETS])}, not {preset!r}")
    if preset not in MACHINES:
        widths = widths_of(model, preset, **changes)  # what is given is checked, and not what it replaces
        return Machine(
            model=model,
            **{"clock_hz": DecoderConfig.clock_hz} | {name: widths[name] for name in known if name in widths},
        )
    fitting = {
        "vector_width": min(MACHINES[preset]["vector_width"], model.head_dim & -model.head_dim),  # no wider than a head
        "context": min(MACHINES[preset]["context"], model.max_position_embeddings),
    }
    widths = MACHINES[preset] | fitting | changes
    if widths["attention_heads"] == "all":
        widths["attention_heads"] = model.num_attention_heads // model.num_key_value_heads
    if widths["attention_units"] == "all":
        widths["attention_units"] = max(1, model.num_attention_heads // max(1, widths["attention_heads"]))
    if widths["attention_tokens"] == "units":  # as many multipliers as weights a cycle
        array = max(1, widths["attention_units"] * widths["attention_heads"] * model.head_dim)
        widths["attention_tokens"] = max(1, widths["lanes"] * widths["lane_width"] // array)
    return Machine(model=model, **widths)
