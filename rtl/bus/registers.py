"""Registers of a top behind AXI4-Lite. Offsets are in bytes; every register has 32 bits."""

from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite

__all__ = ["MAGIC", "OKAY", "REGISTER_ADDRESS_BITS", "SLVERR", "AxiLite", "Register", "writable"]

MAGIC = 0x494E5447  # "INTG"
REGISTER_ADDRESS_BITS = 12
OKAY, SLVERR = 0, 2  # answers of AXI


@dataclass(frozen=True, kw_only=True)
class Register:
    name: str
    offset: int
    access: str  # "ro", "rw" or "w1c"
    description: str


def writable(registers):
    """Offsets of the registers that take writes."""
    return [register.offset for register in registers if register.access != "ro"]


class AxiLite(wiring.Component):
    """AXI4-Lite slave, one access at a time. Every output is a register.

    Each of the three channels that bring something takes one word, whatever the others do: address and data of a write come in any
    order, and a read passes a write that is not whole. Where a read and a write wait, they take turns.

    A read of an offset without a register answers 0 and OKAY. A write changes a whole register or nothing: it is answered SLVERR where its
    strobes are some of the four, or where nothing takes it (no register, one that is read-only, or one that takes no writes at that time),
    and OKAY where it has no strobe at all. Bits 1:0 of an address do not count.

    Parameters
    ----------
    offsets : iterable of int
        Byte offsets of all registers.

    Members
    -------
    bus : the five channels, without protection bits.
    address : byte address of the access, from the cycle before ``read`` or ``write`` on.
    read, write : high for one cycle each; a write of other than four strobes has no ``write``.
    read_data : answer to ``read``, sampled in the same cycle, see :meth:`answer`.
    write_data : valid with ``write``.
    at : dict of int to Signal
        Whether ``read`` and ``write`` are of the register at that offset: a register itself, so that little is behind the strobes.
    taken : what is written is a register that takes it, sampled with ``write``, see :meth:`answer`.

    Latency
    -------
    Four cycles from the one that takes an address, of a write also its data, to the one that has the answer; a channel takes its next
    word from the cycle after the answer is taken. What a write does in the cycle of ``write`` or the next is done before anything that
    follows the answer.
    """

    def __init__(self, offsets):
        super().__init__(
            {
                "bus": In(axi4_lite(REGISTER_ADDRESS_BITS)),
                "address": Out(REGISTER_ADDRESS_BITS),
                "read": Out(1),
                "write": Out(1),
                "read_data": In(32),
                "write_data": Out(32),
                "taken": In(1),
            }
        )
        self.at = {offset: Signal(name=f"at_{offset:03x}") for offset in offsets}

    def written(self, offset):
        """High for the cycle in which ``write_data`` is for the register at ``offset``, if :meth:`answer` has it as one that takes it."""
        return self.write & self.at[offset]

    def answer(self, m, values, takes):
        """Answer reads with ``values``, a dict of byte offset to value, and 0 elsewhere; writes by ``takes``, a dict of byte offset to
        whether the register there takes what is written in that cycle, and SLVERR elsewhere.
        """
        word, taken = Const(0, 32), Const(0, 1)
        for offset, value in values.items():
            word |= Mux(self.at[offset], value, 0)
        for offset, able in takes.items():
            taken |= self.at[offset] & able
        m.d.comb += [self.read_data.eq(word), self.taken.eq(taken)]

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        read_address, write_address = Signal(REGISTER_ADDRESS_BITS), Signal(REGISTER_ADDRESS_BITS)
        whole, empty = Signal(), Signal()  # all strobes, none
        writing = Signal()  # the access under way, or the last one
        for valid, ready, held in (
            (bus.awvalid, bus.awready, ((write_address, bus.awaddr),)),
            (
                bus.wvalid,
                bus.wready,
                ((self.write_data, bus.wdata), (whole, bus.wstrb.all()), (empty, ~bus.wstrb.any())),
            ),
            (bus.arvalid, bus.arready, ((read_address, bus.araddr),)),
        ):
            with m.If(valid & ready):
                m.d.sync += [ready.eq(0), *(register.eq(value) for register, value in held)]
        m.d.sync += [self.read.eq(0), self.write.eq(0)]
        m.d.sync += [at.eq(self.address[2:] == offset >> 2) for offset, at in self.at.items()]
        with m.FSM(name="state"):
            with m.State("RESET"):
                m.d.sync += [bus.awready.eq(1), bus.wready.eq(1), bus.arready.eq(1)]
                m.next = "IDLE"
            with m.State("IDLE"):
                write, read = ~bus.awready & ~bus.wready, ~bus.arready
                writes = write & ~(read & writing)
                m.d.sync += self.address.eq(Mux(writes, write_address, read_address))
                with m.If(write | read):
                    m.d.sync += writing.eq(writes)
                    m.next = "SELECT"
            with m.State("SELECT"):
                m.d.sync += [self.read.eq(~writing), self.write.eq(writing & whole)]
                m.next = "ACCESS"
            with m.State("ACCESS"):
                m.d.sync += [
                    bus.rdata.eq(self.read_data),
                    bus.rvalid.eq(~writing),
                    bus.bvalid.eq(writing),
                    bus.bresp.eq(Mux(empty | (whole & self.taken), OKAY, SLVERR)),
                ]
                m.next = "ANSWER"
            with m.State("ANSWER"):
                with m.If(bus.rvalid & bus.rready):
                    m.d.sync += [bus.rvalid.eq(0), bus.arready.eq(1)]
                    m.next = "IDLE"
                with m.If(bus.bvalid & bus.bready):
                    m.d.sync += [bus.bvalid.eq(0), bus.awready.eq(1), bus.wready.eq(1)]
                    m.next = "IDLE"
        return m
