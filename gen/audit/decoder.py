"""Audit of a folder of a decoder (``intaglio gen decoder``)."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.audit.files import check_image, check_logic, compared, read
from intaglio.gen.audit.report import Report
from intaglio.gen.checkpoint.quantised import decoder_config, quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.emit.images import images, weight_names
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.rom import hex_text
from intaglio.rtl.ternary.packing import unpack

__all__ = ["audit_decoder"]

_OF_MODEL = (
    "hidden",
    "intermediate",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "vocab",
    "activation",
    "sub_norms",
    "tied_head",
)


def audit_decoder(
    folder: Path, manifest: dict[str, Any], model: Path | str, progress: Callable[[str, float], None], report: Report
) -> None:
    """Add to ``report`` what is wrong in ``folder``: of every file its digest, of every ROM its words.

    Raises
    ------
    Error
        The manifest does not describe a decoder of the checkpoint.
    """
    try:
        config, content, top = DecoderConfig.from_json(manifest["config"]), dict(manifest["content"]), manifest["top"]
    except (ValueError, KeyError, TypeError) as fault:
        raise Error(f"the manifest.json of {folder} must be that of a decoder: {fault}") from fault
    progress("reading the checkpoint", 0.0)
    checkpoint = load_checkpoint(model, allow_constant=True)
    widths = {name: getattr(config, name) for name in DecoderConfig.__dataclass_fields__ if name not in _OF_MODEL}
    if decoder_config(checkpoint.config, **widths) != config:
        raise Error(f"the decoder of {folder} must be of the model of the checkpoint, and its configuration is another")
    quantised = quantise(checkpoint, config)
    roms = images(quantised, lambda text, share: progress(text, 0.5 * share))
    report.files += 1
    weights = set(weight_names(config))
    expected = {}
    for name, words in roms.items():
        logic = config.rom == "logic" and name in weights
        expected[f"rtl/{top}_{name}.v" if logic else f"rom/{top}_{name}.hex"] = name, words, logic
    for name in sorted(expected.keys() - content.keys()):
        report.fault(name, "must be among the files of the manifest, and is not")
    for number, (name, digest) in enumerate(sorted(content.items())):
        progress(f"{name} read", 0.5 + 0.5 * number / len(content))
        found = read(report, folder, name)
        if found is None:
            continue
        if hashlib.sha256(found).hexdigest() != digest:
            report.fault(name, "is not what the manifest says")
        if name not in expected:
            continue
        rom, words, logic = expected[name]
        if rom not in weights:
            compared(report, name, found, hex_text(words))
            continue
        zeros = float((unpack(words, config.packing, config.lane_width) == 0).mean())
        if logic:
            check_logic(report, name, found, words, config.weight_word_bits, zeros, f"{top}_{rom}")
        else:
            check_image(report, name, found, np.asarray(words), config.weight_word_bits, zeros)
    for path in sorted((folder / "rom").glob("*.hex")):
        if f"rom/{path.name}" not in content:
            report.fault(f"rom/{path.name}", "is none of the decoder's files")
