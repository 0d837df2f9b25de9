"""Packages for Alveo cards and the build plan of the Arty: valid by every tool that is at hand. Vitis and Vivado are not."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import pytest

from intaglio.boards import alveo, arty
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.collateral import lint_waivers
from intaglio.gen.tools import find_program, find_tools
from intaglio.rtl.top.kernel import ARGUMENTS, KERNEL_TOP

MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
VIVADO = """\
set calls {}
foreach name {create_project add_files set_property get_files current_fileset update_compile_order close_project package_xo get_property
              ipx::package_project ipx::unload_core ipx::edit_ip_in_project ipx::current_core ipx::get_user_parameters
              ipx::remove_user_parameter ipx::associate_bus_interfaces ipx::create_xgui_files ipx::update_checksums ipx::check_integrity
              ipx::save_core ipx::add_bus_parameter ipx::get_bus_interfaces} {
    namespace eval [namespace qualifiers ::$name] {}
    proc ::$name args "puts \\"$name \\$args\\"; return {}"
}
proc unknown args { error "no such command: $args" }
source package.tcl
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, random_checkpoint(MODEL))
    return folder


@pytest.fixture(scope="module")
def packed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "u280"
    alveo.package(alveo.CARDS["u280"], checkpoint, folder, preset="small")
    return folder


def test_kernel_xml():
    (kernel,) = ElementTree.fromstring(alveo.kernel_xml())
    assert (kernel.get("name"), kernel.get("hwControlProtocol"), kernel.get("language")) == (
        KERNEL_TOP,
        "ap_ctrl_hs",
        "ip_c",
    )
    ports = {port.get("name"): port for port in kernel.find("ports")}
    assert list(ports) == ["s_axi_control", "m_axi_gmem0", "m_axi_gmem1"]
    arguments = list(kernel.find("args"))
    assert [(a.get("name"), int(a.get("id"))) for a in arguments] == [
        (name, i) for i, (name, *_) in enumerate(ARGUMENTS)
    ]
    end = 0x10  # Vitis keeps the registers before it for itself
    for argument in arguments:
        assert argument.get("port") in ports
        assert (
            (argument.get("addressQualifier") == "1")
            == argument.get("port").startswith("m_axi")
            == (argument.get("size") == "0x8")
        )
        assert int(argument.get("offset"), 16) >= end and int(argument.get("offset"), 16) % 4 == 0
        end = int(argument.get("offset"), 16) + int(argument.get("size"), 16)
    assert end <= int(ports["s_axi_control"].get("range"), 16)


def test_ports_are_those_of_the_description(packed):
    text = (packed / "rtl" / f"{KERNEL_TOP}.v").read_text()
    found = set(re.findall(r"^  (?:input|output) (?:\[\d+:0\] )?(\w+);", text, re.MULTILINE))
    for port in ElementTree.fromstring(alveo.kernel_xml()).iter("port"):
        assert any(name.startswith(port.get("name") + "_") for name in found)
    assert {"ap_clk", "ap_rst_n"} <= found
    width = re.search(r"\[(\d+):0\] m_axi_gmem0_rdata;", text)
    assert int(width[1]) == 63


@pytest.mark.parametrize("name", alveo.CARDS)
def test_connectivity(name):
    card = alveo.CARDS[name]
    lines = alveo.connectivity(card).splitlines()
    assert lines[0] == f"platform={card.platform}" and name in card.platform and card.part.startswith(f"xc{name}")
    assert [line for line in lines if line.startswith("sp=")] == [
        f"sp={KERNEL_TOP}_1.operations:HBM[0]",
        f"sp={KERNEL_TOP}_1.answers:HBM[1]",
    ]


@pytest.mark.skipif(find_program("tclsh") is None, reason="needs tclsh (apt install tcl)")
def test_tcl_runs_to_its_end(packed):
    """With a stand-in for every command of Vivado, which prints its words; any other command is an error."""
    whole = subprocess.run(
        [find_program("tclsh")],
        cwd=packed,
        text=True,
        capture_output=True,
        input="set f [open package.tcl]; puts [info complete [read $f]]",
    )
    assert whole.stdout.strip() == "1"
    done = subprocess.run([find_program("tclsh")], input=VIVADO, cwd=packed, text=True, capture_output=True)
    calls = done.stdout.splitlines()
    assert done.stderr == "" and calls[0].startswith("create_project -force pack")
    assert (
        calls[-1].startswith("package_xo ") and f"-kernel_name {KERNEL_TOP}" in calls[-1] and "kernel.xml" in calls[-1]
    )
    added = " ".join(call for call in calls if call.startswith("add_files"))
    for path in [*packed.glob("rtl/*.v"), *packed.glob("rom/*.hex")]:
        assert str(path) in added
    (frequency,) = (
        number for number, call in enumerate(calls) if call.startswith("ipx::add_bus_parameter -quiet FREQ_HZ")
    )
    assert calls[frequency - 1].startswith("ipx::get_bus_interfaces ap_clk")
    assert calls[frequency + 1].startswith("set_property value 200000000")
    assert frequency < next(number for number, call in enumerate(calls) if call.startswith("ipx::check_integrity"))
    assert "set_property xpm_libraries XPM_CDC XPM_MEMORY XPM_FIFO" in " ".join(
        call.replace("{", "").replace("}", "") for call in calls
    )


def test_files_of_the_user_are_neither_packed_nor_removed(checkpoint, packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "u280")
    (folder / "rtl" / "bench.v").write_text("module bench; endmodule\n")
    described = alveo.package(alveo.CARDS["u280"], checkpoint, folder, preset="small")
    assert (folder / "rtl" / "bench.v").is_file() and "bench.v" not in (folder / "package.tcl").read_text()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert (
        files == {*described["content"], "manifest.json", "rtl/bench.v"}
        and "rtl/intaglio_kernel.v" in described["files"]["verilog"]
    )


def test_lint(packed, tmp_path):
    waivers = tmp_path / "lint.vlt"
    waivers.write_text(lint_waivers())
    tools = find_tools()
    done = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", "--top-module", KERNEL_TOP, waivers, *sorted(packed.glob("rtl/*.v"))],
        cwd=packed,
        env={**os.environ, "VERILATOR_ROOT": str(tools.root)},
        capture_output=True,
        text=True,
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("%")] == []


@pytest.mark.slow
def test_yosys_maps_the_kernel_for_ultrascale(packed):
    """The very Verilog of the package; the images are where its IP would find them."""
    files = " ".join(str(path) for path in sorted(packed.glob("rtl/*.v")))
    steps = (
        f"read_verilog -defer {files}",
        f"hierarchy -check -top {KERNEL_TOP}",
        f"synth_xilinx -family xcup -top {KERNEL_TOP}",
        "check -assert",
        "select -assert-min 1 t:DSP48E2",
        "select -assert-min 1000 t:LUT*",
    )
    script = "\n".join(
        ["from pyosys import libyosys as y", "d = y.Design()"] + [f"y.run_pass({step!r}, d)" for step in steps]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=packed / "rom", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_arty_archive(checkpoint, tmp_path):
    widths = tmp_path / "out"
    path = arty.archive(checkpoint, widths, preset="small")
    again = arty.archive(checkpoint, tmp_path / "again", preset="small")
    assert path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        script, constraints = (archive.read(f"intaglio_arty.{kind}").decode() for kind in ("tcl", "xdc"))
    assert {
        "build_intaglio_arty.sh",
        "intaglio_decoder.v",
        "intaglio_serial.v",
        "rom/intaglio_decoder_weights_0.hex",
    } <= names
    for name in names:
        if name.endswith(".v") and name != "intaglio_arty.debug.v":
            assert f'"{name}"' in script or f" {name}" in script, name
    images = " ".join(sorted(name for name in names if name.endswith(".hex")))
    assert f"set images [list {images}]\nadd_files -norecurse $images\n" in script
    assert script.index("{Memory Initialization Files} [get_files $images]") < script.index("synth_design")
    for ball in ("E3", "A9", "D10", "C2"):
        assert f"set_property LOC {ball} " in constraints
