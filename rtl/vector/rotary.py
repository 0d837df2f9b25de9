"""Cosines and sines of one position, for all pairs of a head."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import PHASE_BITS, SINE_TABLE
from intaglio.rtl.memory.rom import Rom

__all__ = ["SINE_BITS", "Rotary"]

SINE_BITS = 15  # unsigned: a quarter wave, up to 2^14
POSITION_BITS = 16
TABLE_BITS = 10


class Rotary(wiring.Component):
    """``rotary_pair(position * increment_i)`` of every pair ``i`` of a head, kept until the next start.

    Parameters
    ----------
    config : DecoderConfig
    increments : sequence of int or None
        Contents of the ROM ``rotary``: ``head_dim / 2`` increments of 32 bits. None: the ROM is an external image.
    sine : sequence of int or None
        Contents of the ROM ``sine`` (``numerics.SINE_TABLE``, 1024 words of 15 bits). None: an external image.

    Members
    -------
    start : In
        Strobe: begins with ``position`` (16 bits, sampled). A new start abandons the previous one.
    ready : Out
        The pairs of the position are complete.
    word : In
        Index of a vector word inside the head, 0 .. head_dim / vector_width - 1.
    cosine, sine : Out, arrays of vector_width / 2, signed 16 bits, 14 fraction bits
        Pairs of that word; valid one cycle after ``word``.

    Latency: :meth:`cycles` cycles from start to ready.
    Source: ``numerics.rotary_pair``.
    """

    def __init__(self, config, increments=None, sine=None):
        self.config = config
        self.increments, self.sine_table = increments, sine
        self.pairs = config.vector_width // 2
        self.words = config.head_dim // config.vector_width
        super().__init__(
            {
                "start": In(1),
                "position": In(POSITION_BITS),
                "ready": Out(1),
                "word": In(range(max(2, self.words))),
                "cosine": Out(signed(16)).array(self.pairs),
                "sine": Out(signed(16)).array(self.pairs),
            }
        )

    @staticmethod
    def cycles(config):
        """Cycles from the start strobe to ``ready``: two look-ups a pair, and the pipeline."""
        return config.head_dim + 6

    def elaborate(self, platform):
        m = Module()
        count_bits = (self.config.head_dim - 1).bit_length()
        m.submodules.increments = increments = Rom(
            "rotary", PHASE_BITS, self.config.head_dim // 2, init=self.increments
        )
        m.submodules.table = table = Rom("sine", SINE_BITS, len(SINE_TABLE), init=self.sine_table)

        # Stage 0: count over (pair, half); the first half looks up the rising quarter, the second the falling one.
        run, count = Signal(), Signal(count_bits)
        position = Signal(POSITION_BITS, reset_less=True)
        last = Signal()
        m.d.comb += [last.eq(count == self.config.head_dim - 1), increments.addr.eq(count[1:])]
        with m.If(self.start):
            m.d.sync += [run.eq(1), count.eq(0), position.eq(self.position), self.ready.eq(0)]
        with m.Elif(run):
            m.d.sync += [count.eq(count + 1), run.eq(~last)]

        valid, index = run, count
        for stage in range(1, 6):
            valid_next = Signal(name=f"valid_{stage}")
            index_next = Signal(count_bits, name=f"count_{stage}", reset_less=True)
            m.d.sync += [valid_next.eq(valid & ~self.start), index_next.eq(index)]
            if stage == 3:
                half = index_next[0]
            valid, index = valid_next, index_next

        # Stage 1: increment read. Stage 2: partial products. Stage 3: phase.
        low, high = Signal(32, reset_less=True), Signal(16, reset_less=True)
        phase = Signal(PHASE_BITS, reset_less=True)
        m.d.sync += [
            low.eq(position * increments.data[:16]),
            high.eq(position * increments.data[16:]),
            phase.eq(low + Cat(Const(0, 16), high)),
        ]
        entry = Signal(TABLE_BITS)
        m.d.comb += [entry.eq(phase[20:30]), table.addr.eq(Mux(half, ~entry, entry))]

        # Stage 4: table read. Stage 5: its word in a register; in the second half both quarters are there.
        quadrant_4, quadrant = Signal(2, reset_less=True), Signal(2, reset_less=True)
        rising, falling = Signal(SINE_BITS, reset_less=True), Signal(SINE_BITS, reset_less=True)
        m.d.sync += [quadrant_4.eq(phase[30:]), quadrant.eq(quadrant_4), falling.eq(table.data), rising.eq(falling)]
        write = Signal()
        cosine, sine = Signal(signed(16)), Signal(signed(16))
        cosine_size, sine_size = Signal(SINE_BITS), Signal(SINE_BITS)
        m.d.comb += [
            write.eq(valid & index[0] & ~self.start),
            cosine_size.eq(Mux(quadrant[0], rising, falling)),
            sine_size.eq(Mux(quadrant[0], falling, rising)),
            cosine.eq(Mux(quadrant[0] ^ quadrant[1], -cosine_size, cosine_size)),
            sine.eq(Mux(quadrant[1], -sine_size, sine_size)),
        ]
        with m.If(write & (index == self.config.head_dim - 1)):
            m.d.sync += self.ready.eq(1)

        pair = index[1:]
        lane_bits = (self.pairs - 1).bit_length()
        for lane in range(self.pairs):
            memory = Memory(shape=32, depth=max(2, self.words), init=[])
            m.submodules[f"pairs_{lane}"] = memory
            w, r = memory.write_port(), memory.read_port()
            m.d.comb += [
                w.addr.eq(pair[lane_bits:]),
                w.data.eq(Cat(cosine, sine)),
                w.en.eq(write & (pair[:lane_bits] == lane)),
                r.addr.eq(self.word),
                self.cosine[lane].eq(r.data[:16]),
                self.sine[lane].eq(r.data[16:]),
            ]
        return m
