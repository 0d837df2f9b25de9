"""What a part costs in silicon, each number with where it comes from.

*synthesised*: Yosys and ABC map the part to ASAP7 (7 nm predictive, all cells, TT, 0.7 V, 25 C) without sizing or buffers; area is that of
the cells alone, leakage and pin capacitance are sums over the cells of the Liberty files. *anchor*: published. *assumed*: nothing behind it
but the reason given. ``python -m intaglio.gen.estimate.measure --liberty FILE ...`` measures the synthesised ones anew.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COSTS", "Cost", "costs_with"]


@dataclass(frozen=True)
class Cost:
    value: float
    unit: str
    source: str


_ROM = "bank of 1,024 words of 64 random trits, 40 % zeros (70 % zero bits), ABC's own sharing, median of three seeds"
_EMBEDDING = (
    "bank of 1,024 words of 16 INT8 numbers, Gaussian with the largest at 5.5 deviations, median of three seeds"
)
_LANE = "intaglio_lane of 128 weights with its accumulator"
_MULTIPLIER = "8 products of 16 x 8 bits with registers and adder tree"

COSTS = {
    "weight_um2": Cost(0.00675, "um2/bit", f"synthesised: {_ROM}"),
    "embedding_um2": Cost(0.00644, "um2/bit", f"synthesised: {_EMBEDDING}"),
    "lane_um2": Cost(7.50, "um2/weight", f"synthesised: {_LANE}"),
    "multiplier_um2": Cost(81.7, "um2", f"synthesised: {_MULTIPLIER}"),
    "sram_um2": Cost(
        0.043, "um2/bit", "anchor: ASAP7's synthetic fakeram7 macros in OpenROAD-flow-scripts, area of the LEF"
    ),
    "utilisation": Cost(0.7, "", "assumed: share of the die that cells and macros cover"),
    "logic_leakage": Cost(1.06e-3, "uW/um2", f"synthesised: {_LANE}; at 25 C, several times more when hot"),
    "rom_leakage": Cost(0.65e-3, "uW/um2", f"synthesised: {_ROM}; at 25 C, several times more when hot"),
    "sram_leakage": Cost(10e-6, "uW/bit", "assumed: 10 pW a bit"),
    "gated_leakage": Cost(0.05, "", "assumed: share of its leakage that a ROM bank keeps while its power is off"),
    "volt": Cost(0.7, "V", "nominal of ASAP7"),
    "wires": Cost(2.0, "", "assumed: capacitance of pins and wires over that of the pins"),
    "activity": Cost(0.15, "", "assumed: transitions of a pin a use, up and down each counting half"),
    "weight_ff": Cost(0.1355, "fF/bit", f"synthesised, pins that may move when a word of 1,024 is read: {_ROM}"),
    "embedding_ff": Cost(0.1311, "fF/bit", f"synthesised: {_EMBEDDING}"),
    "lane_ff": Cost(92.3, "fF/weight", f"synthesised: {_LANE}"),
    "multiplier_ff": Cost(1160.0, "fF", f"synthesised: {_MULTIPLIER}"),
    "sram_pj": Cost(
        0.08, "pJ/bit", "assumed: a small macro; half of the 10 pJ for 64 bits of 8 KiB in 45 nm (Horowitz, ISSCC 2014)"
    ),
}

SHARES = ("utilisation", "gated_leakage")


def costs_with(changes: Mapping[str, float]) -> dict[str, Cost]:
    """COSTS with ``changes`` (values by name), whose source is then the caller; raises ``ValueError`` for an unknown or wrong one."""
    out = dict(COSTS)
    for name, value in changes.items():
        if name not in COSTS:
            raise ValueError(f"a cost must be one of {', '.join(COSTS)}, not {name!r}")
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"the cost {name} must be a finite number of at least 0, not {value!r}")
        if name in SHARES and value > 1:
            raise ValueError(f"the cost {name} is a share and must be at most 1, not {value!r}")
        if name == "utilisation" and not value:
            raise ValueError("the cost utilisation must be more than 0")
        out[name] = Cost(float(value), COSTS[name].unit, "given")
    return out
