"""``intaglio check``: what the toolkit will do with a checkpoint folder, or all that stands in the way, from config and headers alone."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import CheckpointReader, refusal
from intaglio.gen.checkpoint.text import read_text, tokenizer_kind
from intaglio.gen.presets.decoder import PRESETS, config_for
from intaglio.progress import Progress, silent

__all__ = ["Report", "check", "register"]

SHOWN = 20  # problems
SAMPLED = 64  # rows of each matrix that must be ternary and is stored as floats


@dataclass
class Report:
    """What :func:`check` found.

    Members
    -------
    problems : list of str
        What stands in the way; none for a checkpoint that can be generated.
    config : ModelConfig or None
    tokenizer : str
        "tokenizers", "bytes" or "none", as the manifest will say.
    presets : dict of str
        By name: memory in words, or why the preset does not fit.
    matrices : dict of str
        By stem of the tensor's name: how ternary it is, and its share of zeros, if that was asked for.
    """

    problems: list[str] = field(default_factory=list)
    config: ModelConfig | None = None
    tokenizer: str = "none"
    presets: dict[str, str] = field(default_factory=dict)
    matrices: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.config is not None:
            yield from _model_lines(self.config)
            texts = {"tokenizers": "its own tokenizer.json", "bytes": "tokens are bytes", "none": "none: tokens only"}
            yield f"text: {texts[self.tokenizer]}"
            yield from (f"preset {name}: {text}" for name, text in self.presets.items())
        yield from (f"{stem}: {text}" for stem, text in self.matrices.items())
        if self.problems:
            yield f"{len(self.problems)} in the way:"
            yield from (f"  {text}" for text in self.problems[:SHOWN])
            if len(self.problems) > SHOWN:
                yield f"  and {len(self.problems) - SHOWN} more"
        else:
            yield "nothing in the way: intaglio gen decoder takes it"


def check(folder: Path | str, *, ternary: bool = False, progress: Callable[[str, float], None] | None = None) -> Report:
    """Look at a checkpoint folder; nothing is raised, all that is wrong is in the report.

    Of weights, only the first rows of those that are floats without a ``quantization_config`` are read, which must be ternary times a
    scale. Values are looked at by ``gen``: weights that are not ternary, what is not finite, matrices of one value, a stored head that is
    not the embedding.

    Parameters
    ----------
    folder : path
    ternary : bool
        Read every matrix, a few rows at a time, and say how far it is from ternary and how many of its weights are zero.
    progress : callable or None
        Called with a text and the share done (0 to 1).
    """
    folder, report = Path(folder), Report()
    try:
        report.problems += ModelConfig.problems(folder / "config.json")
        if report.problems:
            return report
        report.config = ModelConfig.from_json(folder / "config.json")
    except CheckpointError as fault:
        report.problems.append(str(fault))
        return report
    try:
        reader = CheckpointReader(folder, problems=report.problems)
        if not report.problems:
            _look_at_matrices(reader, report, ternary, progress or silent)
    except CheckpointError as fault:
        report.problems.append(str(fault))
    try:
        report.tokenizer = tokenizer_kind(read_text(folder, report.config), report.config.vocab_size)
    except CheckpointError as fault:
        report.problems.append(str(fault))
    report.presets = {name: _fit(report.config, name) for name in PRESETS}
    return report


def _look_at_matrices(reader, report, ternary, tell):
    """How ternary the matrices are: all of them, or what must be of the first rows."""
    must = reader.config.quantization_mode == "floats"
    if not ternary and not must:
        return
    stems = list(reader.stems())
    for count, stem in enumerate(stems, 1):
        try:
            if reader.stored_floats(stem):
                found = reader.distance(stem, None if ternary else SAMPLED)
                if must and not found.ternary:
                    report.problems.append(refusal(stem, found))
                text, zeros = found.text, found.zeros
            else:
                text, zeros = "packed", reader.zeros(stem)
            if ternary:
                report.matrices[stem] = f"{text}, zeros {100 * zeros:.1f} %"
        except CheckpointError as fault:
            report.problems.append(str(fault))
        tell(f"{stem}", count / len(stems))


def _model_lines(c):
    trits = c.num_hidden_layers * sum(rows * columns for rows, columns in c.matrix_shapes.values())
    yield (
        f"{c.model_type}: {c.num_hidden_layers} layers of {c.hidden_size}, feed-forward {c.intermediate_size} ({c.hidden_act}), "
        f"{c.num_attention_heads} heads on {c.num_key_value_heads} of {c.head_dim}; {trits:,} ternary weights"
    )
    storage = {
        "online": f"rounded from the stored floats, linear_class {c.linear_class}",
        "offline": f"stored ternary, linear_class {c.linear_class}",
        "floats": "floats, each matrix ternary times a scale",
    }
    yield f"weights: {storage[c.quantization_mode]}"
    head = "the embedding" if c.tie_word_embeddings else "of its own"
    yield f"vocabulary: {c.vocab_size:,} tokens, head {head}"
    kind = "" if c.rope_scaling is None else f", scaled ({c.to_json()['rope_scaling']['rope_type']})"
    yield f"rotary base: {c.rope_theta:g}{kind}; at most {c.max_position_embeddings:,} positions"


def _fit(model, preset):
    """Memory that a preset needs, in words, or why it does not fit."""
    try:
        c = config_for(model, preset)
    except ValueError as fault:
        return f"does not fit: {fault}"
    weights = c.layers * c.layer_weights // c.lane_width * c.weight_word_bits
    table = (1 if model.tie_word_embeddings else 2) * 8 * c.vocab * c.hidden
    cache = c.sequences * 2 * c.layers * c.kv_heads * c.context * (8 * c.head_dim + 26)
    named = (("weights", weights), ("embedding and head", table), (f"KV cache of {c.context} tokens", cache))
    return ", ".join(f"{what} {_size(bits)}" for what, bits in named)


def _size(bits):
    for unit, size in (("GiB", 1 << 33), ("MiB", 1 << 23), ("KiB", 1 << 13)):
        if bits >= size:
            return f"{bits / size:.1f} {unit}"
    return f"{-(-bits // 8)} bytes"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``check``."""
    parser = subparsers.add_parser(
        "check",
        help="say what a checkpoint is and whether it can be generated",
        description="Read a checkpoint's config, tensor headers, scales and tokenizer, and say what the generator will make of it, or all "
        "that stands in the way. No weight is read but the first rows of those that are floats and must be ternary. Exit code 1 if "
        "something stands in the way.",
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="a Hugging Face folder")
    parser.add_argument(
        "--ternary-check",
        action="store_true",
        help="read every matrix, and say how far it is from ternary times a scale, and its share of zeros",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something stands in the way."""
    with Progress() as progress:
        report = check(args.model, ternary=args.ternary_check, progress=progress)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 1 if report.problems else 0
