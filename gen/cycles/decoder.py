"""Closed form of the decoder's cycles: walks the layer program with the latency of every unit.

No cycle of the hardware depends on data, so the walk gives the exact count of a token at a position, phase by phase; the test suite and the
benchmark compare it with the counters of the simulated device. It is also what a larger model's speed is projected from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.gen.emit.program import layer_program
from intaglio.rtl.arithmetic.scalar import ScalarAlu
from intaglio.rtl.attention.narrow.unit import attend_cycles, head_cycles
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import PHASES, Instruction, Op, Wait
from intaglio.rtl.control.sequencer import ALU_OPS
from intaglio.rtl.ternary.adapter.intermediate import Intermediate
from intaglio.rtl.ternary.gate import BankGate
from intaglio.rtl.ternary.linear import LinearUnit, PostMode
from intaglio.rtl.vector.pass_a import LOAD_STAGES, PassA
from intaglio.rtl.vector.unit import VectorOp, VectorUnit

__all__ = ["Timing", "TokenCycles", "group_cycles", "operations", "token_cycles"]

_VECTOR = {
    Op.EMBED: VectorOp.EMBED,
    Op.NORM8: VectorOp.NORM8,
    Op.NORM16: VectorOp.NORM16,
    Op.ROPE: VectorOp.ROPE,
    Op.DRAIN: VectorOp.DRAIN,
}
_PHASE = {
    Op.EMBED: "embed",
    Op.NORM8: "norm",
    Op.NORM16: "norm",
    Op.LINEAR: "linear",
    Op.ADAPT: "linear",
    Op.ROPE: "rotary",
    Op.ATTEND: "attention",
    Op.DRAIN: "attention",
    Op.HEAD: "head",
}


@dataclass
class TokenCycles:
    """Cycles of one token by phase, and in all; ``linear_busy`` are those of the linear unit itself.

    In ``linear_stall`` of these a word waits for its bank's power. ``streams`` has, of each linear operation, the cycle in which it was
    announced, that of its first word, and its words; ``starts`` the phase that each unit operation begins, and its first cycle.
    """

    phases: dict = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    linear_busy: int = 0
    streams: list = field(default_factory=list)
    linear_stall: int = 0
    starts: list = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.phases.values())


class Timing:
    """Cycles that each unit is busy; a larger machine than the RTL can build overrides what differs, and its ``config`` is its own."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def vector(self, word: Instruction) -> int:
        return VectorUnit.cycles(self.config, _VECTOR[word.op], word.e)

    def pass_a(self, word: Instruction) -> int:
        """Of pass A; 0 for operations without one."""
        config = self.config
        words = {Op.NORM8: word.e, Op.NORM16: word.e, Op.ROPE: config.qkv_rows // config.vector_width}.get(word.op)
        return 0 if words is None else words + LOAD_STAGES + PassA.tree_stages(config.vector_width)

    def linear(self, word: Instruction, adapter: bool = False) -> int:
        """Of a matrix, or of an adapter's A; ``adapter``: the sequence computes with one."""
        config = self.config
        if word.op is Op.ADAPT:
            return word.m * word.e * config.adapter_trits + LinearUnit.ADAPT_FILL + word.m + Intermediate.LATENCY
        words = word.m * (word.e + (config.adapter_trits if word.rb and adapter else 0))
        return words + LinearUnit.fill(config, PostMode(word.rd))

    def attend(self, position: int) -> int:
        return attend_cycles(self.config, position)

    def head(self) -> int:
        return head_cycles(self.config)


def token_cycles(
    model: QuantisedModel,
    position: int,
    *,
    want: bool = True,
    program: Sequence[Instruction] | None = None,
    timing: Timing | None = None,
    adapter: bool = False,
) -> TokenCycles:
    """Cycles of the token at ``position`` (0 first) by itself, from the cycle after its command was taken.

    Parameters
    ----------
    model : QuantisedModel
    want : bool
        Whether its logits are wanted: otherwise the token ends before the head. The answer counts as one word that is taken at once.
    program : list of Instruction or None
        The layer program, where many positions are asked for.
    timing : Timing or None
        That of the RTL by default.
    adapter : bool
        Whether the sequence computes with an adapter.
    """
    return group_cycles(model, [position], wants=int(want), program=program, timing=timing, adapter=adapter)


def group_cycles(
    model: QuantisedModel,
    positions: Sequence[int],
    *,
    wants: int | None = None,
    program: Sequence[Instruction] | None = None,
    timing: Timing | None = None,
    adapter: bool = False,
) -> TokenCycles:
    """Cycles of a group of tokens, from the cycle after its last word was taken; 1 to ``batch`` positions.

    Parameters
    ----------
    wants : int or None
        How many of them want a result (all), a word each that is taken at once.

    The others as of :func:`token_cycles`. The next group of a run begins as many cycles later as the group has tokens, which belong to
    the phase embed; at once in a machine without a batch.
    """
    config = model.config
    if not 1 <= len(positions) <= config.batch:
        raise ValueError(f"a group must have 1..{config.batch} tokens, not {len(positions)}")
    walk = _Walk(config, timing or Timing(config), adapter)
    program = program or layer_program(model)
    wanted = len(positions) if wants is None else wants
    at, loop, left = 0, 0, list(positions)
    while at < len(program):
        word, at = program[at], at + 1
        # A sequence that begins anew overwrites what the slot before may still attend to.
        fresh = word.op is Op.ROPE and word.rb and len(left) > 1 and left[1] == 0
        walk.issue(word, word.wait | Wait.ATTENTION if fresh else word.wait)
        if word.op is Op.SKIP and not wanted:
            break
        if word.op is Op.EACH:
            loop, left = at, list(positions) if not word.rd else [0] * wanted
        elif word.op in (Op.NEXT, Op.END):
            if word.op is Op.END:
                walk.spend(1)  # the answer
            left = left[1:]
            if left:
                walk.spend(1)
                at = loop
            elif word.op is Op.END:
                break
        elif word.op is Op.ROPE and word.rb and len(left) == 1:
            walk.enter(word)  # there is no slot to begin with
        else:
            walk.start(word, left[0] if left else 0)
    return walk.out


class _Walk:
    """The time of the words so far."""

    def __init__(self, config: Any, timing: Timing, adapter: bool) -> None:
        self.config, self.timing, self.adapter = config, timing, adapter
        self.out = TokenCycles()
        self.free = dict.fromkeys(Wait, 0)  # first cycle in which the unit may be started again
        self.phase, self.now = "embed", 0
        self.ahead: int | None = None  # cycle of the NORM8 whose LINEAR is to come
        self.out.starts.append((self.phase, 0))
        self.spend(1)  # cycle 0 is that of the beginning

    def spend(self, cycles):
        self.out.phases[self.phase] += cycles
        self.now += cycles

    def issue(self, word, waits):
        """Waits for units; the cycle of issue belongs to the phase before."""
        start = max([self.now, *(cycle for wait, cycle in self.free.items() if wait in waits)])
        self.spend(start - self.now + 1)

    def enter(self, word):
        """The word just issued begins its phase."""
        self.phase = _PHASE[word.op]
        self.out.starts.append((self.phase, self.now))

    def start(self, word, position):
        """What the word just issued starts."""
        config, timing, free, start = self.config, self.timing, self.free, self.now - 1
        if word.op in _PHASE and (word.op is not Op.ADAPT or self.adapter):
            self.enter(word)
        if word.op in _VECTOR:
            free[Wait.VECTOR] = start + timing.vector(word) + 1
            free[Wait.ENDING] = free[Wait.VECTOR] - LinearUnit.early(config)
            free[Wait.PASS_A] = start + timing.pass_a(word) + 1
            self.ahead = start if word.op is Op.NORM8 else self.ahead
        elif word.op is Op.LINEAR or (word.op is Op.ADAPT and self.adapter):
            busy, first = timing.linear(word, self.adapter), start + 1
            announced = start if self.ahead is None else self.ahead
            if config.gate_words:
                first = max(first, announced + BankGate.latency(config))
            if word.op is Op.LINEAR:
                self.ahead = None
                self.out.streams.append((announced, first, word.m * word.e))
            busy += first - start - 1
            self.out.linear_stall += first - start - 1
            self.out.linear_busy += busy
            free[Wait.LINEAR] = start + busy + 1
        elif word.op in (Op.ATTEND, Op.HEAD):
            busy = timing.attend(position) if word.op is Op.ATTEND else timing.head()
            free[Wait.ATTENTION] = start + busy + 1
        elif word.op in ALU_OPS:
            self.spend(ScalarAlu.LATENCY[ALU_OPS[word.op]])


def operations(config: DecoderConfig, position: int) -> dict[str, tuple[int, int]]:
    """Multiply-accumulates of the token at ``position`` by phase, and the units' widths: ``{phase: (operations, width)}``."""
    attention = 2 * config.layers * config.hidden * (position + 1)
    return {
        "linear": (config.layers * config.layer_weights, config.lanes * config.lane_width),
        "attention": (attention, config.array),
        "head": (config.vocab * config.hidden, config.array),
    }
