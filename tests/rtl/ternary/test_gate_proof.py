"""Proof by induction that no bank is read that is not awake, for every sequence of commands to the linear unit.

The whole linear unit is proved, with the Verilog of intaglio_power that the generator emits; ``ahead``, ``start``, ``restart``, ``groups``,
``chunks``, the contents of the banks and the reset are free in every cycle. What power a bank has had is counted here anew.
"""

import subprocess
import sys

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Assert, Elaboratable, Instance, Module, Mux, Signal

from intaglio.gen.emit.verilog import VERILOG
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.rom import ROM_MODULE
from intaglio.rtl.ternary.gate import POWER_VERILOG
from intaglio.rtl.ternary.lane import LANE_MODULE, PLANES_MODULE, Lane
from intaglio.rtl.ternary.linear import LinearUnit
from intaglio.rtl.ternary.post import Post

STEPS = 16  # of the induction, at most
FINALS = [*(f"final_{i}" for i in range(1, 2 + Lane.DOT_LATENCY)), *(f"row_final_{i}" for i in range(Post.LATENCY + 1))]


def make_config(**changes):
    """28 words a lane: three banks of eight, and one of four."""
    fields = dict(
        hidden=4,
        intermediate=4,
        layers=2,
        heads=1,
        kv_heads=1,
        head_dim=4,
        vocab=4,
        context=4,
        lanes=2,
        lane_width=4,
        vector_width=4,
        top_k=1,
        gate_words=8,
        gate_wake=3,
    )
    return DecoderConfig(**(fields | changes))


class Claims(Elaboratable):
    """The linear unit and what is claimed of it."""

    def __init__(self, config):
        self.config, self.linear = config, LinearUnit(config, lane_instance=True)

    def elaborate(self, platform):
        m = Module()
        config, gate, rom = self.config, self.linear.gate, self.linear.roms[1]
        m.submodules.linear = self.linear
        finals = Signal(len(FINALS))  # of the unit's own pipeline, connected below
        m.submodules.probe = Instance("probe", o_finals=finals)
        issue, stall, inside = self.linear.gate_reads.any(), self.linear.gate_stall, gate.word < config.weight_depth
        read_before, word_before, waited = Signal(), Signal.like(gate.word), Signal(6)
        m.d.sync += [
            read_before.eq(issue),
            word_before.eq(gate.word),
            waited.eq(Mux(stall, waited + (waited != 63), 0)),
        ]
        for b in range(config.gate_banks):
            age, settled, here_before = (
                Signal(4, name=f"age_{b}"),
                Signal(name=f"settled_{b}"),
                Signal(name=f"here_before_{b}"),
            )
            on = self.linear.gate_power[b]
            m.d.sync += age.eq(Mux(on, Mux(age == 15, age, age + 1), 0))
            here = gate.word // config.gate_words == b
            m.d.comb += [
                settled.eq(on & (age >= config.gate_wake)),
                here_before.eq(read_before & (word_before // config.gate_words == b)),
            ]
            m.d.comb += [
                Assert(~self.linear.gate_reads[b] | (settled & here), "a bank that is read is awake and has the word"),
                Assert(~here_before | settled, "and still is as its word is used"),
                Assert(~here_before | (rom.data == rom.banks[b].data), "its word comes through as it is"),
            ]
            if config.gate_isolation:
                m.d.comb += Assert(
                    gate.awake[b] | (gate.select != b) | (rom.data == 0), "a bank that is not awake gives 0"
                )
        m.d.comb += [
            Assert(~(issue | stall) | gate.demand, "what waits or reads has asked for power"),
            Assert(
                self.linear.busy == (issue | stall | finals.any()),
                "busy until the flag of the last word has left the pipeline",
            ),
            Assert(~(issue | stall) | ~finals.any(), "which is empty before"),
            Assert((finals & (finals - 1)) == 0, "and has one such flag"),
            Assert(
                ~(read_before & stall & inside & (gate.word != 0)),
                "a stream that runs inside the model is not interrupted",
            ),
            Assert(~inside | (waited <= config.gate_wake + 2), "no word waits for longer than a bank takes to wake"),
        ]
        return m


def prove(claims, tmp_path, timeout=120):
    """Yosys' verdict: "proved", "refuted" or its last words."""
    linear = claims.linear
    ports = [linear.start, linear.restart, linear.ahead, linear.groups, linear.chunks, linear.gate_stall, linear.busy]
    (tmp_path / "unit.il").write_text(
        rtlil.convert(claims, name="claims", platform=VERILOG, ports=ports, emit_src=False)
    )
    (tmp_path / "power.v").write_text(POWER_VERILOG)
    steps = [
        "read_rtlil unit.il",
        "read_verilog -nosynthesis power.v",
        "hierarchy -top claims",
        "proc",
        "flatten",
        *(f"delete claims/t:{name}*" for name in (ROM_MODULE, LANE_MODULE, PLANES_MODULE, "probe")),
        "cd claims",
        *(f"connect -set finals[{i}] \\linear.{name}" for i, name in enumerate(FINALS)),
        "cd ..",
        "chformal -lower",
        "opt -full",
        "clean",
        "memory_map",
        "opt_clean",
        f"sat -tempinduct -prove-asserts -maxsteps {STEPS} claims",
    ]
    script = "\n".join(
        [
            "from pyosys import libyosys",
            "design = libyosys.Design()",
            *(f"libyosys.run_pass({s!r}, design)" for s in steps),
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=timeout)
    (tmp_path / "log").write_text(done.stdout + done.stderr)
    if "Induction step proven: SUCCESS!" in done.stdout:
        return "proved"
    verdict = "SAT temporal induction proof finished - model found for base case: FAIL!"  # a run from reset, not an unreachable state
    return "refuted" if verdict in done.stdout else (done.stdout + done.stderr)[-2000:]


@pytest.mark.parametrize(
    "changes", [{}, {"gate_wake": 0, "gate_words": 2}, {"gate_wake": 7}, {"gate_wake": 1, "gate_isolation": 0}]
)
def test_no_bank_is_read_that_is_not_awake(changes, tmp_path):
    assert prove(Claims(make_config(**changes)), tmp_path) == "proved"


def early(claims):
    """A bank counts as awake one cycle too early."""
    claims.linear.gate.wake_cycles -= 1


def late(claims):
    """A bank is switched on one word too late."""
    claims.linear.gate.lead -= 1


MUTATIONS = {"awake a cycle too early": early, "switched on a word too late": late}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_refuted(name, tmp_path):
    claims = Claims(make_config(gate_words=4))
    MUTATIONS[name](claims)
    assert prove(claims, tmp_path) == "refuted"
