"""Register accesses of links and kernels: an AXI4-Lite master that carries out each request once and keeps its answer."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite

__all__ = ["RegisterMaster"]


class RegisterMaster(wiring.Component):
    """AXI4-Lite master for one access at a time.

    Members
    -------
    bus : the five channels.
    request : In(1), write : In(1), tag : In(8), address : In, data : In(32)
        Ask for an access; ``tag`` is there one cycle before. Nothing happens while one is under way, or if ``known``.
    known : Out(1)
        ``tag`` is that of the answer that is kept; a register.
    done : Out(1)
        For one cycle: a new answer is kept.
    answer : Out(32), answer_tag : Out(8), fault : Out(1), wrote : Out(1)
        The word read (0 after a write), the tag, whether the bus answered with an error, whether it was a write.

    A reset forgets the answer and an access under way; the slave must be reset, too. Latency: 2 cycles more than the slave's.
    """

    def __init__(self, address_bits):
        super().__init__(
            {
                "bus": Out(axi4_lite(address_bits)),
                "request": In(1),
                "write": In(1),
                "tag": In(8),
                "address": In(address_bits),
                "data": In(32),
                "known": Out(1),
                "done": Out(1),
                "answer": Out(32),
                "answer_tag": Out(8),
                "fault": Out(1),
                "wrote": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus, valid, address = self.bus, Signal(), Signal.like(self.address)
        m.d.comb += [bus.awaddr.eq(address), bus.araddr.eq(address), bus.wstrb.eq(0xF)]
        m.d.sync += self.known.eq(valid & (self.tag == self.answer_tag))
        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.request & ~self.known):
                    m.d.sync += [
                        self.answer_tag.eq(self.tag),
                        self.wrote.eq(self.write),
                        address.eq(self.address),
                        bus.wdata.eq(self.data),
                        valid.eq(0),
                        bus.awvalid.eq(self.write),
                        bus.wvalid.eq(self.write),
                        bus.arvalid.eq(~self.write),
                    ]
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.comb += [
                    bus.bready.eq(self.wrote & ~bus.awvalid & ~bus.wvalid),
                    bus.rready.eq(~self.wrote & ~bus.arvalid),
                ]
                for channel in ("aw", "w", "ar"):
                    with m.If(getattr(bus, f"{channel}ready")):
                        m.d.sync += getattr(bus, f"{channel}valid").eq(0)
                with m.If((bus.bvalid & bus.bready) | (bus.rvalid & bus.rready)):
                    m.d.sync += [
                        self.answer.eq(Mux(self.wrote, 0, bus.rdata)),
                        self.fault.eq(Mux(self.wrote, bus.bresp, bus.rresp) != 0),
                        valid.eq(1),
                        self.done.eq(1),
                    ]
                    m.next = "TELL"
            with m.State("TELL"):
                m.d.sync += self.done.eq(0)
                m.next = "IDLE"
        return m
