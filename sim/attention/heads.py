"""Seeded float heads on which the unit is judged: masses that an index may lose, activations as large models have them, mixtures."""

import math
import random
from dataclasses import dataclass

import torch

__all__ = ["ACTIVATIONS", "MASSES", "Mixture", "activation_heads", "mass_head", "mixture"]

MASSES = ("flat", "spike_flat", "two_levels", "verticals", "power")
ACTIVATIONS = ("ordinary", "outlier_channel", "key_offset", "sink", "heavy", "sparse_values")
NOISE = 0.3  # standard deviation of what queries and keys have besides the direction that carries the mass


def _normal(picks, *shape):
    return torch.randn(*shape, generator=picks, dtype=torch.float64)


def _masses(kind, tokens, block, picks):
    """Share float64 [N] of each key in the mass of a query that sees all."""
    flat = torch.ones(tokens, dtype=torch.float64) / tokens
    if kind == "flat":
        return flat
    if kind == "spike_flat":
        mass = 0.2 * flat
        mass[3 * block : 3 * block + 16] += 0.8 / 16
    elif kind == "two_levels":
        mass = torch.where(torch.arange(tokens) // block % 2 == 0, 1.5, 0.5) * flat
    elif kind == "verticals":
        mass, count = 0.1 * flat, max(1, tokens // block // 2)
        loud = torch.randperm(tokens // block, generator=picks)[:count] * block + torch.randint(
            block, (count,), generator=picks
        )
        mass[loud] += 0.9 / count
    elif kind == "power":
        mass = (1 / torch.arange(1, tokens + 1).double())[torch.randperm(tokens, generator=picks)]
    else:
        raise ValueError(f"kind must be one of {', '.join(MASSES)}, not {kind!r}")
    return mass / mass.sum()


def mass_head(kind, tokens, *, head_dim=32, block=128, seed=0):
    """A head whose queries all give key j about the same share of their mass, in a random direction of the channels.

    ``flat``: the same for every key. ``spike_flat``: 80 % on 16 keys of block 3, the rest flat. ``two_levels``: even blocks three times
    odd ones. ``verticals``: 90 % on one key in each of half of the blocks, the rest flat. ``power``: 1 / rank, in random order. Queries
    and keys have noise orthogonal to that direction, so that scores differ from the masses' logarithms by a normal error of 0.09
    (times 1 / sqrt(head_dim) a channel) and integers are not all alike.

    Returns
    -------
    q float64 [1, N, D], k, v float64 [N, D]
    """
    picks = torch.Generator().manual_seed(seed)
    mass = _masses(kind, tokens, block, picks)
    direction = _normal(picks, head_dim)
    direction /= direction.norm()
    q, k = (NOISE * _normal(picks, tokens, head_dim) for _ in range(2))
    q, k = (x - (x @ direction)[:, None] * direction for x in (q, k))
    loud = 2 * head_dim**0.25
    return (
        (q + loud * direction)[None],
        k + (mass.log() * math.sqrt(head_dim) / loud)[:, None] * direction,
        _normal(picks, tokens, head_dim),
    )


def activation_heads(kind, *, heads=2, tokens=512, head_dim=64, seed=0):
    """Heads with what makes real activations hard to round, otherwise standard normal.

    ``ordinary``: nothing. ``outlier_channel``: a key channel times 30. ``key_offset``: 50 added to a key channel. ``sink``: key 0 has
    norm 25 in a direction of which all queries have 4, its value times 0.01. ``heavy``: queries, keys and values of Student's t with 3
    degrees of freedom, not scaled (variance 3, so scores have a standard deviation of 3). ``sparse_values``: one value in a hundred
    times 50.

    Returns
    -------
    q float64 [G, N, D], k, v float64 [N, D]
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"kind must be one of {', '.join(ACTIVATIONS)}, not {kind!r}")
    picks = torch.Generator().manual_seed(seed)
    q, k, v = (_normal(picks, *shape, head_dim) for shape in ((heads, tokens), (tokens,), (tokens,)))
    if kind == "outlier_channel":
        k[:, 3] *= 30
    elif kind == "key_offset":
        k[:, 5] += 50
    elif kind == "sink":
        direction = _normal(picks, head_dim)
        direction /= direction.norm()
        q += 4 * direction
        k[0] = 25 * direction
        v[0] *= 0.01
    elif kind == "heavy":
        q, k, v = (x / (_normal(picks, 3, *x.shape) ** 2).mean(0).sqrt() for x in (q, k, v))
    elif kind == "sparse_values":
        v *= torch.where(torch.rand(v.shape, generator=picks) < 0.01, 50.0, 1.0)
    return q, k, v


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Heads q float64 [G, N, D] over k, v [N, D], and how they are to be run."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    block: int
    gamma: float
    tau: float


def mixture(seed, *, heads=8, longest=2600):
    """Ordinary heads of a structure, size, loudness, gamma and tau that ``seed`` draws: noise; a direction shared by a head's queries;
    louder keys here and there; places (slowly turning channels); keys that drift from the first token to the last."""
    draw, picks = random.Random(seed), torch.Generator().manual_seed(seed)
    head_dim = draw.choice([32, 64])
    block = draw.choice([size for size in (32, 64, 128) if size >= head_dim])
    tokens, loud = draw.randint(block, longest), draw.choice([0.3, 0.7, 1, 1.5, 2.5])
    q, k, v = (
        loud * _normal(picks, heads, tokens, head_dim),
        _normal(picks, tokens, head_dim),
        _normal(picks, tokens, head_dim),
    )
    kind = draw.choice(["noise", "shared", "verticals", "places", "drift"])
    if kind == "shared":
        q += 2 * _normal(picks, heads, 1, head_dim)
    elif kind == "verticals":
        keys = torch.randperm(tokens, generator=picks)[: max(1, tokens // draw.choice([16, 64, 256]))]
        direction = _normal(picks, head_dim)
        k[keys] += direction * draw.choice([0.5, 1, 2])
        q += direction
    elif kind == "places":
        turn = torch.arange(tokens)[:, None] / draw.choice([30, 100, 400]) * torch.linspace(0.2, 2, head_dim // 2)
        place = torch.cat([turn.cos(), turn.sin()], 1).double() * draw.choice([1, 2])
        q, k = q * 0.5 + place, k * 0.5 + place
    elif kind == "drift":
        k += torch.arange(tokens)[:, None] / tokens * 2 * _normal(picks, head_dim)
    return Mixture(
        q=q, k=k, v=v, block=block, gamma=draw.choice([0.5, 0.7, 0.8, 0.9, 0.95, 0.99]), tau=draw.choice([0, 0.1, 0.3])
    )
