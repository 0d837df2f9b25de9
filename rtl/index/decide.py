"""Decision of the index between the patterns: how far the masses of blocks estimated from pooled scores are from the true ones."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import FRACTION, LOG_FRACTION, MASS_FRACTION, SCORE_BITS, SCORE_WORD
from intaglio.rtl.arithmetic.logarithm import Logarithm, Power
from intaglio.rtl.bus.streams import BLOCK_BITS
from intaglio.rtl.memory.ram import index_bits

__all__ = ["DIVERGENCE_BITS", "Decision", "decide_cycles", "pool_bits"]

INVERSE_BITS = 17  # of 65536 // tokens, 65536 included
DIVERGENCE_BITS = 48  # signed
P_BITS = 16
LOG_SHIFT = LOG_FRACTION - FRACTION  # from units of LOG to those of scores


def pool_bits(config):
    """Signed bits of a sum of scores over a block of queries and a block of keys."""
    return SCORE_BITS + 2 * index_bits(config.block)


def decide_cycles(count):
    """Cycles from ``start`` to ``done`` for ``count`` blocks."""
    return 5 * count + 41


class Decision(wiring.Component):
    """Jensen-Shannon divergence J of one head, and whether it is below a threshold (docs/prefill.md, Decision).

    First the mean of the last block, whose inverse is no power of two, is multiplied serially and kept; the others are shifts. Then the
    blocks are read three times: for the largest mean, for the sum of the powers, and (three cycles a block) for J, whose products share
    one multiplier.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    start : In(1)
    count : In
        Blocks, 1..config.blocks.
    inverse : In(17)
        ``65536 // (tokens of the last block)``.
    threshold : In(32)
        0: never query-aware. ``count``, ``inverse`` and ``threshold`` are stable from ``start`` to ``done``.
    o_block : Out
        The block whose scores are read.
    ver, pool : In(36), In(signed(pool_bits))
        Those of the block asked for in the cycle before. ``pool`` is a sum of block x (tokens of the block) scores.
    done : Out(1)
        High for a cycle; the results stay until the next ``start``.
    query_aware : Out(1)
    divergence : Out(signed(48))
        J: 2^29 times the divergence in bits, of rounded terms; it may be slightly below 0.

    Latency: :func:`decide_cycles`, exactly.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "count": In(BLOCK_BITS),
                "inverse": In(INVERSE_BITS),
                "threshold": In(32),
                "o_block": Out(index_bits(config.blocks)),
                "ver": In(SCORE_WORD),
                "pool": In(signed(pool_bits(config))),
                "done": Out(1),
                "query_aware": Out(1),
                "divergence": Out(signed(DIVERGENCE_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        block_log = index_bits(c.block)
        sum_bits = P_BITS + index_bits(c.blocks) + 1
        exponent_bits = SCORE_BITS + 3
        m.submodules.power = power = Power(exponent_bits)
        m.submodules.logarithm = logarithm = Logarithm(max(sum_bits, P_BITS + 1))

        index, part = Signal.like(self.o_block), Signal(2)  # what is read: a block; in the third pass its part
        last_word = Signal()
        wait = Signal(range(INVERSE_BITS + 2))
        m.d.comb += [self.o_block.eq(index), last_word.eq(index == self.count - 1)]

        # Means. Two cycles after the read: mean and true mass in registers.
        mean, true, last_mean = Signal(signed(SCORE_BITS)), Signal(P_BITS, reset_less=True), Signal(signed(SCORE_BITS))
        product = Signal(signed(pool_bits(c) + 1))  # of the last block, less the bits that are shifted out
        inverse, multiplying = Signal(INVERSE_BITS, reset_less=True), Signal()
        last_there, masses = Signal(), Signal(SCORE_WORD - block_log - MASS_FRACTION + P_BITS)
        m.d.comb += masses.eq(self.ver >> block_log + MASS_FRACTION - P_BITS)
        m.d.sync += [
            last_there.eq(last_word),
            mean.eq(Mux(last_there, last_mean, self.pool >> (2 * block_log))),
            true.eq(Mux(masses[P_BITS:].any(), (1 << P_BITS) - 1, masses)),
        ]
        with m.If(multiplying):
            m.d.sync += [product.eq((product >> 1) + Mux(inverse[0], self.pool, 0)), inverse.eq(inverse >> 1)]

        # What a read is for, as it travels: the scores are there one cycle later, then in the registers above, then there are powers, a
        # number x and its logarithm.
        powered, logged = 2 + Power.LATENCY, 3 + Power.LATENCY + Logarithm.LATENCY
        parts = _delayed(m, part, logged)
        finding = _delayed(m, Signal(name="finding"), 2)
        summing = _delayed(m, Signal(name="summing"), powered)
        diverging = _delayed(m, Signal(name="diverging"), logged)

        largest, total = Signal(signed(SCORE_BITS)), Signal(sum_bits)
        top = Signal(signed(SCORE_BITS + 2))  # 256 e
        log = Signal(signed(SCORE_BITS + 2))  # Lp
        m.d.comb += top.eq(((largest >> FRACTION) + 1) << FRACTION)
        with m.If(finding[2] & (mean > largest)):
            m.d.sync += largest.eq(mean)
        gap = Signal(signed(SCORE_BITS + 3))
        m.d.comb += [gap.eq(Mux(diverging[2], log, top) - mean), power.exponent.eq(Mux(gap < 0, 0, gap))]
        with m.If(summing[powered]):
            m.d.sync += total.eq(total + power.power)

        # Third pass: x = est + true, est, true of a block, one after the other; x (n 4096 - LOG(x)) is added or subtracted.
        truths = _delayed(m, true, Power.LATENCY)
        x = _delayed(m, Signal(P_BITS + 1, name="x", reset_less=True), Logarithm.LATENCY)
        m.d.sync += x[0].eq(Mux(parts[powered] == 2, 0, power.power) + Mux(parts[powered] == 1, 0, truths[-1]))
        m.d.comb += logarithm.number.eq(Mux(diverging[powered + 1], x[0], total))
        bits, term = Signal(P_BITS + 2, reset_less=True), Signal(2 * P_BITS + 2, reset_less=True)
        factor, minus = Signal(P_BITS + 1, reset_less=True), Signal(2, reset_less=True)
        here = Signal(2)
        m.d.sync += [
            bits.eq(Mux(parts[logged] == 0, (P_BITS + 1) << LOG_FRACTION, P_BITS << LOG_FRACTION) - logarithm.log),
            factor.eq(x[-1]),
            term.eq(factor * bits[: P_BITS + 1]),
            here[0].eq(diverging[logged]),
            here[1].eq(here[0]),
            minus[0].eq(parts[logged] != 0),
            minus[1].eq(minus[0]),
        ]
        with m.If(here[1]):
            m.d.sync += self.divergence.eq(self.divergence + Mux(minus[1], -term, term))

        m.d.sync += self.done.eq(0)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        index.eq(self.count - 1),
                        part.eq(0),
                        product.eq(0),
                        total.eq(0),
                        wait.eq(0),
                        self.divergence.eq(0),
                        largest.eq(-(1 << SCORE_BITS - 1)),
                        inverse.eq(self.inverse),
                        self.query_aware.eq(0),
                    ]
                    m.next = "LAST"
            with m.State("LAST"):
                m.d.sync += wait.eq(wait + 1)
                m.d.comb += multiplying.eq(wait != 0)
                with m.If(wait == INVERSE_BITS):
                    m.d.sync += index.eq(0)
                    m.next = "LAST_MEAN"
            with m.State("LAST_MEAN"):
                m.d.sync += last_mean.eq(product >> block_log)
                m.next = "FIND"
            for state, flag, after, pause in (
                ("FIND", finding, "SUM", 3),
                ("SUM", summing, "LOG", powered + 1),
                ("DIVERGE", diverging, "COMPARE", logged + 3),
            ):
                with m.State(state):
                    m.d.comb += flag[0].eq(1)
                    m.d.sync += wait.eq(0)
                    last_part = part == (2 if flag is diverging else 0)
                    m.d.sync += part.eq(Mux(last_part, 0, part + 1))
                    with m.If(last_part):
                        m.d.sync += index.eq(index + 1)
                        with m.If(last_word):
                            m.d.sync += index.eq(0)
                            m.next = f"{state}_END"
                with m.State(f"{state}_END"):
                    m.d.sync += wait.eq(wait + 1)
                    with m.If(wait == pause - 2):
                        m.d.sync += wait.eq(0)
                        m.next = after
            with m.State("LOG"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == Logarithm.LATENCY):
                    m.d.sync += log.eq(
                        top + ((logarithm.log + (1 << LOG_SHIFT - 1)) >> LOG_SHIFT) - (P_BITS << FRACTION)
                    )
                    m.next = "DIVERGE"
            with m.State("COMPARE"):
                m.d.sync += [
                    self.done.eq(1),
                    self.query_aware.eq((self.divergence < self.threshold) & self.threshold.any()),
                ]
                m.next = "IDLE"
        return m


def _delayed(m, signal, cycles):
    """The signal and what it was 1, 2, ... ``cycles`` cycles ago."""
    out = [signal, *(Signal.like(signal, name=f"{signal.name}_{cycle + 1}") for cycle in range(cycles))]
    m.d.sync += [late.eq(soon) for soon, late in zip(out[:-1], out[1:], strict=True)]
    return out
