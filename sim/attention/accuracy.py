"""The exact model held against float64: how much of the mass its index keeps, and the errors of its results row by row."""

from dataclasses import dataclass

import torch

from intaglio.host.attention.condition import calibrate
from intaglio.host.attention.parameters import WHOLE, divergence_threshold, share
from intaglio.host.attention.quantise import quantise
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention import exact
from intaglio.sim.attention.report import head_group

__all__ = ["Kept", "errors", "int8_bound", "kept", "results"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Float64 [G]: share of the last block's mass that the chosen blocks hold; that of the vertical ones alone, on which the guarantee
    rests; share of all (query, key) pairs that are chosen."""

    mass: torch.Tensor
    vertical: torch.Tensor
    density: torch.Tensor


def kept(q, k, v, *, block, gamma, tau):
    """What the exact model's index keeps of heads q [G, N, D] over k, v [N, D]."""
    heads, tokens, _ = q.shape
    gamma16 = share(gamma, tokens)
    if gamma16 == WHOLE:
        return Kept(**dict.fromkeys(("mass", "vertical", "density"), torch.ones(heads, dtype=torch.float64)))
    z = quantise(q.numpy(), k.numpy(), v.numpy(), block=block)
    found = exact.index(head_group(z), block=block, gamma16=gamma16, threshold=divergence_threshold(tau))
    keep = exact.block_map(found)
    vertical = found["vertical"][:, None].expand_as(keep)
    mass, alone = (attention.kept_mass(q, k[None], chosen, block=block) for chosen in (keep, vertical))
    return Kept(mass=mass, vertical=alone, density=attention.density(keep, tokens, block))


def results(q, k, v, *, block):
    """Dense attention float64 [G, N, D] by the exact model, in the channels of v."""
    z = quantise(q.numpy(), k.numpy(), v.numpy(), block=block)
    count = -(-q.shape[1] // block)
    keep = torch.ones(len(q), count, count, dtype=torch.bool).tril()
    return torch.as_tensor(z.results(*(x.numpy() for x in exact.attend(head_group(z), keep, block=block)))).double()


def int8_bound(q, k, v, *, block):
    """Dense attention float64 [G, N, D] with an exact softmax, of what INT8 operands at their best can hold: less the mean key and with
    balanced channels (of the first block), each row rounded by its own real scale."""
    found = calibrate(q[:, :block].numpy(), k[:block].numpy(), v[:block].numpy())
    gain = 2.0 ** torch.as_tensor(found.balance)
    q, k, v = (_rounded(x) for x in (q * gain, (k - torch.as_tensor(found.key_mean)) / gain, v))
    return attention.dense(q, k[None], v[None])


def _rounded(x):
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-300) / 127
    return (x / step).round() * step


def errors(got, want):
    """Root mean square and maximum over all rows [..., D] of the norm of the error over the norm of the row."""
    relative = (got - want).norm(dim=-1) / want.norm(dim=-1)
    return relative.square().mean().sqrt().item(), relative.max().item()
