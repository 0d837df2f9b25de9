"""What attention does not see, used to make queries, keys and values fit INT8: docs/prefill.md, "Operands"."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Conditioning", "calibrate", "condition", "hadamard"]

# Rotary embedding turns slow channels in thousands of tokens, so a few tokens say little of their means and of how the two of a pair
# share their range. Only what stands out is taken for a property of the channel.
MEAN_LEAST = 4  # standard deviations
RANGE_LEAST = 3  # powers of two between keys and queries
BALANCE_MAX = 64  # largest power of two, either way, that a channel gives from keys to queries
VALUE_LEAST = 16  # powers of two between the loudest value and 1


def hadamard(size):
    """Orthonormal symmetric Hadamard matrix float64 [size, size] (Sylvester's construction), for a power of 2."""
    out = np.ones((1, 1))
    while len(out) < size:
        out = np.block([[out, out], [out, -out]])
    return out / np.sqrt(size)


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Of one KV head. ``key_mean`` float64 [D] is subtracted from every key; ``balance`` int [D]: channel d of the queries is multiplied by
    ``2^balance[d]``, that of the keys divided by it; values are divided by ``2^value_exponent``."""

    key_mean: np.ndarray
    balance: np.ndarray
    value_exponent: int


def calibrate(q, k, v):
    """Conditioning from the first tokens of a prompt, or of a text that stands for others.

    Parameters
    ----------
    q : float [G, n, D]; k, v : float [n, D]

    Returns
    -------
    Conditioning : the mean key in the channels whose mean is above 4 standard deviations, else 0; and powers of two that make the root
        mean square of a channel about the same in queries and keys, where they differ by a factor of 8 or more; and the power of two
        of the largest value, where it is not within 2^-16..2^16, else 0.
    """
    mean = k.mean(0)
    mean = np.where(np.abs(mean) > MEAN_LEAST * k.std(0), mean, 0)
    of_q, of_k = np.sqrt((q**2).mean((0, 1))), np.sqrt(((k - mean) ** 2).mean(0))
    known = (of_q > 0) & (of_k > 0)
    apart = np.log2(np.divide(of_k, of_q, out=np.ones_like(of_k), where=known))
    balance = (
        np.where(np.abs(apart) >= RANGE_LEAST, np.rint(apart / 2), 0).clip(-BALANCE_MAX, BALANCE_MAX).astype(np.int64)
    )
    peak = np.abs(v).max()
    loud = int(np.floor(np.log2(peak))) if peak > 0 else 0
    return Conditioning(key_mean=mean, balance=balance, value_exponent=loud if abs(loud) > VALUE_LEAST else 0)


def condition(q, k, v, found):
    """Queries, keys and values that give the same attention, but for a rotation and a power of two of the results, with smaller peaks.

    A key that is subtracted from all keys shifts the scores of a row together, which the softmax does not see; what a channel gains in
    the queries it loses in the keys; a rotation of both leaves their products (QuaRot, arXiv 2404.00456), and spreads what single
    channels hold over all. Values are rotated too: results must be multiplied by :func:`hadamard` again, which is its own inverse.

    Parameters
    ----------
    q : float [G, N, D]; k, v : float [N, D]
    found : Conditioning

    Returns
    -------
    q, k, v : float64, of the same shapes
    """
    rotation, gain = hadamard(q.shape[-1]), np.exp2(found.balance)
    return (
        (q * gain) @ rotation,
        ((k - found.key_mean) / gain) @ rotation,
        np.ldexp(v, -found.value_exponent) @ rotation,
    )
