"""Where each ternary matrix of a design lives on an FPGA: block RAM, LUT ROM or wiring, within a budget.

Block RAM and LUT ROM serve a lane word by word (``words`` cycles a product); a hardwired matrix gives its product in one cycle and needs no
memory. Everything must have a place: block RAM first, the matrices that waste least of it; LUT ROM for the rest; what LUTs are left make
matrices hardwired, in the order of cycles saved a LUT. Costs are closed forms; :mod:`intaglio.gen.synthesis.fpga` measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intaglio import Error
from intaglio.rtl.ternary.hardwired import adder_graph

__all__ = ["Budget", "Choice", "choose", "lut_rom", "rom_blocks"]

SHAPES = (
    (72, 512),
    (36, 1024),
    (18, 2048),
    (9, 4096),
    (4, 8192),
    (2, 16384),
    (1, 32768),
)  # of a block of 36 kbit (UltraScale+, 7 series)
LUT_BITS = 64  # of a LUT6
LARGEST = 1 << 14  # weights of a matrix that is considered for wiring


@dataclass(frozen=True, kw_only=True)
class Budget:
    """LUTs, block RAMs of 36 kbit."""

    lut: int
    bram: int

    def __post_init__(self) -> None:
        for name in ("lut", "bram"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer of at least 0, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """``form``: ``block``, ``lut`` or ``hardwired``; what it takes; cycles of one product."""

    form: str
    lut: int
    bram: int
    cycles: int


def rom_blocks(width: int, depth: int) -> int:
    """Blocks of a read-only memory, all in one shape."""
    return min(-(-width // w) * -(-depth // d) for w, d in SHAPES)


def lut_rom(width: int, depth: int) -> int:
    """LUTs of a read-only memory: 64 bits each, and a multiplexer LUT for four of them."""
    stacked = -(-depth // LUT_BITS)
    return width * (stacked + -(-(stacked - 1) // 3))


def choose(matrices: Mapping[str, np.ndarray], lane_width: int, budget: Budget) -> dict[str, Choice]:
    """A :class:`Choice` by name.

    Parameters
    ----------
    matrices : dict of int8 ``[rows, inputs]``
    lane_width : int
        Weights of a word; divides the inputs.
    budget : Budget

    Raises
    ------
    Error
        ``lane_width`` does not divide the inputs, or the budget does not hold all matrices.
    """
    shapes = {}
    for name, weights in matrices.items():
        rows, inputs = np.asarray(weights).shape
        if inputs % lane_width:
            raise Error(f"lane_width must divide the {inputs} inputs of {name}, not be {lane_width}")
        shapes[name] = 2 * lane_width, rows * inputs // lane_width
    blocks = {name: rom_blocks(*shape) for name, shape in shapes.items()}
    luts = {name: lut_rom(*shape) for name, shape in shapes.items()}
    chosen, bram, lut = {}, budget.bram, budget.lut
    for name in sorted(shapes, key=lambda n: (-luts[n] / blocks[n], n)):  # most LUTs spared by a block
        width, depth = shapes[name]
        if blocks[name] <= bram:
            bram -= blocks[name]
            chosen[name] = Choice(form="block", lut=0, bram=blocks[name], cycles=depth)
        elif luts[name] <= lut:
            lut -= luts[name]
            chosen[name] = Choice(form="lut", lut=luts[name], bram=0, cycles=depth)
        else:
            raise Error(
                f"the budget must hold every matrix; {name} needs {blocks[name]} block RAMs or {luts[name]} LUTs, "
                f"and {bram} and {lut} are left"
            )
    wired = {
        name: adder_graph(weights).adder_bits
        for name, weights in matrices.items()
        if np.asarray(weights).size <= LARGEST
    }
    for name in sorted(wired, key=lambda n: (-(shapes[n][1] - 1) / max(1, wired[n]), n)):
        if wired[name] <= lut + chosen[name].lut and shapes[name][1] > 1:
            lut += chosen[name].lut - wired[name]
            chosen[name] = Choice(form="hardwired", lut=wired[name], bram=0, cycles=1)
    return {name: chosen[name] for name in matrices}
