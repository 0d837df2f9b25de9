"""Shell of the prefill unit: AXI4-Lite registers, an AXI4 read master, an AXI4-Stream of results. The only place that knows AXI."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Module, Mux, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite, axi4_stream
from intaglio.rtl.bus.registers import MAGIC, REGISTER_ADDRESS_BITS, AxiLite, writable
from intaglio.rtl.bus.streams import BLOCK_BITS, RunPhase
from intaglio.rtl.kv.fetch import memory_port
from intaglio.rtl.top.attention import MONITOR, PARAMETERS, PrefillCore
from intaglio.rtl.top.attention_registers import COUNTERS, MAP_WORDS, PHASES, REGISTER_MAP, VERSION, parameter_words

__all__ = ["USER_BITS", "PrefillShell"]

# Of a result beat: query block in bits 13:0, head in bits 21:14, exponent (signed) in bits 30:24; bit 23: the run ended early, no values.
USER_BITS = 31
HEAD_BIT, VOID_BIT, EXPONENT_BIT = 14, 23, 24
_FIFO = 4


class PrefillShell(wiring.Component):
    """The top of the prefill unit. Port names are those that AXI tools recognise; ``aresetn`` is synchronous and active low.

    A run is begun by the register ``control`` with the parameters of the registers. It ends with ``tlast`` of its last
    (head, query block), whose number is known, or, if it was refused, broken off or met a fault, with one beat that has bit 23 of
    ``tuser`` and ``tlast``; the register ``status`` says why. Every start is answered so, and the next run may then begin.

    Parameters
    ----------
    config : PrefillConfig
    digest : int
        32 bits that the digest register shows.

    Members
    -------
    m_axis_tdata : Out(16 * drain)
        ``drain`` signed results in steps of ``2^exponent / 254``, see :func:`~intaglio.rtl.attention.drain.results` for their order.
    m_axis_tuser : Out(31)
    m_axi_ar*, m_axi_r*
        AXI4 read master, beats of ``head_dim`` bytes.
    monitor : Out
        RunPhase in bits 3:0, then :data:`~intaglio.rtl.top.attention.MONITOR`: for time lines; leave it open in hardware.
    """

    def __init__(self, config, digest):
        self.config, self.digest = config, digest
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "m_axis": Out(axi4_stream(16 * config.drain, user_bits=USER_BITS)),
                "m_axi": Out(memory_port(config)),
                "s_axil": In(axi4_lite(REGISTER_ADDRESS_BITS)),
                "monitor": Out(4 + len(MONITOR)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.core = core = PrefillCore(c)
        offsets = {register.name: register.offset for register in REGISTER_MAP}
        m.submodules.registers = lite = AxiLite(offsets.values())
        wiring.connect(m, wiring.flipped(self.s_axil), lite.bus)
        wiring.connect(m, core.memory, wiring.flipped(self.m_axi))

        def written(name):
            return lite.written(offsets[name])

        # Parameters.
        values, takes = {}, dict.fromkeys(writable(REGISTER_MAP), 1)
        for name, low in parameter_words():
            whole = name.removesuffix("_high")
            held = Signal(min(32, PARAMETERS[whole] - low), name=name)
            values[name], takes[offsets[name]] = held, ~core.busy
            with m.If(written(name) & ~core.busy):
                m.d.sync += held.eq(lite.write_data)
        for name, bits in PARAMETERS.items():
            m.d.comb += getattr(core, name).eq(Cat(values[name], values[f"{name}_high"]) if bits > 32 else values[name])

        # Runs, and their ends.
        start, sensible, refused, broken, ending = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            sensible.eq(
                (core.tokens != 0)
                & (core.tokens <= c.context)
                & (core.gamma16 != 0)
                & (core.gamma16 <= 1 << 16)
                & (core.dense | core.single | (core.tokens >= c.block))
            ),
            start.eq(written("control") & lite.write_data[0] & ~core.busy & ~ending),
            core.start.eq(start & sensible),
            core.cancel.eq(written("control") & lite.write_data[1]),
            core.forget.eq(written("control") & lite.write_data[2]),
        ]
        with m.If(start):
            m.d.sync += [refused.eq(~sensible), broken.eq(0), ending.eq(~sensible)]
        with m.If(core.done & core.failed):
            m.d.sync += [broken.eq(1), ending.eq(1)]

        m.submodules.results = fifo = SyncFIFOBuffered(width=16 * c.drain + USER_BITS + 1, depth=_FIFO)
        result = core.o.payload
        place = Cat(result.block, result.head)
        user = Cat(place, Const(0, EXPONENT_BIT - len(place)), result.exponent)
        m.d.comb += [
            core.o.ready.eq(fifo.w_rdy),
            fifo.w_en.eq(core.o.valid | ending),
            fifo.w_data.eq(
                Mux(
                    ending,
                    Cat(Const(0, 16 * c.drain), Const(1 << VOID_BIT, USER_BITS), 1),
                    Cat(result["values"], user, result.last),
                )
            ),
            Cat(self.m_axis.tdata, self.m_axis.tuser, self.m_axis.tlast).eq(fifo.r_data),
            self.m_axis.tvalid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.m_axis.tready),
            self.monitor.eq(Cat(core.phase, Const(0, 1), core.monitor)),
        ]
        with m.If(ending & fifo.w_rdy):
            m.d.sync += ending.eq(0)

        # Counters of the last run.
        cycles, latched, stall_out = Signal(64), Signal(32), Signal(32)
        phases = {phase: Signal(32, name=f"phase_{phase.name.lower()}") for phase in PHASES}
        m.d.sync += [
            cycles.eq(cycles + core.busy),
            stall_out.eq(stall_out + (self.m_axis.tvalid & ~self.m_axis.tready)),
        ]
        for phase, counter in phases.items():
            m.d.sync += counter.eq(counter + (core.phase == phase))
        with m.If(start):
            m.d.sync += [cycles.eq(0), stall_out.eq(0), *(counter.eq(0) for counter in phases.values())]

        select = Signal(32)
        with m.If(written("map_select")):
            m.d.sync += select.eq(lite.write_data)
        m.d.comb += [
            core.map_block.eq(select[:BLOCK_BITS]),
            core.map_batch.eq(select[BLOCK_BITS:24]),
            core.map_head.eq(select[24:]),
        ]
        values |= {
            "magic": Const(MAGIC, 32),
            "version": Const(VERSION, 32),
            "digest": Const(self.digest, 32),
            "capabilities": Const(c.blocks | c.group << 16, 32),
            "status": Cat(core.busy | ending, core.phase, core.fault, Const(0, 3 - len(core.fault)), refused, broken),
            "control": Const(0, 32),
            "aware": core.aware,
            "cycles_lo": cycles[:32],
            "cycles_hi": latched,
            "map_select": select,
            "stall_out": stall_out,
            **{name: getattr(core, name) for name in COUNTERS if name != "stall_out"},
            **{f"phase_{phase.name.lower()}": counter for phase, counter in phases.items()},
            **{f"map_{number}": core.map_word[32 * number : 32 * number + 32] for number in range(MAP_WORDS)},
        }
        lite.answer(m, {offsets[name]: value for name, value in values.items()}, takes)
        with m.If(lite.read & lite.at[offsets["cycles_lo"]]):
            m.d.sync += latched.eq(cycles[32:])
        assert len(RunPhase) <= 8 and len(result.head) <= VOID_BIT - 1 - HEAD_BIT and len(user) == USER_BITS
        return m
