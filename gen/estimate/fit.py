"""Which prefill units a target holds: multipliers on its DSP slices and LUTs, memories on chip, a layer's tensors in its own memory."""

from dataclasses import dataclass

from intaglio import Error
from intaglio.gen.estimate.attention import Model
from intaglio.gen.estimate.targets import TARGETS, split
from intaglio.rtl.attention.stores import store_bits
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.select import SCORE_WORD

__all__ = ["LUT_PER_MAC", "LUT_PER_PACKED_MAC", "Fit", "fit_units", "layer_bytes", "memory_bits", "unit_config"]

LUT_PER_MAC, LUT_PER_PACKED_MAC = 59.9, 26.4  # synthesised, `make bench`, docs/prefill.md
BLOCK, WINDOW, LOOKAHEAD, FEWEST_LINES = 128, 16, 4, 8


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a target holds.

    Members
    -------
    units : int
        Prefill units side by side, each with a KV head at a time.
    lut_columns : int
        Columns of each whose multipliers are LUTs.
    config : PrefillConfig
        Of each unit.
    """

    units: int
    lut_columns: int
    config: PrefillConfig


def unit_config(
    model: Model,
    *,
    tokens: int,
    columns: int = 64,
    clock_hz: int = 300_000_000,
    window: int = WINDOW,
    lines: int | None = None,
) -> PrefillConfig:
    """The unit of a model's heads: blocks of 128, ``window`` query blocks, ``lines`` blocks on chip (None: a tenth of all, 16 at least)."""
    blocks = -(-tokens // BLOCK)
    return PrefillConfig(
        head_dim=model.head_dim,
        group=model.heads // model.kv_heads,
        block=BLOCK,
        columns=columns,
        context=blocks * BLOCK,
        window=min(window, columns),
        lines=max(16, blocks // 10) if lines is None else lines,
        lookahead=LOOKAHEAD,
        drain=min(32, columns),
        clock_hz=clock_hz,
    )


def memory_bits(c: PrefillConfig) -> int:
    """Bits of a unit's memories: stores, accumulators, states, block map, block scores; small buffers are not counted."""
    words = c.slots * c.row_groups
    return (
        store_bits(c)
        + c.columns * words * (c.value_bits * c.head_dim + 2 * c.maximum_bits + c.sum_bits)
        + c.group * c.columns * c.batches * c.blocks
        + SCORE_WORD * c.columns * c.blocks
    )


def layer_bytes(model: Model, tokens: int) -> int:
    """Bytes of Q, K and V of a layer as they lie in memory (docs/prefill.md): for a token 2 (D + 1) of a KV head, D + 1 of a
    query head: rows and scale bytes."""
    return tokens * (model.head_dim + 1) * (2 * model.kv_heads + model.heads)


def fit_units(model: Model, target: str, *, tokens: int, columns: int, reserved: float, clock_hz: int) -> Fit:
    """The most units that a target holds, with the widest window and then the most lines that leave room for all of them.

    Parameters
    ----------
    model : Model
    target : str
        A name of :data:`~intaglio.gen.estimate.targets.TARGETS`.
    tokens : int
        Of the longest prompt.
    columns : int
        Columns of the matrix unit of each.
    reserved : float
        Share of DSP slices, LUTs and memory on chip that is left to everything else.
    clock_hz : int

    Returns
    -------
    Fit

    Raises
    ------
    Error, ValueError
        The unit has no such shape; the target does not hold one, and what it holds; its memory does not hold the prompt's tensors.
    """
    has, dim = TARGETS[target], model.head_dim
    unit_config(model, tokens=tokens, columns=columns, clock_hz=clock_hz, window=1)  # no such shape, whatever holds it
    column, pair = round(LUT_PER_MAC * dim), round(2 * LUT_PER_PACKED_MAC * dim)
    found = split(has.dsp // has.pair_dsp, has.lut, dim, lut_per_column=column, lut_per_pair=pair, reserved=reserved)
    if found.columns < columns:
        narrower = 1 << found.columns.bit_length() - 1
        hint = f"; --columns {narrower} fits" if narrower >= max(8, 2 * (model.heads // model.kv_heads)) else ""
        raise Error(
            f"the target must hold a unit of {columns} columns of {dim} multipliers; {target} holds {found.columns} columns, "
            f"{found.columns - found.lut_columns} in pairs on its {has.dsp:,} DSP slices and {found.lut_columns} on its "
            f"{has.lut:,} LUTs, with {reserved:.0%} of both left to everything else{hint}"
        )
    if layer_bytes(model, tokens) > has.memory_bytes:
        raise Error(
            f"the memory must hold Q, K and V of a layer, {layer_bytes(model, tokens) / 1e6:,.0f} MB at {tokens:,} tokens; "
            f"{target} has {has.memory_bytes / 1e6:,.0f} MB ({has.memory})"
        )
    room = has.ram_bits * (1 - reserved)
    for units in range(found.columns // columns, 0, -1):
        pairs = min(columns // 2, found.dsp // dim // units)  # every unit has as many
        if units * (pairs * pair + (columns - 2 * pairs) * column) > has.lut * (1 - reserved):
            continue
        for config in _sizes(model, tokens, columns, clock_hz):
            if units * memory_bits(config) <= room:
                return Fit(units=units, lut_columns=columns - 2 * pairs, config=config)
    raise Error(
        f"the target must hold a unit's memories on chip, at the least {memory_bits(config) / 1e6:.1f} Mbit for {tokens:,} tokens; "
        f"{target} has {has.ram_bits / 1e6:.1f} Mbit, {room / 1e6:.1f} with {reserved:.0%} left to everything else"
    )


def _sizes(model, tokens, columns, clock_hz):
    """Units of ever less memory: wide windows first, in each as many lines as a prompt is worth and then halves of them."""
    window = min(WINDOW, columns)
    while window:
        config = unit_config(model, tokens=tokens, columns=columns, clock_hz=clock_hz, window=window)
        lines = config.lines
        while lines >= FEWEST_LINES:
            yield unit_config(model, tokens=tokens, columns=columns, clock_hz=clock_hz, window=window, lines=lines)
            lines //= 2
        window //= 2
