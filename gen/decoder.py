"""Generate a decoder: checkpoint and preset in; Verilog, ROM images, manifest and collateral out."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from intaglio import Error, __version__
from intaglio.gen import collateral
from intaglio.gen.checkpoint import load_checkpoint
from intaglio.gen.images import images
from intaglio.gen.model import ModelConfig
from intaglio.gen.presets import config_for
from intaglio.gen.quantised import quantise
from intaglio.gen.sources import sources_digest
from intaglio.gen.verilog import convert
from intaglio.rtl.ram import RAM_MODULE, RAM_VERILOG
from intaglio.rtl.rom import ROM_MODULE, ROM_VERILOG, hex_text
from intaglio.rtl.shell import DecoderShell
from intaglio.rtl.ternary.lane import lane_designs

__all__ = ["generate"]

TOP = "intaglio_decoder"


def generate(model, preset, out, *, progress=None, reuse=False, **widths):
    """Write a decoder to the folder ``out``.

    Parameters
    ----------
    model : path of a checkpoint folder, or a Checkpoint
    preset : str
        A name of :data:`~intaglio.gen.presets.PRESETS`; ``widths`` change single fields.
    out : path
        Must not exist, be empty, or hold an earlier output, which is replaced.
    progress : callable or None
        Called with a text and the share done (0 to 1).
    reuse : bool
        Keep an earlier output of the same checkpoint, widths, generator and tools, if none of its files has changed.

    Returns
    -------
    dict : the manifest. The same checkpoint, widths and tool versions give the same bytes in every file.

    Raises
    ------
    Error, ValueError
        The folder holds something else; the checkpoint or the widths do not fit.
    """
    def tell(text, share):
        if progress:
            progress(text, share)

    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not _is_output(out)):
        raise Error(f"the output folder must be empty or an earlier output, and {out} is neither")
    tell("checkpoint", 0.0)
    if isinstance(model, (str, Path)):
        config_for(ModelConfig.from_json(Path(model) / "config.json"), preset, **widths)  # tells what does not fit before weights are read
        checkpoint = load_checkpoint(model)
    else:
        checkpoint = model
    config = config_for(checkpoint.config, preset, **widths)
    inputs = _inputs_digest(checkpoint, preset, config)
    if reuse and (kept := _kept(out, inputs)):
        return kept
    quantised = quantise(checkpoint, config)
    config = quantised.config
    roms = images(quantised, lambda text, share: tell(text, 0.05 + 0.35 * share))
    digest = _digest(config, roms)
    tell("Verilog", 0.4)
    modules = _modules(config, len(roms["program"]), int(digest[:8], 16))
    tell("files", 0.9)
    files = {"verilog": sorted(f"rtl/{name}.v" for name in modules), "rom": sorted(f"rom/{name}.hex" for name in roms),
             "lint": ["lint.vlt"]}
    content = {f"rtl/{name}.v": text.encode() for name, text in modules.items()}
    content |= {f"rom/{name}.hex": hex_text(image) for name, image in roms.items()}
    content |= {"lint.vlt": collateral.lint_waivers().encode(), f"{TOP}.core": collateral.core_file(files).encode(),
                f"{TOP}.h": collateral.c_header(digest).encode()}
    described = collateral.manifest(
        quantised, bos=checkpoint.config.bos_token_id, eos=checkpoint.config.eos_token_id, preset=preset,
        digest=digest, files=files, zero_share=_zero_share(quantised),
        inputs=inputs, content=_content_digest(content))
    _write(out, content, collateral.json_text(described).encode())
    tell("written", 1.0)
    return described


def _modules(config, program_words, digest_word):
    """Verilog of every module by name."""
    shell = DecoderShell(config, program_words, digest_word)
    modules = convert(shell, TOP, shell.port_map())
    for name, design, ports in lane_designs(config):
        modules |= convert(design, name, ports)
    return modules | {ROM_MODULE: ROM_VERILOG, RAM_MODULE: RAM_VERILOG}


def _zero_share(quantised):
    """Share of zero ternary weights."""
    matrices = [matrix for layer in quantised.layers for matrix in layer.matrices.values()]
    return 1 - sum(np.count_nonzero(m) for m in matrices) / sum(m.size for m in matrices)


def _inputs_digest(checkpoint, preset, config):
    """Everything that the output depends on."""
    key = hashlib.sha256(repr((config.digest(), preset, checkpoint.config, collateral.tools())).encode())
    for layer in checkpoint.layers:
        for name, matrix in layer.matrices.items():
            key.update(f"{name} {matrix.scale!r}".encode() + matrix.weights.tobytes())
        for name, gains in layer.norms.items():
            key.update(name.encode() + gains.tobytes())
    key.update(checkpoint.embed.tobytes() + checkpoint.final_norm.tobytes())
    key.update(sources_digest())
    return key.hexdigest()


def _content_digest(content):
    key = hashlib.sha256()
    for name in sorted(content):
        key.update(name.encode() + b"\0" + hashlib.sha256(content[name]).digest())
    return key.hexdigest()


def _kept(out, inputs):
    """The manifest of the output in ``out`` if it was made of the same inputs and is whole."""
    try:
        described = json.loads((out / "manifest.json").read_bytes())
        if described.get("inputs") != inputs:
            return None
        content = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*")
                   if path.is_file() and path.name != "manifest.json"}
    except (OSError, ValueError):
        return None
    return described if _content_digest(content) == described.get("content") else None


def _digest(config, roms):
    parts = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in roms.items()}
    text = json.dumps({"config": config.digest(), "generator": __version__, "roms": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_output(out):
    """Whether the folder has a manifest of ours: nothing else may be replaced."""
    try:
        described = json.loads((out / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("format") == collateral.FORMAT


def _write(out, content, manifest):
    """Write beside the target and swap, manifest last, so that a killed run leaves no output that looks whole."""
    partial, former = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "former"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, data in content.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (partial / "manifest.json").write_bytes(manifest)
        shutil.rmtree(former, ignore_errors=True)
        if out.exists():
            out.rename(former)
        partial.rename(out)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise Error(f"cannot write the output folder {out}: {fault}") from fault
