"""The narrow attention unit with several sequences, and with the next token written while it works for one."""

import random

import pytest
from amaranth.hdl import Const

from intaglio.rtl.attention.narrow import attend_cycles, head_cycles
from intaglio.rtl.attention.narrow import unit as unit_module
from tests.rtl.attention.narrow_bench import CONFIGS, SMALL, Bench, int8s, near, queries, random_rows

NEVER = 10**6
VALUES_FROM = 8  # cycles after the last attend of a token from which the next one's value scales may come
SLOTS = {
    "four groups": SMALL.replace(sequences=3, batch=2),
    "three groups": SMALL.replace(
        hidden=12, intermediate=24, heads=3, kv_heads=1, head_dim=4, lane_width=4, sequences=3, batch=3
    ),
    "one group": CONFIGS["all heads at once"].replace(layers=2, sequences=2, batch=2),
    "one sequence": SMALL.replace(attention_heads=2, batch=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_do_not_disturb_each_other(name):
    """Tokens of three sequences in any order, each at a place of its own; a sequence that begins anew leaves the others alone."""
    config, rng = CONFIGS[name].replace(sequences=3), random.Random(name)

    async def script(bench):
        await bench.query(*queries(rng, config, near(config)))
        written = {}
        for step in range(7 * config.layers):
            sequence, layer = place = rng.randrange(3), rng.randrange(config.layers)
            position = written.get(place, -1) + 1
            if position == config.context or rng.random() < 0.1:
                position = 0
            written[place] = position
            # exponents of other sequences lie far off
            rows = [
                (key, key_scale, value, (m, e + 20 * sequence))
                for key, key_scale, value, (m, e) in random_rows(rng, config)
            ]
            await bench.token(layer, position, rows, sequence)
            for other in written if step % 7 == 6 else [place]:
                await bench.check(other[1], written[other], other[0])

    Bench(config).run(script)


class Stream:
    """Tokens one after the other, each written while the unit attends for the one before."""

    def __init__(self, bench, rng):
        self.bench, self.rng, self.bank, self.counts = bench, rng, 0, {}

    def token(self, layer, stay):
        """The next token: of the sequence of the last one (``stay``) or of any."""
        config, rng = self.bench.config, self.rng
        self.sequence = self.sequence if stay and self.counts else rng.randrange(config.sequences)
        place = layer, self.sequence
        position = self.counts.get(place, -1) + 1
        if position == min(config.context, 5):
            position = 0
        self.counts[place] = position
        self.bank ^= 1
        # Scales of values rise with the position, so that the reference exponent of another token shows.
        rise = 3 * position + rng.randint(-4, 4)
        rows = [(k, k_scale, v, (m, e + rise)) for k, k_scale, v, (m, e) in random_rows(rng, config)]
        return {
            "layer": layer,
            "sequence": self.sequence,
            "position": position,
            "bank": self.bank,
            "rows": rows,
            "query": queries(rng, config, near(config)),
        }

    def words(self, token):
        """Inputs of the cycles in which the token is written, as much at once as there are ports for; and those of its scales."""
        config, width = self.bench.config, self.bench.config.vector_width
        kv, ks, vs = [], [], []
        for head, (key, key_scale, value, value_scale) in enumerate(token["rows"]):
            for is_v, row in enumerate((key, value)):
                for i in range(0, config.head_dim, width):
                    kv.append(
                        dict(kv_en=1, kv_is_v=is_v, kv_head=head, kv_index=i // width, kv_data=row[i : i + width])
                    )
            ks.append(dict(ks_en=1, sc_head=head, sc_m=key_scale[0], sc_e=key_scale[1]))
            ks.append({})
            vs.append(dict(vs_en=1, sc_head=head, sc_m=value_scale[0], sc_e=value_scale[1]))
            vs.append({})
        values, exponents = token["query"]
        op = [dict(op_en=1, op_index=i // width, op_data=values[i : i + width]) for i in range(0, config.hidden, width)]
        eq = [dict(eq_en=1, eq_head=head, eq_exp=exponent) for head, exponent in enumerate(exponents)]
        together = {name: token[name] for name in ("sequence", "position", "bank")}
        cycles = []
        for i in range(max(map(len, (kv, op, eq)))):
            cycles.append(dict(together))
            for strobes in (kv, op, eq):
                cycles[-1] |= strobes[i] if i < len(strobes) else {}
        return cycles, [together | cycle for cycle in ks + vs]

    async def tick(self, inputs, **more):
        inputs = inputs | more
        strobes = [name for name in inputs if name.endswith("_en") or name == "attend"]
        await self.bench.strobe(strobes, **{name: inputs[name] for name in inputs if name not in strobes})

    def remember(self, token):
        """The model has the token."""
        for head, (key, key_scale, value, value_scale) in enumerate(token["rows"]):
            for is_v, row, scale in ((0, key, key_scale), (1, value, value_scale)):
                self.bench.model.write(token["layer"], token["position"], head, is_v, row, scale, token["sequence"])

    async def step(self, token, following, offset):
        """Attends for ``token`` and writes ``following`` from cycle ``offset`` of it on, but its value scales as soon as they may come."""
        bench, config, dut = self.bench, self.bench.config, self.bench.dut
        cycles, scales = self.words(following)
        if following["sequence"] == token["sequence"] and following["position"] == 0:  # would overwrite what is read
            offset = NEVER
        attention = token["layer"], token["position"], *token["query"]
        want = [bench.model.attend(*attention, group, token["sequence"]) for group in range(config.head_groups)]
        reference = bench.model.largest[token["sequence"], token["layer"]]
        for name in ("layer", "position", "sequence", "bank"):
            bench.ctx.set(getattr(dut, name if name == "layer" else f"at_{name}"), token[name])
        cycle = 0
        for group in range(config.head_groups):
            last, began = group == config.head_groups - 1, cycle
            start = {"attend": 1, "group": group}
            while start or bench.ctx.get(dut.busy):
                now = start
                if cycle >= offset and cycles:
                    now = now | cycles.pop(0)
                value = last and cycle - began >= VALUES_FROM
                if cycle >= offset and scales and (value or "vs_en" not in scales[0]):
                    now = now | scales.pop(0)
                await self.tick(now)
                start = {}
                cycle += 1
                assert cycle < 1000
            assert cycle - began == 1 + attend_cycles(config, token["position"])
            assert await bench.results() == want[group], f"group {group}, offset {offset}"
            assert bench.ctx.get(dut.at_eref) == reference
        for rest in cycles + scales:
            await self.tick(rest)
        self.remember(following)


async def streamed(bench, rng, steps):
    """Tokens with every offset in turn, on average two in a row of a sequence."""
    stream = Stream(bench, rng)
    layer, offset = 0, 0
    token = stream.token(layer, False)
    bench.ctx.set(bench.dut.layer, layer)
    for words in stream.words(token):
        for inputs in words:
            await stream.tick(inputs)
    stream.remember(token)
    for _ in range(steps):
        following = stream.token(layer, rng.random() < 0.5)
        await stream.step(token, following, offset)
        span = bench.config.head_groups * (attend_cycles(bench.config, 2) + 4)
        token, offset = following, (offset + 1) % span
    return offset


@pytest.mark.parametrize("name", SLOTS)
def test_the_next_token_is_written_while_one_is_attended(name):
    """Its rows, scales, operands and exponents from every cycle of ATTEND on; of the same sequence, and of others."""
    config, rng = SLOTS[name], random.Random(name)
    steps = config.head_groups * (attend_cycles(config, 2) + 4)
    Bench(config).run(lambda bench: streamed(bench, rng, steps))


def swapped(name, value):
    """Elaborates with another signal for a member."""

    def mutate(dut):
        own, elaborate = getattr(dut, name), dut.elaborate

        def wrong(platform):
            setattr(dut, name, value(dut))
            module = elaborate(platform)
            setattr(dut, name, own)
            return module

        dut.elaborate = wrong

    return mutate


@pytest.mark.parametrize(
    "mutate",
    [
        swapped("at_bank", lambda dut: Const(0)),
        swapped("bank", lambda dut: Const(0)),
        swapped("at_sequence", lambda dut: dut.sequence),
        swapped("at_position", lambda dut: dut.position),
    ],
)
def test_what_is_the_other_token_s_shows(mutate):
    bench = Bench(SLOTS["one group"])
    mutate(bench.dut)
    with pytest.raises(AssertionError):
        bench.run(lambda bench: streamed(bench, random.Random(2), 12))


def test_a_reference_exponent_that_is_taken_late_shows(monkeypatch):
    monkeypatch.setattr(unit_module, "REFERENCE", VALUES_FROM + 4)
    with pytest.raises(AssertionError):
        Bench(SLOTS["one group"]).run(lambda bench: streamed(bench, random.Random(2), 12))


@pytest.mark.parametrize("name", SLOTS)
def test_the_head_reads_its_bank_while_the_other_is_written(name):
    config, rng = SLOTS[name], random.Random(name)
    embedding = [int8s(rng, config.hidden) for _ in range(config.vocab)]

    async def script(bench):
        words = config.hidden // config.vector_width
        for bank in (0, 1, 1, 0):
            operand = int8s(rng, config.hidden, 32767)
            bench.ctx.set(bench.dut.bank, bank)
            await bench.operand(operand)
            bench.ctx.set(bench.dut.at_bank, bank)
            await bench.strobe(["head"], bank=1 - bank)
            for cycle in range(head_cycles(config)):
                data = int8s(rng, config.vector_width, 32767)
                await bench.strobe(["op_en"], op_index=cycle % words, op_data=data)
            assert not bench.ctx.get(bench.dut.busy)
            found = []
            for rank in range(config.top_k):
                await bench.strobe([], top_index=rank)
                found.append((bench.ctx.get(bench.dut.top_token), bench.ctx.get(bench.dut.top_logit)))
            assert found == bench.model.head(operand, embedding)

    Bench(config, embedding).run(script)


@pytest.mark.parametrize("batch, sequences", [(1, 1), (2, 1), (32, 1), (1, 3)])
def test_memories_grow_only_where_they_must(batch, sequences):
    async def script(bench):
        cache, words = bench.dut.cache, SMALL.head_groups * min(batch, 2)
        assert [ram.depth for ram in bench.dut.operand_rams] == [words] * 2
        rows = sequences * 2 * SMALL.layers * SMALL.kv_heads * SMALL.context
        assert [ram.depth for ram in (*cache.part_rams, cache.scale_ram)] == [rows] * 3
        assert (cache.largest_ram is not None) == (sequences > 1)

    Bench(SMALL.replace(batch=batch, sequences=sequences)).run(script)
