"""Train the shipped ternary language model on the standard library's own text.

Latent weights are kept in float32 and rounded in every forward pass (straight-through estimation). Matrices are trained by Muon
(momentum orthogonalised by a Newton-Schulz iteration), everything else by AdamW. The learning rate warms up, stays, and falls
linearly to zero over the last part of the run, so that a run can be continued from any checkpoint before the fall.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.sim.reference.float_decoder import FloatDecoder
from intaglio.sim.reference.loading import latent_decoder
from intaglio.sim.train.corpus import Corpus, xz_bits_per_byte
from intaglio.sim.train.renaming import IGNORED, Renamer

CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.02,
}
PIECES = 4  # runs of a spread window


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest orthogonal matrix of ``g [m, n]`` by a quintic Newton-Schulz iteration (Muon, Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() / (g.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return (x.T if transposed else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for matrices; the update's RMS is that of AdamW's (factor 0.2 sqrt(max(m, n)))."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closures: the loss is computed once a step
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def as_tensor(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch_of(
    sources: Sequence[torch.Tensor], shares: Sequence[float], batch: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """``[batch, length + 1]`` int64 windows, each source drawn by its share."""
    rows = []
    for pick in torch.multinomial(torch.tensor(shares), batch, replacement=True, generator=generator).tolist():
        start = torch.randint(len(sources[pick]) - length - 1, (), generator=generator).item()
        rows.append(sources[pick][start : start + length + 1])
    return torch.stack(rows).long()


def spread_positions(length: int, span: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of ``length`` tokens below ``span``: :data:`PIECES` runs of equal length, the gaps between them drawn at random.

    Tokens taken at these positions of a text of ``span`` tokens show a model the distances of the long text at the cost of the short one
    (as PoSE, arXiv 2309.10400, but with the text that belongs to each position).
    """
    gaps = torch.randint(span - length + 1, (PIECES,), generator=generator).sort().values
    return torch.arange(length) + gaps.repeat_interleave(length // PIECES)


def spread_bias(positions: torch.Tensor) -> torch.Tensor:
    """What to add to attention's scores ``[length, length]`` so that the keys of a spread window stand for those between them too.

    A query sees the keys of its own run as they are. Every key of earlier runs counts for as many as the text before the run has for each
    that is there: otherwise a short window would not show how much many far keys take together.
    """
    run = torch.arange(len(positions)) // (len(positions) // PIECES)
    first = run * (len(positions) // PIECES)
    share = torch.log(positions[first] / first.clamp(min=1)).clamp(min=0)  # by query
    bias = torch.where(run[:, None] == run, 0.0, share[:, None])
    return bias.masked_fill(positions[:, None] < positions, -torch.inf)


@dataclass(frozen=True)
class Phase:
    """Steps of ``batch`` windows of ``length`` tokens, spread over texts of ``span`` tokens where that is more."""

    steps: int
    batch: int
    length: int
    span: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``STEPSxBATCHxLENGTH`` or ``STEPSxBATCHxLENGTH@SPAN``."""
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:@(\d+))?", text)
        if not found:
            raise argparse.ArgumentTypeError(
                f"a phase must read STEPSxBATCHxLENGTH or STEPSxBATCHxLENGTH@SPAN, not {text!r}"
            )
        steps, batch, length, span = (int(n) for n in found.groups(default=found[3]))
        if not (batch and length) or span < length or (span > length and length % PIECES):
            raise argparse.ArgumentTypeError(
                "a phase's batch and length must be 1 or more, and a length that is spread a multiple of "
                f"{PIECES}, at most its span: {text!r}"
            )
        return cls(steps, batch, length, span)

    def draw(
        self,
        sources: Sequence[torch.Tensor],
        shares: Sequence[float],
        generator: torch.Generator,
        rename: Renamer | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """``tokens, targets [batch, length]`` of a step, then the model's ``positions`` and ``bias``.

        ``rename`` is a :class:`Renamer` for every other window.
        """
        window = batch_of(sources, shares, self.batch, self.span, generator)
        if self.span == self.length:
            positions, bias = torch.arange(self.length), None
        else:
            positions = spread_positions(self.length, self.span, generator)
            bias = spread_bias(positions)
        unforeseen = torch.zeros_like(window, dtype=torch.bool)
        if rename:
            for row in range(self.batch):
                if torch.rand((), generator=generator) < 0.5:
                    unforeseen[row] = rename(window[row], positions, generator)
        targets = window.masked_fill(unforeseen, IGNORED)
        return window[:, positions], targets[:, positions + 1], positions, bias


def phase_of(phases: Iterable[Phase], step: int) -> Phase:
    """The phase that ``step`` falls into."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise IndexError("step lies after the last phase")


@torch.no_grad()
def bits_per_byte(model: Callable[[torch.Tensor], torch.Tensor], text: bytes, context: int) -> float:
    """Held-out bits per byte over windows of ``context`` tokens that do not overlap, each after one separator."""
    data = as_tensor(text).long()
    nats, count = 0.0, 0
    for start in range(0, len(data), context):
        target = data[start : start + context]
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
        nats += F.cross_entropy(model(tokens[None])[0], target, reduction="sum").item()
        count += len(target)
    return nats / count / math.log(2)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for latent.pt and log.jsonl")
    parser.add_argument(
        "--schedule",
        type=lambda text: [Phase.parse(phase) for phase in text.split(",")],
        default="3000x16x512,1200x8x1024,100x2x4096",
        help="steps x batch x length, phase by phase; @N after a length spreads it over N tokens of text",
    )
    parser.add_argument("--decay", type=int, default=1300, help="steps of the final linear fall")
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--warmup", type=int, default=100, help="steps of the first linear rise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="latent.pt of a run to go on with")
    parser.add_argument(
        "--from", dest="checkpoint", type=Path, help="checkpoint folder to begin from, instead of random weights"
    )
    parser.add_argument("--theta", type=float, help="rope_theta, by default the checkpoint's")
    parser.add_argument("--context", type=int, help="max_position_embeddings, by default the checkpoint's")
    parser.add_argument(
        "--every", type=int, default=100, help="steps between lines of the log; latent.pt is saved with each"
    )
    parser.add_argument(
        "--rename", action="store_true", help="give names that occur nowhere else to identifiers of every other window"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile the model: pays where few steps share a shape"
    )
    parser.add_argument("--threads", type=int, help="of torch")
    return parser


def beginning(
    checkpoint: Path | str | None, theta: float | None = None, context: int | None = None
) -> tuple[FloatDecoder, dict[str, Any]]:
    """``(model, config)`` to train: random weights, or those of a checkpoint folder; ``config`` is the content of ``config.json``."""
    if checkpoint:
        loaded = load_checkpoint(checkpoint)
        config, model = loaded.config.to_json(), latent_decoder(loaded)
    else:
        config, model = dict(CONFIG), FloatDecoder(SimpleNamespace(**CONFIG))
        torch.nn.init.normal_(model.embed_tokens.weight, std=0.08)
    config |= {
        name: value
        for name, value in (("rope_theta", theta), ("max_position_embeddings", context))
        if value is not None
    }
    model.config = ModelConfig.from_json({"quantization_config": {"quant_method": "bitnet"}, **config})
    return model, config


def main(argv: Sequence[str] | None = None) -> None:
    parser = options()
    args = parser.parse_args(argv)
    if args.resume and (args.checkpoint or args.theta or args.context):
        parser.error("--resume goes on with the configuration in its file: leave out --from, --theta and --context")
    phases = args.schedule
    steps = sum(phase.steps for phase in phases)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    corpus = Corpus()
    sources = [as_tensor(corpus.train_library), as_tensor(corpus.train_tests)]
    rename = Renamer([corpus.train_library, corpus.train_tests]) if args.rename else None
    saved = torch.load(args.resume, weights_only=True) if args.resume else {}
    if saved:
        config = saved.get("config", CONFIG)
        model = FloatDecoder(SimpleNamespace(**config))
    else:
        model, config = beginning(args.checkpoint, args.theta, args.context)
    torch.manual_seed(args.seed)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers = [
        Muon(matrices, args.lr, weight_decay=0.1),
        torch.optim.AdamW(others, args.lr * 0.5, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        for o, s in zip(optimisers, saved["optimisers"], strict=True):
            o.load_state_dict(s)
        first = saved["step"]
    generator = torch.Generator().manual_seed(args.seed + first)
    starts = {sum(phase.steps for phase in phases[:i]) for i in range(len(phases))}
    compiled = model if args.eager else torch.compile(model, dynamic=False)
    args.out.mkdir(parents=True, exist_ok=True)
    began, seen, losses = time.monotonic(), 0, []
    print(f"held-out xz -9e: {xz_bits_per_byte(corpus.held_out):.4f} bits per byte", flush=True)
    for step in range(first, steps):
        factor = min((step + 1) / args.warmup, 1.0, (steps - step) / args.decay)
        for optimiser, base in zip(optimisers, (args.lr, args.lr * 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * factor
        if step in starts:
            generator.manual_seed(args.seed + step)  # a run continued at the start of a phase sees the same text
        tokens, targets, positions, bias = phase_of(phases, step).draw(sources, [0.55, 0.45], generator, rename)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(tokens, positions, bias)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        seen += tokens.numel()
        losses.append(loss.item())
        if (step + 1) % args.every == 0 or step + 1 == steps:
            row = {
                "step": step + 1,
                "train_bpb": sum(losses) / len(losses) / math.log(2),
                "tokens_per_second": seen / (time.monotonic() - began),
                "minutes": (time.monotonic() - began) / 60,
            }
            losses = []
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "step": step + 1,
                    "config": config,
                },
                args.out / "latent.pt",
            )
            if (step + 1) % (10 * args.every) == 0 or step + 1 == steps:
                row["held_out_bpb"] = bits_per_byte(model, corpus.held_out, 1024)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
