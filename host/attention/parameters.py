"""Parameters of a run of the prefill unit."""

import math
from numbers import Real

__all__ = ["MARGIN", "TAU_MAX", "WHOLE", "divergence_threshold", "run_parameters", "share"]

MARGIN = (
    1 / 32
)  # of what may be left out, not left out: covers the unit's logarithms, and errors of 8-bit operands as a rule
LOST = 2.0**-27  # share of a row's mass, for each key, set aside for what is truncated: twice the most that it can be
WHOLE = 1 << 16  # a share of 1: the run is dense
TAU_MAX = math.sqrt(math.log(2))  # largest square root of a Jensen-Shannon divergence


def share(gamma, tokens):
    """``gamma16`` of the hardware for a share in (0, 1], so that at least ``gamma`` of the mass is kept (docs/prefill.md, "What is
    guaranteed"). It is :data:`WHOLE` where nothing may be left out: then the run must be dense."""
    if isinstance(gamma, bool) or not isinstance(gamma, Real) or not 0 < gamma <= 1:
        raise ValueError(f"gamma must be above 0 and at most 1, not {gamma!r}")
    return WHOLE - max(0, math.floor(WHOLE * (1 - gamma - tokens * LOST) * (1 - MARGIN)))


def divergence_threshold(tau):
    """Threshold of the hardware for a bound on the square root of the divergence, in nats; 0 makes no head query-aware."""
    if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 <= tau <= TAU_MAX:
        raise ValueError(f"tau must be in 0..{TAU_MAX:.4f}, not {tau!r}")
    return math.floor(2 * tau**2 / math.log(2) * 2**28)


def run_parameters(
    image,
    *,
    tokens,
    block,
    gamma16,
    threshold,
    dense=False,
    single=False,
    tenant=0,
    kv_head=0,
    hot_threshold=0,
    timeout=0,
):
    """Values of the parameter registers by name, for an :class:`~intaglio.host.attention.quantise.Image`; docs/prefill.md has them."""
    values = {
        "dense": int(dense or tokens < block),
        "tokens": tokens,
        "gamma16": gamma16,
        "threshold": threshold,
        "inverse": 65536 // ((tokens - 1) % block + 1),
        "tenant": tenant,
        "kv_head": kv_head,
        "hot_threshold": hot_threshold,
        "timeout": timeout,
        "single": int(single),
    }
    for name in ("kv_base", "q_base", "last_base", "pooled_q_base", "pooled_k_base"):
        address = getattr(image, name)
        values |= {name: address & 0xFFFFFFFF, f"{name}_high": address >> 32}
    return values
