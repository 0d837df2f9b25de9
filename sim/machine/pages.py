"""Exact model of the joined machine: the decoder with its keys and values in pages, attention by the tile engine (docs/machine.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.host.adapter.files import QuantisedAdapter
from intaglio.rtl.arithmetic import rows as formats
from intaglio.sim.attention import exact
from intaglio.sim.machine.rows import pool, quantise_rows
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.reference.scalars import Scalars
from intaglio.sim.reference.vector import rotated

__all__ = ["OUTPUT_GUARD", "PageAttention", "PageDecoder", "Selection"]

OUTPUT_GUARD = 2  # bits below a mantissa of attention's results that survive when heads get a common exponent


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a prompt's blocks are chosen: the share of mass in units of 2^-16, the threshold of the divergence (docs/prefill.md)."""

    gamma16: int
    threshold: int


@dataclass
class _Pages:
    """Keys and values of a layer and KV head, int8 [N, D], and their scale bytes, uint8 [N]."""

    k: torch.Tensor
    xk: torch.Tensor
    v: torch.Tensor
    xv: torch.Tensor

    def append(self, **rows: torch.Tensor) -> None:
        for name, new in rows.items():
            setattr(self, name, torch.cat([getattr(self, name), new]))


@dataclass
class PageAttention:
    """Pages of one sequence in every layer, and attention over them.

    Attributes
    ----------
    block : int
        Tokens of a page; a power of 2, head_dim or more.
    selection : Selection or None
        None: each token attends to all before it. Otherwise the tokens of a call, if they fill a block, attend to blocks chosen for them.
    maps : list of (layer, bool [heads, qb, nb])
        Block maps of the calls since the last :meth:`reset` that chose.
    """

    model: QuantisedModel
    block: int = 128
    selection: Selection | None = None
    maps: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = c = self.model.config
        if not self.model.pages:
            raise ValueError("the model must be quantised for pages, not for the decoder's own cache")
        if c.head_dim not in (16, 32, 64, 128):
            raise ValueError(f"head_dim must be 16, 32, 64 or 128, not {c.head_dim}")
        if self.block not in (16, 32, 64, 128) or self.block < c.head_dim:
            raise ValueError(f"block must be a power of 2 in {c.head_dim}..128, not {self.block}")
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        c = self.config
        rows, scales = torch.zeros(0, c.head_dim, dtype=torch.int8), torch.zeros(0, dtype=torch.uint8)
        self.pages = [[_Pages(rows, scales, rows, scales) for _ in range(c.kv_heads)] for _ in range(c.layers)]
        self.maps = []

    def __call__(
        self,
        index: int,
        qkv: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        scales: tuple[Scalars, Scalars, Scalars],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of :class:`~intaglio.sim.reference.cache_attention.CacheAttention`; the unit of the output is ``2^exponent / 254``."""
        c = self.config
        t, sh = rotated(qkv, rotary, c.kv_heads, c.head_dim)
        parts = t.transpose(0, 1).split([c.heads, c.kv_heads, c.kv_heads])
        forms = (formats.QUERY, formats.QUERY, formats.VALUE)
        (q, xq), (k, xk), (v, xv) = (
            quantise_rows(part, scale.m.expand(part.shape[:2]), (scale.e + sh).expand(part.shape[:2]), form)
            for part, scale, form in zip(parts, scales, forms, strict=True)
        )
        found, maps = [], []
        for head, pages in enumerate(self.pages[index]):
            pages.append(k=k[head], xk=xk[head], v=v[head], xv=xv[head])
            mine = slice(head * c.group, (head + 1) * c.group)
            out, exponents, keep = self._attend(q[mine], xq[mine], pages)
            found.append((out, exponents))
            maps.append(keep)
        if self.selection is not None and len(qkv) >= self.block:
            self.maps.append((index, torch.cat(maps)))
        return common_exponent(torch.cat([out for out, _ in found]), torch.cat([m for _, m in found]))

    def _attend(self, q, xq, pages):
        """Results of a KV head's queries [G, n, D]: mantissas, exponents, block map."""
        (heads, new, _), tokens, block = q.shape, len(pages.k), self.block
        first, count = (tokens - new) // block, -(-tokens // block)
        keep = torch.ones(heads, count - first, count, dtype=torch.bool).tril(first)
        group = exact.HeadGroup(
            q=q, xq=xq, k=pages.k, xk=pages.xk, v=pages.v, xv=pages.xv, **self._pooled(q, xq, pages)
        )
        if self.selection is not None and new >= block:
            chosen = self.selection
            keep = exact.block_map(exact.index(group, block=block, gamma16=chosen.gamma16, threshold=chosen.threshold))
        return *exact.attend(group, keep, block=block, by_row=True), keep

    def _pooled(self, q, xq, pages):
        """Mean rows of the blocks, if they are needed."""
        if self.selection is None or q.shape[1] < self.block:
            return dict.fromkeys(("pooled_q", "pooled_xq", "pooled_k", "pooled_xk"), q[0, :0])
        first = (len(pages.k) - q.shape[1]) % self.block
        (pooled_q, pooled_xq), (pooled_k, pooled_xk) = (
            _block_means(x, scale, self.block, lead) for x, scale, lead in ((q, xq, first), (pages.k, pages.xk, 0))
        )
        return {"pooled_q": pooled_q, "pooled_xq": pooled_xq, "pooled_k": pooled_k, "pooled_xk": pooled_xk}


def _block_means(rows, scales, block, lead):
    """Mean rows of the blocks of rows [..., n, D], the first of which lacks its ``lead`` first rows."""
    ends = range(block - lead, rows.shape[-2] + block, block)
    found = [pool(rows[..., max(end - block, 0) : end, :], scales[..., max(end - block, 0) : end]) for end in ends]
    return torch.stack([q for q, _ in found], -2), torch.stack([x for _, x in found], -1)


def common_exponent(mantissas: torch.Tensor, exponents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads of a token side by side, by its largest exponent.

    Parameters
    ----------
    mantissas : int16 [heads, n, D]; exponents : int8 [heads, n]
        A result is ``mantissa * 2^exponent``.

    Returns
    -------
    int64 [n, heads * D], int64 [n]: integers of 18 bits, signed, and the exponent of their unit
    """
    reference = exponents.long().amax(0)
    aligned = (mantissas.long() << OUTPUT_GUARD) >> (reference - exponents)[..., None]
    return aligned.transpose(0, 1).flatten(1), reference - OUTPUT_GUARD


class PageDecoder(ExactDecoder):
    """The decoder of the joined machine.

    Parameters
    ----------
    model : intaglio.gen.checkpoint.quantised.QuantisedModel
        Quantised with ``pages``.
    adapter : object or None
        As of :class:`~intaglio.sim.reference.exact_decoder.ExactDecoder`.
    block : int
        Tokens of a page.
    """

    attention: PageAttention

    def __init__(self, model: QuantisedModel, adapter: QuantisedAdapter | None = None, *, block: int = 128) -> None:
        super().__init__(model, adapter, PageAttention(model, block))

    def prefill(
        self, tokens: Sequence[int] | torch.Tensor, selection: Selection | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A prompt, or what continues one: as :meth:`step`, layer by layer over all tokens, with the blocks that ``selection`` chooses.

        Fewer tokens than a block are dense.
        """
        self.attention.selection = selection
        try:
            return self.step(tokens)
        finally:
            self.attention.selection = None
