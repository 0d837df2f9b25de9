"""The place of one token: its residual, results and activations, and a vector unit that works on them."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import XS_BITS
from intaglio.rtl.arithmetic.scalar import bit_length
from intaglio.rtl.memory.ram import Ram
from intaglio.rtl.vector.unit import Destination, VectorOp, VectorUnit

__all__ = ["Buffer", "TokenSlot"]


class Buffer(wiring.Component):
    """Memory of ``depth`` words of ``parts`` parts that are written apart and read together.

    Latency 1; a part that is read and written at one address in the same cycle reads as anything.
    ``write_en`` has a bit per part; ``write_data`` and ``read_data`` are whole words.
    """

    def __init__(self, part_bits, parts, depth):
        self.part_bits = part_bits
        self.rams = [Ram(part_bits, depth) for _ in range(parts)]
        bits = self.rams[0].read_addr.shape()
        super().__init__(
            {
                "write_en": In(parts),
                "write_addr": In(bits),
                "write_data": In(part_bits * parts),
                "read_addr": In(bits),
                "read_data": Out(part_bits * parts),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for i, ram in enumerate(self.rams):
            part = slice(i * self.part_bits, (i + 1) * self.part_bits)
            m.submodules[f"part_{i}"] = ram
            m.d.comb += [
                ram.write_en.eq(self.write_en[i]),
                ram.write_addr.eq(self.write_addr),
                ram.write_data.eq(self.write_data[part]),
                ram.read_en.eq(1),
                ram.read_addr.eq(self.read_addr),
                self.read_data[part].eq(ram.read_data),
            ]
        return m


_VECTOR = (  # of the vector unit, as they are
    *("rotary_start", "position", "start", "kind", "source", "shift", "gain_base", "words", "group", "q_mantissa"),
    *("embed_scale", "busy_next", "a_busy_next", "ending", "ending_next", "emb_index", "emb_data", "acc_en", "emb_en"),
    *("acc_addr", "acc_data", "sum_head", "sum_value", "w_en", "w_dest", "w_index", "w_head", "w_data", "w_first"),
    *("w_en_shift", "m_segment", "m_value", "ss"),
)


class TokenSlot(wiring.Component):
    """A slot of a group.

    Parameters
    ----------
    config : DecoderConfig
    linear : dict
        Shapes of the members of the linear unit below, of one slot.

    Members
    -------
    Those of :class:`~intaglio.rtl.vector.unit.VectorUnit` that are not its sources and sums, among them with a batch its gains.

    start_linear, linear_busy, act_addr, act_data, x_rd_addr, x_rd_data, x_wr_*, r_wr_*, x_or, r_or
        The other ends of the members of :class:`~intaglio.rtl.ternary.linear.LinearUnit`.
    x_shift, r_shift : Out
        Shifts that make vector elements of the residual and of the results as they are since the last operation that wrote them, a
        cycle after its end.
    """

    LINEAR = (  # of the linear unit
        *("act_addr", "x_rd_addr", "x_wr_en", "x_wr_addr", "x_wr_data"),
        *("r_wr_en", "r_wr_addr", "r_wr_data", "x_or", "r_or"),
    )

    def __init__(self, config, linear):
        self.config = config
        self.vector = VectorUnit(config)
        gains = ("gain_addr", "gain_data") if config.batch > 1 else ()
        super().__init__(
            {
                **{name: self.vector.signature.members[name] for name in _VECTOR + gains},
                **{name: In(linear[name]) for name in self.LINEAR},
                "start_linear": In(1),
                "linear_busy": In(1),
                "act_data": Out(8 * config.lane_width),
                "x_rd_data": Out(32 * config.vector_width),
                "x_shift": Out(config.shift_bits),
                "r_shift": Out(config.shift_bits),
            }
        )
        self.passed = _VECTOR + gains

    def elaborate(self, platform):
        m = Module()
        c, v = self.config, self.config.vector_width
        m.submodules.vector = vector = self.vector
        m.submodules.residual = x = Buffer(32 * c.lanes, v // c.lanes, c.hidden // v)
        half = c.lanes // 2
        m.submodules.results = r = Buffer(
            c.result_bits * half, v // half, max(c.qkv_rows, c.hidden, c.intermediate) // v
        )
        m.submodules.activations = a = Buffer(8 * v, c.lane_width // v, max(c.hidden, c.intermediate) // c.lane_width)
        for name in self.passed:
            mine, its = getattr(self, name), getattr(vector, name)
            pairs = zip(mine, its, strict=True) if isinstance(mine, tuple | list) else [(mine, its)]
            inward = vector.signature.members[name].flow is In
            m.d.comb += [b.eq(a) if inward else a.eq(b) for a, b in pairs]
        self._shifts(m, vector)
        m.d.comb += [
            self.act_data.eq(a.read_data),
            a.read_addr.eq(self.act_addr),
            self.x_rd_data.eq(x.read_data),
            x.read_addr.eq(Mux(self.linear_busy, self.x_rd_addr, vector.src_addr)),
            r.read_addr.eq(vector.src_addr),
        ]
        for i in range(v):
            m.d.comb += [
                vector.x_data[i].eq(x.read_data[32 * i : 32 * i + 32].as_signed()),
                vector.r_data[i].eq(r.read_data[c.result_bits * i : c.result_bits * (i + 1)].as_signed()),
            ]
        to = {destination: Signal(name=f"write_{destination.name.lower()}") for destination in Destination}
        for destination, signal in to.items():
            m.d.comb += signal.eq(vector.w_en & (vector.w_dest == destination))
        self._results(m, to, vector, x, r)
        self._activations(m, to, vector, a)
        return m

    def _shifts(self, m, vector):
        """Magnitudes of the residual and of the results, as shifts, a cycle later."""
        c = self.config
        in_vector, draining = Signal(), Signal()
        with m.If(self.start_linear):
            m.d.sync += in_vector.eq(0)
        with m.If(self.start & (self.kind == VectorOp.EMBED)):
            m.d.sync += in_vector.eq(1)
        with m.If(self.start & (self.kind == VectorOp.DRAIN)):
            m.d.sync += draining.eq(1)
        with m.If(self.start_linear):
            m.d.sync += draining.eq(0)
        shifts = {}
        for name, ors in (("vector", vector.w_or), ("linear", self.x_or), ("results", self.r_or)):
            shifts[name] = Signal(c.shift_bits, name=f"{name}_shift")
            m.d.sync += shifts[name].eq(bit_length(m, ors[XS_BITS - 1 :], f"{name}_bits"))
        m.d.comb += [
            self.x_shift.eq(Mux(in_vector, shifts["vector"], shifts["linear"])),
            self.r_shift.eq(Mux(draining, 0, shifts["results"])),
        ]

    def _results(self, m, to, vector, x, r):
        """Writes of the residual and of the results."""
        c, v = self.config, self.config.vector_width
        narrow = [Signal(signed(c.result_bits), name=f"result_{i}") for i in range(v)]
        m.d.comb += [signal.eq(vector.w_data[i]) for i, signal in enumerate(narrow)]
        # Registers before what decodes the address for every 16 words of a part; nothing reads a word in the two cycles after its write.
        for buffer, destination, words, en, addr, data_ in (
            (x, Destination.RESIDUAL, vector.w_data, self.x_wr_en, self.x_wr_addr, self.x_wr_data),
            (r, Destination.RESULT, narrow, self.r_wr_en, self.r_wr_addr, self.r_wr_data),
        ):
            m.d.sync += [
                buffer.write_en.eq(Mux(to[destination], -1, en)),
                buffer.write_addr.eq(Mux(to[destination], vector.w_index, addr)),
                buffer.write_data.eq(Mux(to[destination], Cat(*words), data_.replicate(v // c.lanes))),
            ]

    def _activations(self, m, to, vector, a):
        """Writes of the activations, part by part of a word."""
        c, v = self.config, self.config.vector_width
        parts = c.lane_width // v
        part, word = Signal(range(parts)), Signal.like(a.write_addr)
        m.d.comb += [
            a.write_en.eq(to[Destination.A8] << part),
            a.write_addr.eq(word),
            a.write_data.eq(Cat(*(element[:8] for element in vector.w_data)).replicate(parts)),
        ]
        with m.If(self.start):
            m.d.sync += [part.eq(0), word.eq(0)]
        with m.Elif(to[Destination.A8]):
            m.d.sync += part.eq(part + 1)
            with m.If(part == parts - 1):
                m.d.sync += [part.eq(0), word.eq(word + 1)]
