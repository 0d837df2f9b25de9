"""Named shapes of the prefill attention unit."""

from dataclasses import dataclass, field

from intaglio.rtl.config.attention import PrefillConfig

__all__ = ["PRESETS", "Preset", "prefill_config"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    description: str
    shape: dict = field(default_factory=dict)


PRESETS = {
    "desk": Preset(
        description="simulation on a desk: heads of models/burin, 1,024 multipliers, prompts of up to 16,384 tokens",
        shape={
            "head_dim": 32,
            "group": 6,
            "block": 128,
            "columns": 32,
            "drain": 16,
            "context": 16384,
            "window": 8,
            "lines": 24,
            "lookahead": 3,
        },
    ),
    "small": Preset(
        description="narrow units for quick tests",
        shape={
            "head_dim": 16,
            "group": 2,
            "block": 32,
            "columns": 8,
            "context": 512,
            "window": 4,
            "lines": 6,
            "lookahead": 2,
            "drain": 4,
            "lut_columns": 2,
        },
    ),
    "llama-1b": Preset(
        description="heads of Llama-3.2-1B, 4,096 multipliers, 131,072 tokens: for synthesis and estimates",
        shape={
            "head_dim": 64,
            "group": 4,
            "block": 128,
            "columns": 64,
            "context": 131072,
            "window": 16,
            "lines": 128,
            "lookahead": 4,
            "drain": 16,
            "lut_columns": 16,
        },
    ),
}


def prefill_config(preset: str, **changes: int) -> PrefillConfig:
    """The :class:`~intaglio.rtl.config.attention.PrefillConfig` of a preset's name, with single fields changed.

    Raises
    ------
    ValueError
        The preset or a field is unknown, or a value does not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    return PrefillConfig.from_json({**PRESETS[preset].shape, **changes})
