"""Block scores of the index: where the masses of a head and a block go."""

from amaranth.hdl import Array, Cat, Module, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import SCORE_WORD
from intaglio.rtl.bus.streams import BLOCK_BITS
from intaglio.rtl.index.decide import pool_bits
from intaglio.rtl.index.select import addition
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["ScoreStore"]


class ScoreStore(wiring.Component):
    """Takes sums of :class:`~intaglio.rtl.index.masses.BlockMasses`, heads in order, in it blocks ascending per head; keeps ``ver`` and
    ``pool`` of every head and block for the decision, and gives the additions to ``ver`` (lane 2 h) and ``sla`` (lane 2 h + 1).

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    clear : In(1)
        Before a pass: the next sums are those of block 0.
    blocks : In
        Blocks of the run; stable.
    valid, head, mass, pool : In
        Sums of a head over a block of keys; at least 10 cycles apart.
    o_add : Out(stream of addition)
        For :class:`~intaglio.rtl.index.select.Selector`: ver[b] += mass[0] + mass[1] + mass[2]; of the block distances
        ``n = blocks - 1 - b``, n - 1, n - 2 (those not below 0) ``sla[n - i] += mass[i]``.
    busy : Out(1)
        Additions are owed.
    read_head, read_block : In; ver : Out(36), pool_sum : Out(signed(pool_bits))
        One cycle later.

    Latency: the additions of a head and block take 8 cycles after ``valid`` if the selector is ready every other cycle.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "clear": In(1),
                "blocks": In(BLOCK_BITS),
                "valid": In(1),
                "head": In(index_bits(config.group)),
                "mass": In(SCORE_WORD).array(3),
                "pool": In(signed(40)),
                "o_add": Out(stream.Signature(addition(config))),
                "busy": Out(1),
                "read_head": In(index_bits(config.group)),
                "read_block": In(index_bits(config.blocks)),
                "ver": Out(SCORE_WORD),
                "pool_sum": Out(signed(pool_bits(config))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, add = self.config, self.o_add.payload
        width = SCORE_WORD + pool_bits(c)
        block, head, here = Signal(BLOCK_BITS), Signal.like(self.head), Signal(BLOCK_BITS)
        masses, step = [Signal(SCORE_WORD, name=f"mass_{i}", reset_less=True) for i in range(4)], Signal(range(4))
        distance = Signal(signed(BLOCK_BITS + 2))
        m.d.comb += distance.eq(self.blocks + 1 - here - step)  # step 0 is ver; 1, 2, 3 are sla at n, n - 1, n - 2
        m.d.comb += [add.lane.eq(Cat(step != 0, head)), add.index.eq(here), add.addend.eq(masses[0])]
        with m.If(step != 0):
            m.d.comb += add.index.eq((distance - 1).as_unsigned()[: len(add.index)])
        with m.If(self.busy):
            m.d.comb += self.o_add.valid.eq((step == 0) | (distance > 0))
            with m.If(self.o_add.ready | ~self.o_add.valid):
                m.d.sync += [
                    step.eq(step + 1),
                    *(one.eq(after) for one, after in zip(masses, masses[1:], strict=False)),
                ]
                with m.If(step == 3):
                    m.d.sync += self.busy.eq(0)
        memories = []
        for number in range(c.group):
            m.submodules[f"head_{number}"] = ram = Ram(width, c.blocks)
            memories.append(ram)
            m.d.comb += [
                ram.read_en.eq(1),
                ram.read_addr.eq(self.read_block),
                ram.write_en.eq(self.valid & (self.head == number)),
                ram.write_addr.eq(block),
                ram.write_data.eq(Cat(sum(self.mass[1:], self.mass[0])[:SCORE_WORD], self.pool[: pool_bits(c)])),
            ]
        with m.If(self.valid):
            m.d.sync += [
                self.busy.eq(1),
                step.eq(0),
                head.eq(self.head),
                here.eq(block),
                masses[0].eq(sum(self.mass[1:], self.mass[0])),
                *(held.eq(mass) for held, mass in zip(masses[1:], self.mass, strict=True)),
            ]
            with m.If(self.head == c.group - 1):
                m.d.sync += block.eq(block + 1)
        with m.If(self.clear):
            m.d.sync += [block.eq(0), self.busy.eq(0)]
        chosen = Signal(width)
        m.d.comb += [
            chosen.eq(Array(ram.read_data for ram in memories)[self.read_head]),
            self.ver.eq(chosen[:SCORE_WORD]),
            self.pool_sum.eq(chosen[SCORE_WORD:].as_signed()),
        ]
        return m
