"""Low-rank adapters in torch: the float model with PEFT's ``y = base(x) + scaling B A x`` beside its matrices, and its training form.

The training form computes with what the hardware will hold: ternary factors (or several trits a value), INT8 activations, and ``A x`` in
INT8 with a power of 2 for a scale; gradients pass straight through the roundings. docs/adapters.md, docs/numerics.md.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from intaglio.gen.checkpoint.reader import MATRIX_TENSORS
from intaglio.sim.reference.float_decoder import quantise_activations
from intaglio.sim.reference.loading import FrozenBitLinear, LoadedDecoder

__all__ = ["AdaptedLinear", "adapt", "quantise_factor", "quantise_intermediate"]


def quantise_factor(weight: torch.Tensor, trits: int) -> torch.Tensor:
    """Round a factor to ``trits`` balanced ternary digits a value and one scale; gradients pass straight through.

    The rule of :func:`intaglio.host.adapter.files.quantise_factor`, in torch.
    """
    limit = (3**trits - 1) // 2
    step = (weight.abs().mean() if trits == 1 else weight.abs().amax() / limit).clamp(min=1e-20)
    digits = (weight / step).round().clamp(-limit, limit)
    scale = (weight * digits).sum() / (digits * digits).sum().clamp(min=1)
    return weight + (digits * scale - weight).detach()


def quantise_intermediate(u: torch.Tensor) -> torch.Tensor:
    """Round each token's ``u = A x`` to INT8 by the power of 2 that its largest magnitude needs; gradients pass straight through."""
    step = torch.exp2(torch.frexp(u.abs().amax(-1, keepdim=True).clamp(min=1e-20))[1].float() - 7)
    return u + ((u / step).round().clamp(-127, 127) * step - u).detach()


class AdaptedLinear(nn.Module):
    """A frozen ternary matrix and the factors beside it.

    Parameters
    ----------
    base : FrozenBitLinear
    a, b : float32 tensors ``[rank, in]``, ``[out, rank]``
    scaling : float
        PEFT's: ``lora_alpha / r``.
    trits : int or None
        None: PEFT's own arithmetic. Else the training form: for hardware of so many trits a value, or with factors and ``A x`` as they
        are (0); gradients pass through the roundings of the base's activations.
    """

    def __init__(
        self, base: FrozenBitLinear, a: torch.Tensor, b: torch.Tensor, scaling: float, trits: int | None = None
    ) -> None:
        super().__init__()
        self.base, self.scaling, self.trits = base, scaling, trits
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.trits is None:
            return self.base(x) + self.scaling * F.linear(F.linear(x, self.a), self.b)
        x = quantise_activations(x)
        base = F.linear(x, self.base.weight * self.base.scale)
        if not self.trits:
            return base + self.scaling * F.linear(F.linear(x, self.a), self.b)
        u = quantise_intermediate(F.linear(x, quantise_factor(self.a, self.trits)))
        return base + self.scaling * F.linear(u, quantise_factor(self.b, self.trits))


def adapt(
    model: LoadedDecoder, factors: Mapping[tuple[int, str], tuple[Any, ...]], scaling: float, trits: int | None = None
) -> LoadedDecoder:
    """Put adapters beside matrices of a loaded decoder, in place; returns the model.

    Parameters
    ----------
    model : LoadedDecoder
    factors : dict of (layer, name) to (A, B), float32 arrays; names as in ``MATRIX_TENSORS``
    """
    for (layer, name), pair in factors.items():
        block, path = model.layers[layer], MATRIX_TENSORS[name]
        base = cast(FrozenBitLinear, block.get_submodule(path))
        a, b = (torch.as_tensor(part, dtype=torch.float32).clone() for part in pair)
        block.set_submodule(path, AdaptedLinear(base, a, b, scaling, trits))
    return model
