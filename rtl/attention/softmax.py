"""Scores and weights of a tile: a lane for each query of a row group (docs/prefill.md, "Numerics")."""

from amaranth.hdl import Cat, Const, MemoryData, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import (
    EXP,
    FRACTION,
    MASS_FRACTION,
    SCALE_FRACTION,
    SCORE_BITS,
    SCORE_MAX,
    SHIFT_BIAS,
    SHIFT_MAX,
    VALUE_BIAS,
    VALUE_FRACTION,
    WEIGHT,
)
from intaglio.rtl.bus.streams import TileMode
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["EXPONENT_BITS", "LOG_BITS", "SCALE_BITS", "UNREACHED", "TileSoftmax", "tile_sum_bits"]

SCALE_BITS = 8  # of a row
EXPONENT_BITS = 7  # signed, of the loudest value of a tile
LOG_BITS = SCORE_BITS + 1  # signed bits of L and of 256 e
COARSE, WEIGHT_COARSE = 5, 4  # bits of the whole powers of two by which a probability and a weight may fall
UNREACHED = -1024  # E of a row that no tile has reached: below every other, its sums are zero


def tile_sum_bits(config):
    """Unsigned bits of a tile's sum of probabilities."""
    return ((max(EXP) << MASS_FRACTION - 16) * config.head_dim).bit_length()


def _scaled(value, mantissa):
    """``value * (4 + mantissa)`` as a sum of shifts: a multiplier would take a DSP slice for it."""
    terms = [Mux(mantissa[bit], value << bit, 0) for bit in range(SCALE_FRACTION)]
    return sum(terms, value << SCALE_FRACTION)


class TileSoftmax(wiring.Component):
    """Dot products of a tile to scores and their maximum, with the values' scales and without; later its scores, from a buffer of two
    tiles, to weights, probabilities and their sum.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    valid : In(1)
        The next key of the tile; keys are counted, ``head_dim`` make a tile.
    dot : In(signed(dot_bits)).array(columns)
    xq : In(8).array(columns), xk : In(8), xv : In(8)
        Scale bytes of the queries, of the key and of its value.
    limit : In(signed), alike : In(1)
        Key j is masked for lane i where ``j > limit + i``, or with ``alike`` where ``j > limit``.
    e_valid : Out(1)
        A tile's maxima are known; its weights may start.
    e : Out(signed(11)).array(columns)
        ``(maximum >> 8) + 1``, or :data:`UNREACHED` for a lane that the tile masks wholly. Held until the next ``e_valid``.
    f : Out(signed(11)).array(columns)
        The same for ``t + 64 (xv - 128)``: scores of values.
    exponent : Out(signed(7))
        ``(maximum of xv + 3 >> 2) - 32`` over all keys of the tile.
    start : In(1)
        Begin the weights of the oldest tile in the buffer: its ``e_valid`` has come (this very cycle, if need be). At least
        ``head_dim`` cycles lie between two starts. Where ``mode`` is not MASS, ``e``, ``f`` and ``exponent`` must still be this tile's.
    mode : In(2)
        With ``start``.
    log : In(signed(19)).array(columns)
        L of the rows, with ``start`` in MASS.
    p_valid : Out(1), key : Out
        A key's probabilities ``p`` (28 bits, relative to e or ``log``), ``weight`` (254 levels, relative to f; meaningless in MASS) and
        its scores ``t``, 0 where masked (but for t).
    sums_valid : Out(1)
        The tile is complete.
    sums : Out.array(columns)
        Sum of ``p``; with the tile's ``sums_e``, ``sums_f`` and ``sums_exponent`` (meaningless in MASS). Held until the next
        ``sums_valid``.

    Latency: last ``valid`` to ``e_valid`` :attr:`SCORE_LATENCY`; ``start`` to the first ``p_valid`` :attr:`WEIGHT_LATENCY`, to
    ``sums_valid`` ``WEIGHT_LATENCY + head_dim`` cycles. Throughput: one key a cycle in both halves at once. At most two tiles may be
    in the buffer: the first key of a tile arrives no earlier than ``head_dim`` after that of the one before, and no earlier than the
    start of the one before that.
    """

    SCORE_LATENCY = 5
    WEIGHT_LATENCY = 5

    def __init__(self, config):
        self.config = config
        lanes = config.columns
        super().__init__(
            {
                "valid": In(1),
                "dot": In(signed(config.dot_bits)).array(lanes),
                "xq": In(SCALE_BITS).array(lanes),
                "xk": In(SCALE_BITS),
                "xv": In(SCALE_BITS),
                "limit": In(signed(config.head_dim.bit_length() + 2)),
                "alike": In(1),
                "e_valid": Out(1),
                "e": Out(signed(config.maximum_bits)).array(lanes),
                "f": Out(signed(config.maximum_bits)).array(lanes),
                "exponent": Out(signed(EXPONENT_BITS)),
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
                "sums_f": Out(signed(config.maximum_bits)).array(lanes),
                "sums_exponent": Out(signed(EXPONENT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.buffer = buffer = Ram(c.columns * (SCORE_BITS + 1) + SCALE_BITS, 2 * c.head_dim)
        self._scores(m, buffer)
        self._weights(m, buffer)
        return m

    def _scores(self, m, buffer):
        """Four stages: the product with the query's mantissa, with the key's, twice the score rounded down, the score. Then maxima."""
        c = self.config
        stages = 4
        place = [Signal(index_bits(c.head_dim), name=f"place_{i}") for i in range(stages + 1)]
        valid = [self.valid, *(Signal(name=f"scored_{i}") for i in range(stages))]
        loud = [self.xv, *(Signal(SCALE_BITS, name=f"loud_{i}", reset_less=True) for i in range(stages))]
        half = Signal(name="write_half")
        with m.If(self.valid):
            m.d.sync += place[0].eq(place[0] + 1)
        for chain in (valid, place, loud):
            m.d.sync += [after.eq(before) for before, after in zip(chain, chain[1:], strict=False)]
        first, last = place[-1] == 0, place[-1] == c.head_dim - 1
        m.d.sync += [self.e_valid.eq(valid[-1] & last), half.eq(half ^ (valid[-1] & last))]
        loudest, loudest_next = Signal(SCALE_BITS, reset_less=True), Signal(SCALE_BITS)
        ceiling = (1 << VALUE_FRACTION) - 1
        m.d.comb += loudest_next.eq(Mux(first | (loud[-1] > loudest), loud[-1], loudest))
        with m.If(valid[-1]):
            m.d.sync += loudest.eq(loudest_next)
            with m.If(last):
                m.d.sync += self.exponent.eq(
                    ((loudest_next + ceiling) >> VALUE_FRACTION) - (VALUE_BIAS >> VALUE_FRACTION)
                )

        most = c.dot_bits + SCALE_FRACTION + 1
        mantissa = Signal(SCALE_FRACTION, name="key_mantissa", reset_less=True)
        m.d.sync += mantissa.eq(self.xk[:SCALE_FRACTION])
        scale_of_value = (loud[-1] << FRACTION - VALUE_FRACTION) - (VALUE_BIAS << FRACTION - VALUE_FRACTION)
        words = [loud[-1]]
        for i in range(c.columns):
            dot = Signal(signed(most), name=f"dot_{i}", reset_less=True)
            product = Signal(signed(most + SCALE_FRACTION + 1), name=f"product_{i}", reset_less=True)
            shift = [Signal(range(SHIFT_MAX + 1), name=f"shift_{i}_{stage}", reset_less=True) for stage in range(2)]
            twice = Signal(signed(len(product) + 1), name=f"twice_{i}", reset_less=True)
            score = Signal(signed(SCORE_BITS), name=f"score_{i}", reset_less=True)
            masked = [Signal(name=f"masked_{i}_{stage}", reset_less=True) for stage in range(stages)]
            rounded = Signal(signed(len(twice)), name=f"rounded_{i}")
            wanted = Signal(signed(SCALE_BITS), name=f"wanted_{i}")
            m.d.comb += [
                rounded.eq((twice + 1) >> 1),
                wanted.eq(self.xq[i][SCALE_FRACTION:] + self.xk[SCALE_FRACTION:] - SHIFT_BIAS),
            ]
            m.d.sync += [after.eq(before) for before, after in zip(masked, masked[1:], strict=False)]
            with m.If(valid[0]):
                m.d.sync += [
                    dot.eq(_scaled(self.dot[i], self.xq[i][:SCALE_FRACTION])),
                    shift[0].eq(Mux(wanted < 0, 0, Mux(wanted > SHIFT_MAX, SHIFT_MAX, wanted))),
                    masked[0].eq(place[0] > self.limit + Mux(self.alike, 0, i)),
                ]
            with m.If(valid[1]):
                m.d.sync += [product.eq(_scaled(dot, mantissa)), shift[1].eq(shift[0])]
            with m.If(valid[2]):
                m.d.sync += twice.eq(Cat(Const(0, 1), product).as_signed() >> shift[1])
            with m.If(valid[3]):
                high = Mux(rounded > SCORE_MAX, SCORE_MAX, rounded)
                m.d.sync += score.eq(Mux(rounded < -SCORE_MAX - 1, -SCORE_MAX - 1, high))
            # The maximum's integer part is the maximum of the integer parts.
            reached, reached_next = (
                Signal(name=f"{name}_{i}", reset_less=True) for name in ("reached", "reached_next")
            )
            begun = reached & ~first
            m.d.comb += reached_next.eq(begun | ~masked[-1])
            with m.If(valid[-1]):
                m.d.sync += reached.eq(reached_next)
            scaled = Signal(signed(LOG_BITS), name=f"scaled_{i}")
            m.d.comb += scaled.eq(score + scale_of_value)
            for name, value, out in (("top", score, self.e[i]), ("top_scaled", scaled, self.f[i])):
                whole = value[FRACTION:].as_signed()
                top, top_next = (
                    Signal(signed(len(whole)), name=f"{n}_{i}", reset_less=True) for n in (name, f"{name}_next")
                )
                m.d.comb += top_next.eq(Mux(~masked[-1] & (~begun | (whole > top)), whole, top))
                with m.If(valid[-1]):
                    m.d.sync += top.eq(top_next)
                    with m.If(last):
                        m.d.sync += out.eq(Mux(reached_next, top_next + 1, UNREACHED))
            words += [score, masked[-1]]
        m.d.comb += [
            buffer.write_en.eq(valid[-1]),
            buffer.write_addr.eq(Cat(place[-1], half)),
            buffer.write_data.eq(Cat(*words)),
        ]

    def _weights(self, m, buffer):
        """Four stages after the buffer: distances to the references, tables, probability and weight, rounding; then the sum."""
        c = self.config
        bits = index_bits(c.head_dim)
        half, running = Signal(name="read_half"), Signal()
        key = [Signal(bits, name=f"key_{i}") for i in range(5)]
        valid = [Signal(name=f"weighed_{i}") for i in range(6)]
        m.d.comb += [
            valid[0].eq(self.start | running),
            buffer.read_en.eq(valid[0]),
            buffer.read_addr.eq(Cat(key[0], half)),
        ]
        with m.If(valid[0]):
            m.d.sync += [running.eq(key[0] != c.head_dim - 1), key[0].eq(key[0] + 1)]
            with m.If(key[0] == c.head_dim - 1):
                m.d.sync += half.eq(~half)
        m.d.sync += [
            after.eq(before) for chain in (key, valid) for before, after in zip(chain, chain[1:], strict=False)
        ]
        out_key = Signal(bits)
        m.d.sync += out_key.eq(key[4])
        first, last = out_key == 0, out_key == c.head_dim - 1
        m.d.comb += [self.p_valid.eq(valid[5]), self.key.eq(out_key)]
        m.d.sync += self.sums_valid.eq(valid[5] & last)
        # What is of the tile leaves the references with its last key, since the next tile may start then.
        leaves, complete = valid[1] & (key[1] == c.head_dim - 1), valid[5] & last
        started, left = (
            Signal(signed(EXPONENT_BITS), name=f"exponent_{name}", reset_less=True) for name in ("started", "left")
        )
        with m.If(self.start):
            m.d.sync += started.eq(self.exponent)
        with m.If(leaves):
            m.d.sync += left.eq(started)
        with m.If(complete):
            m.d.sync += self.sums_exponent.eq(left)

        loud = buffer.read_data[:SCALE_BITS]
        scale_of_value = (loud << FRACTION - VALUE_FRACTION) - (VALUE_BIAS << FRACTION - VALUE_FRACTION)
        words = buffer.read_data[SCALE_BITS:].word_select
        for i in range(c.columns):
            word = words(i, SCORE_BITS + 1)
            score, masked = word[:SCORE_BITS].as_signed(), word[SCORE_BITS]
            p = Signal(MASS_FRACTION, name=f"p_{i}", reset_less=True)
            weight = Signal(range(max(WEIGHT) + 1), name=f"twice_weight_{i}", reset_less=True)
            scores = [Signal(signed(SCORE_BITS), name=f"t_{i}_{s}", reset_less=True) for s in range(3)]
            total = Signal(tile_sum_bits(c), name=f"total_{i}", reset_less=True)
            references = []
            for name, start, value, table, coarse, word_out, sums in (
                (
                    "p",
                    Mux(self.mode == TileMode.MASS, self.log[i], self.e[i] << FRACTION),
                    score,
                    EXP,
                    COARSE,
                    p,
                    self.sums_e[i],
                ),
                ("w", self.f[i] << FRACTION, score + scale_of_value, WEIGHT, WEIGHT_COARSE, weight, self.sums_f[i]),
            ):
                reference = Signal(signed(LOG_BITS), name=f"reference_{name}_{i}", reset_less=True)
                with m.If(self.start):
                    m.d.sync += reference.eq(start)
                fallen = self._fallen(m, f"{name}_{i}", valid, reference - value, masked, table, coarse, len(word_out))
                with m.If(valid[3]):
                    m.d.sync += word_out.eq(fallen)
                held = Signal(signed(c.maximum_bits), name=f"whole_{name}_{i}", reset_less=True)
                with m.If(leaves):
                    m.d.sync += held.eq(reference >> FRACTION)
                references.append((sums, held))
            for stage, source in enumerate((score, *scores[:2])):
                with m.If(valid[stage + 1]):
                    m.d.sync += scores[stage].eq(source)
            with m.If(valid[4]):
                m.d.sync += [self.p[i].eq(p), self.t[i].eq(scores[2]), self.weight[i].eq((weight + 1) >> 1)]
            summed = Signal.like(total, name=f"summed_{i}")
            m.d.comb += summed.eq(Mux(first, 0, total) + self.p[i])
            with m.If(valid[5]):
                m.d.sync += total.eq(summed)
            with m.If(complete):
                m.d.sync += [self.sums[i].eq(summed), *(out.eq(held) for out, held in references)]

    def _fallen(self, m, name, valid, distance, masked, table, coarse_bits, width):
        """``table`` at a distance in 1/256 of a power of two, from the buffer's data to two stages later: 0 where masked."""
        difference = Signal(distance.shape(), name=f"difference_{name}")
        fine, coarse, fall = (
            Signal(size, name=f"{part}_{name}", reset_less=True)
            for part, size in (("fine", FRACTION), ("coarse", coarse_bits), ("fall", coarse_bits))
        )
        gone = [Signal(name=f"gone_{name}_{s}", reset_less=True) for s in range(2)]
        memory = Memory(
            MemoryData(shape=max(table).bit_length(), depth=1 << FRACTION, init=table), attrs={"syn_romstyle": "logic"}
        )
        m.submodules[f"table_{name}"] = memory
        read = memory.read_port()
        m.d.comb += [difference.eq(distance), read.en.eq(valid[2]), read.addr.eq(fine)]
        with m.If(valid[1]):
            with m.If(difference < 0):
                m.d.sync += [fine.eq(0), coarse.eq(0), gone[0].eq(masked)]
            with m.Else():
                m.d.sync += [
                    Cat(fine, coarse).eq(difference[: FRACTION + coarse_bits]),
                    gone[0].eq(masked | difference[FRACTION + coarse_bits :].any()),
                ]
        with m.If(valid[2]):
            m.d.sync += [fall.eq(coarse), gone[1].eq(gone[0])]
        return Mux(gone[1], 0, Cat(Const(0, width - len(read.data)), read.data) >> fall)
