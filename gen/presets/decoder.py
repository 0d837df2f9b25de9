"""Named widths of the units. A preset says how wide; the model says what."""

from dataclasses import dataclass, field
from typing import Any

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import decoder_config
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["PRESETS", "WIDTHS", "Preset", "config_for", "widths_of"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Fields of the hardware's configuration; ``attention_heads`` are at most so many, "all" serves a whole group at once."""

    description: str
    widths: dict = field(default_factory=dict)


PRESETS = {
    "desk": Preset(
        description="simulation on a desk: 256 weights a cycle, 1,024 tokens of context",
        widths={"context": 1024, "lanes": 4, "lane_width": 64, "vector_width": 16, "attention_heads": "all"},
    ),
    "desk-4k": Preset(
        description="as desk, 4,096 tokens of context",
        widths={"context": 4096, "lanes": 4, "lane_width": 64, "vector_width": 16, "attention_heads": "all"},
    ),
    "ulx3s": Preset(  # three attention heads at a time, or more lanes, would fit, and do not route: docs/synthesis.md
        description="sized for an ECP5-85F: five weights in a byte, sums on carry chains, 128 tokens of context",
        widths={
            "context": 128,
            "lanes": 8,
            "lane_width": 64,
            "vector_width": 8,
            "attention_heads": 2,
            "packing": "5trit",
            "dot": "adders",
        },
    ),
    "small": Preset(
        description="narrow units for small models and quick tests",
        widths={"context": 64, "lanes": 2, "lane_width": 16, "vector_width": 4, "attention_heads": 1, "top_k": 8},
    ),
}


WIDTHS = (
    "context",
    "lanes",
    "lane_width",
    "packing",
    "dot",
    "rom",
    "vector_width",
    "attention_heads",
    "top_k",
    "clock_hz",
    "rank",
    "adapters",
    "adapter_trits",
    "adapter_targets",
    "gate_words",
    "gate_wake",
    "gate_isolation",
    "row_scales",
    "sequences",
    "batch",
)
"""Names of what a preset says, and what may be changed."""


def widths_of(model: ModelConfig, preset: str, **changes: int | str) -> dict[str, Any]:
    """Widths of a preset's name for a model, with some changed: all that the preset says in words is a number.

    Raises
    ------
    ValueError
        The preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    widths = {**PRESETS[preset].widths, **changes}
    group = model.num_attention_heads // model.num_key_value_heads
    if widths["attention_heads"] == "all":
        widths["attention_heads"] = group
    elif "attention_heads" not in changes:
        widths["attention_heads"] = max(
            heads for heads in range(1, widths["attention_heads"] + 1) if group % heads == 0
        )
    widths.setdefault("top_k", min(16, model.vocab_size))
    return widths


def config_for(model: ModelConfig, preset: str, **changes: int | str) -> DecoderConfig:
    """The :class:`~intaglio.rtl.config.decoder.DecoderConfig` of a model and a preset's name.

    Raises
    ------
    ValueError
        The preset is unknown, a change is not a width, or the widths do not fit the model.
    """
    widths = widths_of(model, preset, **changes)
    if unknown := sorted(set(changes) - set(WIDTHS)):
        raise ValueError(f"a width must be one of {', '.join(WIDTHS)}, not {unknown[0]!r}")
    if isinstance(widths["context"], int) and widths["context"] > model.max_position_embeddings:
        raise ValueError(
            f"context must be at most the model's max_position_embeddings = {model.max_position_embeddings}, "
            f"not {widths['context']}"
        )
    return decoder_config(model, **widths)
