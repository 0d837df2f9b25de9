"""The tokenizer of a checkpoint folder: files that the host reads text with, checked against the model and passed on as they are."""

import json
from collections.abc import Mapping
from pathlib import Path

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig

__all__ = ["TEXT_FILES", "TOKENIZER", "check_text", "read_text", "tokenizer_kind"]

TOKENIZER = "tokenizer.json"
TEXT_FILES = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja")
KINDS = ("BPE", "Unigram", "WordPiece")


def read_text(folder: Path | str, config: ModelConfig) -> dict[str, bytes]:
    """Files of :data:`TEXT_FILES` that a folder has, by name; none where there is no ``tokenizer.json``.

    Raises
    ------
    CheckpointError
        See :func:`check_text`.
    """
    folder = Path(folder)
    if not (folder / TOKENIZER).is_file():
        return {}
    files = {name: (folder / name).read_bytes() for name in TEXT_FILES if (folder / name).is_file()}
    check_text(files, config)
    return files


def tokenizer_kind(files: Mapping[str, bytes], vocabulary: int) -> str:
    """How the host makes text: "tokenizers" by a file, else "bytes" where every token may be one, else "none"."""
    return "tokenizers" if TOKENIZER in files else "bytes" if vocabulary <= 256 else "none"


def check_text(files: Mapping[str, bytes], config: ModelConfig) -> None:
    """Compare a tokenizer with the model it is to speak for.

    Raises
    ------
    CheckpointError
        A file is not what it should be; the tokenizer is no BPE, unigram or WordPiece; it has tokens that the model has not, or lacks
        those that begin and end the model's texts. A model may have more tokens than its tokenizer: vocabularies are padded.
    """
    tokenizer = _object(files, TOKENIZER)
    _object(files, "tokenizer_config.json", optional=True)
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind not in KINDS:
        raise CheckpointError(f"the model of {TOKENIZER} must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}")
    vocabulary, added = model.get("vocab"), tokenizer.get("added_tokens", [])
    try:
        known = set(vocabulary.values() if kind != "Unigram" else range(len(vocabulary)))
        known |= {token["id"] for token in added}
        least, most = min(known), max(known)
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise CheckpointError(f"{TOKENIZER} must list its tokens under model.vocab and added_tokens") from fault
    if not 0 <= least <= most < config.vocab_size:
        raise CheckpointError(
            f"{TOKENIZER} must have tokens in 0..{config.vocab_size - 1}, those of the model, not {least}..{most}"
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    for name, tokens in (("bos_token_id", (config.bos_token_id,)), ("eos_token_id", ends)):
        for token in tokens:
            if token is not None and token not in known:
                raise CheckpointError(f"{name} must be a token of {TOKENIZER}, not {token}")


def _object(files, name, optional=False):
    try:
        found = json.loads(files.get(name, b"{}") if optional else files[name])
    except ValueError as fault:
        raise CheckpointError(f"{name} must be JSON: {fault}") from fault
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} must hold a JSON object, not {type(found).__name__}")
    return found
