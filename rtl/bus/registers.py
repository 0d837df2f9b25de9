"""The register map of every top, and its AXI4-Lite port. Offsets are in bytes; every register has 32 bits."""

from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.control.program import PHASES

__all__ = [
    "ADAPTER_REGISTERS",
    "ADDRESS_BITS",
    "AXI_LITE",
    "MAGIC",
    "OKAY",
    "REGISTER_MAP",
    "SLVERR",
    "VERSION",
    "AxiLite",
    "Register",
    "register_map",
    "writable",
]

MAGIC = 0x494E5447  # "INTG"
VERSION = 1
ADDRESS_BITS = 12
OKAY, SLVERR = 0, 2  # answers of AXI


@dataclass(frozen=True, kw_only=True)
class Register:
    name: str
    offset: int
    access: str  # "ro", "rw" or "w1c"
    description: str


REGISTER_MAP = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        ("magic", 0x00, "ro", "0x494E5447, the letters INTG"),
        ("version", 0x04, "ro", "version of this register map and of the command protocol"),
        ("digest", 0x08, "ro", "first 32 bits of the manifest's digest"),
        ("capabilities", 0x0C, "ro", "context in bits 15:0, candidates of the head in bits 20:16"),
        ("status", 0x10, "w1c", "bit 0: busy; bit 1: a token did not fit the context (write 1 to clear)"),
        ("position", 0x14, "ro", "tokens of the sequence so far"),
        ("control", 0x18, "rw", "bit 0: write 1 to clear the counters"),
        (
            "cycles_lo",
            0x20,
            "ro",
            "clock cycles since the counters were cleared, bits 31:0; reading latches bits 63:32",
        ),
        ("cycles_hi", 0x24, "ro", "clock cycles, bits 63:32, as latched"),
        ("stall_in", 0x28, "ro", "cycles that the device waited for a command"),
        ("stall_out", 0x2C, "ro", "cycles that a result waited to be taken"),
        ("tokens", 0x30, "ro", "tokens processed"),
        *((f"phase_{phase}", 0x40 + 4 * i, "ro", f"cycles in phase {phase}") for i, phase in enumerate(PHASES)),
    )
)

# Only of a decoder with adapters; docs/adapters.md describes a load.
ADAPTER_REGISTERS = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        ("adapter_slots", 0x80, "ro", "slots in bits 7:0; bit 16 + n: slot n holds an adapter"),
        (
            "adapter_status",
            0x84,
            "w1c",
            "bits 3:0: latest load, 0 none, 1 loading, 2 loaded, else refused; bit 8: token refused (1 clears)",
        ),
        ("adapter_begin", 0x88, "rw", "write a slot: a load begins, and one under way is forgotten"),
        ("adapter_data", 0x8C, "rw", "write the next word of the adapter's image"),
        ("adapter_commit", 0x90, "rw", "write the CRC-32 of the image: the slot changes if all is well"),
    )
)

# Only of a decoder with power gating.
GATE_REGISTERS = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        (
            "gate_bank",
            0xA0,
            "rw",
            "write: the column of banks that the next three registers are of; read: the number of columns",
        ),
        ("gate_powered", 0xA4, "ro", "cycles that the column's power was on, waking included"),
        ("gate_reads", 0xA8, "ro", "words read from each of its banks"),
        ("gate_wakes", 0xAC, "ro", "times that its power was switched on"),
        ("gate_stall", 0xB0, "ro", "cycles that a word waited for its bank, all columns"),
    )
)


def writable(registers):
    """Offsets of the registers that take writes."""
    return [register.offset for register in registers if register.access != "ro"]


def register_map(config):
    """The registers of a decoder."""
    return REGISTER_MAP + (ADAPTER_REGISTERS if config.rank else ()) + (GATE_REGISTERS if config.gate_words else ())


AXI_LITE = {
    "awaddr": In(ADDRESS_BITS),
    "awvalid": In(1),
    "awready": Out(1),
    "wdata": In(32),
    "wstrb": In(4),
    "wvalid": In(1),
    "wready": Out(1),
    "bresp": Out(2),
    "bvalid": Out(1),
    "bready": In(1),
    "araddr": In(ADDRESS_BITS),
    "arvalid": In(1),
    "arready": Out(1),
    "rdata": Out(32),
    "rresp": Out(2),
    "rvalid": Out(1),
    "rready": In(1),
}


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
    aw*, w*, b*, ar*, r* : the five channels, without protection bits.
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
                **AXI_LITE,
                "address": Out(ADDRESS_BITS),
                "read": Out(1),
                "write": Out(1),
                "read_data": In(32),
                "write_data": Out(32),
                "taken": In(1),
            }
        )
        self.at = {offset: Signal(name=f"at_{offset:03x}") for offset in offsets}

    def connect(self, m, top):
        """Tie the channels to the ports ``s_axil_*`` of a top."""
        for name, member in AXI_LITE.items():
            ours, theirs = getattr(self, name), getattr(top, f"s_axil_{name}")
            m.d.comb += ours.eq(theirs) if member.flow is In else theirs.eq(ours)

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
        read_address, write_address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        whole, empty = Signal(), Signal()  # all strobes, none
        writing = Signal()  # the access under way, or the last one
        for valid, ready, held in (
            (self.awvalid, self.awready, ((write_address, self.awaddr),)),
            (
                self.wvalid,
                self.wready,
                ((self.write_data, self.wdata), (whole, self.wstrb.all()), (empty, ~self.wstrb.any())),
            ),
            (self.arvalid, self.arready, ((read_address, self.araddr),)),
        ):
            with m.If(valid & ready):
                m.d.sync += [ready.eq(0), *(register.eq(value) for register, value in held)]
        m.d.sync += [self.read.eq(0), self.write.eq(0)]
        m.d.sync += [at.eq(self.address[2:] == offset >> 2) for offset, at in self.at.items()]
        with m.FSM(name="state"):
            with m.State("RESET"):
                m.d.sync += [self.awready.eq(1), self.wready.eq(1), self.arready.eq(1)]
                m.next = "IDLE"
            with m.State("IDLE"):
                write, read = ~self.awready & ~self.wready, ~self.arready
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
                    self.rdata.eq(self.read_data),
                    self.rvalid.eq(~writing),
                    self.bvalid.eq(writing),
                    self.bresp.eq(Mux(empty | (whole & self.taken), OKAY, SLVERR)),
                ]
                m.next = "ANSWER"
            with m.State("ANSWER"):
                with m.If(self.rvalid & self.rready):
                    m.d.sync += [self.rvalid.eq(0), self.arready.eq(1)]
                    m.next = "IDLE"
                with m.If(self.bvalid & self.bready):
                    m.d.sync += [self.bvalid.eq(0), self.awready.eq(1), self.wready.eq(1)]
                    m.next = "IDLE"
        return m
