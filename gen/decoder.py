"""Generate a decoder: checkpoint and preset in; Verilog, ROM images, manifest and collateral out."""

import hashlib
import json
from pathlib import Path

import numpy as np

from intaglio import __version__
from intaglio.gen import collateral, output
from intaglio.gen.checkpoint import load_checkpoint
from intaglio.gen.images import images
from intaglio.gen.model import ModelConfig
from intaglio.gen.power_intent import power_intent
from intaglio.gen.presets import config_for
from intaglio.gen.quantised import quantise
from intaglio.gen.verilog import convert
from intaglio.rtl.ram import RAM_MODULE, RAM_VERILOG
from intaglio.rtl.registers import register_map
from intaglio.rtl.rom import ROM_MODULE, ROM_VERILOG, hex_text
from intaglio.rtl.shell import DecoderShell
from intaglio.rtl.ternary.gate import POWER_MODULE, POWER_VERILOG
from intaglio.rtl.ternary.lane import lane_designs

__all__ = ["generate"]

TOP = "intaglio_decoder"


def generate(model, preset, out, *, progress=None, reuse=False, allow_constant=False, **widths):
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
    allow_constant : bool
        Accept a checkpoint folder with matrices of one value throughout, or norms of zeros.

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

    out = output.check_folder(out)
    tell("checkpoint", 0.0)
    if isinstance(model, (str, Path)):
        config_for(ModelConfig.from_json(Path(model) / "config.json"), preset, **widths)  # tells what does not fit before weights are read
        checkpoint = load_checkpoint(model, allow_constant=allow_constant)
    else:
        checkpoint = model
    config = config_for(checkpoint.config, preset, **widths)
    inputs = _inputs_digest(checkpoint, preset, config)
    if reuse and (kept := output.kept(out, inputs)):
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
    content |= {"lint.vlt": collateral.lint_waivers().encode(),
                f"{TOP}.core": collateral.core_file(files, "decoder", TOP, "Ternary decoder language model").encode(),
                f"{TOP}.h": collateral.c_header(digest, TOP, register_map(config)).encode()}
    if config.gate_words:
        files["power"] = [f"{TOP}.upf"]
        content[f"{TOP}.upf"] = power_intent(config, TOP).encode()
    described = collateral.manifest(
        quantised, bos=checkpoint.config.bos_token_id, eos=checkpoint.config.eos_token_id, preset=preset,
        digest=digest, files=files, zero_share=_zero_share(quantised),
        inputs=inputs, content=output.content_digest(content), adapter=collateral.adapter_layout(checkpoint, config))
    output.write(out, content, output.json_text(described).encode())
    tell("written", 1.0)
    return described


def _modules(config, program_words, digest_word):
    """Verilog of every module by name."""
    shell = DecoderShell(config, program_words, digest_word)
    modules = convert(shell, TOP, shell.port_map())
    for name, design, ports in lane_designs(config):
        modules |= convert(design, name, ports)
    gated = {POWER_MODULE: POWER_VERILOG} if config.gate_words else {}
    return modules | gated | {ROM_MODULE: ROM_VERILOG, RAM_MODULE: RAM_VERILOG}


def _zero_share(quantised):
    """Share of zero ternary weights."""
    matrices = [matrix for layer in quantised.layers for matrix in layer.matrices.values()]
    return 1 - sum(np.count_nonzero(m) for m in matrices) / sum(m.size for m in matrices)


def _inputs_digest(checkpoint, preset, config):
    """Everything that the output depends on."""
    key = output.sources_digest(config.digest(), preset, checkpoint.config, collateral.tools())
    for layer in checkpoint.layers:
        for name, matrix in layer.matrices.items():
            key.update(f"{name} {matrix.scale!r}".encode() + matrix.weights.tobytes())
        for name, gains in layer.norms.items():
            key.update(name.encode() + gains.tobytes())
    key.update(checkpoint.embed.tobytes() + checkpoint.final_norm.tobytes())
    return key.hexdigest()


def _digest(config, roms):
    parts = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in roms.items()}
    text = json.dumps({"config": config.digest(), "generator": __version__, "roms": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
