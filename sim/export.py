"""Write a trained latent model as a checkpoint folder.

Used as ``python -m intaglio.sim.export --latent latent.pt --out models/burin``.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch

from intaglio.gen.checkpoint import save_checkpoint
from intaglio.sim.float_model import FloatDecoder
from intaglio.sim.loading import export
from intaglio.sim.train import CONFIG

__all__ = ["export_file"]


def export_file(latent, out, embedding_dtype="F32", config=CONFIG):
    """Export a file written by :mod:`intaglio.sim.train`.

    Parameters
    ----------
    latent : path
        ``{"model": state dict, ...}``, read with ``weights_only=True``.
    out : path
        The checkpoint folder to write.
    embedding_dtype : str
        As in :func:`intaglio.gen.checkpoint.save_checkpoint`.
    config : dict
        The model's configuration, by default the trainer's.

    Returns
    -------
    Checkpoint
    """
    model = FloatDecoder(SimpleNamespace(**config))
    model.load_state_dict(torch.load(latent, map_location="cpu", weights_only=True)["model"])
    checkpoint = export(model.eval(), config)
    save_checkpoint(out, checkpoint, embedding_dtype)
    return checkpoint


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--latent", type=Path, required=True, help="latent.pt of the trainer")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--embedding-dtype", choices=("F32", "BF16", "F16"), default="F32")
    args = parser.parse_args()
    export_file(args.latent, args.out, args.embedding_dtype)


if __name__ == "__main__":
    main()
