"""The stores of the prefill unit: lines of keys and values, slots of queries; written by the fetch, read by the tile engine."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["Stores", "store_bits"]


def store_bits(config):
    """Bits of memory: lines of K, V and exponents, slots of queries and exponents."""
    beat = 8 * config.head_dim
    return beat * (
        config.lines * (2 * config.block + config.exponent_beats)
        + config.slots * (config.block + config.exponent_beats)
    )


class Stores(wiring.Component):
    """Five memories of words of a beat (``head_dim`` bytes).

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    key, value, query, key_exponent, query_exponent, address, exponent_address, data
        From :class:`~intaglio.rtl.kv.fetch.Fetch`.
    read_line, k_read, k_row, k_data, v_read, v_row, v_data, x_read, x_tile, x_data, q_read, q_slot, q_beat, q_data
        To :class:`~intaglio.rtl.attention.engine.TileEngine`. Latency: 1 cycle; data stay until the next read of the same kind.

    Throughput: a beat written and a beat of each kind read in a cycle.
    """

    def __init__(self, config):
        self.config = config
        c, beat = config, 8 * config.head_dim
        index = index_bits(max(c.lines, c.slots))
        super().__init__(
            {
                **{name: In(1) for name in ("key", "value", "query", "key_exponent", "query_exponent")},
                "address": In(index + c.block.bit_length() - 1),
                "exponent_address": In(index + c.exponent_beats.bit_length() - 1),
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
                "x_data": Out(beat),
                "q_read": In(1),
                "q_slot": In(index_bits(c.slots)),
                "q_beat": In(index_bits(c.block + c.exponent_beats)),
                "q_data": Out(beat),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, beat = self.config, 8 * self.config.head_dim
        exponents = self.q_beat >= c.block
        from_exponents = Signal()
        with m.If(self.q_read):
            m.d.sync += from_exponents.eq(exponents)
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
            "key_exponents": (
                c.lines * c.exponent_beats,
                self.key_exponent,
                self.exponent_address,
                self.x_read,
                Cat(self.x_tile[:tile_bits], self.read_line),
            ),
            "queries": (
                c.slots * c.block,
                self.query,
                self.address,
                self.q_read & ~exponents,
                Cat(self.q_beat[:row_bits], self.q_slot),
            ),
            "query_exponents": (
                c.slots * c.exponent_beats,
                self.query_exponent,
                self.exponent_address,
                self.q_read & exponents,
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
            self.x_data.eq(rams["key_exponents"].read_data),
            self.q_data.eq(Mux(from_exponents, rams["query_exponents"].read_data, rams["queries"].read_data)),
        ]
        return m
