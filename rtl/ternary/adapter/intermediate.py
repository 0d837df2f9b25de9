"""The vector between the factors of an adapter: ``A x`` from the lanes, rounded to INT8 for ``B``, and the scale of ``B``'s sums."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.scalar import ScalarLayout, bit_length
from intaglio.rtl.memory.ram import index_bits

__all__ = ["MATRIX_GROUP", "Intermediate", "MatrixGroup"]


class MatrixGroup(enum.Enum, shape=2):
    """Which matrices share a linear operation: how its rows choose their part of the vector."""

    ONE = 0  # one matrix
    QKV = 1  # parts 0, 1, 2 one after another
    GATED = 2  # part 0 for even lanes, 1 for odd ones


MATRIX_GROUP = {
    ("q", "k", "v"): MatrixGroup.QKV,
    ("o",): MatrixGroup.ONE,
    ("gate", "up"): MatrixGroup.GATED,
    ("down",): MatrixGroup.ONE,
}


class Intermediate(wiring.Component):
    """Keeps the sums of ``A x``, rounds each part (``rank`` values, those of one matrix) to INT8 and holds the result for ``B``.

    Per part, with ``n`` the bits of the OR of ``u_i ^ sign(u_i)``: ``sh = max(0, n - 7)``, ``q_i = clamp((u_i + (1 << sh >> 1)) >> sh,
    127)``. A sum of ``B``'s row then counts ``k * 2^sh`` of the matrix's own sums, ``k`` from the adapter's scales.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    start : In(1), kind : In(MatrixGroup)
        Strobe: the sums of a new operation follow; ``kind`` stays stable until the next one.
    valid : In(1), sums : In(signed(lane_sum_bits)) [lanes], final : In(1)
        Rows of ``A x``, ``lanes`` at a time, those of part 0 first; ``final`` with the last ones.
    done : Out(1)
        Strobe, ``groups + LATENCY - 1`` cycles after ``final`` (``groups`` is how often ``valid`` came): what follows is ready.
    part : In(range(parts)), word : Out(8 * 2 * rank)
        What meets ``B``: the part at ``part``, then part 1 (which only odd lanes of GATED use). Combinational.
    mantissas : Out(16) [parts], shifts : Out(6) [parts]
        Scale of each part: a sum becomes ``(((sum * mantissa) >> shift) + 1) >> 1``.
    scale_restart : In(1), scale_base : In
        Strobe: scales are read from ``scale_base`` on, in the order of the program.
    scale_addr : Out, scale_data : In(26)
        Memory of the scales, latency 1.
    """

    LATENCY = 3

    def __init__(self, config):
        self.config = config
        self.parts = max(map(len, config.adapted))
        address = index_bits((config.adapters + 1) * config.adapter_scales)
        super().__init__(
            {
                "start": In(1),
                "kind": In(MatrixGroup),
                "valid": In(1),
                "sums": In(signed(config.lane_sum_bits)).array(config.lanes),
                "final": In(1),
                "done": Out(1),
                "part": In(range(max(2, self.parts))),
                "word": Out(8 * 2 * config.rank),
                "mantissas": Out(16).array(self.parts),
                "shifts": Out(6).array(self.parts),
                "scale_restart": In(1),
                "scale_base": In(address),
                "scale_addr": Out(address),
                "scale_data": In(ScalarLayout.size),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, parts = self.config, self.parts
        lanes, bits, groups = config.lanes, config.lane_sum_bits, config.rank // config.lanes

        # Sums, and the magnitude of each part.
        m.submodules.memory = memory = Memory(shape=bits * lanes, depth=max(2, parts * groups), init=[])
        write, read = memory.write_port(), memory.read_port()
        magnitude = Signal(bits - 1)
        values = [value[:-1] ^ value[-1].replicate(bits - 1) for value in self.sums]
        total = values[0]
        for value in values[1:]:
            total = total | value
        ors = [Signal(bits - 1, name=f"or_{p}") for p in range(parts)]
        part_in, group_in, count = (
            Signal(range(parts + 1)),
            Signal(range(max(2, groups))),
            Signal(range(parts * groups + 1)),
        )
        m.d.comb += [magnitude.eq(total), write.en.eq(self.valid), write.addr.eq(count), write.data.eq(Cat(*self.sums))]
        with m.If(self.start):
            m.d.sync += [part_in.eq(0), group_in.eq(0), count.eq(0), *(value.eq(0) for value in ors)]
        with m.Elif(self.valid):
            m.d.sync += [group_in.eq(group_in + 1), count.eq(count + 1)]
            with m.If(group_in == groups - 1):
                m.d.sync += [group_in.eq(0), part_in.eq(part_in + 1)]
            for p, value in enumerate(ors):
                with m.If(part_in == p):
                    m.d.sync += value.eq(value | magnitude)

        # Scales: one for each part, read while A is computed.
        fetch, arriving = Signal(range(parts + 1)), Signal(range(parts + 1))
        fetching, arrives = Signal(), Signal()
        wanted = Signal(range(parts + 1))
        m.d.comb += wanted.eq(Mux(self.kind == MatrixGroup.QKV, 3, Mux(self.kind == MatrixGroup.GATED, 2, 1)))
        scales = [Signal(ScalarLayout, name=f"scale_{p}") for p in range(parts)]
        m.d.sync += [arrives.eq(fetching), arriving.eq(fetch)]
        with m.If(self.scale_restart):
            m.d.sync += self.scale_addr.eq(self.scale_base)
        with m.If(self.start):
            m.d.sync += [fetching.eq(1), fetch.eq(0)]
        with m.Elif(fetching):
            m.d.sync += [self.scale_addr.eq(self.scale_addr + 1), fetch.eq(fetch + 1), fetching.eq(fetch + 1 != wanted)]
        for p, scale in enumerate(scales):
            with m.If(arrives & (arriving == p)):
                m.d.sync += scale.eq(self.scale_data)

        # Rounding: shifts a cycle after the magnitudes, then a group a cycle.
        shift = []
        for p in range(parts):
            length = bit_length(m, ors[p], f"or_bits_{p}")
            amount = Signal(range(bits), name=f"shift_{p}")
            m.d.sync += amount.eq(Mux(length > 7, length - 7, 0))
            wide = Signal(signed(12), name=f"less_{p}")
            m.d.comb += wide.eq(-(scales[p].e + amount) - 1)
            m.d.sync += self.shifts[p].eq(Mux(wide < 0, 0, Mux(wide > 39, 39, wide[:6])))
            m.d.comb += self.mantissas[p].eq(scales[p].m)
            shift.append(amount)
        run, loaded, final = Signal(), Signal(), Signal(2)
        index, part_out, group_out = Signal.like(count), Signal(range(parts + 1)), Signal(range(max(2, groups)))
        place = Signal.like(count)
        part_loaded = Signal.like(part_out)
        last = Signal()
        m.d.comb += [last.eq(index == count - 1), read.addr.eq(index), self.done.eq(final[1])]
        m.d.sync += [loaded.eq(run), place.eq(index), part_loaded.eq(part_out), final.eq(Cat(run & last, final))]
        with m.If(self.final):
            m.d.sync += [run.eq(1), index.eq(0), part_out.eq(0), group_out.eq(0)]
        with m.Elif(run):
            m.d.sync += [index.eq(index + 1), group_out.eq(group_out + 1), run.eq(~last)]
            with m.If(group_out == groups - 1):
                m.d.sync += [group_out.eq(0), part_out.eq(part_out + 1)]
        amount = Signal(range(bits))
        m.d.comb += amount.eq(Array(shift)[part_loaded])
        rounded = []
        for i in range(lanes):
            value = Signal(signed(bits), name=f"value_{i}")
            half = Signal(signed(bits + 1), name=f"half_{i}")
            moved = Signal(signed(bits + 1), name=f"moved_{i}")
            q = Signal(signed(8), name=f"q_{i}")
            m.d.comb += [
                value.eq(read.data[i * bits : (i + 1) * bits]),
                half.eq((1 << amount) >> 1),
                moved.eq((value + half) >> amount),
                q.eq(Mux(moved > 127, 127, Mux(moved < -127, -127, moved))),
            ]
            rounded.append(q)
        held = [Signal(8 * lanes, name=f"held_{g}") for g in range(parts * groups)]
        with m.If(loaded):
            for g, word in enumerate(held):
                with m.If(place == g):
                    m.d.sync += word.eq(Cat(*rounded))
        vectors = [Cat(*held[p * groups : (p + 1) * groups]) for p in range(parts)]
        first = Signal(8 * config.rank)
        with m.Switch(self.part):
            for p, vector in enumerate(vectors):
                with m.Case(p):
                    m.d.comb += first.eq(vector)
        m.d.comb += self.word.eq(Cat(first, vectors[1] if parts > 1 else first))
        return m
