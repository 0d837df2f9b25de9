"""LUTs of the ternary lanes by form of their dot product, on an FPGA family."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockDomain, Module

from intaglio.gen.emit.verilog import convert
from intaglio.gen.synthesis.fpga import FpgaCells, measure_fpga
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.ternary.lane import FORMS, Lane

__all__ = ["LaneCells", "measure_lanes"]


@dataclass(frozen=True, kw_only=True)
class LaneCells:
    """Cells of one lane, with unpacking and accumulator, and of what stands once for all lanes; ``width`` weights a lane and cycle."""

    lane: FpgaCells
    shared: FpgaCells
    width: int

    def lut_per_weight(self, lanes: int) -> float:
        """LUTs of ``lanes`` lanes and of what they share, a weight and cycle."""
        return (lanes * self.lane.lut + self.shared.lut) / (lanes * self.width)


def measure_lanes(config: DecoderConfig, family: str) -> LaneCells:
    """Cells of the lanes of ``config``. Class of the result: synthesised, without wires.

    Raises
    ------
    Error
        As :func:`~intaglio.gen.synthesis.fpga.measure_fpga`.
    """
    _, shared, dot = FORMS[config.dot]
    return LaneCells(
        lane=_cells(Lane(config), dot.MASKS, family),
        shared=_cells(shared(config.lane_width), shared.MASKS, family),
        width=config.lane_width,
    )


def _cells(design: Any, masks: tuple[int, ...], family: str) -> FpgaCells:
    """With its masks as constants, which as ports would be gates."""
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.design = design
    m.d.comb += [port.eq(mask) for port, mask in zip(design.masks, masks, strict=True)]
    ports = {"clk": domain.clk}
    for path, _, value in design.signature.flatten(design):
        if path[0] != "masks":
            ports["_".join(map(str, path))] = value.as_value() if hasattr(value, "as_value") else value
    named = {name: (value, None) for name, value in ports.items()}
    return measure_fpga("\n".join(convert(m, "measured", named).values()), "measured", family)
