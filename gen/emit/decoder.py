"""Generate a decoder: checkpoint and preset in; Verilog, ROM images, manifest and collateral out."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intaglio import __version__
from intaglio.gen.banks.job import Job
from intaglio.gen.banks.parts import Parts
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import integer_model
from intaglio.gen.checkpoint.source import open_source, tables_of, text_of
from intaglio.gen.checkpoint.text import tokenizer_kind
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.cluster import check_scheduler
from intaglio.gen.emit import collateral, output
from intaglio.gen.emit.images import program_words, small_images
from intaglio.gen.emit.logic import check_logic, logic_modules
from intaglio.gen.emit.naming import checked_prefix, renamed, top_name
from intaglio.gen.emit.power_intent import power_intent
from intaglio.gen.emit.stream import FOLDER, FORM, placement_of, staging, streamed_images
from intaglio.gen.emit.verilog import convert
from intaglio.gen.executor import workers
from intaglio.gen.presets.decoder import config_for
from intaglio.gen.sources import sources_digest
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
NUMBERS_OF_A_PROCESS = 1 << 25  # of weights, embedding and head that are worth a process of their own


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
    scheduler: str | None = None,
    **widths: int | str,
) -> dict[str, Any]:
    """Write a decoder to the folder ``out``, in bounded memory; a run that was killed is taken up again.

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
        That read weights and make ROMs, 1 to 64, for models that are large enough. More than one start anew from the caller's main module,
        as ``multiprocessing`` does.
    scheduler : str or None
        Address of a Dask scheduler, whose workers read weights and write images in place of processes here (:mod:`intaglio.gen.cluster`).

    Returns
    -------
    dict : the manifest. The same checkpoint, widths, prefix and tool versions give the same bytes in every file.

    Raises
    ------
    Error, ValueError
        The folder holds something else; the checkpoint or the widths do not fit.
    """
    out, tell = output.check_folder(out, KIND), progress or silent
    source, config = _opened(model, preset, prefix, widths, processes, scheduler)
    with _pool(model, config, source.config, processes, scheduler) as pool:
        parts, text = _checked(source, config, out / FOLDER, pool, tell, allow_constant)
        inputs = _inputs_digest(parts, text, preset, prefix, config)
        if reuse and (kept := output.kept(out, inputs)):
            return kept
        skeleton = _skeleton(parts, config)
        output.mark(out, KIND)
        with staging(out, inputs):
            content, manifest = _design(parts, text, skeleton, pool, preset, prefix, inputs, tell, processes)
            described = output.write(out, content, manifest)
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
    tell = progress or silent
    source, config = _opened(model, preset, prefix, widths, 1)
    with tempfile.TemporaryDirectory(prefix="intaglio-") as scratch, _pool(model, config, source.config, 1) as pool:
        parts, text = _checked(source, config, Path(scratch) / FOLDER, pool, tell, False)
        inputs = _inputs_digest(parts, text, preset, prefix, config)
        skeleton = _skeleton(parts, config)
        with staging(Path(scratch), inputs):
            content, manifest = _design(parts, text, skeleton, pool, preset, prefix, inputs, tell, 1)
            read = {
                name: data.path.read_bytes() if isinstance(data, output.Staged) else data
                for name, data in content.items()
            }
    return read, manifest


def _opened(model, preset, prefix, widths, processes, scheduler=None):
    """What reads the model, and the configuration. What does not fit is told before weights are read."""
    checked_prefix(prefix)
    check_scheduler(scheduler)
    shape = model.config if isinstance(model, Checkpoint) else ModelConfig.from_json(Path(model) / "config.json")
    config = config_for(shape, preset, **widths)
    check_logic(config, processes)
    return open_source(model), config


def _pool(model, config, shape, processes, scheduler=None):
    """What does the work; a small model's takes less time than to start processes for it."""
    if not isinstance(model, Checkpoint):
        model = Path(model).resolve()
    numbers = shape.num_hidden_layers * config.layer_weights + config.vocab * config.hidden * (2 - config.tied_head)
    useful = min(processes, 1 + numbers // NUMBERS_OF_A_PROCESS)
    return workers(useful, scheduler, Job, model, placement_of(config), FORM)


def _checked(source, config, folder, pool, tell, allow_constant):
    tell("checkpoint", 0.0)
    parts = Parts(
        source,
        placement_of(config),
        folder,
        range(config.layers),
        tables_of(source.config),
        lambda text, share: tell(text, 0.5 * share),
    )
    text = text_of(source)
    parts.check(pool, allow_constant)
    return parts, text


def _skeleton(parts, config):
    """The model without its matrices and tables; raises what does not fit the hardware's scalars or the program."""
    layers = [parts.layers[index] for index in range(config.layers)]
    source = parts.source
    model = integer_model(source.config, config, parts.scales, layers, source.final_norm(), {}, {})
    program_words(model)
    return model


def _design(parts, text, skeleton, pool, preset, prefix, inputs, tell, processes):
    source, config = parts.source, skeleton.config
    staged, logic, digests, zeros = streamed_images(
        parts, pool, config, lambda text, share: tell(text, 0.1 + 0.3 * share)
    )
    small = small_images(skeleton)
    digests |= {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in small.items()}
    digest = _digest(config, digests)
    top = top_name(KIND, digest, prefix)
    modules = _modules(config, len(small["program"]), int(digest[:8], 16), tell)
    if logic:
        modules |= logic_modules(config, logic, processes, lambda text, share: tell(text, 0.8 + 0.1 * share))
    modules = renamed(modules, KIND, top)
    tell("files", 0.9)
    content, files = collateral.design_files(
        modules,
        {**staged, **small},
        top=top,
        digest=digest,
        registers=register_map(config),
        description="Ternary decoder language model",
    )
    if text:
        files["tokenizer"] = sorted(f"tokenizer/{name}" for name in text)
        content |= {f"tokenizer/{name}": data for name, data in text.items()}
    if config.gate_words:
        files["power"] = [f"{top}.upf"]
        content[f"{top}.upf"] = power_intent(config, top).encode()
    return content, collateral.manifest(
        skeleton,
        bos=source.config.bos_token_id,
        eos=source.config.eos_token_id,
        tokenizer=tokenizer_kind(text, config.vocab),
        preset=preset,
        top=top,
        digest=digest,
        files=files,
        zero_share=zeros / (config.layers * config.layer_weights),
        inputs=inputs,
        adapter=collateral.adapter_layout(source, config),
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


def _inputs_digest(parts, text, preset, prefix, config):
    key = sources_digest(config.digest(), preset, prefix, parts.source.config, collateral.tools())
    for part, digest in sorted(parts.inputs.items()):
        key.update(f"{part} {digest}".encode())
    for name, data in sorted(text.items()):
        key.update(f"{name} {len(data)}".encode() + data)
    return key.hexdigest()


def _digest(config, digests):
    # With all that the Verilog is made of, since its names have this digest in them; the prefix, which changes names alone, is no part.
    text = json.dumps(
        {"config": config.digest(), "generator": __version__, "tools": collateral.tools(), "roms": digests},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()
