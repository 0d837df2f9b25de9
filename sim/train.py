"""Train the shipped ternary language model on the standard library's own text.

Latent weights are kept in float32 and rounded in every forward pass (straight-through estimation). Matrices are trained by Muon
(momentum orthogonalised by a Newton-Schulz iteration), everything else by AdamW. The learning rate warms up, stays, and falls
linearly to zero over the last part of the run, so that a run can be continued from any checkpoint before the fall.
"""

import argparse
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from intaglio.sim.corpus import Corpus, xz_bits_per_byte
from intaglio.sim.float_model import FloatDecoder

CONFIG = {
    "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "vocab_size": 256, "hidden_size": 192,
    "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 32,
    "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "attention_bias": False, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02,
}


def orthogonalise(g, steps=5):
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

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(m, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def as_tensor(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch_of(sources, shares, batch, length, generator):
    """``[batch, length + 1]`` int64 windows, each source drawn by its share."""
    rows = []
    for pick in torch.multinomial(torch.tensor(shares), batch, replacement=True, generator=generator).tolist():
        start = torch.randint(len(sources[pick]) - length - 1, (), generator=generator).item()
        rows.append(sources[pick][start:start + length + 1])
    return torch.stack(rows).long()


def phase_of(phases, step):
    """Batch and length of the phase that ``step`` falls into."""
    for steps, batch, length in phases:
        if step < steps:
            return batch, length
        step -= steps
    raise IndexError("step lies after the last phase")


@torch.no_grad()
def bits_per_byte(model, text, context):
    """Held-out bits per byte over windows of ``context`` tokens that do not overlap, each after one separator."""
    data = as_tensor(text).long()
    nats, count = 0.0, 0
    for start in range(0, len(data), context):
        target = data[start:start + context]
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
        nats += F.cross_entropy(model(tokens[None])[0], target, reduction="sum").item()
        count += len(target)
    return nats / count / math.log(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for latent.pt and log.jsonl")
    parser.add_argument("--schedule", default="3000x16x512,1200x8x1024,100x2x4096", help="steps x batch x length, phase by phase")
    parser.add_argument("--decay", type=int, default=1300, help="steps of the final linear fall")
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--every", type=int, default=100)
    args = parser.parse_args()
    phases = [tuple(int(n) for n in phase.split("x")) for phase in args.schedule.split(",")]
    steps = sum(phase[0] for phase in phases)
    torch.manual_seed(args.seed)
    corpus = Corpus()
    sources = [as_tensor(corpus.train_library), as_tensor(corpus.train_tests)]
    model = FloatDecoder(SimpleNamespace(**CONFIG))
    torch.nn.init.normal_(model.embed_tokens.weight, std=0.08)
    torch.manual_seed(args.seed)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers = [Muon(matrices, args.lr, weight_decay=0.1), torch.optim.AdamW(others, args.lr * 0.5, betas=(0.9, 0.98), weight_decay=0.0)]
    first = 0
    if args.resume:
        saved = torch.load(args.resume, weights_only=True)
        model.load_state_dict(saved["model"])
        for o, s in zip(optimisers, saved["optimisers"], strict=True):
            o.load_state_dict(s)
        first = saved["step"]
    generator = torch.Generator().manual_seed(args.seed + first)
    starts = {sum(phase[0] for phase in phases[:i]) for i in range(len(phases))}
    compiled = torch.compile(model, dynamic=False)
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "log.jsonl").open("a")
    began, seen, losses = time.monotonic(), 0, []
    print(f"held-out xz -9e: {xz_bits_per_byte(corpus.held_out):.4f} bits per byte", flush=True)
    for step in range(first, steps):
        factor = min((step + 1) / 100, 1.0, (steps - step) / args.decay)
        for optimiser, base in zip(optimisers, (args.lr, args.lr * 0.5), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * factor
        batch, length = phase_of(phases, step)
        if step in starts:
            generator.manual_seed(args.seed + step)  # a run continued at the start of a phase sees the same text
        window = batch_of(sources, [0.55, 0.45], batch, length, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = compiled(window[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        seen += window[:, 1:].numel()
        losses.append(loss.item())
        if (step + 1) % args.every == 0 or step + 1 == steps:
            row = {"step": step + 1, "train_bpb": sum(losses) / len(losses) / math.log(2),
                   "tokens_per_second": seen / (time.monotonic() - began), "minutes": (time.monotonic() - began) / 60}
            losses = []
            if (step + 1) % (10 * args.every) == 0 or step + 1 == steps:
                row["held_out_bpb"] = bits_per_byte(model, corpus.held_out, 1024)
                torch.save({"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers], "step": step + 1},
                           args.out / "latent.pt")
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
