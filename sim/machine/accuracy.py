"""Attention over pages held against float64 on heads that are hard to round: :mod:`intaglio.sim.attention.heads`."""

import math

import torch

from intaglio.host.attention.condition import hadamard
from intaglio.rtl.arithmetic import rows as formats
from intaglio.rtl.arithmetic.numerics import Scalar
from intaglio.sim.attention import exact
from intaglio.sim.machine.rows import quantise_rows

__all__ = ["page_results", "quantised_rows"]

_FRACTION = 20  # fraction bits of the integers that stand for what pass A gives


def quantised_rows(x: torch.Tensor, form: formats.RowFormat, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scale bytes of real rows ``factor * x [..., D]``, ``|x|`` below 2^13."""
    scalar = Scalar.of_float(factor)
    full = torch.full(x.shape[:-1], 1)
    return quantise_rows(
        (x.double() * 2**_FRACTION).round().long(), full * scalar.m, full * (scalar.e - _FRACTION), form
    )


def page_results(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rotate: bool = False) -> torch.Tensor:
    """Dense attention float64 [G, N, D] of q [G, N, D] over k, v [N, D] by the joined machine's arithmetic.

    With ``rotate`` queries, keys and values are multiplied by a Hadamard matrix first, and results back.
    """
    size = q.shape[-1]
    turn = torch.as_tensor(hadamard(size)) if rotate else torch.eye(size, dtype=torch.float64)
    q, k, v = (x.double() @ turn for x in (q, k, v))
    q8, xq = quantised_rows(q, formats.QUERY, math.log2(math.e) / math.sqrt(size))
    k8, xk = quantised_rows(k, formats.QUERY)
    v8, xv = quantised_rows(v, formats.VALUE)
    none = q8[0, :0]
    group = exact.HeadGroup(
        q=q8, xq=xq, k=k8, xk=xk, v=v8, xv=xv, pooled_q=none, pooled_xq=none, pooled_k=none, pooled_xk=none
    )
    keep = torch.ones(len(q), 1, 1, dtype=torch.bool)  # one block of all tokens
    mantissas, exponents = exact.attend(group, keep, block=q.shape[1], by_row=True)
    return torch.ldexp(mantissas.double() / 254, exponents[..., None].long()) @ turn
