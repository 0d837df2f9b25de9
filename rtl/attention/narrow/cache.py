"""The key and value cache: INT8 rows with one scale each, and the reference exponent of each sequence and layer."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["KvCache"]


class KvCache(wiring.Component):
    """INT8 keys and values of all sequences and layers, with their scales and the largest value exponent of each sequence and layer.

    Keys and values lie in one memory: row ``(((sequence * 2 + is_value) * layers + layer) * kv_heads + head) * context + position``.
    The scales have a memory with the same rows. Both are read at consecutive rows, while others may be written.

    Members
    -------
    sequence, layer, position : In
        Of a write, with its strobe; ``layer`` also with ``start``.
    kv_en, kv_is_v, kv_head, kv_index, kv_data : In
        Writes ``vector_width`` signed bytes, word ``kv_index`` of a row. One write a cycle.
    ks_en, vs_en, sc_head, sc_m, sc_e : In
        Writes the scale ``sc_m * 2^sc_e`` of a key or a value, not both at once; ``(0, -128)`` for zero. Not in two cycles one after the
        other.
    eref : Out(signed(10))
        Largest exponent of the value scales of ``sequence`` and ``layer``; the write of position 0, head 0 starts it anew. Valid
        three cycles after ``vs_en``, one after a change of ``sequence`` or ``layer``; ``layer`` must not change sooner.
    recall : In(1)
        In the next cycle ``eref`` is that of ``at_sequence``. Not with ``vs_en``.
    start, values, start_head, at_sequence : In
        ``start``: the next reads begin at position 0 of the keys of ``start_head`` in ``at_sequence``; ``values`` with it: of its values.
    row_step, scale_step : In
        Read the next row or scale: ``row`` (``head_dim`` signed bytes) follows in the next cycle, ``scale_m`` and ``scale_e``
        (from registers) in the one after that, and stay for one cycle at least.

    Latency: a write is readable three cycles after its strobe. ``start`` in cycle n: steps from n + 2 on.
    """

    def __init__(self, config):
        self.config = config
        bits = index_bits(config.kv_heads)
        self.rows = config.sequences * 2 * config.layers * config.kv_heads * config.context
        self.parts = config.head_dim // config.vector_width
        self.part_rams = [Ram(8 * config.vector_width, self.rows) for _ in range(self.parts)]
        self.scale_ram = Ram(26, self.rows)
        self.largest_ram = Ram(10, config.sequences << index_bits(config.layers)) if config.sequences > 1 else None
        super().__init__(
            {
                "sequence": In(index_bits(config.sequences)),
                "layer": In(index_bits(config.layers)),
                "position": In(index_bits(config.context)),
                "kv_en": In(1),
                "kv_is_v": In(1),
                "kv_head": In(bits),
                "kv_index": In(index_bits(self.parts)),
                "kv_data": In(signed(8)).array(config.vector_width),
                "ks_en": In(1),
                "vs_en": In(1),
                "sc_head": In(bits),
                "sc_m": In(16),
                "sc_e": In(signed(10)),
                "eref": Out(signed(10)),
                "recall": In(1),
                "start": In(1),
                "values": In(1),
                "start_head": In(bits),
                "at_sequence": In(index_bits(config.sequences)),
                "row_step": In(1),
                "scale_step": In(1),
                "row": Out(signed(8)).array(config.head_dim),
                "scale_m": Out(16),
                "scale_e": Out(signed(10)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        for i, ram in enumerate(self.part_rams):
            m.submodules[f"part_{i}"] = ram
        m.submodules.scales = scales = self.scale_ram
        address = index_bits(self.rows)
        pairs = index_bits(self.rows // config.context)

        def pair(sequence, is_value, head):
            """Row of position 0, in units of the context."""
            layer = self.layer + Mux(is_value, config.layers, 0)
            if config.sequences > 1:
                layer = layer + sequence * (2 * config.layers)
            return layer * config.kv_heads + head

        # Rows: one cycle for the pair, one for the address.
        kv_en, kv_pair, kv_index = Signal(), Signal(pairs), Signal.like(self.kv_index)
        data, data_2 = (
            Signal(8 * config.vector_width, reset_less=True),
            Signal(8 * config.vector_width, reset_less=True),
        )
        kv_position, kv_address, part_en = Signal.like(self.position), Signal(address), Signal(self.parts)
        m.d.sync += [kv_en.eq(self.kv_en), part_en.eq(kv_en << kv_index)]
        with m.If(self.kv_en):
            m.d.sync += [
                kv_pair.eq(pair(self.sequence, self.kv_is_v, self.kv_head)),
                kv_position.eq(self.position),
                kv_index.eq(self.kv_index),
                data.eq(Cat(*self.kv_data)),
            ]
        with m.If(kv_en):
            m.d.sync += [kv_address.eq(kv_pair * config.context + kv_position), data_2.eq(data)]

        # Scales likewise.
        sc_en, sc_en_2 = Signal(), Signal()
        sc_pair, sc_position, sc_address = Signal(pairs), Signal.like(self.position), Signal(address)
        scale, scale_2 = Signal(26), Signal(26)
        m.d.sync += [sc_en.eq(self.ks_en | self.vs_en), sc_en_2.eq(sc_en)]
        with m.If(self.ks_en | self.vs_en):
            m.d.sync += [
                sc_pair.eq(pair(self.sequence, self.vs_en, self.sc_head)),
                sc_position.eq(self.position),
                scale.eq(Cat(self.sc_m, self.sc_e)),
            ]
        with m.If(sc_en):
            m.d.sync += [sc_address.eq(sc_pair * config.context + sc_position), scale_2.eq(scale)]

        # The largest value exponent: is the new one above it, or is it the first?
        vs_en, first, exponent = Signal(), Signal(), scale[16:].as_signed()
        m.d.sync += [vs_en.eq(self.vs_en), first.eq((self.position == 0) & (self.sc_head == 0))]
        above, larger = Signal(signed(11)), Signal()
        m.d.comb += [above.eq(self.eref - exponent), larger.eq(vs_en & (first | above[-1]))]
        self._largest(m, larger, exponent)

        # Reads at consecutive rows.
        read_pair, started = Signal(pairs), Signal()
        row_address, scale_address = Signal(address), Signal(address)
        m.d.sync += started.eq(self.start)
        with m.If(self.start):
            m.d.sync += read_pair.eq(pair(self.at_sequence, self.values, self.start_head))
        with m.If(started):
            base = read_pair * config.context
            m.d.sync += [row_address.eq(base), scale_address.eq(base)]
        with m.Else():
            m.d.sync += [row_address.eq(row_address + self.row_step), scale_address.eq(scale_address + self.scale_step)]

        for i, ram in enumerate(self.part_rams):
            m.d.comb += [
                ram.write_en.eq(part_en[i]),
                ram.write_addr.eq(kv_address),
                ram.write_data.eq(data_2),
                ram.read_en.eq(self.row_step),
                ram.read_addr.eq(row_address),
                *(
                    self.row[i * config.vector_width + j].eq(ram.read_data[8 * j : 8 * j + 8].as_signed())
                    for j in range(config.vector_width)
                ),
            ]
        m.d.comb += [
            scales.write_en.eq(sc_en_2),
            scales.write_addr.eq(sc_address),
            scales.write_data.eq(scale_2),
            scales.read_en.eq(self.scale_step),
            scales.read_addr.eq(scale_address),
        ]
        m.d.sync += [self.scale_m.eq(scales.read_data[:16]), self.scale_e.eq(scales.read_data[16:].as_signed())]
        return m

    def _largest(self, m, larger, exponent):
        """The largest value exponents: ``larger`` in the cycle after ``vs_en``, if ``exponent`` is to replace what ``eref`` is then."""
        config, ram = self.config, self.largest_ram
        if ram is None:  # one for each layer, in registers
            largest = Array(Signal(signed(10), name=f"largest_{i}") for i in range(config.layers))
            now = Signal(signed(10))
            m.d.comb += now.eq(largest[self.layer])
            m.d.sync += self.eref.eq(now)
            with m.If(larger):
                m.d.sync += largest[self.layer].eq(exponent)
            return
        m.submodules.largest = ram
        address = Cat(self.layer, self.sequence)
        m.d.sync += ram.write_addr.eq(address)
        m.d.comb += [
            ram.write_en.eq(larger),
            ram.write_data.eq(exponent),
            ram.read_en.eq(1),
            ram.read_addr.eq(Mux(self.recall, Cat(self.layer, self.at_sequence), address)),
            self.eref.eq(ram.read_data.as_signed()),
        ]
