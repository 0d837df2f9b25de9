"""Write a trained latent model as a checkpoint folder.

Used as ``python -m intaglio.sim.train.export --latent latent.pt --out models/burin``.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from intaglio.gen.checkpoint.reader import save_checkpoint
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.sim.reference.float_decoder import FloatDecoder
from intaglio.sim.reference.loading import export
from intaglio.sim.train.decoder import CONFIG

__all__ = ["export_file"]


def export_file(
    latent: Path | str, out: Path | str, embedding_dtype: str = "F32", config: dict[str, Any] | None = None
) -> Checkpoint:
    """Export a file written by :mod:`intaglio.sim.train.decoder`.

    Parameters
    ----------
    latent : path
        ``{"model": state dict, "config": content of config.json, ...}``, read with ``weights_only=True``.
    out : path
        The checkpoint folder to write.
    embedding_dtype : str
        As in :func:`intaglio.gen.checkpoint.reader.save_checkpoint`.
    config : dict or None
        The model's configuration, by default the one in the file; :data:`intaglio.sim.train.decoder.CONFIG` where it has none.

    Returns
    -------
    Checkpoint
    """
    saved = torch.load(latent, map_location="cpu", weights_only=True)
    config = config or saved.get("config", CONFIG)
    model = FloatDecoder(SimpleNamespace(**config))
    model.load_state_dict(saved["model"])
    checkpoint = export(model.eval(), config)
    save_checkpoint(out, checkpoint, embedding_dtype)
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latent", type=Path, required=True, help="latent.pt of the trainer")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--embedding-dtype", choices=("F32", "BF16", "F16"), default="F32")
    args = parser.parse_args()
    export_file(args.latent, args.out, args.embedding_dtype)


if __name__ == "__main__":
    main()
