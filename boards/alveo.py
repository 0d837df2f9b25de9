"""RTL kernels for Alveo cards: everything that Vitis needs to make an xclbin, generated and never run by Vitis here.

Formats: UG1393 (Vitis application acceleration), "RTL kernels", ``package_xo`` and the linker's configuration file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from intaglio.boards.config import PREFIX
from intaglio.gen.emit import output
from intaglio.gen.emit.decoder import contents
from intaglio.gen.emit.verilog import convert
from intaglio.rtl.bus.axi import port_map
from intaglio.rtl.memory.rom import ROM_DIR
from intaglio.rtl.top.kernel import ARGUMENTS, KERNEL_TOP, Kernel

__all__ = ["CARDS", "Card", "connectivity", "kernel_verilog", "kernel_xml", "package", "package_tcl"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card, and the memory bank of each port.

    Parameters
    ----------
    name, part, platform : str
        The platform is the name that ``v++ --platform`` takes.
    banks : dict
        Of the ports ``gmem0`` (operations) and ``gmem1`` (answers).
    clock_hz : int
    """

    name: str
    part: str
    platform: str
    banks: dict
    clock_hz: int = 200_000_000


_BANKS = {"gmem0": "HBM[0]", "gmem1": "HBM[1]"}
CARDS = {
    card.name: card
    for card in (
        Card(name="u280", part="xcu280-fsvh2892-2L-e", platform="xilinx_u280_gen3x16_xdma_1_202211_1", banks=_BANKS),
        Card(name="u55c", part="xcu55c-fsvh2892-2L-e", platform="xilinx_u55c_gen3x16_xdma_3_202210_1", banks=_BANKS),
    )
}


def kernel_verilog(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Modules of the kernel around the decoder of a manifest as a dict of name to Verilog; the decoder's own are not included."""
    kernel = Kernel(manifest["top"])
    return convert(kernel, KERNEL_TOP, port_map(kernel))


def kernel_xml() -> str:
    """Description of the kernel's ports and arguments."""
    root = ElementTree.Element("root", versionMajor="1", versionMinor="6")
    kernel = ElementTree.SubElement(
        root,
        "kernel",
        {
            "name": KERNEL_TOP,
            "language": "ip_c",
            "vlnv": f"intaglio:kernel:{KERNEL_TOP}:1.0",
            "attributes": "",
            "preferredWorkGroupSizeMultiple": "0",
            "workGroupSize": "1",
            "interrupt": "false",
            "hwControlProtocol": "ap_ctrl_hs",
        },
    )
    ports, arguments = ElementTree.SubElement(kernel, "ports"), ElementTree.SubElement(kernel, "args")
    ElementTree.SubElement(
        ports,
        "port",
        name="s_axi_control",
        mode="slave",
        range="0x1000",
        dataWidth="32",
        portType="addressable",
        base="0x0",
    )
    for port in ("gmem0", "gmem1"):
        ElementTree.SubElement(
            ports,
            "port",
            name=f"m_axi_{port}",
            mode="master",
            range="0xFFFFFFFFFFFFFFFF",
            dataWidth="64",
            portType="addressable",
            base="0x0",
        )
    for number, (name, offset, size, memory) in enumerate(ARGUMENTS):
        ElementTree.SubElement(
            arguments,
            "arg",
            {
                "name": name,
                "addressQualifier": "1" if memory else "0",
                "id": str(number),
                "port": f"m_axi_{memory}" if memory else "s_axi_control",
                "size": hex(size),
                "offset": hex(offset),
                "hostOffset": "0x0",
                "hostSize": hex(size),
                "type": "long*" if memory else "uint",
            },
        )
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def package_tcl(card: Card, manifest: Mapping[str, Any]) -> str:
    """Script for ``vivado -mode batch -source package.tcl``: packs the sources beside it as ``intaglio_kernel.xo``.

    Files are named one by one, as ``manifest`` lists them: what else lies in the folders is not packed. Of the clock the IP states the
    frequency that the linker is asked for; its value may be changed there. The XPM libraries are those that Vitis' own wizard names.
    """

    def listed(kind):
        return " ".join(f"$here/{name}" for name in manifest["files"][kind])

    return f"""\
# Packs the kernel for {card.name}: vivado -mode batch -source package.tcl
set here [file dirname [file normalize [info script]]]
set name {KERNEL_TOP}
create_project -force pack $here/pack -part {card.part}
add_files -norecurse [list {listed("verilog")}]
# $readmemh finds them by their names alone, in the project and in the packed IP
set images [list {listed("rom")}]
add_files -norecurse $images
set_property file_type {{Memory Initialization Files}} [get_files $images]
set_property top $name [current_fileset]
update_compile_order -fileset sources_1
ipx::package_project -root_dir $here/ip -vendor intaglio -library kernel -taxonomy /KernelIP -import_files -set_current false
ipx::unload_core $here/ip/component.xml
ipx::edit_ip_in_project -upgrade true -name edit -directory $here/ip $here/ip/component.xml
set core [ipx::current_core]
set_property core_revision 1 $core
foreach parameter [ipx::get_user_parameters -of_objects $core] {{
    ipx::remove_user_parameter [get_property NAME $parameter] $core
}}
foreach bus {{s_axi_control m_axi_gmem0 m_axi_gmem1}} {{
    ipx::associate_bus_interfaces -busif $bus -clock ap_clk $core
}}
ipx::associate_bus_interfaces -clock ap_clk -reset ap_rst_n $core
set frequency [ipx::add_bus_parameter -quiet FREQ_HZ [ipx::get_bus_interfaces ap_clk -of_objects $core]]
set_property value {card.clock_hz} $frequency
set_property value_resolve_type user $frequency
set_property xpm_libraries {{XPM_CDC XPM_MEMORY XPM_FIFO}} $core
set_property sdx_kernel true $core
set_property sdx_kernel_type rtl $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity -kernel -xrt $core
ipx::save_core $core
close_project -delete
package_xo -force -xo_path $here/$name.xo -kernel_name $name -ip_directory $here/ip -kernel_xml $here/kernel.xml
"""


def connectivity(card: Card) -> str:
    """Configuration of ``v++ --link``: one kernel, its memory banks and its clock."""
    unit = f"{KERNEL_TOP}_1"
    lines = [f"platform={card.platform}", "", "[connectivity]", f"nk={KERNEL_TOP}:1:{unit}"]
    lines += [f"sp={unit}.{name}:{card.banks[port]}" for name, _, _, port in ARGUMENTS if port]
    lines += ["", "[clock]", f"freqHz={card.clock_hz}:{unit}.ap_clk", ""]
    return "\n".join(lines)


def _build_script(card):
    return f"""\
#!/bin/sh
# Makes intaglio_{card.name}.xclbin; needs Vivado and Vitis. Neither this script nor its result has been run by intaglio's authors.
set -e
cd "$(dirname "$0")"
vivado -mode batch -source package.tcl
v++ --link --target hw --config connectivity.cfg --output intaglio_{card.name}.xclbin {KERNEL_TOP}.xo
"""


def package(
    card: Card,
    model: Path | str,
    out: Path | str,
    *,
    preset: str = "desk-4k",
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Write the package of a card into the folder ``out``.

    Parameters
    ----------
    card : Card
    model : path of a checkpoint folder
    out : path
        Gets ``rtl/``, ``rom/``, ``kernel.xml``, ``package.tcl``, ``connectivity.cfg``, ``build.sh`` and ``manifest.json``, which the
        host needs beside the xclbin. Must not exist, be empty, or hold an earlier package, whose files are replaced.

    Returns
    -------
    dict : the decoder's manifest.

    Raises
    ------
    Error, ValueError
        The folder holds something else; the checkpoint or the widths do not fit.
    """
    out = output.check_folder(out, "kernel")
    content, manifest = contents(model, preset, prefix=PREFIX, clock_hz=card.clock_hz, progress=progress)
    kernel = {f"rtl/{name}.v": text.encode() for name, text in kernel_verilog(manifest).items()}
    del content[manifest["files"].pop("core")[0]]  # images are found otherwise here than it says
    manifest["files"]["verilog"] = sorted([*manifest["files"]["verilog"], *kernel])
    # A packaged IP finds the images by their names alone.
    rom = f"rtl/{manifest['top']}_rom.v"
    content |= kernel | {rom: f'`define {ROM_DIR} ""\n'.encode() + content[rom]}
    content |= {
        name: text.encode()
        for name, text in (
            ("kernel.xml", kernel_xml()),
            ("package.tcl", package_tcl(card, manifest)),
            ("connectivity.cfg", connectivity(card)),
            ("build.sh", _build_script(card)),
        )
    }
    manifest["kernel"] = {"name": KERNEL_TOP, "card": card.name, "arguments": [name for name, *_ in ARGUMENTS]}
    described = output.write(out, content, manifest)
    (out / "build.sh").chmod(0o755)
    return described
