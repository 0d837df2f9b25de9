"""Arty A7-100T: the build plan for Vivado, from amaranth-boards. Generated here, never run by Vivado."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Elaboratable, Instance, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth_boards.arty_a7 import ArtyA7_100Platform

from intaglio.boards.config import PREFIX
from intaglio.gen.emit import output
from intaglio.gen.emit.decoder import contents
from intaglio.gen.emit.link import SERIAL_TOP, serial_verilog

__all__ = ["BAUD", "CLOCK_HZ", "archive"]

CLOCK_HZ, BAUD = 80_000_000, 2_000_000  # the FT2232H of the board follows 2 Mbaud
VCO_MULTIPLIER, OUTPUT_DIVIDER = 8, 10  # 100 MHz * 8 / 10; UG472: VCO of 600..1200 MHz


class _Top(Elaboratable):
    def elaborate(self, platform):
        m = Module()
        uart = platform.request("uart", dir={"rx": "-", "tx": "-"})
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request("clk100", dir="-"))
        m.submodules.button = button = io.Buffer("i", platform.request("rst", dir="-"))
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        feedback, output, locked = Signal(), Signal(), Signal()
        m.domains.sync = ClockDomain()
        m.submodules.mmcm = Instance(
            "MMCME2_BASE",
            p_CLKIN1_PERIOD=10.0,
            p_CLKFBOUT_MULT_F=float(VCO_MULTIPLIER),
            p_CLKOUT0_DIVIDE_F=float(OUTPUT_DIVIDER),
            i_CLKIN1=oscillator.i,
            i_CLKFBIN=feedback,
            o_CLKFBOUT=feedback,
            o_CLKOUT0=output,
            o_LOCKED=locked,
            i_PWRDWN=Const(0, 1),
            i_RST=Const(0, 1),
        )
        m.submodules.buffer = Instance("BUFG", i_I=output, o_O=ClockSignal())
        # Two registers, so that the reset ends with the clock.
        stage = Signal(2, init=3, reset_less=True)
        m.d.sync += stage.eq(Cat(~locked | button.i, stage))
        m.d.comb += ResetSignal().eq(stage[1])
        m.submodules.device = Instance(SERIAL_TOP, i_clk=ClockSignal(), i_rst=ResetSignal(), i_rx=rx.i, o_tx=tx.o)
        return m


def archive(
    model: Path | str, out: Path | str, *, preset: str = "ulx3s", progress: Callable[[str, float], None] | None = None
) -> Path:
    """Write ``arty.zip``, the complete build plan (Verilog, ROM images, constraints, Tcl, script), into the folder ``out``, and
    ``manifest.json``, which the host needs. The folder must not exist, be empty, or hold an earlier build of a board.

    Returns
    -------
    Path of the archive. Unpack it and run ``build_intaglio_arty.sh`` where Vivado is.

    Raises
    ------
    Error, ValueError
        As of :func:`intaglio.gen.emit.decoder.generate`.
    """
    out = output.check_folder(out, "board")
    content, manifest = contents(model, preset, prefix=PREFIX, clock_hz=CLOCK_HZ, progress=progress)
    platform = ArtyA7_100Platform(toolchain="Vivado")
    for name in (*manifest["files"]["verilog"], *manifest["files"]["rom"]):
        # beside the script, so that `rom/` is found from the working folder and from the source alike
        platform.add_file(name.removeprefix("rtl/"), content[name])
    for name, text in serial_verilog(manifest, clock_hz=CLOCK_HZ, baud=BAUD).items():
        platform.add_file(f"{name}.v", text)
    plan = platform.build(_Top(), name="intaglio_arty", do_build=False, script_after_read=_images(manifest))
    with tempfile.TemporaryDirectory() as scratch:
        plan.archive(Path(scratch) / "arty.zip")
        archived = (Path(scratch) / "arty.zip").read_bytes()
    output.write(out, {"arty.zip": archived}, manifest | {"link": {"baud": BAUD}})
    return out / "arty.zip"


def _images(manifest):
    """Tcl that makes the images files of the project, of the type that ``$readmemh`` is served from."""
    names = " ".join(manifest["files"]["rom"])
    return "\n".join(
        [
            f"set images [list {names}]",
            "add_files -norecurse $images",
            "set_property file_type {Memory Initialization Files} [get_files $images]",
        ]
    )
