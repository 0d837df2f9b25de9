"""The narrow attention unit with its ports driven, and docs/numerics.md in Python integers beside it."""

from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import EXP_TABLE
from intaglio.rtl.attention.narrow import AttentionUnit, attend_cycles, head_cycles
from intaglio.rtl.config.decoder import DecoderConfig

SMALL = DecoderConfig(
    hidden=32,
    intermediate=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=20,
    context=16,
    lanes=4,
    lane_width=16,
    vector_width=4,
    attention_heads=1,
    top_k=5,
)
CONFIGS = {
    "one head": SMALL,
    "two heads": SMALL.replace(attention_heads=2),
    "three heads of 4": SMALL.replace(
        hidden=24, intermediate=24, heads=6, head_dim=4, lane_width=8, attention_heads=3, layers=3, context=11
    ),
    "all heads at once": SMALL.replace(
        kv_heads=1, attention_heads=4, head_dim=16, hidden=64, intermediate=64, layers=1
    ),
    "six heads of 32": SMALL.replace(
        hidden=192,
        intermediate=192,
        layers=1,
        heads=6,
        kv_heads=1,
        head_dim=32,
        context=5,
        lane_width=32,
        vector_width=16,
        attention_heads=6,
    ),
}
ZERO = (0, -512)


def clamp(x, low, high):
    return max(low, min(high, x))


class Model:
    """Cache and attention of docs/numerics.md."""

    def __init__(self, config):
        self.config, self.rows, self.scales, self.largest = config, {}, {}, {}

    def write(self, layer, position, head, is_v, row, scale, sequence=0):
        self.rows[sequence, layer, is_v, head, position] = row
        self.scales[sequence, layer, is_v, head, position] = scale
        if is_v:
            fresh = position == 0 and head == 0
            place = sequence, layer
            self.largest[place] = scale[1] if fresh else max(self.largest[place], scale[1])

    def attend(self, layer, position, query, exponents, group, sequence=0):
        """``(accumulators, sums)`` of the heads of a pass."""
        c = self.config
        accumulators, sums = [], []
        for head in range(group * c.attention_heads, (group + 1) * c.attention_heads):
            kv, q = head // c.group, query[head * c.head_dim : (head + 1) * c.head_dim]
            scores = []
            for t in range(position + 1):
                m_k, e_k = self.scales[sequence, layer, 0, kv, t]
                s18 = sum(a * b for a, b in zip(q, self.rows[sequence, layer, 0, kv, t], strict=True)) >> c.score_shift
                rs = clamp(-(c.score_shift + e_k + exponents[head] + 8), 0, 40)
                scores.append(clamp((s18 * m_k) >> rs, -(2**17 - 1), 2**17 - 1))
            acc, total = [0] * c.head_dim, 0
            for t, score in enumerate(scores):
                delta = max(scores) - score
                p = EXP_TABLE[delta & 255] >> (delta >> 8)
                total += p
                m_v, e_v = self.scales[sequence, layer, 1, kv, t]
                w = (((p * m_v) >> min(self.largest[sequence, layer] - e_v, 32)) + 2**15) >> 16
                acc = [a + w * v for a, v in zip(acc, self.rows[sequence, layer, 1, kv, t], strict=True)]
            accumulators += acc
            sums.append(total)
        return accumulators, sums

    def head(self, operand, embedding, scales=None):
        sums = [sum(a * b for a, b in zip(operand, row, strict=True)) for row in embedding]
        if scales:
            sums = [value * scale >> 16 for value, scale in zip(sums, scales, strict=True)]
        logits = [value >> self.config.logit_shift for value in sums]
        return sorted(enumerate(logits), key=lambda c: (-c[1], c[0]))[: self.config.top_k]


class Bench:
    """Drives the unit's ports and keeps a :class:`Model` beside it."""

    def __init__(self, config, embedding=None, head=None, scales=(None, None)):
        self.config, self.model = config, Model(config)
        self.embedding = embedding or [[0] * config.hidden for _ in range(config.vocab)]
        self.dut = AttentionUnit(config, self.words(self.embedding), head and self.words(head), scales)

    def words(self, rows):
        """Words of a ROM of rows."""
        words = []
        for row in rows:
            for c in range(0, self.config.hidden, self.config.array):
                words.append(sum((e & 255) << 8 * i for i, e in enumerate(row[c : c + self.config.array])))
        return words

    def run(self, script):
        """Runs ``await script(self)``."""

        async def bench(ctx):
            self.ctx = ctx
            await script(self)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()

    async def strobe(self, enables, **fields):
        for name, value in fields.items():
            port = getattr(self.dut, name)
            for p, v in zip(port, value, strict=True) if isinstance(value, list) else [(port, value)]:
                self.ctx.set(p, v)
        for name in enables:
            self.ctx.set(getattr(self.dut, name), 1)
        await self.ctx.tick()
        for name in enables:
            self.ctx.set(getattr(self.dut, name), 0)

    async def operand(self, values):
        width = self.config.vector_width
        for i in range(0, len(values), width):
            await self.strobe(["op_en"], op_index=i // width, op_data=values[i : i + width])

    async def query(self, values, exponents):
        self.values, self.exponents = values, exponents
        for head, exponent in enumerate(exponents):
            await self.strobe(["eq_en"], eq_head=head, eq_exp=exponent)
        await self.operand(values)

    async def write(self, layer, position, head, is_v, row, scale, sequence=0):
        width = self.config.vector_width
        self.model.write(layer, position, head, is_v, row, scale, sequence)
        self.ctx.set(self.dut.sequence, sequence)
        self.ctx.set(self.dut.layer, layer)
        self.ctx.set(self.dut.position, position)
        for i in range(0, len(row), width):  # the scale with the last word
            scales = ["vs_en" if is_v else "ks_en"] if i + width == len(row) else []
            await self.strobe(
                ["kv_en", *scales],
                kv_is_v=is_v,
                kv_head=head,
                kv_index=i // width,
                kv_data=row[i : i + width],
                sc_head=head,
                sc_m=scale[0],
                sc_e=scale[1],
            )

    async def token(self, layer, position, rows, sequence=0):
        """Writes ``rows[head]`` = ``(key, key_scale, value, value_scale)``."""
        for head, (key, key_scale, value, value_scale) in enumerate(rows):
            await self.write(layer, position, head, 0, key, key_scale, sequence)
            await self.write(layer, position, head, 1, value, value_scale, sequence)

    async def wait(self):
        cycles = 0
        while self.ctx.get(self.dut.busy):
            cycles += 1
            assert cycles < 5000, "busy does not fall"
            await self.ctx.tick()
        return cycles

    async def attend(self, group):
        """Starts at once, as the sequencer may after a write; ``(accumulators, sums)``."""
        position = self.ctx.get(self.dut.at_position)
        await self.strobe(["attend"], group=group)
        assert await self.wait() == attend_cycles(self.config, position)
        return await self.results()

    async def results(self):
        """``(accumulators, sums)`` of the last ATTEND."""
        width = self.config.vector_width
        accumulators, sums = [], []
        for i in range(self.config.array // width):
            await self.strobe([], acc_addr=i, acc_en=1)
            accumulators += [self.ctx.get(p) for p in self.dut.acc_data]
        await self.strobe([], acc_en=0)
        assert not any(self.ctx.get(p) for p in self.dut.acc_data)
        for a in range(self.config.attention_heads):
            self.ctx.set(self.dut.sum_head, a)
            await self.ctx.delay(1e-9)
            sums.append(self.ctx.get(self.dut.sum))
        return accumulators, sums

    async def check(self, layer, position, sequence=0):
        self.ctx.set(self.dut.layer, layer)
        self.ctx.set(self.dut.at_sequence, sequence)
        self.ctx.set(self.dut.at_position, position)
        await self.ctx.tick()
        for group in range(self.config.head_groups):
            want = self.model.attend(layer, position, self.values, self.exponents, group, sequence)
            place = f"sequence {sequence}, layer {layer}, position {position}, group {group}"
            assert await self.attend(group) == want, place
            assert self.ctx.get(self.dut.at_eref) == self.model.largest[sequence, layer], place

    async def head(self):
        await self.strobe(["head"])
        assert await self.wait() == head_cycles(self.config)
        assert self.ctx.get(self.dut.top_count) == self.config.top_k
        out = []
        for i in range(self.config.top_k):
            self.ctx.set(self.dut.top_index, i)
            await self.ctx.tick()
            out.append((self.ctx.get(self.dut.top_token), self.ctx.get(self.dut.top_logit)))
        return out


def int8s(rng, n, limit=127):
    return [rng.randint(-limit, limit) for _ in range(n)]


def random_rows(rng, config, spread=3):
    """Rows of a token whose scores lie within a few units of each other."""
    return [
        (
            int8s(rng, config.head_dim),
            (rng.randint(2**15, 2**16 - 1), rng.randint(-spread, spread) - 20),
            int8s(rng, config.head_dim),
            (rng.randint(2**15, 2**16 - 1), rng.randint(-spread, spread) - 30),
        )
        for _ in range(config.kv_heads)
    ]


def near(config, log2_range=3):
    """Query exponent at which a full-scale score is about ``2^log2_range``, for key scales of about ``2^-4``."""
    return log2_range - (32767 * 127 * config.head_dim).bit_length() + 4


def queries(rng, config, exponent):
    return int8s(rng, config.hidden, 32767), [exponent + rng.randint(-2, 2) for _ in range(config.heads)]
