"""Choice of the next token on the host, from the greatest logits that the device returns."""

import numpy as np

__all__ = ["Sampler"]


class Sampler:
    """Draws tokens by temperature, top-k and top-p; equal seeds and logits give equal tokens.

    Parameters
    ----------
    temperature : float
        0 is greedy; else logits are divided by it.
    top_k : int
        Tokens to draw from, 1 to ``limit``.
    top_p : float
        Keep the fewest most probable tokens whose share is at least ``top_p``, in (0, 1].
    seed : int
        Non-negative seed of numpy's default generator.
    limit : int
        Most logits that the device returns.

    Raises
    ------
    ValueError
    """

    def __init__(
        self, *, temperature: float = 0.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0, limit: int
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number from 0, not {temperature}")
        top_k = limit if top_k is None else top_k
        if not 1 <= top_k <= max(limit, 1):
            raise ValueError(f"top_k must be in 1..{limit}, the logits that this device returns, not {top_k}")
        if temperature and not limit:
            raise ValueError("temperature must be 0: this device returns no logits")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if seed < 0:
            raise ValueError(f"seed must be a non-negative integer, not {seed}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities, float64 ``[n]``, of the tokens with ``logits [n]``, sorted from the greatest; the rest are 0."""
        logits = np.asarray(logits, dtype=np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature leaves only the greatest
            weights = np.exp((logits - logits[0]) / self.temperature)
        weights[self.top_k :] = 0.0
        weights /= weights.sum()
        before = np.cumsum(weights) - weights
        weights[1:][before[1:] >= self.top_p] = 0.0
        return weights / weights.sum()

    def draw(self, tokens: np.ndarray, logits: np.ndarray) -> int:
        """One of ``tokens [n]``, by their ``logits [n]`` from the greatest down."""
        share = np.cumsum(self.probabilities(logits))
        index = int(np.searchsorted(share, self._random.random() * share[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])
