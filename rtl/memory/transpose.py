"""A memory that is written by rows and read by columns: square tiles of words, spread over banks by an exclusive or."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["TransposeRam"]


class TransposeRam(wiring.Component):
    """Tiles of ``count`` rows by ``count`` words, one row written and one column read in a cycle.

    Word w of row r lies in bank ``r ^ w`` at address w of its tile. So a row meets every bank once, at addresses of its own, and a column
    every bank once at the same address; between a bank and a word's place lie ``log2 count`` stages that exchange neighbours.

    Parameters
    ----------
    count : int
        Rows of a tile and words of a row, a power of 2 from 2 on.
    width : int
        Bits of a word.
    tiles : int

    Members
    -------
    write_en : In(1)
    write_addr : In
        ``tile * count + row``.
    write_data : In(count * width)
        The row, word 0 lowest.
    read_en : In(1)
    read_addr : In
        ``tile * count + column``.
    read_data : Out(count * width)
        That word of rows 0, 1, ..., row 0 lowest. Stays until the next read.

    Latency: reads 1 cycle. Nothing may depend on what a read returns in the cycle of a write to its tile.
    """

    def __init__(self, count, width, tiles):
        self.count, self.width, self.tiles = count, width, tiles
        bits = index_bits(count * tiles)
        super().__init__(
            {
                "write_en": In(1),
                "write_addr": In(bits),
                "write_data": In(count * width),
                "read_en": In(1),
                "read_addr": In(bits),
                "read_data": Out(count * width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count, width = self.count, self.width
        place = (count - 1).bit_length()  # bits of a row or column in its tile
        row, column = self.write_addr[:place], Signal(place)
        with m.If(self.read_en):
            m.d.sync += column.eq(self.read_addr[:place])
        spread, found = self._exchanged(m, "spread", self.write_data, row), []
        for bank in range(count):
            m.submodules[f"bank_{bank}"] = ram = Ram(width, count * self.tiles)
            m.d.comb += [
                ram.write_en.eq(self.write_en),
                ram.write_addr.eq(Cat(row ^ bank, self.write_addr[place:])),
                ram.write_data.eq(spread[bank * width : bank * width + width]),
                ram.read_en.eq(self.read_en),
                ram.read_addr.eq(self.read_addr),
            ]
            found.append(ram.read_data)
        banks = Signal(count * width)
        m.d.comb += [banks.eq(Cat(*found)), self.read_data.eq(self._exchanged(m, "gathered", banks, column))]
        return m

    def _exchanged(self, m, name, words, by):
        """Words with word i at place ``i ^ by``. Whole vectors are shifted and masked: a simulator has few operations to do, and
        synthesis sees wires."""
        size = self.count * self.width
        for stage in range(len(by)):
            distance = self.width << stage
            low = Const(sum(((1 << distance) - 1) << first for first in range(0, size, 2 * distance)), size)
            stepped = Signal(size, name=f"{name}_{stage}")
            other = ((words >> distance) & low) | ((words & low) << distance)[:size]
            m.d.comb += stepped.eq(Mux(by[stage], other, words))
            words = stepped
        return words
