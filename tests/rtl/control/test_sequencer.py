"""The sequencer alone, beside a model written from its docstring and docs/host.md: every start, store and answer in its cycle."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import OPERAND_SHIFT, Scalar
from intaglio.rtl.arithmetic.scalar import ScalarAlu
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import Instruction, Op, Phase, Wait
from intaglio.rtl.control.sequencer import ALU_OPS, Sequencer, command_layout

CONFIG = DecoderConfig(
    hidden=32,
    intermediate=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=20,
    context=4,
    lanes=4,
    lane_width=16,
    vector_width=4,
    top_k=5,
)
UNITS = {  # of an operation: unit, phase
    Op.EMBED: ("vector", Phase.EMBED),
    Op.NORM8: ("vector", Phase.NORM),
    Op.NORM16: ("vector", Phase.NORM),
    Op.ROPE: ("vector", Phase.ROTARY),
    Op.DRAIN: ("vector", Phase.ATTENTION),
    Op.LINEAR: ("linear", Phase.LINEAR),
    Op.ADAPT: ("adapt", Phase.LINEAR),
    Op.ATTEND: ("attend", Phase.ATTENTION),
    Op.HEAD: ("head", Phase.HEAD),
}
FLAGS = {
    "linear": [(Wait.LINEAR, 0)],
    "adapt": [(Wait.LINEAR, 0)],
    "vector": [(Wait.VECTOR, 0), (Wait.PASS_A, 7), (Wait.ENDING, 3)],  # how much sooner each is free
    "attend": [(Wait.ATTENTION, 0)],
    "head": [(Wait.ATTENTION, 0)],
}
EVENTS = ("begin", "finished", "overflow", "refused")


def duration(start):
    """Cycles that a unit works, of the n-th start in all."""
    return 1 + 11 * start * start % 23


def busy(start, unit):
    """``{flag: last cycle after the start in which it is busy}``"""
    return {flag: max(0, duration(start) - sooner) for flag, sooner in FLAGS[unit]}


class Surroundings:
    """Values that the sequencer reads: those that may change at any time differ from cycle to cycle."""

    def __init__(self, seed):
        picks = random.Random(seed)
        self.ranking = [(picks.randrange(20), picks.randrange(-(1 << 31), 1 << 31)) for _ in range(32)]
        self.maxima = [picks.getrandbits(picks.randrange(34)) for _ in range(256)]
        self.squares, self.reference = picks.getrandbits(40), picks.randrange(-40, 40)
        self.shifts = [(picks.randrange(32), picks.randrange(32)) for _ in range(4096)]  # x_shift, r_shift
        self.stalls = [picks.random() for _ in range(4096)]

    def ready(self, cycle, stall):
        return self.stalls[cycle % 4096] >= stall


class Model:
    """What must happen in which cycle; ``events`` is a list of (cycle, what)."""

    def __init__(self, config, program, around, *, stall=0.0):
        self.config, self.program, self.around, self.stall = config, program, around, stall
        self.registers, self.events, self.results, self.starts = [Scalar(0, 0)] * 8, [], [], 0
        self.position, self.shift, self.layer, self.q_scale, self.free = 0, 0, 0, Scalar(0, 0), {}
        self.phases, self.adapter, self.running, self.barred = [], 0, 0, False
        self.phase = Phase.EMBED

    def add(self, cycle, *what):
        self.events.append((cycle, what))

    def commands(self, words, cycle=0):
        """Takes commands as early as may be; returns the first cycle of rest."""
        for command in words:
            if self.config.rank and command.get("reserved"):
                self.adapter = command["token"]
                cycle += 1
                continue
            if command.get("first"):
                self.position = 0
                if self.config.rank:
                    self.running = int(self.adapter in (1, 3))
                    self.barred = bool(self.adapter) and not self.running
            run, top = command.get("run", 0), min(command.get("top", 0), self.config.top_k)
            want, token, cycle = command.get("want", 0) or run > 0, command["token"], cycle + 1
            for _ in range(run + 1):
                cycle, token, going = self.token(cycle, token, want, top)
                if not going:
                    break
        return cycle

    def token(self, begin, token, want, top):
        """``(first cycle after it, the best token, whether a run goes on)``"""
        config = self.config
        bits = config.token_bits
        if self.barred or self.position == config.context:
            self.add(begin, "refused" if self.barred else "overflow")
            if want:
                begin = self.answer(begin + 1, [(1 << bits) - 1 | self.position << bits])
            return begin + 1, token, False
        self.add(begin, "begin", token, self.position)
        now, self.phase = begin + 1, Phase.EMBED
        for word in self.program:
            while any(flag in word.wait and now < end for flag, end in self.free.items()):
                now += 1
            if word.op is Op.SKIP and not want:
                self.add(now, "finished", self.position)
                self.position += 1
                return now + 1, token, True
            if word.op is Op.END:
                break
            now = self.word(word, now) + 1
        unit = self.registers[word.ra]
        best = self.around.ranking[0][0]
        packet = [best | self.position << bits]
        if top:
            packet += [unit.m | (unit.e & 65535) << 16]
            packet += [x & 0xFFFFFFFF for pair in self.around.ranking[:top] for x in pair]
        last = self.answer(now + 1, packet)
        self.add(last, "finished", self.position)
        self.position += 1
        return last + 1, best, True

    def answer(self, now, packet):
        """The words of a packet, one in each cycle in which they are taken; returns the last."""
        for i, word in enumerate(packet):
            while not self.around.ready(now, self.stall):
                now += 1
            self.results.append((now, word, i == len(packet) - 1))
            now += 1
        return now - 1

    def word(self, word, now):
        """The word takes effect in a cycle; returns that of its end."""
        r, around = self.registers, self.around
        a, b, imm = r[word.ra], r[word.rb], Scalar(word.m, (word.e + 512) % 1024 - 512)
        if word.op in UNITS:
            unit, self.phase = UNITS[word.op][0], self.phase
            if word.op is Op.ADAPT and not self.running:
                return now
            fields = (word.op, word.m, word.e & 1023, word.rd)
            self.add(now, unit, *fields, *([bool(word.rb & 1 and self.running)] if unit == "linear" else []))
            self.phases.append((now + 1, UNITS[word.op][1]))
            for flag, cycles in busy(self.starts, unit).items():
                self.free[flag] = now + cycles + 1
            self.starts += 1
            if word.op in (Op.NORM8, Op.NORM16, Op.ROPE):
                self.shift = around.shifts[(now + 1) % 4096][word.op is Op.ROPE or word.rd & 1]
            if word.op is Op.ROPE:
                self.q_scale, self.layer = a, word.e
                self.add(now + 1, "query", a, word.e)
                self.add(now + 2, "base", a.e + self.shift + OPERAND_SHIFT)
            if word.op is Op.LINEAR:
                self.add(now + 1, "scale", a)
            return now
        if word.op in (Op.STK, Op.STV):
            self.add(now, "key" if word.op is Op.STK else "value", word.m & 255, a)
        if word.op is Op.LDI:
            r[word.rd] = imm
        if word.op not in ALU_OPS:
            return now
        r[word.rd] = {
            Op.LDM: lambda: Scalar.of_int(around.maxima[word.m & 255], self.shift if word.e else 0),
            Op.LDS: lambda: Scalar.of_int(around.squares),
            Op.LDX: lambda: imm.scaled(-2 * self.shift),
            Op.LDR: lambda: imm.scaled(-2 * (around.reference + 7)),
            Op.MUL: lambda: a * b,
            Op.MULI: lambda: a * imm,
            Op.DIV: lambda: a / b,
            Op.ADD: lambda: a + b,
            Op.SQRT: a.sqrt,
            Op.SCX: lambda: a.scaled(-2 * self.shift),
        }[word.op]()
        return now + ScalarAlu.LATENCY[ALU_OPS[word.op]]


def scalar(found):
    return Scalar(found.m, found.e)


class Bench:
    """Drives a sequencer from cycle to cycle and writes down what happens, as the model does."""

    def __init__(self, config, program, around, *, stall=0.0, idle=0.0):
        self.config, self.around, self.stall, self.idle = config, around, stall, idle
        self.dut = Sequencer(config, len(program), [word.encode() for word in program])
        self.events, self.results, self.phases, self.starts, self.later = [], [], [], 0, []
        self.ends = {}

    def look(self, ctx, cycle):
        """Events of the cycle; the units answer a start at once."""
        dut, get = self.dut, ctx.get
        for name in EVENTS:
            if hasattr(dut, name) and get(getattr(dut, name)):
                more = {"begin": (), "finished": (get(dut.position),)}.get(name, ())
                self.events.append((cycle, (name, *more)))
                if name == "begin":
                    self.later.append((cycle + 1, "begin"))
        started = [n for n in ("linear", "vector", "attend", "head") if get(getattr(dut, f"start_{n}"))]
        if self.config.rank and get(dut.start_adapt):
            started.append("adapt")
        assert len(started) <= 1
        for unit in started:
            adapted = [bool(self.config.rank and get(dut.adapted))] if unit == "linear" else []
            self.events.append((cycle, (unit, get(dut.op), get(dut.m), get(dut.e), get(dut.rd), *adapted)))
            for flag, cycles in busy(self.starts, unit).items():
                self.ends[flag] = cycle + cycles + 1
            self.starts += 1
            if unit == "linear":
                self.later.append((cycle + 1, "scale"))
            if get(dut.op) is Op.ROPE:
                self.later += [(cycle + 1, "query"), (cycle + 2, "base")]
        for name in ("key", "value"):
            if get(getattr(dut, f"store_{name}")):
                self.events.append((cycle, (name, get(dut.store_head), scalar(get(dut.store)))))
        for what in [what for when, what in self.later if when == cycle]:
            if what == "begin":  # token and position are there in the cycle after
                at = self.events.index((cycle - 1, ("begin",)))
                self.events[at] = cycle - 1, ("begin", get(dut.tokens[0]), get(dut.positions[0]))
            if what == "scale":
                self.events.append((cycle, ("scale", scalar(get(dut.scale[0])))))
            if what == "query":
                self.events.append((cycle, ("query", scalar(get(dut.q_scale[0])), get(dut.layer))))
            if what == "base":
                self.events.append((cycle, ("base", get(dut.q_base[0]))))
        flags = sum(int(flag) for flag, end in self.ends.items() if cycle + 1 < end)
        ctx.set(dut.busy_next, flags)

    def run(self, commands, cycles, *, lost_at=()):
        layout = command_layout(self.config.token_bits)
        queue = [layout.const(command) for command in commands]
        picks = random.Random(3)

        async def bench(ctx):
            dut, around, rank, shown = self.dut, self.around, 0, None
            ctx.set(dut.squares[0], around.squares)
            ctx.set(dut.reference, around.reference)
            for cycle in range(cycles):
                ctx.set(dut.x_shift[0], around.shifts[cycle % 4096][0])
                ctx.set(dut.r_shift[0], around.shifts[cycle % 4096][1])
                ctx.set(dut.rank_token, around.ranking[rank][0])  # of the cycle before
                ctx.set(dut.rank_logit, around.ranking[rank][1])
                ctx.set(dut.result_ready, around.ready(cycle, self.stall))
                offered = bool(queue) and picks.random() >= self.idle
                ctx.set(dut.command_valid, offered)
                ctx.set(dut.command_data, queue[0].as_value().value if offered else picks.getrandbits(32))
                if self.config.rank:
                    ctx.set(dut.ok, ctx.get(dut.selected) in (1, 3))
                    ctx.set(dut.physical, ctx.get(dut.selected) % 3)
                    ctx.set(dut.lost, cycle in lost_at)
                ctx.set(dut.m_value[0], around.maxima[ctx.get(dut.segment)])
                self.look(ctx, cycle)
                if not self.phases or self.phases[-1][1] != ctx.get(dut.phase):
                    self.phases.append((cycle, ctx.get(dut.phase)))
                valid, ready = ctx.get(dut.result_valid), ctx.get(dut.result_ready)
                word = ctx.get(dut.result_data), bool(ctx.get(dut.result_last))
                assert shown is None or (valid and word == shown), "a word that waits must stay"
                shown = word if valid and not ready else None
                if valid and ready:
                    self.results.append((cycle, *word))
                rank = ctx.get(dut.rank)
                if offered and ctx.get(dut.command_ready):
                    queue.pop(0)
                assert ctx.get(dut.active) != ctx.get(dut.command_ready)
                await ctx.tick()
            assert not queue and not ctx.get(dut.active)

        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        return self


def word(op, wait=Wait.NONE, **fields):
    return Instruction(op=op, wait=wait, **fields)


def loads(picks):
    return [word(Op.LDI, rd=i, m=picks.randrange(1 << 15, 1 << 16), e=picks.randrange(-20, 20)) for i in range(8)]


def random_program(seed, length, *, adapt=False):
    """Every operation, with registers, waits and fields at random; a store after every scalar shows its result."""
    picks = random.Random(seed)
    ops = [op for op in Op if op not in (Op.SKIP, Op.END, Op.EACH, Op.NEXT) and (adapt or op is not Op.ADAPT)]
    ops = (ops * (length // len(ops) + 1))[:length]
    picks.shuffle(ops)
    program = loads(picks)
    for op in ops:
        rd, ra, rb = (picks.randrange(8) for _ in range(3))
        m, e = picks.randrange(1 << 15, 1 << 16), picks.randrange(-30, 30)
        if op is Op.LDM:
            e = picks.randrange(2)
        if op in (Op.ROPE, Op.LINEAR, Op.ATTEND):
            e = picks.randrange(1024 if op is Op.LINEAR else 500)
        waits = picks.choice((Wait.NONE, Wait.NONE, Wait(picks.randrange(32))))
        program.append(word(op, waits, rd=rd, ra=ra, rb=rb, m=m, e=e))
        if op in ALU_OPS:
            program.append(word(picks.choice((Op.STK, Op.STV)), ra=rd, m=picks.randrange(256)))
        if len(program) == length // 2 + 8:
            program.append(word(Op.SKIP, Wait(picks.choice((0, 1, 8)))))
    return [*program, word(Op.END, Wait.ATTENTION, ra=picks.randrange(8))]


def in_order(events):
    return sorted(events, key=lambda event: (event[0], event[1][0]))


def compare(config, program, commands, *, seed=0, stall=0.0):
    around = Surroundings(seed)
    model = Model(config, program, around, stall=stall)
    end = model.commands(commands)
    bench = Bench(config, program, around, stall=stall).run(commands, end + 5)
    assert bench.results == model.results
    assert in_order(bench.events) == in_order(model.events)
    return model, bench, end


COMMANDS = [
    {"token": 7, "first": 1},
    {"token": 9, "want": 1, "top": 5},
    {"token": 65535, "want": 1},
    {"token": 1, "top": 3},
    {"token": 2, "first": 1, "run": 2, "top": 1},
    {"token": 3, "top": 31, "want": 1},
    {"token": 4},
    {"token": 5, "want": 1, "top": 2},
    {"token": 6, "run": 3},
    {"token": 7, "first": 1, "want": 1, "top": 9},
]


@pytest.mark.parametrize("stall", [0.0, 0.6])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_programs_of_all_operations(seed, stall):
    program = random_program(seed, 60)
    model, bench, end = compare(CONFIG, program, COMMANDS, seed=seed, stall=stall)
    kinds = {what[0] for _, what in model.events}
    assert kinds == {*EVENTS[:3], "linear", "vector", "attend", "head", "key", "value", "scale", "query", "base"}
    assert sum(what[0] == "overflow" for _, what in model.events) == 3
    changes = [(0, Phase.EMBED)]
    begins = [(cycle, Phase.EMBED) for cycle, what in model.events if what[0] == "begin"]
    for cycle, phase in sorted([*begins, *model.phases], key=lambda change: change[0]):
        if phase != changes[-1][1]:
            changes.append((cycle, phase))
    # Between tokens it is EMBED, which begins with the cycle after the last of a token.
    assert [c for c in bench.phases if c[1] != Phase.EMBED] == [c for c in changes if c[1] != Phase.EMBED]
    embeds = {cycle for cycle, phase in bench.phases if phase is Phase.EMBED}
    assert {cycle + 1 for cycle, what in model.events if what[0] == "finished"} <= embeds | {0}


def test_one_start_a_word_a_cycle():
    """Words that wait for nothing start one a cycle; one that waits starts in the cycle in which its units are idle."""
    program = [
        word(Op.EMBED, m=5),
        word(Op.NORM8, e=3),
        word(Op.LINEAR, Wait.ENDING, m=2, e=3, ra=1),
        word(Op.ATTEND, m=1),
        word(Op.NOP),
        word(Op.NORM16, Wait.VECTOR | Wait.ATTENTION),
        word(Op.HEAD, Wait.PASS_A),
        word(Op.END, Wait.ATTENTION),
    ]
    _, bench, _ = compare(CONFIG, program, [{"token": 3, "first": 1, "want": 1}], seed=4)
    cycles = {what[1]: cycle for cycle, what in bench.events if what[0] in FLAGS}
    begin = next(cycle for cycle, what in bench.events if what[0] == "begin")
    assert begin == 1 and cycles[Op.EMBED] == 2 and cycles[Op.NORM8] == 3
    assert cycles[Op.LINEAR] == max(4, 3 + duration(1) - 3 + 1)
    assert cycles[Op.ATTEND] == cycles[Op.LINEAR] + 1
    assert cycles[Op.NORM16] == max(cycles[Op.ATTEND] + 2, 3 + duration(1) + 1, cycles[Op.ATTEND] + duration(3) + 1)
    assert cycles[Op.HEAD] == max(cycles[Op.NORM16] + 1, cycles[Op.NORM16] + duration(4) - 7 + 1)


def test_a_command_that_comes_late():
    program = random_program(5, 20)
    around = Surroundings(5)
    model = Model(CONFIG, program, around)
    model.commands(COMMANDS)
    bench = Bench(CONFIG, program, around, idle=0.9).run(COMMANDS, 2500)
    assert [result[1:] for result in bench.results] == [result[1:] for result in model.results]
    assert sum(what[0] == "begin" for _, what in bench.events) == sum(what[0] == "begin" for _, what in model.events)


def test_the_reserved_bit_means_nothing_without_adapters():
    program = random_program(6, 20)
    commands = [{"token": 7, "first": 1, "reserved": 1, "want": 1}, {"token": 8, "reserved": 1, "run": 1}]
    compare(CONFIG, program, commands, seed=6)


def test_wider_tokens():
    config = CONFIG.replace(vocab=100_000)
    assert config.token_bits == 17
    commands = [{"token": 99_999, "first": 1, "want": 1}, {"token": 131_071, "run": 127, "top": 1}]
    compare(config, random_program(7, 20), commands, seed=7)


ADAPTED = CONFIG.replace(rank=4, adapters=3)


@pytest.mark.parametrize("seed", [8, 9])
def test_adapters(seed):
    """Slots 1 and 3 are there, 2 is not: its sequence is refused token by token, until the next begins."""
    commands = [
        {"token": 4, "first": 1, "want": 1},
        {"token": 3, "reserved": 1, "run": 5, "want": 1, "first": 1},
        {"token": 4, "want": 1},
        {"token": 5, "first": 1, "run": 1},
        {"token": 2, "reserved": 1},
        {"token": 6, "first": 1, "want": 1},
        {"token": 7},
        {"token": 1, "reserved": 1},
        {"token": 8, "run": 2, "top": 2},
        {"token": 9, "first": 1, "want": 1, "top": 1},
        {"token": 0, "reserved": 1},
        {"token": 9, "first": 1, "want": 1, "run": 4},
    ]
    model, bench, _ = compare(ADAPTED, random_program(seed, 46, adapt=True), commands, seed=seed)
    kinds = [what[0] for _, what in model.events]
    assert kinds.count("refused") == 3 and kinds.count("adapt") > 4 and kinds.count("overflow") == 1


def test_a_lost_adapter_bars_its_sequence():
    """What is under way ends; from the next token on the sequence is refused, a run too; the next sequence is not."""
    program = random_program(10, 40, adapt=True)
    commands = [
        {"token": 1, "reserved": 1},
        {"token": 4, "first": 1, "want": 1},
        {"token": 4, "run": 2},
        {"token": 4, "want": 1},
        {"token": 4, "first": 1, "want": 1},
    ]
    around = Surroundings(10)
    whole = Model(ADAPTED, program, around)
    whole.commands(commands)
    begins = [cycle for cycle, what in whole.events if what[0] == "begin"]
    bench = Bench(ADAPTED, program, around).run(commands, 1500, lost_at={begins[1] + 10})
    kinds = [what[0] for _, what in bench.events if what[0] in ("begin", "refused", "overflow")]
    assert kinds == ["begin", "begin", "refused", "refused", "begin"]
    void = (1 << 16) - 1
    assert [word for _, word, _ in bench.results][2:4] == [void | 2 << 16] * 2
    assert not any(what[0] == "adapt" and begins[1] + 10 < cycle < bench.results[2][0] for cycle, what in bench.events)
