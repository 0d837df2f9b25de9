"""Generate a decoder: checkpoint and preset in; Verilog, ROM images, manifest and collateral out."""

import hashlib
import json
import shutil
from pathlib import Path

from intaglio import Error, __version__
from intaglio.gen import collateral
from intaglio.gen.checkpoint import load_checkpoint
from intaglio.gen.images import images
from intaglio.gen.presets import PRESETS, config_for
from intaglio.gen.quantised import quantise
from intaglio.gen.verilog import convert, merge_equal, modules_of
from intaglio.rtl.attention.cache import RAM_VERILOG
from intaglio.rtl.rom import ROM_MODULE, ROM_VERILOG, hex_text
from intaglio.rtl.shell import DecoderShell
from intaglio.rtl.ternary.lane import LANE_MODULE, lane_verilog

__all__ = ["generate"]

TOP = "intaglio_decoder"


def generate(model, preset, out, *, progress=None, **widths):
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

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not _is_output(out)):
        raise Error(f"the output folder must be empty or an earlier output, and {out} is neither")
    tell("checkpoint", 0.0)
    checkpoint = load_checkpoint(model) if isinstance(model, (str, Path)) else model
    quantised = quantise(checkpoint, config_for(checkpoint.config, preset, **widths))
    return write(quantised, out, preset=preset, tell=tell)


def write(quantised, out, *, preset, tell):
    """The second half of :func:`generate`, from the integers on."""
    config = quantised.config
    roms = images(quantised, lambda text, share: tell(text, 0.05 + 0.35 * share))
    digest = _digest(config, roms)
    tell("Verilog", 0.4)
    shell = DecoderShell(config, len(roms["program"]), int(digest[:8], 16))
    modules = convert(shell, TOP, shell.port_map())
    modules |= merge_equal(modules_of(lane_verilog(config), LANE_MODULE))
    modules |= {ROM_MODULE: ROM_VERILOG, "intaglio_ram": RAM_VERILOG}
    tell("files", 0.9)
    files = {"verilog": sorted(f"rtl/{name}.v" for name in modules), "rom": sorted(f"rom/{name}.hex" for name in roms),
             "lint": ["lint.vlt"]}
    ternary = sum(w.size for layer in quantised.layers for w in layer.matrices.values())
    nonzero = sum(int((w != 0).sum()) for layer in quantised.layers for w in layer.matrices.values())
    described = collateral.manifest(quantised, preset=preset, clock_hz=PRESETS[preset].clock_hz, digest=digest, files=files,
                                    zero_share=1 - nonzero / ternary)
    content = {f"rtl/{name}.v": text.encode() for name, text in modules.items()}
    content |= {f"rom/{name}.hex": hex_text(image) for name, image in roms.items()}
    content |= {"lint.vlt": collateral.lint_waivers().encode(), f"{TOP}.core": collateral.core_file(files).encode(),
                f"{TOP}.h": collateral.c_header(digest).encode()}
    _write(out, content, collateral.json_text(described).encode())
    tell("written", 1.0)
    return described


def _digest(config, roms):
    parts = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in roms.items()}
    text = json.dumps({"config": config.digest(), "generator": __version__, "roms": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_output(out):
    return (out / "manifest.json").is_file() and (out / "rtl").is_dir()


def _write(out, content, manifest):
    """Write beside the target and swap, manifest last, so that a killed run leaves no output that looks whole."""
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, data in content.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (partial / "manifest.json").write_bytes(manifest)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise Error(f"cannot write the output folder {out}: {fault}") from fault
