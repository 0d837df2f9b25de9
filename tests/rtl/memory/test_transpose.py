"""The memory that is written by rows and read by columns, against a table of words."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.memory.transpose import TransposeRam


def reads(count, width, tiles, *, seed=0, cycles=100, alter=lambda dut: None):
    """Pairs (found, expected): each row written, then a row written and a column of another tile read in each cycle."""
    dut, picks, pairs = TransposeRam(count, width, tiles), random.Random(seed), []
    alter(dut)
    held = {}

    async def bench(ctx):
        def write(tile, row):
            words = [picks.getrandbits(width) for _ in range(count)]
            ctx.set(dut.write_addr, tile * count + row)
            ctx.set(dut.write_data, sum(word << width * i for i, word in enumerate(words)))
            return words

        ctx.set(dut.write_en, 1)
        for tile in range(tiles):
            for row in range(count):
                held[tile, row] = write(tile, row)
                await ctx.tick()
        expected = None
        for _ in range(cycles):
            tile, row, column = picks.randrange(tiles), picks.randrange(count), picks.randrange(count)
            other = (tile + 1 + picks.randrange(tiles - 1)) % tiles
            words, asked = write(tile, row), picks.random() < 0.7
            ctx.set(dut.read_en, asked)
            ctx.set(dut.read_addr, other * count + column)
            if asked:
                expected = sum(held[other, i][column] << width * i for i in range(count))
            await ctx.tick()
            held[tile, row] = words
            if expected is not None:
                pairs.append((ctx.get(dut.read_data), expected))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return pairs


@pytest.mark.parametrize(("count", "width", "tiles"), [(2, 8, 2), (8, 16, 3), (16, 8, 4), (32, 8, 2)])
def test_columns_of_what_was_written_by_rows(count, width, tiles):
    pairs = reads(count, width, tiles)
    assert len(pairs) > 90 and all(found == expected for found, expected in pairs)


@pytest.mark.parametrize("side", ["spread", "gathered"])
def test_an_exchange_that_lacks_a_stage_shows(side):
    """Both permutations are needed, all of their stages."""

    def alter(dut):
        whole = dut._exchanged
        dut._exchanged = lambda m, name, words, by: whole(m, name, words, by[:-1] if name == side else by)

    assert any(found != expected for found, expected in reads(8, 8, 2, alter=alter))
