"""LUTs of the ternary lanes by form of their dot product, UltraScale+."""

from typing import Any

from bench.common import Progress, figure
from intaglio.gen.synthesis.lanes import measure_lanes
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["figures"]

LANES, WIDTH = 128, 128
MODEL: dict[str, Any] = dict(
    hidden=2560, intermediate=6912, layers=30, heads=20, kv_heads=5, head_dim=128, vocab=128256, context=4096
)


def figures(progress: Progress) -> list[dict[str, Any]]:
    """LUTs a weight and cycle of 128 lanes of 128 weights with what they share, of a model of BitNet-2B4T's shape."""
    found = {}
    for packing, dot in (("pairs", "tables"), ("2bit", "adders")):
        progress(f"mapping a lane of {dot}, UltraScale+")
        config = DecoderConfig(**MODEL, lanes=8, lane_width=WIDTH, packing=packing, dot=dot)
        found[dot] = measure_lanes(config, "xcup").lut_per_weight(LANES)
    anchor = f"{LANES} lanes of {WIDTH}; adders {found['adders']:.1f}; TeLLMe 17.2"
    return [figure("lane.lut_per_weight", found["tables"], "LUT", "<= 15", anchor, "synthesised")]
