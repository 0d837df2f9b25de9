"""Shell: the decoder core behind AXI4-Stream and AXI4-Lite, with the counters. The only place that knows AXI."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite, axi4_stream
from intaglio.rtl.bus.registers import MAGIC, REGISTER_ADDRESS_BITS, AxiLite, writable
from intaglio.rtl.control.program import PHASES, Phase
from intaglio.rtl.top.activity import BankActivity
from intaglio.rtl.top.decoder import DecoderCore
from intaglio.rtl.top.decoder_registers import VERSION, register_map

__all__ = ["DecoderShell"]


class DecoderShell(wiring.Component):
    """The top of the decoder. Port names are those that AXI tools recognise; ``aresetn`` is synchronous and active low.

    Parameters
    ----------
    config : DecoderConfig
    length : int
        Words of the layer program.
    digest : int
        32 bits that the digest register shows.
    """

    def __init__(self, config, length, digest):
        self.config, self.length, self.digest = config, length, digest
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis": In(axi4_stream(32)),
                "m_axis": Out(axi4_stream(32)),
                "s_axil": In(axi4_lite(REGISTER_ADDRESS_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.core = core = DecoderCore(self.config, self.length, digest=self.digest)
        registers = register_map(self.config)
        offsets = {register.name: register.offset for register in registers}
        m.submodules.registers = lite = AxiLite(offsets.values())
        wiring.connect(m, wiring.flipped(self.s_axil), lite.bus)
        m.d.comb += [
            core.command_valid.eq(self.s_axis.tvalid),
            core.command_data.eq(self.s_axis.tdata),
            self.s_axis.tready.eq(core.command_ready),
            self.m_axis.tvalid.eq(core.result_valid),
            self.m_axis.tdata.eq(core.result_data),
            self.m_axis.tlast.eq(core.result_last),
            core.result_ready.eq(self.m_axis.tready),
        ]

        clear, active, overflow = Signal(), Signal(), Signal()
        cycles, latched = Signal(64), Signal(32)
        counters = {
            name: Signal(32, name=name)
            for name in ("stall_in", "stall_out", "tokens", *(f"phase_{phase}" for phase in PHASES))
        }
        counts = {
            "stall_in": core.command_ready & ~core.command_valid,
            "stall_out": core.result_valid & ~core.result_ready,
            "tokens": core.finished,
            **{f"phase_{phase.name.lower()}": core.active & (core.phase == phase) for phase in Phase},
        }
        if self.config.gate_words:
            counters["gate_stall"], counts["gate_stall"] = Signal(32, name="gate_stall"), core.gate_stall
        m.d.sync += [cycles.eq(cycles + 1), active.eq(core.active)]
        for name, counter in counters.items():
            counted = Signal(name=f"{name}_counted")  # in the last cycle, as ``clear`` and ``active``
            m.d.sync += counted.eq(counts[name])
            by = Const(1)
            if name == "tokens" and self.config.batch > 1:
                by = Signal.like(core.computed, name="tokens_counted_by")
                m.d.sync += by.eq(core.computed)
            with m.If(counted):
                m.d.sync += counter.eq(counter + by)
        m.d.sync += clear.eq(lite.written(offsets["control"]) & lite.write_data[0])
        with m.If(clear):
            m.d.sync += [cycles.eq(0), *(counter.eq(0) for counter in counters.values())]
        with m.If(core.overflow):
            m.d.sync += overflow.eq(1)
        with m.Elif(lite.written(offsets["status"]) & lite.write_data[1]):
            m.d.sync += overflow.eq(0)

        values = {
            "magic": Const(MAGIC, 32),
            "version": Const(VERSION, 32),
            "digest": Const(self.digest, 32),
            "capabilities": Const(self.config.context | self.config.top_k << 16, 32),
            "status": Cat(active, overflow),
            "position": core.position,
            "control": Const(0, 32),
            "cycles_lo": cycles[:32],
            "cycles_hi": latched,
            **counters,
        }
        if self.config.rank:
            values |= self._adapters(m, core, lite, offsets)
        if self.config.gate_words:
            m.submodules.activity = activity = BankActivity(self.config.gate_banks)
            m.d.comb += [
                activity.power.eq(core.gate_power),
                activity.reads.eq(core.gate_reads),
                activity.clear.eq(clear),
            ]
            with m.If(lite.written(offsets["gate_bank"])):
                m.d.sync += activity.bank.eq(lite.write_data)
            values |= {
                "gate_bank": Const(self.config.gate_banks, 32),
                "gate_powered": activity.powered,
                "gate_reads": activity.read,
                "gate_wakes": activity.wakes,
            }
        lite.answer(m, {offsets[name]: value for name, value in values.items()}, dict.fromkeys(writable(registers), 1))
        with m.If(lite.read & lite.at[offsets["cycles_lo"]]):
            m.d.sync += latched.eq(cycles[32:])
        return m

    def _adapters(self, m, core, lite, offsets):
        """Writes to the loader; what its registers read as."""
        m.d.comb += core.adapter_value.eq(lite.write_data)
        for name in ("begin", "data", "commit"):
            m.d.comb += getattr(core, f"adapter_{name}").eq(lite.written(offsets[f"adapter_{name}"]))
        refused, zero = Signal(), Const(0, 32)
        with m.If(core.adapter_refused):
            m.d.sync += refused.eq(1)
        with m.Elif(lite.written(offsets["adapter_status"]) & lite.write_data[8]):
            m.d.sync += refused.eq(0)
        return {
            "adapter_slots": Cat(Const(self.config.adapters, 16), core.adapter_loaded),
            "adapter_status": Cat(core.adapter_outcome.as_value(), Const(0, 4), refused),
            "adapter_begin": zero,
            "adapter_data": zero,
            "adapter_commit": zero,
        }
