"""Layouts of what the parts of the prefill unit tell one another."""

import enum

from amaranth.hdl import signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import MASS_FRACTION, SCORE_BITS
from intaglio.rtl.memory.ram import index_bits

__all__ = [
    "FetchKind",
    "RunPhase",
    "TileMode",
    "fetch_request",
    "fetched",
    "mass_tag",
    "masses",
    "offset_of",
    "retired",
    "store_read",
    "store_write",
    "tile_command",
    "visit",
]

ADDRESS_BITS = 44
BLOCK_BITS = 14  # a block's index with room to spare


class TileMode(enum.IntEnum):
    """What the tile engine does with a tile."""

    MAX = 0
    MASS = 1
    ATTEND = 2
    NORM = 3  # no tile: turn the state of a row group into L


class RunPhase(enum.IntEnum):
    """What a run is at; every cycle of a run belongs to one."""

    IDLE = 0
    LOAD = 1  # the last queries
    MAX = 2  # first pass over the keys, and the logarithms of the sums
    MASS = 3  # second pass
    SELECT = 4  # decision and selection
    POOL = 5  # query-aware heads: pooled rows
    MAP = 6  # the block map
    ATTEND = 7


class FetchKind(enum.IntEnum):
    K = 0  # keys and their scales into a line
    KV = 1  # keys and values, with their scales, into a line
    Q = 2  # a Q block into a slot


def mass_tag(config):
    """What comes back with the probabilities of a MASS tile: the head, the row group, the key tile of the block; ``finish`` of the tile."""
    return data.StructLayout(
        {
            "head": index_bits(config.group),
            "row_group": index_bits(config.row_groups),
            "tile": index_bits(config.tiles),
            "finish": 1,
        }
    )


def tile_command(config):
    """One tile (or NORM) for the engine.

    slot, row_group : where the queries lie in the Q store; line, tile : where the keys lie in the line store.
    state : row group whose state is used: ``slot * row_groups + row_group`` as the sender chooses.
    limit : signed; key j is masked for lane i where j > limit + i; saturated to -columns..head_dim.
    alike : for all lanes where j > limit.
    first : the row group's state starts with this tile.
    load : the queries differ from those of the tile before in this mode, so they must be loaded.
    finish : last tile of a (head, query block): drain slot; in MAX and MASS last tile of a (head, key block). retire : last tile that uses
        the line.
    head, block : identity of the results, for the output's header.
    """
    return data.StructLayout(
        {
            "mode": 2,
            "slot": index_bits(config.slots),
            "row_group": index_bits(config.row_groups),
            "line": index_bits(config.lines),
            "tile": index_bits(config.tiles),
            "state": index_bits(config.slots * config.row_groups),
            "limit": signed(config.head_dim.bit_length() + 2),
            "alike": 1,
            "first": 1,
            "load": 1,
            "finish": 1,
            "retire": 1,
            "head": index_bits(config.group),
            "block": BLOCK_BITS,
        }
    )


def offset_of(index, size):
    """``index * size`` as a sum of shifts: the sizes of blocks have two bits, and a multiplier would take a DSP slice."""
    return sum(index << bit for bit in range(size.bit_length()) if size >> bit & 1)


def fetch_request(config):
    """A block to bring in: index is a line or a slot, last_row the index of its last row that counts."""
    return data.StructLayout(
        {
            "kind": 2,
            "address": ADDRESS_BITS,
            "index": index_bits(max(config.lines, config.slots)),
            "last_row": index_bits(config.block),
        }
    )


def fetched(config):
    """A request that is complete, in order of requests."""
    return data.StructLayout({"kind": 2, "index": index_bits(max(config.lines, config.slots))})


def retired(config):
    """From the engine: the line (visit) is no longer read; or a slot has been drained."""
    return data.StructLayout({"visit": 1, "slot": 1, "index": index_bits(config.slots)})


def visit(config):
    """A visit of the window's jobs to a key block.

    jobs : bit ``q * group + h``. next_window, next_valid : the window of the next visit to the block. remaining : visits after this one.
    last : no visit follows in this run.
    """
    return data.StructLayout(
        {
            "window": index_bits(config.windows),
            "block": BLOCK_BITS,
            "jobs": config.slots,
            "next_valid": 1,
            "next_window": index_bits(config.windows),
            "remaining": (config.windows).bit_length(),
            "last": 1,
        }
    )


def masses(config):
    """From the engine to the index: the probabilities ``p`` of one key of a MASS tile, a lane each, their scores ``t``, and whose they are.

    valid; key : place in the tile; tag : :func:`mass_tag`.
    """
    return wiring.Signature(
        {
            "valid": Out(1),
            "p": Out(MASS_FRACTION).array(config.columns),
            "t": Out(signed(SCORE_BITS)).array(config.columns),
            "key": Out(index_bits(config.head_dim)),
            "tag": Out(mass_tag(config)),
        }
    )


def store_write(config):
    """A beat from memory, a row of keys, values or queries or their scales, into the store whose strobe is high; ``scale_address`` is of
    scales."""
    index = index_bits(max(config.lines, config.slots))
    return wiring.Signature(
        {
            **{name: Out(1) for name in ("key", "value", "query", "key_scale", "value_scale", "query_scale")},
            "address": Out(index + config.block.bit_length() - 1),
            "scale_address": Out(index + config.scale_beats.bit_length() - 1),
            "data": Out(8 * config.head_dim),
        }
    )


def store_read(config):
    """Reads of the stores by the engine, one cycle late: a row of keys (k), a channel of a tile's values (v), the scales of a key tile
    (x), all of ``read_line``; and channels of a row group of queries (q), ``columns`` beats for each, then beats of scales."""
    beat = 8 * config.head_dim
    return wiring.Signature(
        {
            "read_line": Out(index_bits(config.lines)),
            "k_read": Out(1),
            "k_row": Out(index_bits(config.block)),
            "k_data": In(beat),
            "v_read": Out(1),
            "v_row": Out(index_bits(config.block)),
            "v_data": In(beat),
            "x_read": Out(1),
            "x_tile": Out(index_bits(config.tiles)),
            "x_data": In(2 * beat),
            "q_read": Out(1),
            "q_slot": Out(index_bits(config.slots)),
            "q_beat": Out(index_bits(config.block + config.scale_beats)),
            "q_data": In(beat),
        }
    )
