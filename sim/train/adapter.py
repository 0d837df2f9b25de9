"""Train a low-rank adapter of the shipped model for C++: the headers that come with torch's wheel.

The base stays as it is; the factors are kept in float32 and rounded in every forward pass as the hardware rounds them. Writes PEFT's
layout: ``adapter_config.json`` and ``adapter_model.safetensors``, whose values are the rounded ones.

A header is held out when the first byte of the SHA-256 of its path (relative to torch's include folder) is below :data:`HELD_OUT_BELOW`.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import MATRIX_TENSORS, base_digest, load_checkpoint
from intaglio.gen.checkpoint.tensorfile import Tensor, to_bytes
from intaglio.sim.reference.adapter import adapt, quantise_factor
from intaglio.sim.reference.loading import LoadedDecoder, float_decoder
from intaglio.sim.train.decoder import as_tensor, batch_of, bits_per_byte

__all__ = ["HELD_OUT_BELOW", "headers", "save_adapter", "train"]

HELD_OUT_BELOW = 4
FOLDERS = ("c10", "torch/csrc", "torch/headeronly")
SEPARATOR = b"\0"


def headers(root: Path | str | None = None) -> tuple[bytes, bytes]:
    """``(train, held_out)``: the headers as two texts, each file after a zero byte.

    Raises
    ------
    FileNotFoundError
        torch has no headers there.
    """
    root = Path(root or Path(torch.__file__).parent / "include")
    parts = {False: [], True: []}
    for path in sorted(
        (path for folder in FOLDERS for path in (root / folder).rglob("*.h")), key=lambda path: path.as_posix()
    ):
        held_out = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()[0] < HELD_OUT_BELOW
        parts[held_out].append(SEPARATOR + path.read_bytes().replace(SEPARATOR, b""))
    if not parts[False] or not parts[True]:
        raise FileNotFoundError(f"no C++ headers below {root}: torch must be installed with its include folder")
    return b"".join(parts[False]), b"".join(parts[True])


def save_adapter(
    folder: Path | str,
    factors: Mapping[tuple[int, str], tuple[Any, ...]],
    *,
    base: str,
    digest: str,
    alpha: float,
    rank: int,
    dtype: str = "F16",
) -> None:
    """Write PEFT's files; ``factors`` as for :func:`intaglio.sim.reference.adapter.adapt`, ``digest`` that of the base (``base_digest``).

    F16 rounds ternary factors' one magnitude, so that they stay ternary.
    """
    tensors = {}
    for (layer, name), pair in sorted(factors.items()):
        for letter, values in zip("AB", pair, strict=True):
            tensor = f"base_model.model.model.layers.{layer}.{MATRIX_TENSORS[name]}.lora_{letter}.weight"
            tensors[tensor] = Tensor.from_float32(torch.as_tensor(values).float().numpy(), dtype)
    names = {name for _, name in factors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": [MATRIX_TENSORS[name].rpartition(".")[2] for name in MATRIX_TENSORS if name in names],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    values = b"".join(tensors[name].data for name in sorted(tensors))
    metadata = {"base_digest": digest, "values_sha256": hashlib.sha256(values).hexdigest()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(to_bytes(tensors, metadata))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def initial_factors(
    config: ModelConfig, names: Iterable[str], rank: int, seed: int
) -> dict[tuple[int, str], tuple[torch.Tensor, ...]]:
    """PEFT's start: A normal, B zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (layer, name): (
            torch.randn(rank, config.matrix_shapes[name][1], generator=generator)
            / config.matrix_shapes[name][1] ** 0.5,
            torch.zeros(config.matrix_shapes[name][0], rank),
        )
        for layer in range(config.num_hidden_layers)
        for name in names
    }


def train(
    model: LoadedDecoder,
    factors: Mapping[tuple[int, str], tuple[Any, ...]],
    text: bytes,
    *,
    scaling: float,
    trits: int,
    steps: int,
    batch: int,
    length: int,
    lr: float,
    seed: int,
    tell: Callable[[dict[str, Any]], None],
) -> dict[tuple[int, str], tuple[torch.Tensor, ...]]:
    """Train ``factors`` beside a loaded decoder; returns them as the hardware rounds them."""
    adapt(model, factors, scaling, trits)
    modules: dict[Any, Any] = {key: model.layers[key[0]].get_submodule(MATRIX_TENSORS[key[1]]) for key in factors}
    parameters = [parameter for module in modules.values() for parameter in (module.a, module.b)]
    optimiser = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    source, losses, began = as_tensor(text), [], time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 1.0, 1.5 * (steps - step) / steps)
        window = batch_of([source], [1.0], batch, length, generator)
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            tell(
                {
                    "step": step + 1,
                    "train_bpb": sum(losses) / len(losses) / math.log(2),
                    "minutes": (time.monotonic() - began) / 60,
                }
            )
            losses = []
    with torch.no_grad():
        return {
            key: tuple(quantise_factor(part, trits) if trits else part.clone() for part in (module.a, module.b))
            for key, module in modules.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/burin"))
    parser.add_argument("--out", type=Path, required=True, help="folder for PEFT's two files")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--trits", type=int, default=1, help="digits of a factor's value while training; 0: float")
    parser.add_argument("--targets", default=",".join(MATRIX_TENSORS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    checkpoint = load_checkpoint(args.model)
    text, held_out = headers()

    def tell(row):
        print(json.dumps(row), flush=True)

    tell(
        {
            "train_bytes": len(text),
            "held_out_bytes": len(held_out),
            "held_out_bpb": bits_per_byte(float_decoder(checkpoint), held_out, 1024),
        }
    )
    factors = initial_factors(checkpoint.config, args.targets.split(","), args.rank, args.seed)
    scaling = args.alpha / args.rank
    factors = train(
        float_decoder(checkpoint),
        factors,
        text,
        scaling=scaling,
        trits=args.trits,
        steps=args.steps,
        batch=args.batch,
        length=args.length,
        lr=args.lr,
        seed=args.seed,
        tell=tell,
    )
    save_adapter(
        args.out, factors, base=args.model.as_posix(), digest=base_digest(checkpoint), alpha=args.alpha, rank=args.rank
    )
    tell({"held_out_bpb": bits_per_byte(adapt(float_decoder(checkpoint), factors, scaling), held_out, 1024)})


if __name__ == "__main__":
    main()
