"""Generate a decoder: checkpoint and preset in; Verilog, ROM images, manifest and collateral out."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import __version__
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.text import tokenizer_kind
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.emit import collateral, output
from intaglio.gen.emit.images import images, weight_names
from intaglio.gen.emit.logic import check_logic, logic_modules
from intaglio.gen.emit.naming import checked_prefix, renamed, top_name
from intaglio.gen.emit.power_intent import power_intent
from intaglio.gen.emit.verilog import convert
from intaglio.gen.presets.decoder import config_for
from intaglio.progress import silent
from intaglio.rtl.bus.axi import port_map
from intaglio.rtl.memory.ram import RAM_MODULE, RAM_VERILOG
from intaglio.rtl.memory.rom import ROM_MODULE, ROM_VERILOG
from intaglio.rtl.ternary.gate import POWER_MODULE, POWER_VERILOG
from intaglio.rtl.ternary.lane import lane_designs
from intaglio.rtl.top.decoder_registers import register_map
from intaglio.rtl.top.decoder_shell import DecoderShell

__all__ = ["KIND", "contents", "generate"]

KIND = "decoder"


def generate(
    model: Path | str | Checkpoint,
    preset: str,
    out: Path | str,
    *,
    prefix: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    reuse: bool = False,
    allow_constant: bool = False,
    processes: int = 1,
    **widths: int | str,
) -> dict[str, Any]:
    """Write a decoder to the folder ``out``.

    Parameters
    ----------
    model : path of a checkpoint folder, or a Checkpoint
    preset : str
        A name of :data:`~intaglio.gen.presets.decoder.PRESETS`; ``widths`` change single fields.
    out : path
        Must not exist, be empty, or hold an earlier decoder, whose files are replaced; other files in it stay.
    prefix : str or None
        The top is ``<prefix>_decoder``, and every name of the design begins with that (:mod:`intaglio.gen.emit.naming`); by default it has
        the first digits of the digest in it, so that designs of different content can stand in one project.
    progress : callable or None
        Called with a text and the share done (0 to 1).
    reuse : bool
        Keep an earlier output of the same checkpoint, widths, prefix, generator and tools, if none of its files has changed.
    allow_constant : bool
        Accept a checkpoint folder with matrices of one value throughout, or norms of zeros.
    processes : int
        That make weight ROMs as logic, 1 to 64. More than one start anew from the caller's main module, as ``multiprocessing`` does.

    Returns
    -------
    dict : the manifest. The same checkpoint, widths, prefix and tool versions give the same bytes in every file.

    Raises
    ------
    Error, ValueError
        The folder holds something else; the checkpoint or the widths do not fit.
    """
    out, tell = output.check_folder(out, KIND), progress or silent
    checkpoint, config, inputs = _inputs(model, preset, prefix, widths, tell, allow_constant, processes)
    if reuse and (kept := output.kept(out, inputs)):
        return kept
    described = output.write(out, *_design(checkpoint, config, preset, prefix, inputs, tell, processes))
    tell("written", 1.0)
    return described


def contents(
    model: Path | str | Checkpoint,
    preset: str,
    *,
    prefix: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    **widths: int | str,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What :func:`generate` writes, for packages with more in them: a dict of relative path to bytes, and the manifest."""
    checkpoint, config, inputs = _inputs(model, preset, prefix, widths, progress or silent)
    return _design(checkpoint, config, preset, prefix, inputs, progress or silent)


def _inputs(model, preset, prefix, widths, tell, allow_constant=False, processes=1):
    """Checkpoint, configuration, and the digest of all that the output depends on. What does not fit is told before weights are read."""
    checked_prefix(prefix)
    if isinstance(model, (str, Path)):
        check_logic(config_for(ModelConfig.from_json(Path(model) / "config.json"), preset, **widths), processes)
        tell("reading the checkpoint", 0.0)
        checkpoint = load_checkpoint(model, allow_constant=allow_constant)
    else:
        tell("checkpoint", 0.0)
        checkpoint = model
    config = config_for(checkpoint.config, preset, **widths)
    check_logic(config, processes)
    return checkpoint, config, _inputs_digest(checkpoint, preset, prefix, config)


def _design(checkpoint, config, preset, prefix, inputs, tell, processes=1):
    quantised = quantise(checkpoint, config)
    config = quantised.config
    roms = images(quantised, lambda text, share: tell(text, 0.05 + 0.35 * share))
    digest = _digest(config, roms)
    top = top_name(KIND, digest, prefix)
    modules = _modules(config, len(roms["program"]), int(digest[:8], 16), tell)
    if config.rom == "logic":
        modules |= logic_modules(config, roms, processes, lambda text, share: tell(text, 0.8 + 0.1 * share))
        roms = {name: image for name, image in roms.items() if name not in weight_names(config)}
    modules = renamed(modules, KIND, top)
    tell("files", 0.9)
    content, files = collateral.design_files(
        modules,
        roms,
        top=top,
        digest=digest,
        registers=register_map(config),
        description="Ternary decoder language model",
    )
    if checkpoint.text:
        files["tokenizer"] = sorted(f"tokenizer/{name}" for name in checkpoint.text)
        content |= {f"tokenizer/{name}": data for name, data in checkpoint.text.items()}
    if config.gate_words:
        files["power"] = [f"{top}.upf"]
        content[f"{top}.upf"] = power_intent(config, top).encode()
    return content, collateral.manifest(
        quantised,
        bos=checkpoint.config.bos_token_id,
        eos=checkpoint.config.eos_token_id,
        tokenizer=tokenizer_kind(checkpoint.text, config.vocab),
        preset=preset,
        top=top,
        digest=digest,
        files=files,
        zero_share=_zero_share(quantised),
        inputs=inputs,
        adapter=collateral.adapter_layout(checkpoint, config),
    )


def _modules(config, program_words, digest_word, tell):
    """Verilog of every module by name."""
    tell("Verilog of the decoder", 0.4)
    shell = DecoderShell(config, program_words, digest_word)
    modules = convert(shell, f"intaglio_{KIND}", port_map(shell))
    for name, design, ports in lane_designs(config):
        tell(f"Verilog of {name}", 0.8)
        modules |= convert(design, name, ports)
    gated = {POWER_MODULE: POWER_VERILOG} if config.gate_words else {}
    return modules | gated | {ROM_MODULE: ROM_VERILOG, RAM_MODULE: RAM_VERILOG}


def _zero_share(quantised):
    """Share of zero ternary weights."""
    matrices = [matrix for layer in quantised.layers for matrix in layer.matrices.values()]
    return 1 - sum(np.count_nonzero(m) for m in matrices) / sum(m.size for m in matrices)


def _inputs_digest(checkpoint, preset, prefix, config):
    key = output.sources_digest(config.digest(), preset, prefix, checkpoint.config, collateral.tools())
    for layer in checkpoint.layers:
        for name, matrix in layer.matrices.items():
            key.update(f"{name} {matrix.scale!r}".encode() + matrix.weights.tobytes())
        for name, gains in layer.norms.items():
            key.update(name.encode() + gains.tobytes())
    key.update(checkpoint.embed.tobytes() + checkpoint.final_norm.tobytes())
    key.update(b"" if checkpoint.head is None else checkpoint.head.tobytes())
    for name, data in sorted(checkpoint.text.items()):
        key.update(f"{name} {len(data)}".encode() + data)
    return key.hexdigest()


def _digest(config, roms):
    parts = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in roms.items()}
    # With all that the Verilog is made of, since its names have this digest in them; the prefix, which changes names alone, is no part.
    text = json.dumps(
        {"config": config.digest(), "generator": __version__, "tools": collateral.tools(), "roms": parts},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()
