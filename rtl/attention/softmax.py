"""Scores and weights of a tile: a lane for each query of a row group (docs/prefill.md, "Numerics")."""

from amaranth.hdl import Cat, Const, MemoryData, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import (
    EXP,
    FRACTION,
    MASS_FRACTION,
    MERGE_SHIFT,
    SCORE_BITS,
    SCORE_FRACTION,
    SCORE_MAX,
    WEIGHT_MAX,
)
from intaglio.rtl.bus.streams import Mode
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["BASE_BITS", "LOG_BITS", "UNREACHED", "TileSoftmax", "tile_sum_bits"]

BASE_BITS = 5  # signed
LOG_BITS = SCORE_BITS + 1  # signed bits of L and of 256 e
COARSE = 5  # bits of the whole powers of two by which a probability may fall
UNREACHED = -1024  # E of a row that no tile has reached: below every other, its sums are zero


def tile_sum_bits(config):
    """Unsigned bits of a tile's sum of probabilities, which exceeds that of 8-bit weights with 4 fraction bits."""
    return ((max(EXP) << MASS_FRACTION - 16) * config.head_dim).bit_length()


class TileSoftmax(wiring.Component):
    """Dot products of a tile to scores and their maximum; later its scores, from a buffer of two tiles, to weights and their sum.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    base : In(signed(5))
        Stable during a run; -8 at least.
    valid : In(1)
        The next key of the tile; keys are counted, ``head_dim`` make a tile.
    dot : In(signed(dot_bits)).array(columns)
    xq : In(3).array(columns), xk : In(3)
        Exponents of the queries and of the key.
    limit : In(signed)
        Key j is masked for lane i where ``j > limit + i``.
    e_valid : Out(1)
        A tile's maxima are known; its weights may start.
    e : Out(signed(11)).array(columns)
        ``(maximum >> 8) + 1``, or :data:`UNREACHED` for a lane that the tile masks wholly. Held until the next ``e_valid``.
    start : In(1)
        Begin the weights of the oldest tile in the buffer: its ``e_valid`` has come (this very cycle, if need be). At least
        ``head_dim`` cycles lie between two starts. Where ``mode`` is not MASS, ``e`` must still be this tile's.
    mode : In(2)
        With ``start``.
    log : In(signed(19)).array(columns)
        L of the rows, with ``start`` in MASS.
    p_valid : Out(1), key : Out
        A key's probabilities: ``p`` (28 bits), ``weight`` (8 bits, rounded) and its scores ``t``, 0 where masked (but for t).
    sums_valid : Out(1)
        The tile is complete.
    sums : Out.array(columns)
        Sum of ``p``, or in ATTEND of ``weight << 4``; with the tile's e, ``sums_e`` (meaningless in MASS). Held until the next
        ``sums_valid``.

    Latency: last ``valid`` to ``e_valid`` :attr:`SCORE_LATENCY`; ``start`` to the first ``p_valid`` :attr:`WEIGHT_LATENCY`, to
    ``sums_valid`` ``WEIGHT_LATENCY + head_dim`` cycles. Throughput: one key a cycle in both halves at once. At most two tiles may be
    in the buffer: the first key of a tile arrives no earlier than ``head_dim`` after that of the one before, and no earlier than the
    start of the one before that.
    """

    SCORE_LATENCY = 4
    WEIGHT_LATENCY = 5

    def __init__(self, config):
        self.config = config
        lanes = config.columns
        super().__init__(
            {
                "base": In(signed(BASE_BITS)),
                "valid": In(1),
                "dot": In(signed(config.dot_bits)).array(lanes),
                "xq": In(3).array(lanes),
                "xk": In(3),
                "limit": In(signed(config.head_dim.bit_length() + 2)),
                "e_valid": Out(1),
                "e": Out(signed(config.maximum_bits)).array(lanes),
                "start": In(1),
                "mode": In(2),
                "log": In(signed(LOG_BITS)).array(lanes),
                "p_valid": Out(1),
                "key": Out(index_bits(config.head_dim)),
                "p": Out(MASS_FRACTION).array(lanes),
                "weight": Out(8).array(lanes),
                "t": Out(signed(SCORE_BITS)).array(lanes),
                "sums_valid": Out(1),
                "sums": Out(tile_sum_bits(config)).array(lanes),
                "sums_e": Out(signed(config.maximum_bits)).array(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.buffer = buffer = Ram(c.columns * (SCORE_BITS + 1), 2 * c.head_dim)
        self._scores(m, buffer)
        self._weights(m, buffer)
        return m

    def _scores(self, m, buffer):
        """Three stages: the shift, twice the score rounded down, the score."""
        c = self.config
        place = [Signal(index_bits(c.head_dim), name=f"place_{i}") for i in range(4)]
        valid = [self.valid, *(Signal(name=f"scored_{i}") for i in range(3))]
        half = Signal(name="write_half")
        with m.If(self.valid):
            m.d.sync += place[0].eq(place[0] + 1)
        m.d.sync += [after.eq(before) for before, after in zip(valid, valid[1:], strict=False)]
        m.d.sync += [after.eq(before) for before, after in zip(place, place[1:], strict=False)]
        first, last = place[3] == 0, place[3] == c.head_dim - 1
        m.d.sync += [self.e_valid.eq(valid[3] & last), half.eq(half ^ (valid[3] & last))]
        words = []
        for i in range(c.columns):
            dot, shift = (
                Signal(signed(c.dot_bits), name=f"dot_{i}", reset_less=True),
                Signal(6, name=f"shift_{i}", reset_less=True),
            )
            twice = Signal(signed(c.dot_bits + SCORE_FRACTION + 1), name=f"twice_{i}", reset_less=True)
            score = Signal(signed(SCORE_BITS), name=f"score_{i}", reset_less=True)
            masked = [Signal(name=f"masked_{i}_{stage}", reset_less=True) for stage in range(3)]
            rounded = Signal(signed(c.dot_bits + SCORE_FRACTION + 1), name=f"rounded_{i}")
            m.d.comb += rounded.eq((twice + 1) >> 1)
            with m.If(valid[0]):
                m.d.sync += [
                    dot.eq(self.dot[i]),
                    shift.eq(self.base + SCORE_FRACTION + self.xq[i] + self.xk),
                    masked[0].eq(place[0] > self.limit + i),
                ]
            with m.If(valid[1]):
                m.d.sync += [
                    twice.eq(Cat(Const(0, SCORE_FRACTION + 1), dot).as_signed() >> shift),
                    masked[1].eq(masked[0]),
                ]
            with m.If(valid[2]):
                high = Mux(rounded > SCORE_MAX, SCORE_MAX, rounded)
                m.d.sync += [score.eq(Mux(rounded < -SCORE_MAX - 1, -SCORE_MAX - 1, high)), masked[2].eq(masked[1])]
            # The maximum's integer part is the maximum of the integer parts.
            top = Signal(signed(SCORE_BITS - FRACTION), name=f"top_{i}", reset_less=True)
            reached = Signal(name=f"reached_{i}", reset_less=True)
            top_next, reached_next = Signal.like(top), Signal.like(reached)
            whole, begun = score[FRACTION:].as_signed(), reached & ~first
            m.d.comb += [
                reached_next.eq(begun | ~masked[2]),
                top_next.eq(Mux(~masked[2] & (~begun | (whole > top)), whole, top)),
            ]
            with m.If(valid[3]):
                m.d.sync += [top.eq(top_next), reached.eq(reached_next)]
                with m.If(last):
                    m.d.sync += self.e[i].eq(Mux(reached_next, top_next + 1, UNREACHED))
            words += [score, masked[2]]
        m.d.comb += [
            buffer.write_en.eq(valid[3]),
            buffer.write_addr.eq(Cat(place[3], half)),
            buffer.write_data.eq(Cat(*words)),
        ]

    def _weights(self, m, buffer):
        """Four stages after the buffer: distance to the reference, table, probability, weight; then the sum."""
        c = self.config
        bits = index_bits(c.head_dim)
        half, running = Signal(name="read_half"), Signal()
        key = [Signal(bits, name=f"key_{i}") for i in range(5)]
        valid = [Signal(name=f"weighed_{i}") for i in range(6)]
        mode = [Signal(2, name=f"mode_{i}") for i in range(4)]
        m.d.comb += [
            valid[0].eq(self.start | running),
            buffer.read_en.eq(valid[0]),
            buffer.read_addr.eq(Cat(key[0], half)),
        ]
        with m.If(valid[0]):
            m.d.sync += [running.eq(key[0] != c.head_dim - 1), key[0].eq(key[0] + 1)]
            with m.If(key[0] == c.head_dim - 1):
                m.d.sync += half.eq(~half)
        with m.If(self.start):
            m.d.sync += mode[0].eq(self.mode)
        m.d.sync += [
            after.eq(before) for chain in (key, valid, mode) for before, after in zip(chain, chain[1:], strict=False)
        ]
        out_key = Signal(bits)
        m.d.sync += out_key.eq(key[4])
        first, last = out_key == 0, out_key == c.head_dim - 1
        attend = Signal(reset_less=True)
        m.d.sync += attend.eq(mode[3] == Mode.ATTEND)
        m.d.comb += [self.p_valid.eq(valid[5]), self.key.eq(out_key)]
        m.d.sync += self.sums_valid.eq(valid[5] & last)

        words = buffer.read_data.word_select
        for i in range(c.columns):
            word = words(i, SCORE_BITS + 1)
            score, masked = word[:SCORE_BITS].as_signed(), word[SCORE_BITS]
            reference = Signal(signed(LOG_BITS), name=f"reference_{i}", reset_less=True)
            difference = Signal(signed(LOG_BITS + 1), name=f"difference_{i}")
            fine, coarse = (
                Signal(FRACTION, name=f"fine_{i}", reset_less=True),
                Signal(COARSE, name=f"coarse_{i}", reset_less=True),
            )
            fall = Signal(COARSE, name=f"fall_{i}", reset_less=True)
            gone = [Signal(name=f"gone_{i}_{s}", reset_less=True) for s in range(2)]
            p = Signal(MASS_FRACTION, name=f"p_{i}", reset_less=True)
            scores = [Signal(signed(SCORE_BITS), name=f"t_{i}_{s}", reset_less=True) for s in range(3)]
            e = Signal(signed(c.maximum_bits), name=f"e_{i}", reset_less=True)
            total = Signal(tile_sum_bits(c), name=f"total_{i}", reset_less=True)
            table = Memory(MemoryData(shape=16, depth=1 << FRACTION, init=EXP), attrs={"syn_romstyle": "logic"})
            m.submodules[f"exp_{i}"] = table
            read = table.read_port()
            m.d.comb += [difference.eq(reference - score), read.en.eq(valid[2]), read.addr.eq(fine)]
            with m.If(self.start):
                m.d.sync += reference.eq(Mux(self.mode == Mode.MASS, self.log[i], self.e[i] << FRACTION))
            with m.If(valid[1]):
                with m.If(difference < 0):
                    m.d.sync += [fine.eq(0), coarse.eq(0), gone[0].eq(masked)]
                with m.Else():
                    m.d.sync += [
                        Cat(fine, coarse).eq(difference[: FRACTION + COARSE]),
                        gone[0].eq(masked | difference[FRACTION + COARSE :].any()),
                    ]
                m.d.sync += scores[0].eq(score)
                with m.If(key[1] == c.head_dim - 1):
                    m.d.sync += e.eq(reference >> FRACTION)
            with m.If(valid[2]):
                m.d.sync += [fall.eq(coarse), gone[1].eq(gone[0]), scores[1].eq(scores[0])]
            with m.If(valid[3]):
                m.d.sync += [
                    p.eq(Mux(gone[1], 0, Cat(Const(0, MASS_FRACTION - 16), read.data) >> fall)),
                    scores[2].eq(scores[1]),
                ]
            with m.If(valid[4]):
                weight = (p[MASS_FRACTION - 9 :] + 1) >> 1
                m.d.sync += [
                    self.p[i].eq(p),
                    self.t[i].eq(scores[2]),
                    self.weight[i].eq(Mux(weight > WEIGHT_MAX, WEIGHT_MAX, weight)),
                ]
            summed = Signal.like(total, name=f"summed_{i}")
            m.d.comb += summed.eq(Mux(first, 0, total) + Mux(attend, self.weight[i] << MERGE_SHIFT, self.p[i]))
            with m.If(valid[5]):
                m.d.sync += total.eq(summed)
                with m.If(last):
                    m.d.sync += [self.sums[i].eq(summed), self.sums_e[i].eq(e)]
