"""Pass A of the vector unit: load, shift, multiply by gain or rotate, maximum of each segment, sum of squares."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import ROTARY_ONE, T_BITS, XS_BITS
from intaglio.rtl.memory.copies import COPY

__all__ = ["COEFFICIENT_BITS", "MAXIMUM_BITS", "PassA", "max_words", "segments", "sum_bits"]

COEFFICIENT_BITS = 16
MAXIMUM_BITS = 33  # |t| <= 2^17 * 32767 with a gain, less with a rotation
SQUARE_BITS = 2 * XS_BITS - 1
LOAD_STAGES = 4  # address -> data -> shifted -> products -> t


def max_words(config):
    """Words of ``vector_width`` elements in the longest vector."""
    return max(config.qkv_rows, config.hidden, config.intermediate) // config.vector_width


def segments(config):
    """Most segments of one operation: the heads of ROPE."""
    return config.heads + 2 * config.kv_heads


def sum_bits(config):
    """Bits of the sum of squares over the longest norm."""
    return 36 + (max(config.hidden, config.intermediate) - 1).bit_length()


class LaneA(wiring.Component):
    """One element: shift, two multiplications, rotation.

    ``valid[k]`` moves stage ``k`` of the pipeline: 0 the element and its coefficients arrive, 1 multiply, 2 rotate. The second
    product is the square of the element, or in ROPE its product with the sine, which the partner lane adds. ``rope`` and ``results``
    are taken a cycle before stage 0, ``shift`` with ``shift_en``.
    """

    def __init__(self, config, odd):
        self.odd = odd
        super().__init__(
            {
                "valid": In(3),
                "rope": In(1),
                "plain": In(1),
                "results": In(1),
                "shift": In(config.shift_bits),
                "shift_en": In(1),
                "x": In(signed(32)),
                "r": In(signed(config.result_bits)),
                "gain": In(signed(COEFFICIENT_BITS)),
                "cosine": In(signed(COEFFICIENT_BITS)),
                "sine": In(signed(COEFFICIENT_BITS)),
                "partner": In(signed(T_BITS)),
                "second": Out(signed(2 * XS_BITS)),
                "t": Out(signed(T_BITS)),
                "size": Out(MAXIMUM_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        xs = Signal(signed(XS_BITS), reset_less=True)
        c, s = (Signal(signed(COEFFICIENT_BITS), name=n, reset_less=True) for n in "cs")
        first = Signal(signed(T_BITS), reset_less=True)
        second = Signal(signed(2 * XS_BITS), reset_less=True)
        t = Signal(signed(T_BITS), reset_less=True)
        source = Signal(signed(max(32, len(self.r))))
        factor, turn = Signal(signed(XS_BITS)), Signal(signed(T_BITS))
        results, rope = (Signal(name=name, attrs=COPY) for name in ("results_1", "rope_1"))
        shift = Signal.like(self.shift, name="shift_1", attrs=COPY)
        m.d.sync += [results.eq(self.results), rope.eq(self.rope)]
        with m.If(self.shift_en):
            m.d.sync += shift.eq(self.shift)
        m.d.comb += [
            source.eq(Mux(results, self.r, self.x)),
            factor.eq(Mux(rope, s, xs)),
            turn.eq(Mux(rope, self.partner, 0)),
            self.second.eq(second),
            self.t.eq(t),
            self.size.eq(Mux(t[-1], -t, t)),
        ]
        with m.If(self.valid[0]):
            m.d.sync += [
                xs.eq(source >> shift),
                c.eq(Mux(rope, Mux(self.plain, ROTARY_ONE, self.cosine), self.gain)),
                s.eq(Mux(self.plain, 0, self.sine)),
            ]
        with m.If(self.valid[1]):
            m.d.sync += [first.eq(xs * c), second.eq(xs * factor)]
        with m.If(self.valid[2]):
            m.d.sync += t.eq(first + turn if self.odd else first - turn)
        return m


class PassA(wiring.Component):
    """Pass A.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    start, wanted : In
        Strobe of an operation, and whether it has a pass A: the first word is read in the next cycle.
    rope, results, last_index : In
        Stable while busy: rotate instead of gains; read the result buffer; index of the last word.
    started, shift : In
        The cycle after ``start``; right shift in that cycle.
    rotary_ready : In
        ROPE waits for it.
    gain_base, gain_addr : In, Out
        First word of the gains (sampled at start) and address of the gain ROM.
    src_addr, rotary_word : Out
        Word of the source, and its place inside the head. The sources below answer one cycle later.
    x, r, gain, cosine, sine : In, arrays
        The word (``cosine`` and ``sine`` one for two elements).
    t_en, t_addr, t : Out
        Write port of the T buffer.
    m_valid, m_value, m_final : Out
        Strobe: maximum of ``|t|`` of the next segment in order; of the last one. 0 in an operation without pass A.
    sum : Out
        Sum of squares of the shifted elements (not of ROPE); valid from ``m_final``.

    Latency: ``m_valid`` is high ``LOAD_STAGES + tree_stages(vector_width)`` cycles after the segment's last address.
    Throughput: a word a cycle.
    """

    def __init__(self, config):
        self.config = config
        width = config.vector_width
        depth = max_words(config)
        coefficient = signed(COEFFICIENT_BITS)
        super().__init__(
            {
                "start": In(1),
                "wanted": In(1),
                "rope": In(1),
                "results": In(1),
                "started": In(1),
                "shift": In(config.shift_bits),
                "last_index": In(range(depth)),
                "rotary_ready": In(1),
                "gain_base": In(16),
                "gain_addr": Out(16),
                "src_addr": Out(range(depth)),
                "rotary_word": Out(range(max(2, config.head_dim // width))),
                "x": In(signed(32)).array(width),
                "r": In(signed(config.result_bits)).array(width),
                "gain": In(coefficient).array(width),
                "cosine": In(coefficient).array(width // 2),
                "sine": In(coefficient).array(width // 2),
                "t_en": Out(1),
                "t_addr": Out(range(depth)),
                "t": Out(signed(T_BITS)).array(width),
                "m_valid": Out(1),
                "m_value": Out(MAXIMUM_BITS),
                "m_final": Out(1),
                "sum": Out(sum_bits(config)),
            }
        )

    @staticmethod
    def tree_stages(vector_width):
        """Cycles from ``t`` to the maximum: size and one level of comparison, then two levels a cycle, running maximum last."""
        levels = vector_width.bit_length() - 1
        return 2 + (levels - 1) // 2

    def elaborate(self, platform):
        m = Module()
        config, width = self.config, self.config.vector_width
        stages = LOAD_STAGES + self.tree_stages(width)

        # Addresses, and flags of a word that travel down the pipeline: bit k is k + 1 cycles after the address.
        run, issue, last, final, plain = Signal(), Signal(), Signal(), Signal(), Signal()
        valid, lasts, finals = (Signal(stages, name=n) for n in ("valid", "lasts", "finals"))
        plain_1 = Signal()
        first_value = (config.hidden + config.kv_dim) // width
        m.d.comb += [
            issue.eq(run & (~self.rope | self.rotary_ready)),
            final.eq(self.src_addr == self.last_index),
            last.eq(Mux(self.rope, self.rotary_word == config.head_dim // width - 1, final)),
            plain.eq(self.src_addr >= first_value),
        ]
        m.d.sync += [
            valid.eq(Cat(issue, valid)),
            lasts.eq(Cat(issue & last, lasts)),
            finals.eq(Cat(issue & final, finals)),
            plain_1.eq(plain),
        ]
        with m.If(self.start):
            m.d.sync += [
                run.eq(self.wanted),
                self.src_addr.eq(0),
                self.rotary_word.eq(0),
                self.gain_addr.eq(self.gain_base),
            ]
        with m.Elif(issue):
            m.d.sync += [
                run.eq(~final),
                self.src_addr.eq(self.src_addr + 1),
                self.gain_addr.eq(self.gain_addr + 1),
                self.rotary_word.eq(Mux(last, 0, self.rotary_word + 1)),
            ]

        lanes = []
        for i in range(width):
            lane = LaneA(config, odd=i % 2 == 1)
            m.submodules[f"lane_{i}"] = lane
            lanes.append(lane)
            m.d.comb += [
                lane.valid.eq(valid[:3]),
                lane.rope.eq(self.rope),
                lane.plain.eq(plain_1),
                lane.results.eq(self.results),
                lane.shift.eq(self.shift),
                lane.shift_en.eq(self.started),
                lane.x.eq(self.x[i]),
                lane.r.eq(self.r[i]),
                lane.gain.eq(self.gain[i]),
                lane.cosine.eq(self.cosine[i // 2]),
                lane.sine.eq(self.sine[i // 2]),
                self.t[i].eq(lane.t),
            ]
        for i, lane in enumerate(lanes):
            m.d.comb += lane.partner.eq(lanes[i ^ 1].second)

        m.d.comb += self.t_en.eq(valid[LOAD_STAGES - 1])
        with m.If(self.started):
            m.d.sync += self.t_addr.eq(0)
        with m.Elif(self.t_en):
            m.d.sync += self.t_addr.eq(self.t_addr + 1)

        # Maximum: unsigned sizes, so that the trees compare plainly.
        largest, stage = _tree(
            m, [lane.size for lane in lanes], valid, LOAD_STAGES - 1, _larger, sizes=True, name="max"
        )
        assert stage == stages - 2, "the tree ends where the flags expect it"
        fresh = Signal(init=1)
        with m.If(self.started):
            m.d.sync += self.m_value.eq(0)
        with m.Elif(valid[stage]):
            m.d.sync += [
                self.m_value.eq(_larger(m, Mux(fresh, 0, self.m_value), largest, "max_run")),
                fresh.eq(lasts[stage]),
            ]
        m.d.comb += [self.m_valid.eq(lasts[stages - 1]), self.m_final.eq(finals[stages - 1])]

        squares = [Signal(SQUARE_BITS, name=f"square_{i}") for i in range(width)]
        m.d.comb += [square.eq(lane.second) for square, lane in zip(squares, lanes, strict=True)]
        total, stage = _tree(m, squares, valid, LOAD_STAGES - 2, _sum, sizes=False, name="sum")
        with m.If(self.started):
            m.d.sync += self.sum.eq(0)
        with m.Elif(valid[stage] & ~self.rope):
            m.d.sync += self.sum.eq(self.sum + total)
        return m


def _below(m, a, b, name):
    """By a subtraction, which becomes a carry chain where a comparison becomes many levels of gates."""
    difference = Signal(MAXIMUM_BITS + 1, name=f"{name}_less")
    m.d.comb += difference.eq(a - b)
    return difference[-1]


def _larger(m, a, b, name):
    result = Signal(MAXIMUM_BITS, name=name)
    m.d.comb += result.eq(Mux(_below(m, a, b, name), b, a))
    return result


def _largest(m, values, name):
    """Of four, each pair compared side by side."""
    below = {(i, j): _below(m, values[i], values[j], f"{name}_{i}{j}") for j in range(4) for i in range(j)}
    last = Mux(below[0, 1], Mux(below[2, 3], below[1, 3], below[1, 2]), Mux(below[2, 3], below[0, 3], below[0, 2]))
    result = Signal(MAXIMUM_BITS, name=name)
    m.d.comb += result.eq(Mux(last, Mux(below[2, 3], values[3], values[2]), Mux(below[0, 1], values[1], values[0])))
    return result


def _sum(m, a, b, name):
    result = Signal(max(len(a), len(b)) + 1, name=name)
    m.d.comb += result.eq(a + b)
    return result


def _tree(m, values, valid, stage, combine, sizes, name):
    """Combine to one value, two levels a cycle; at most one level stays combinational at the end.

    ``valid[stage]`` is high with ``values``; ``sizes``: they have a carry chain before them, so that the first cycle has one
    level. Returns the value, and the stage it belongs to.
    """
    levels, level = (1 if sizes else 2), 0
    while len(values) > 2 or (sizes and level == 0):
        if sizes and levels == 2:
            values = [_largest(m, values[i : i + 4], f"{name}_{level}_{i}") for i in range(0, len(values), 4)]
            levels, level = 0, level + 2
        for _ in range(min(levels, len(values).bit_length() - 1)):
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [combine(m, a, b, f"{name}_{level}_{i}") for i, (a, b) in enumerate(pairs)]
            level += 1
        registers = [Signal(len(v), name=f"{name}_reg_{level}_{i}", reset_less=True) for i, v in enumerate(values)]
        with m.If(valid[stage]):
            m.d.sync += [r.eq(v) for r, v in zip(registers, values, strict=True)]
        values, stage, levels = registers, stage + 1, 2
    if len(values) == 2:
        values = [combine(m, *values, f"{name}_{level}_0")]
    return values[0], stage
