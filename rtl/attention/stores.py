"""The stores of the prefill unit: lines of keys and values, slots of queries; written by the fetch, read by the tile engine."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from intaglio.rtl.bus.streams import store_read, store_write
from intaglio.rtl.memory.ram import Ram
from intaglio.rtl.memory.transpose import TransposeRam

__all__ = ["Stores", "store_bits"]


def store_bits(config):
    """Bits of memory: lines of K and V, slots of queries, all with their scale bytes."""
    beat = 8 * config.head_dim
    return beat * (
        config.lines * 2 * (config.block + config.scale_beats) + config.slots * (config.block + config.scale_beats)
    )


class Stores(wiring.Component):
    """Six memories of words of a beat (``head_dim`` bytes), all written by rows. Values and queries are read across them.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    write : In(:func:`~intaglio.rtl.bus.streams.store_write`)
        From :class:`~intaglio.rtl.kv.fetch.Fetch`.
    read : In(:func:`~intaglio.rtl.bus.streams.store_read`)
        To :class:`~intaglio.rtl.attention.engine.TileEngine`. Latency: 1 cycle; data stay until the next read of the same kind.

    ``read.k_data`` is a key. ``v_data`` of row ``tile * head_dim + d`` is channel d of the tile's ``head_dim`` values. ``q_data`` of beat
    ``row_group * columns + n`` has in byte ``k * columns + i`` channel ``n * head_dim / columns + k`` of query i of the row group, that of
    beat ``block + n`` the scale bytes of queries ``n * head_dim`` onwards. ``x_data`` are the scale bytes of a tile's keys, then those of
    its values.

    Throughput: a beat written and a beat of each kind read in a cycle.
    """

    def __init__(self, config):
        self.config = config
        super().__init__({"write": In(store_write(config)), "read": In(store_read(config))})

    def elaborate(self, platform):
        m = Module()
        c = self.config
        scales = self.read.q_beat >= c.block
        from_scales = Signal()
        with m.If(self.read.q_read):
            m.d.sync += from_scales.eq(scales)
        tile_bits, row_bits = c.tiles.bit_length() - 1, c.block.bit_length() - 1
        places = {
            "keys": (
                c.lines * c.block,
                self.write.key,
                self.write.address,
                self.read.k_read,
                Cat(self.read.k_row[:row_bits], self.read.read_line),
            ),
            "values": (
                c.lines * c.block,
                self.write.value,
                self.write.address,
                self.read.v_read,
                Cat(self.read.v_row[:row_bits], self.read.read_line),
            ),
            **{
                f"{name}s": (
                    c.lines * c.scale_beats,
                    write,
                    self.write.scale_address,
                    self.read.x_read,
                    Cat(self.read.x_tile[:tile_bits], self.read.read_line),
                )
                for name, write in (("key_scale", self.write.key_scale), ("value_scale", self.write.value_scale))
            },
            "queries": (
                c.slots * c.block,
                self.write.query,
                self.write.address,
                self.read.q_read & ~scales,
                Cat(self.read.q_beat[:row_bits], self.read.q_slot),
            ),
            "query_scales": (
                c.slots * c.scale_beats,
                self.write.query_scale,
                self.write.scale_address,
                self.read.q_read & scales,
                Cat(self.read.q_beat[:tile_bits], self.read.q_slot),
            ),
        }
        rams = {}
        for name, (depth, write, write_at, read, read_at) in places.items():
            m.submodules[name] = ram = rams[name] = self._memory(name, depth)
            m.d.comb += [
                ram.write_en.eq(write),
                ram.write_addr.eq(write_at),
                ram.write_data.eq(self.write.data),
                ram.read_en.eq(read),
                ram.read_addr.eq(read_at),
            ]
        m.d.comb += [
            self.read.k_data.eq(rams["keys"].read_data),
            self.read.v_data.eq(rams["values"].read_data),
            self.read.x_data.eq(Cat(rams["key_scales"].read_data, rams["value_scales"].read_data)),
            self.read.q_data.eq(Mux(from_scales, rams["query_scales"].read_data, self._by_channel(rams["queries"]))),
        ]
        return m

    def _memory(self, name, depth):
        c = self.config
        if name == "values":
            return TransposeRam(c.head_dim, 8, depth // c.head_dim)
        if name == "queries":
            return TransposeRam(c.columns, 8 * c.head_dim // c.columns, depth // c.columns)
        return Ram(8 * c.head_dim, depth)

    def _by_channel(self, queries):
        """A column of the queries' memory has ``head_dim / columns`` channels query by query; the engine takes them channel by channel."""
        bytes_ = [
            queries.read_data[query * queries.width :][8 * channel : 8 * channel + 8]
            for channel in range(queries.width // 8)
            for query in range(queries.count)
        ]
        return Cat(*bytes_)
