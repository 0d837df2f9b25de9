"""The stores of the prefill unit: lines of keys and values, slots of queries; written by the fetch, read by the tile engine."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["Stores", "store_bits"]


def store_bits(config):
    """Bits of memory: lines of K and V, slots of queries, all with their scale bytes."""
    beat = 8 * config.head_dim
    return beat * (
        config.lines * 2 * (config.block + config.scale_beats) + config.slots * (config.block + config.scale_beats)
    )


class Stores(wiring.Component):
    """Six memories of words of a beat (``head_dim`` bytes).

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    key, value, query, key_scale, value_scale, query_scale, address, scale_address, data
        From :class:`~intaglio.rtl.kv.fetch.Fetch`.
    read_line, k_read, k_row, k_data, v_read, v_row, v_data, x_read, x_tile, x_data, q_read, q_slot, q_beat, q_data
        To :class:`~intaglio.rtl.attention.engine.TileEngine`. Latency: 1 cycle; data stay until the next read of the same kind.

    ``x_data`` are the scale bytes of a tile's keys, then those of its values.

    Throughput: a beat written and a beat of each kind read in a cycle.
    """

    def __init__(self, config):
        self.config = config
        c, beat = config, 8 * config.head_dim
        index = index_bits(max(c.lines, c.slots))
        super().__init__(
            {
                **{name: In(1) for name in ("key", "value", "query", "key_scale", "value_scale", "query_scale")},
                "address": In(index + c.block.bit_length() - 1),
                "scale_address": In(index + c.scale_beats.bit_length() - 1),
                "data": In(beat),
                "read_line": In(index_bits(c.lines)),
                "k_read": In(1),
                "k_row": In(index_bits(c.block)),
                "k_data": Out(beat),
                "v_read": In(1),
                "v_row": In(index_bits(c.block)),
                "v_data": Out(beat),
                "x_read": In(1),
                "x_tile": In(index_bits(c.tiles)),
                "x_data": Out(2 * beat),
                "q_read": In(1),
                "q_slot": In(index_bits(c.slots)),
                "q_beat": In(index_bits(c.block + c.scale_beats)),
                "q_data": Out(beat),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, beat = self.config, 8 * self.config.head_dim
        scales = self.q_beat >= c.block
        from_scales = Signal()
        with m.If(self.q_read):
            m.d.sync += from_scales.eq(scales)
        tile_bits, row_bits = c.tiles.bit_length() - 1, c.block.bit_length() - 1
        places = {
            "keys": (
                c.lines * c.block,
                self.key,
                self.address,
                self.k_read,
                Cat(self.k_row[:row_bits], self.read_line),
            ),
            "values": (
                c.lines * c.block,
                self.value,
                self.address,
                self.v_read,
                Cat(self.v_row[:row_bits], self.read_line),
            ),
            **{
                f"{name}s": (
                    c.lines * c.scale_beats,
                    write,
                    self.scale_address,
                    self.x_read,
                    Cat(self.x_tile[:tile_bits], self.read_line),
                )
                for name, write in (("key_scale", self.key_scale), ("value_scale", self.value_scale))
            },
            "queries": (
                c.slots * c.block,
                self.query,
                self.address,
                self.q_read & ~scales,
                Cat(self.q_beat[:row_bits], self.q_slot),
            ),
            "query_scales": (
                c.slots * c.scale_beats,
                self.query_scale,
                self.scale_address,
                self.q_read & scales,
                Cat(self.q_beat[:tile_bits], self.q_slot),
            ),
        }
        rams = {}
        for name, (depth, write, write_at, read, read_at) in places.items():
            m.submodules[name] = ram = rams[name] = Ram(beat, depth)
            m.d.comb += [
                ram.write_en.eq(write),
                ram.write_addr.eq(write_at),
                ram.write_data.eq(self.data),
                ram.read_en.eq(read),
                ram.read_addr.eq(read_at),
            ]
        m.d.comb += [
            self.k_data.eq(rams["keys"].read_data),
            self.v_data.eq(rams["values"].read_data),
            self.x_data.eq(Cat(rams["key_scales"].read_data, rams["value_scales"].read_data)),
            self.q_data.eq(Mux(from_scales, rams["query_scales"].read_data, rams["queries"].read_data)),
        ]
        return m
