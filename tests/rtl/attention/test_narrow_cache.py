"""The narrow attention unit's cache alone: every row and scale in its place, the largest exponents, and its latencies to the cycle."""

import itertools
import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.attention.narrow.cache import KvCache
from intaglio.rtl.config.decoder import DecoderConfig

SMALL = DecoderConfig(
    hidden=32,
    intermediate=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=20,
    context=6,
    lanes=4,
    lane_width=16,
    vector_width=4,
    top_k=5,
)
CONFIGS = {
    "two parts": SMALL,
    "one part, one head": SMALL.replace(kv_heads=1, layers=3, context=5, vector_width=8),
    "one layer": SMALL.replace(layers=1, context=9),
    "three heads of 4": SMALL.replace(
        hidden=24, intermediate=24, heads=6, kv_heads=3, head_dim=4, lane_width=8, layers=3, context=3
    ),
    "three sequences": SMALL.replace(sequences=3, layers=3, context=3),
}


class Bench:
    """Drives the ports; ``cycle`` counts the edges."""

    def __init__(self, config):
        self.config, self.dut, self.cycle = config, KvCache(config), 0

    def run(self, script):
        async def bench(ctx):
            self.ctx = ctx
            await script(self)

        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()

    async def tick(self, count=1, **strobes):
        """Cycles in each of which the inputs named are as given; afterwards strobes are low."""
        for name, value in strobes.items():
            port = getattr(self.dut, name)
            for one, given in zip(port, value, strict=True) if name == "kv_data" else [(port, value)]:
                self.ctx.set(one, given)
        await self.ctx.tick().repeat(count)
        self.cycle += count
        for name in ("kv_en", "ks_en", "vs_en", "start", "recall", "row_step", "scale_step"):
            self.ctx.set(getattr(self.dut, name), 0)

    async def part(self, layer, position, head, is_v, index, values, sequence=0):
        await self.tick(
            sequence=sequence,
            layer=layer,
            position=position,
            kv_en=1,
            kv_is_v=is_v,
            kv_head=head,
            kv_index=index,
            kv_data=values,
        )

    async def row(self, layer, position, head, is_v, values, sequence=0):
        width = self.config.vector_width
        for index in range(self.config.head_dim // width):
            await self.part(layer, position, head, is_v, index, values[index * width : (index + 1) * width], sequence)

    async def scale(self, layer, position, head, is_v, scale, sequence=0):
        name = "vs_en" if is_v else "ks_en"
        await self.tick(
            sequence=sequence,
            layer=layer,
            position=position,
            sc_head=head,
            sc_m=scale[0],
            sc_e=scale[1],
            kv_is_v=1 - is_v,
            **{name: 1},
        )

    async def begin(self, layer, head, is_v, sequence=0):
        """Reads begin at position 0; the next step may come in the cycle after this one."""
        await self.tick(at_sequence=sequence, layer=layer, start=1, values=is_v, start_head=head)
        await self.tick()

    def read_row(self):
        return [self.ctx.get(element) for element in self.dut.row]

    def read_scale(self):
        return self.ctx.get(self.dut.scale_m), self.ctx.get(self.dut.scale_e)


def places(config):
    """All (layer, is_v, head, position, sequence)."""
    return itertools.product(
        range(config.layers), (0, 1), range(config.kv_heads), range(config.context), range(config.sequences)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_row_and_scale_in_its_place(name):
    """All places written in any order, keys and values mixed, then read row by row with and without gaps."""
    config, picks = CONFIGS[name], random.Random(len(name))
    bytes_ = range(-128, 128)
    rows = {place: [picks.choice(bytes_) for _ in range(config.head_dim)] for place in places(config)}
    scales = {place: (picks.randrange(1 << 16), picks.randrange(-512, 512)) for place in places(config)}

    async def script(bench):
        order = list(places(config))
        picks.shuffle(order)
        for place in order:
            layer, is_v, head, position, sequence = place
            await bench.row(layer, position, head, is_v, rows[place], sequence)
            await bench.scale(layer, position, head, is_v, scales[place], sequence)
        await bench.tick(2)
        for layer, is_v, head, first, sequence in places(config):
            if first:
                continue
            all_ = [(layer, is_v, head, t, sequence) for t in range(config.context)]
            want = [(rows[place], scales[place]) for place in all_]
            for gap in (0, 2):
                await bench.begin(layer, head, is_v, sequence)
                found, ahead = [], None
                for t in range(config.context + 1):
                    stepping = t < config.context
                    # What is there after `start` must not matter.
                    await bench.tick(
                        row_step=stepping, scale_step=stepping, values=1 - is_v, start_head=0, layer=0, at_sequence=0
                    )
                    if ahead is not None and not gap:
                        found.append((ahead, bench.read_scale()))
                    ahead = bench.read_row()
                    if gap and stepping:
                        await bench.tick(gap)
                        assert bench.read_row() == ahead
                        found.append((ahead, bench.read_scale()))
                assert found == want

    Bench(config).run(script)


def test_rows_and_scales_step_apart():
    config = SMALL

    async def script(bench):
        for t in range(4):
            await bench.row(1, t, 1, 0, [t] * 8)
            await bench.scale(1, t, 1, 0, (t + 100, -t))
        await bench.tick(2)
        await bench.begin(1, 1, 0)
        for _ in range(3):
            await bench.tick(row_step=1)
        assert bench.read_row() == [2] * 8
        for _ in range(2):
            await bench.tick(scale_step=1)
        await bench.tick()
        assert bench.read_scale() == (101, -1) and bench.read_row() == [2] * 8
        await bench.begin(1, 1, 0)  # anew, rows and scales
        await bench.tick(row_step=1, scale_step=1)
        assert bench.read_row() == [0] * 8
        await bench.tick()
        assert bench.read_scale() == (100, 0)

    Bench(config).run(script)


@pytest.mark.parametrize("later", [2, 3])
def test_a_write_is_readable_after_three_cycles_and_not_before(later):
    """Strobe in one cycle, step three later: the new row; two later breaks the contract, and shows: the old one."""
    old, new = [1, 2, 3, 4], [-5, 6, -7, 8]

    async def script(bench):
        for index in range(2):
            await bench.part(0, 0, 1, 0, index, old)
        await bench.scale(0, 0, 1, 0, (1000, 3))
        await bench.tick(3)
        # start so early that the step may come when it shall
        bench.ctx.set(bench.dut.start, 1)
        bench.ctx.set(bench.dut.start_head, 1)
        bench.ctx.set(bench.dut.values, 0)
        await bench.tick(layer=0)
        await bench.tick(
            kv_en=1, kv_is_v=0, kv_head=1, kv_index=1, kv_data=new, position=0, ks_en=1, sc_head=1, sc_m=2000, sc_e=-4
        )
        await bench.tick(later - 1)
        await bench.tick(row_step=1, scale_step=1)
        assert bench.read_row() == old + (new if later == 3 else old)
        await bench.tick()
        assert bench.read_scale() == ((2000, -4) if later == 3 else (1000, 3))

    Bench(SMALL).run(script)


@pytest.mark.parametrize("layers, sequences", [(1, 1), (3, 1), (3, 3), (1, 4)])
def test_the_largest_value_exponent_of_each_sequence_and_layer(layers, sequences):
    """Key scales leave it alone, position 0 of head 0 starts it anew, and it is there three cycles after the strobe."""
    config, picks = SMALL.replace(layers=layers, sequences=sequences), random.Random(layers)
    largest = {}

    async def script(bench):
        for place, (sequence, layer) in enumerate(itertools.product(range(sequences), range(layers))):
            await bench.scale(layer, 0, 0, 1, (40000, -100 - place), sequence)
            await bench.tick(2)
            largest[sequence, layer] = -100 - place
        for _ in range(400):
            sequence, layer = place = picks.randrange(sequences), picks.randrange(layers)
            position, head = picks.choice((0, 0, 1, 5)), picks.randrange(2)
            is_v, exponent = (
                picks.random() < 0.7,
                picks.choice((-512, -128, -100, -1, 0, 1, 511, picks.randrange(-9, 9))),
            )
            before = largest[place]
            await bench.tick(sequence=sequence, layer=layer)  # must not change less than a cycle before it is looked at
            assert bench.ctx.get(bench.dut.eref) == before
            await bench.scale(layer, position, head, is_v, (0 if exponent == -128 else 33000, exponent), sequence)
            if is_v:
                largest[place] = exponent if position == head == 0 else max(before, exponent)
            await bench.tick(sequence=picks.randrange(sequences))  # that of a write counts with its strobe alone
            await bench.tick(sequence=sequence)
            assert bench.ctx.get(bench.dut.eref) == largest[place]
            await bench.tick(picks.choice((1, 1, 4)))
            if picks.random() < 0.3:
                sequence, layer = picks.randrange(sequences), picks.randrange(layers)
                await bench.tick(sequence=sequence, layer=layer)
                assert bench.ctx.get(bench.dut.eref) == largest[sequence, layer]
                other = picks.randrange(sequences)
                await bench.tick(at_sequence=other, recall=1)
                assert bench.ctx.get(bench.dut.eref) == largest[other, layer]
                await bench.tick(at_sequence=0)
                assert bench.ctx.get(bench.dut.eref) == largest[sequence, layer]

    Bench(config).run(script)


def test_value_scales_in_two_cycles_one_after_the_other_break_the_contract():
    """The second is compared with what the first has not changed yet, and a smaller one wins: why there must be a cycle between."""

    async def script(bench):
        for gap, want in ((1, 7), (0, 5)):
            await bench.scale(0, 0, 0, 1, (40000, -20))
            await bench.tick(3)
            await bench.scale(0, 1, 0, 1, (40000, 7))
            if gap:
                await bench.tick(gap)
            await bench.scale(0, 1, 1, 1, (40000, 5))
            await bench.tick(3)
            assert bench.ctx.get(bench.dut.eref) == want

    Bench(SMALL).run(script)
