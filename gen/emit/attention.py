"""Generate the prefill attention unit: Verilog, manifest and collateral in a folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intaglio import __version__
from intaglio.gen.emit import collateral, output
from intaglio.gen.emit.naming import checked_prefix, renamed, top_name
from intaglio.gen.emit.verilog import convert
from intaglio.gen.presets.attention import prefill_config
from intaglio.gen.sources import sources_digest
from intaglio.progress import silent
from intaglio.rtl.bus.axi import port_map
from intaglio.rtl.bus.registers import REGISTER_ADDRESS_BITS
from intaglio.rtl.bus.streams import RunPhase
from intaglio.rtl.memory.ram import RAM_MODULE, RAM_VERILOG
from intaglio.rtl.top.attention import MONITOR
from intaglio.rtl.top.attention_registers import COUNTERS, PHASES, REGISTER_MAP
from intaglio.rtl.top.attention_shell import HEAD_BIT, USER_BITS, VOID_BIT, PrefillShell

__all__ = ["KIND", "generate"]

KIND, NAME = "prefill-attention", "prefill"  # in the manifest; in the names of modules


def generate(
    preset: str,
    out: Path | str,
    *,
    prefix: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    reuse: bool = False,
    **changes: int,
) -> dict[str, Any]:
    """Write a prefill attention unit to the folder ``out``.

    Parameters
    ----------
    preset : str
        A name of :data:`~intaglio.gen.presets.attention.PRESETS`; ``changes`` change single fields.
    out, prefix, progress, reuse
        As in :func:`intaglio.gen.emit.decoder.generate`; the top is ``<prefix>_prefill``.

    Returns
    -------
    dict : the manifest. The same shape, prefix and tool versions give the same bytes in every file.

    Raises
    ------
    Error, ValueError
        The folder holds something else; the shape does not fit.
    """
    tell = progress or silent
    out = output.check_folder(out, KIND)
    checked_prefix(prefix)
    config = prefill_config(preset, **changes)
    inputs = sources_digest(config.to_json(), preset, prefix, collateral.tools()).hexdigest()
    if reuse and (kept := output.kept(out, inputs)):
        return kept
    made_of = {"config": config.digest(), "generator": __version__, "tools": collateral.tools()}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    top = top_name(NAME, digest, prefix)
    tell("Verilog", 0.0)
    shell = PrefillShell(config, int(digest[:8], 16))
    modules = renamed(convert(shell, f"intaglio_{NAME}", port_map(shell)) | {RAM_MODULE: RAM_VERILOG}, NAME, top)
    tell("files", 0.95)
    content, files = collateral.design_files(
        modules, {}, top=top, digest=digest, registers=REGISTER_MAP, description="Sparse prefill attention"
    )
    described = output.write(out, content, _manifest(config, preset, top, digest, files) | {"inputs": inputs})
    tell("written", 1.0)
    return described


def _manifest(config, preset, top, digest, files):
    return {
        "format": output.FORMAT,
        "format_version": 1,
        "generator": __version__,
        "kind": KIND,
        "top": top,
        "digest": digest,
        "clock": "aclk",
        "reset": "aresetn",
        "clock_hz": config.clock_hz,
        "preset": preset,
        "streams": {
            "result": {
                "prefix": "m_axis",
                "direction": "out",
                "width": 16 * config.drain,
                "user_width": USER_BITS,
                "fields": {"values": [0, 16 * config.drain]},
                "user": {"block": [0, HEAD_BIT], "head": [HEAD_BIT, 8], "void": [VOID_BIT, 1]},
            }
        },
        "memory_bus": {"prefix": "m_axi", "data_width": 8 * config.head_dim, "address_width": 44},
        "register_bus": {"prefix": "s_axil", "address_width": REGISTER_ADDRESS_BITS, "data_width": 32},
        "registers": collateral.register_fields(REGISTER_MAP),
        "counters": list(COUNTERS),
        "phases": [phase.name.lower() for phase in PHASES],
        "monitor": {
            "port": "monitor",
            "phases": [phase.name.lower() for phase in RunPhase],
            "bits": {name: 4 + number for number, name in enumerate(MONITOR)},
        },
        "config": config.to_json(),
        "files": files,
        "tools": collateral.tools(),
    }
