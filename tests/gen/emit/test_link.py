# amaranth: UnusedElaboratable=no
"""Verilog of the serial top: clean for Verilator's linter, the same text twice, small when mapped."""

import subprocess

import pytest

from intaglio import Error
from intaglio.gen.emit.collateral import lint_waivers
from intaglio.gen.emit.link import SERIAL_TOP, serial_verilog
from intaglio.rtl.link.buffer import WordBuffer
from intaglio.rtl.link.endpoint import Endpoint
from intaglio.rtl.link.uart import UartReceiver, UartTransmitter
from intaglio.sim.verilator.build import find_tools

MANIFEST = {"top": "some_decoder", "digest": "5e" * 32}
# A decoder's ports, its outputs all of them functions of its inputs.
STUB = """\
module some_decoder(
  input aclk, input aresetn, input [31:0] s_axis_tdata, input s_axis_tvalid, input s_axis_tlast, output s_axis_tready,
  output [31:0] m_axis_tdata, output m_axis_tvalid, output m_axis_tlast, input m_axis_tready,
  input [11:0] s_axil_awaddr, input s_axil_awvalid, output s_axil_awready, input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb,
  input s_axil_wvalid, output s_axil_wready, output [1:0] s_axil_bresp, output s_axil_bvalid, input s_axil_bready,
  input [11:0] s_axil_araddr, input s_axil_arvalid, output s_axil_arready, output [31:0] s_axil_rdata, output [1:0] s_axil_rresp,
  output s_axil_rvalid, input s_axil_rready);
  assign s_axis_tready = aclk & aresetn & m_axis_tready;
  assign {m_axis_tdata, m_axis_tvalid, m_axis_tlast} = {s_axis_tdata, s_axis_tvalid, s_axis_tlast};
  assign {s_axil_awready, s_axil_wready, s_axil_bvalid} = {s_axil_awvalid, s_axil_wvalid, s_axil_bready};
  assign {s_axil_arready, s_axil_rvalid, s_axil_rresp, s_axil_bresp} = {s_axil_arvalid, s_axil_rready, s_axil_wstrb};
  assign s_axil_rdata = s_axil_wdata ^ {8'd0, s_axil_awaddr, s_axil_araddr};
endmodule
"""


def lint(folder, modules):
    """Warnings and errors of Verilator."""
    tools = find_tools()
    for name, text in {**modules, "some_decoder": STUB}.items():
        (folder / f"{name}.v").write_text(text)
    (folder / "lint.vlt").write_text(lint_waivers())
    files = sorted(path.name for path in folder.glob("*.v"))
    done = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", "--top-module", SERIAL_TOP, "lint.vlt", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"VERILATOR_ROOT": str(tools.root)},
        check=False,
    )
    return [line for line in done.stderr.splitlines() if line.startswith("%")]


def test_lint_and_same_text(tmp_path):
    modules = serial_verilog(MANIFEST, clock_hz=80_000_000, baud=2_000_000)
    assert lint(tmp_path, modules) == []
    assert (
        serial_verilog(MANIFEST, clock_hz=80_000_000, baud=2_000_000) == modules and next(iter(modules)) == SERIAL_TOP
    )
    assert serial_verilog({**MANIFEST, "digest": "ab" * 32}, clock_hz=80_000_000, baud=2_000_000) != modules
    broken = {
        name: text.replace("assign", "assign undeclared_wire = 1'b0; assign", 1) for name, text in modules.items()
    }
    assert lint(tmp_path, broken)


def test_arguments():
    with pytest.raises(Error, match="must have a top and a digest"):
        serial_verilog({}, clock_hz=80_000_000, baud=2_000_000)
    with pytest.raises(ValueError, match="baud must be within 2% of"):
        serial_verilog(MANIFEST, clock_hz=25_000_000, baud=3_000_000)
    with pytest.raises(ValueError, match="power of 2 in 16..128, not 48"):
        serial_verilog(MANIFEST, clock_hz=80_000_000, baud=2_000_000, depth=48)
    with pytest.raises(ValueError, match="digest must be an integer of 32 bits, not -1"):
        Endpoint(-1)
    for unit in (UartReceiver, UartTransmitter):
        with pytest.raises(ValueError, match=r"divisor must be an integer in 4..65535, not 3"):
            unit(3)
    with pytest.raises(ValueError, match="not 200"):
        WordBuffer(33, 200)
