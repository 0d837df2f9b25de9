"""Gated weight banks in the linear unit: the same results as without, when banks have power, what waiting costs, power intent."""

import itertools
import re
import subprocess

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from intaglio.gen.cycles.gating import powered_intervals
from intaglio.gen.emit.power_intent import power_intent
from intaglio.gen.emit.verilog import VERILOG
from intaglio.gen.tools import find_program
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.ternary import packing
from intaglio.rtl.ternary.linear import LinearUnit, PostMode
from intaglio.rtl.top.activity import BankActivity

FIELDS = dict(
    hidden=8,
    intermediate=12,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab=16,
    context=4,
    lanes=2,
    lane_width=4,
    vector_width=4,
)
PROGRAM = [
    (8, 2, PostMode.RAW),
    (10, 2, PostMode.GATED),
    (4, 3, PostMode.RAW),
    (12, 2, PostMode.GATED),
    (1, 1, PostMode.RAW),
]
NEVER = 10**9  # announced by the start alone


def make_config(**changes):
    return DecoderConfig(**(FIELDS | changes))


def run(config, announce, mutate=None):
    """Run the program twice, each operation announced ``announce`` cycles before its start (all even if 0): what is written, the cycles
    of first reads, busy cycles, power and stalls cycle by cycle."""
    rng = np.random.default_rng(3)
    weights = rng.integers(-1, 2, (config.lanes, config.weight_depth, config.lane_width)).astype(np.int8)
    dut = LinearUnit(config, [packing.pack_ints(lane, config.packing) for lane in weights])
    if mutate:
        mutate(dut)
    activations = [
        [int.from_bytes(rng.bytes(config.lane_width), "little") for _ in range(8)] for _ in range(config.batch)
    ]
    written, power, streams, busies, stalls = [], [], [], [], 0
    clock = itertools.count()
    now, act = 0, 0

    async def cycle(ctx):
        nonlocal act, now, stalls
        if ctx.get(dut.r_wr_en):
            written.append((ctx.get(dut.r_wr_en), ctx.get(dut.r_wr_addr), tuple(map(ctx.get, dut.r_wr_data))))
        if config.gate_words:
            power.append(ctx.get(dut.gate_power))
            stalls += ctx.get(dut.gate_stall)
            if ctx.get(dut.gate_reads) and streams and streams[-1][1] is None:
                streams[-1][1] = now
        following = [words[ctx.get(dut.act_addr) % 8] for words in activations]
        await ctx.tick()
        for port, word in zip(dut.act_data, following, strict=True):
            ctx.set(port, word)
        now = next(clock) + 1

    async def bench(ctx):
        for token in range(2):
            for i, (groups, chunks, mode) in enumerate(PROGRAM):
                ctx.set(dut.restart, i == 0)
                if announce != NEVER and config.gate_words:
                    ctx.set(dut.ahead, 1)
                if announce and announce != NEVER:
                    streams.append([now, None, groups * chunks])
                    for _ in range(announce):
                        await cycle(ctx)
                        ctx.set(dut.restart, 0)
                        if config.gate_words:
                            ctx.set(dut.ahead, 0)
                else:
                    streams.append([now, None, groups * chunks])
                for name, value in dict(start=1, groups=groups, chunks=chunks, mode=mode).items():
                    ctx.set(getattr(dut, name), value)
                began = now
                await cycle(ctx)
                for name in ("start", "restart", *(("ahead",) if config.gate_words else ())):
                    ctx.set(getattr(dut, name), 0)
                while ctx.get(dut.busy):
                    await cycle(ctx)
                    assert now - began < 500
                busies.append(now - began - 1)
            for _ in range(3 + 4 * token):
                await cycle(ctx)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return {
        "written": written,
        "power": power,
        "streams": [tuple(s) for s in streams],
        "busy": busies,
        "stalls": stalls,
    }


CASES = [
    ({"gate_words": 16, "gate_wake": 5}, 20),
    ({"gate_words": 16, "gate_wake": 9, "batch": 2}, 4),
    ({"gate_words": 4, "gate_wake": 0}, 2),
    ({"gate_words": 8, "gate_wake": 7, "gate_isolation": 0}, NEVER),
    ({"gate_words": 32, "gate_wake": 3, "packing": "5trit"}, 0),
]


@pytest.mark.parametrize("changes, announce", CASES)
def test_results_power_and_stalls(changes, announce):
    config = make_config(**changes)
    plain = run(make_config(packing=config.packing, batch=config.batch), announce)
    found = run(config, announce)
    assert found["written"] == plain["written"] and len(plain["written"]) > 60
    early = 0 if announce == NEVER else announce
    wait = max(0, config.gate_wake + 2 - early - 1)
    assert found["busy"] == [busy + wait for busy in plain["busy"]]
    assert found["stalls"] == 2 * len(PROGRAM) * wait
    expected = np.zeros(len(found["power"]), object)
    for token in range(2):
        for interval in powered_intervals(config, found["streams"][token * len(PROGRAM) : (token + 1) * len(PROGRAM)]):
            for cycle in range(interval.first, interval.last + 1):
                expected[cycle] |= 1 << interval.bank
    assert found["power"] == expected.tolist()
    assert found["power"][-1] == 0 and any(power == 0 for power in found["power"][30:-8])


def too_early(dut):
    dut.gate.wake_cycles -= 1


def wrong_switch(dut):
    dut.roms[0].banks[0], dut.roms[0].banks[1] = dut.roms[0].banks[1], dut.roms[0].banks[0]


@pytest.mark.parametrize("mutate", [too_early, wrong_switch])
def test_mutations_are_seen(mutate):
    changes, _ = CASES[0]
    config = make_config(**changes)
    assert run(config, NEVER, mutate)["written"] != run(config, NEVER)["written"]


def late(dut):
    dut.gate.lead -= 1


def test_a_late_wake_costs_cycles_only():
    changes, announce = CASES[0]
    right, wrong = run(make_config(**changes), announce), run(make_config(**changes), announce, late)
    assert wrong["written"] == right["written"] and wrong["stalls"] > 0 == right["stalls"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gate_words": 12}, "gate_words must be 0 or a power of 2 from 2, not 12"),
        ({"gate_words": 1}, "gate_words must be 0 or a power of 2 from 2, not 1"),
        ({"gate_words": 8, "gate_wake": 8}, "gate_wake must be less than gate_words = 8, not 8"),
        ({"gate_wake": 255}, "gate_wake must be in 0..254 cycles, not 255"),
        ({"gate_wake": -1}, "gate_wake must be in 0..254 cycles, not -1"),
        ({"gate_isolation": 2}, "gate_isolation must be 0 or 1, not 2"),
        ({"gate_words": 1024}, "gate_words must make 2..128 banks of a lane's 120 words, not 1"),
        (
            {"gate_words": 2, "gate_wake": 1, "layers": 5},
            "gate_words must make 2..128 banks of a lane's 300 words, not 150",
        ),
    ],
)
def test_errors_say_what_must_hold_and_what_was_given(change, message):
    with pytest.raises(ValueError) as caught:
        make_config(**change)
    assert str(caught.value) == message


def test_without_gating_the_digest_is_that_of_a_decoder_that_knows_none():
    assert not {"gate_words", "gate_wake", "gate_isolation"} & make_config().to_json().keys()
    assert make_config().digest() != make_config(gate_words=32).digest()
    assert DecoderConfig.from_json(make_config(gate_words=32).to_json()) == make_config(gate_words=32)


def test_activity_counters():
    dut = BankActivity(3)
    rng = np.random.default_rng(0)
    steps = [(int(rng.integers(8)), 1 << int(rng.integers(4)) & 7) for _ in range(50)]

    async def bench(ctx):
        for clear_at in (50, 20):
            ctx.set(dut.clear, 1)
            ctx.set(dut.power, 0)
            ctx.set(dut.reads, 0)
            await ctx.tick()
            ctx.set(dut.clear, 0)
            for power, reads in steps[:clear_at]:
                ctx.set(dut.power, power)
                ctx.set(dut.reads, reads)
                await ctx.tick()
            ctx.set(dut.reads, 0)
            powers, reads = zip(*steps[:clear_at], strict=True)
            for bank in range(3):
                ctx.set(dut.bank, bank)
                bits = [power >> bank & 1 for power in powers]
                assert ctx.get(dut.powered) == sum(bits)
                assert ctx.get(dut.read) == sum(read >> bank & 1 for read in reads)
                assert ctx.get(dut.wakes) == sum(b > a for a, b in zip([0, *bits], bits, strict=False))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


# -- power intent


def tcl_commands(text):
    """Commands as lists of words: a parser of Tcl as far as UPF goes, braces nested."""
    commands = []
    for line in text.splitlines():
        words, word, depth, braced = [], "", 0, False
        for letter in line + " ":
            if letter == "{":
                depth, braced = depth + 1, True
            depth -= letter == "}"
            assert depth >= 0, line
            if letter == " " and not depth:
                if word or braced:
                    words.append(word)
                word, braced = "", False
            elif not (letter in "{}" and depth + (letter == "}") <= 1):
                word += letter
        assert not depth, line
        if words and not words[0].startswith("#"):
            commands.append(words)
    return commands


OPTIONS = {  # IEEE 1801-2015, clause 6: the options used, and how many values each takes
    "upf_version": {},
    "set_design_top": {},
    "set_scope": {},
    "create_supply_net": {},
    "create_supply_port": {"-direction": 1},
    "connect_supply_net": {"-ports": 1},
    "create_supply_set": {"-function": 1},
    "create_power_domain": {"-elements": 1, "-supply": 1},
    "add_power_state": {"-supply": 1, "-state": 2},
    "create_power_switch": {
        "-domain": 1,
        "-input_supply_port": 1,
        "-output_supply_port": 1,
        "-control_port": 1,
        "-on_state": 1,
        "-off_state": 1,
    },
    "set_isolation": {
        "-domain": 1,
        "-applies_to": 1,
        "-clamp_value": 1,
        "-isolation_signal": 1,
        "-isolation_sense": 1,
        "-isolation_supply": 1,
        "-location": 1,
        "-no_isolation": 0,
    },
}


def check_upf(text):
    """Names are created before they are used, once; options are those of the standard. Returns elements and signals."""
    known, elements, signals = set(), [], []
    for command, *words in tcl_commands(text):
        assert command in OPTIONS, command
        named, values, place = [], {}, 0
        while place < len(words):
            if words[place].startswith("-"):
                count = OPTIONS[command][words[place]]
                values.setdefault(words[place], []).extend(words[place + 1 : place + 1 + count] or [""])
                place += 1 + count
            else:
                named.append(words[place])
                place += 1
        if command.startswith("create_"):
            kind = "port" if command == "create_supply_port" else "name"
            assert (kind, named[0]) not in known
            known.add((kind, named[0]))
        elif command == "connect_supply_net":
            assert ("name", named[0]) in known and ("port", values["-ports"][0]) in known
        used = [
            *values.get("-domain", []),
            *(
                part.split()[1]
                for option in ("-function", "-input_supply_port", "-output_supply_port")
                for part in values.get(option, [])
            ),
            *values.get("-isolation_supply", []),
        ]
        used += [part.split()[1] for part in values.get("-supply", []) if command == "create_power_domain"]
        used += values.get("-supply", []) if command == "add_power_state" else []
        for name in used:
            assert ("name", name) in known, name
        elements += [e for part in values.get("-elements", []) for e in part.split() if e != "."]
        signals += [part.split()[1] for part in values.get("-control_port", [])] + values.get("-isolation_signal", [])
    return elements, signals


@pytest.mark.parametrize("isolation", [0, 1])
def test_power_intent(isolation):
    config = make_config(gate_words=32, gate_isolation=isolation)
    text = power_intent(config, "top")
    elements, signals = check_upf(text)
    assert elements == [f"core/linear/rom_{lane}/bank_{b}" for b in range(4) for lane in range(2)]
    assert {f"core/linear/gate/power[{b}]" for b in range(4)} <= set(signals)
    assert ("core/linear/gate/awake[0]" in signals) == bool(isolation)
    unit = rtlil.convert(
        LinearUnit(config, lane_instance=True), name="unit", platform=VERILOG, ports=[], emit_src=False
    )
    cells = {}
    for module, body in re.findall(r"^module \\(\S+)$(.*?)^end$", unit, re.MULTILINE | re.DOTALL):
        cells[module] = set(re.findall(r"^  cell \S+ \\(\S+)$", body, re.MULTILINE))
    for element in elements:
        rom, bank = element.split("/")[2:]
        assert rom in cells["unit"] and bank in cells[f"unit.{rom}"]
    gate = re.search(r"^module \\unit.gate$(.*?)^end$", unit, re.MULTILINE | re.DOTALL)[1]
    for name in ("power", "awake"):
        assert re.search(rf"^  wire width 4 output \d+  ?\\{name}$", gate, re.MULTILINE)


@pytest.mark.skipif(find_program("tclsh") is None, reason="no tclsh: the parser above has read the file")
def test_power_intent_is_complete_tcl(tmp_path):
    (tmp_path / "a.upf").write_text(power_intent(make_config(gate_words=32), "top"))
    script = "set f [open a.upf]; puts [info complete [read $f]]"
    done = subprocess.run(
        [find_program("tclsh")], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    "wrong",
    [
        "power_switch SW_BANK_1 -domain PD_BOTTOM",
        "isolation ISO_BANK_1 -domain PD_BANK_1 -clamp 0",
        "supply_set SS_BANK_1 -function {power VDD_BANK_9",
    ],
)
def test_wrong_power_intent_is_seen(wrong):
    text = power_intent(make_config(gate_words=32), "top")
    command = re.escape(" ".join(wrong.split()[:2]))
    with pytest.raises((AssertionError, KeyError)):
        check_upf(re.sub(rf"{command}[^{{\n]*", wrong + " ", text, count=1))
