"""The decoder as a kernel of an accelerator card: operations in one buffer of the card's memory, answers into another.

pyxrt starts kernels with arguments but reaches no register of theirs, so that everything travels in the buffers, in words of 64 bits:

    operation   63:60 kind (:class:`Operation`)   43:32 register's byte offset   31:0 data
    answer      34 the bus answered with an error   33 register's value   32 end of a result packet   31:0 word
    first word of the answers, written last:   63:32 answers that follow   31 memory fault   30:0 operations carried out
"""

from enum import IntEnum

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Instance, Module, ResetSignal, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite, axi4_read, axi4_write, instance_ports
from intaglio.rtl.bus.register_master import RegisterMaster
from intaglio.rtl.bus.registers import REGISTER_ADDRESS_BITS, AxiLite

__all__ = ["ARGUMENTS", "KERNEL_TOP", "Kernel", "Mover", "Operation"]

KERNEL_TOP = "intaglio_kernel"
RESET_CYCLES = 16


class Operation(IntEnum):
    COMMAND, LAST_COMMAND, READ, WRITE, RESET = range(5)


INTERRUPTS = (0x04, 0x08, 0x0C)  # of ap_ctrl_hs, which software may write to any kernel; there are none here

# Name, byte offset in the control registers, bytes, memory port or None. Vitis' ap_ctrl_hs has its own registers below 0x10.
ARGUMENTS = (
    ("operations", 0x10, 8, "gmem0"),
    ("count", 0x1C, 4, None),
    ("answers", 0x24, 8, "gmem1"),
    ("wanted", 0x30, 4, None),
    ("patience", 0x38, 4, None),
)


class Mover(wiring.Component):
    """Carries out the operations of a run.

    A run takes its operations in order, and result words whenever there are, ``wanted`` at most. It ends when all operations are
    done and a packet has ended or ``wanted`` words have come (at once where ``wanted`` is 0), or when nothing has moved for
    ``patience`` cycles. A command that the decoder did not take by then is not counted and is forgotten.

    Members
    -------
    start, operations, count, answers, wanted, patience : In
        ``start`` for one cycle while idle; the arguments are held until ``done``. Addresses are multiples of 8.
    idle : Out(1), done : Out(1)
        ``done`` for one cycle, when the last answer is in memory.
    gmem0, gmem1 : AXI4 masters, one that reads and one that writes; single words of 64 bits, one at a time.
    commands, results : streams of 33 bits to and from the decoder, a word and above it the end of a packet
        ``results.ready`` is a register; a word that no run wants yet waits here.
    registers : AXI4-Lite master to the decoder
    reset : Out(1)
        Reset of the decoder, for ``RESET_CYCLES`` cycles.
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "operations": In(64),
                "count": In(32),
                "answers": In(64),
                "wanted": In(32),
                "patience": In(32),
                "idle": Out(1),
                "done": Out(1),
                "gmem0": Out(axi4_read(64, 64)),
                "gmem1": Out(axi4_write(64, 64)),
                "commands": Out(stream.Signature(33)),
                "results": In(stream.Signature(33)),
                "registers": Out(axi4_lite(REGISTER_ADDRESS_BITS)),
                "reset": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.master = master = RegisterMaster(REGISTER_ADDRESS_BITS)
        wiring.connect(m, master.bus, wiring.flipped(self.registers))
        read, write = self.gmem0, self.gmem1
        taken, answered, received = Signal(31), Signal(32), Signal(32)  # operations, answers, result words
        ended, fault, still = Signal(), Signal(), Signal(32)
        operation, resetting = Signal(64), Signal(range(RESET_CYCLES))
        kind, tag, header, back = Signal(4), Signal(8), Signal(), Signal()
        m.d.comb += [
            kind.eq(operation[60:]),
            self.commands.payload.eq(Cat(operation[:32], kind == Operation.LAST_COMMAND)),
            read.arsize.eq(3),
            read.arburst.eq(1),
            read.araddr.eq(self.operations + (taken << 3)),
            write.awsize.eq(3),
            write.awburst.eq(1),
            write.wstrb.eq(0xFF),
            write.wlast.eq(1),
            master.tag.eq(tag),
            master.address.eq(operation[32 : 32 + REGISTER_ADDRESS_BITS]),
            master.data.eq(operation[:32]),
            master.write.eq(kind == Operation.WRITE),
        ]
        taking, tired = Signal(), Signal()
        result, full = Signal(33), Signal()  # a word that has come, so that ready is a register
        m.d.comb += self.results.ready.eq(~full)
        with m.If(self.results.valid & ~full):
            m.d.sync += [result.eq(self.results.payload), full.eq(1)]
        m.d.comb += [taking.eq(full & (received != self.wanted)), tired.eq(still >= self.patience)]
        m.d.sync += still.eq(still + 1)

        def answer(data, *, of_header=0):
            address = self.answers if of_header else self.answers + ((answered + 1) << 3)
            m.d.sync += [
                write.wdata.eq(data),
                write.awaddr.eq(address),
                write.awvalid.eq(1),
                write.wvalid.eq(1),
                header.eq(of_header),
            ]
            if not of_header:
                m.d.sync += answered.eq(answered + 1)
            m.next = "STORE"

        def take_result(came_from_command):
            m.d.sync += [full.eq(0), received.eq(received + 1), back.eq(came_from_command), still.eq(0)]
            with m.If(result[32]):
                m.d.sync += ended.eq(1)
            answer(result)

        def carried_out():
            m.d.sync += [taken.eq(taken + 1), still.eq(0)]

        with m.FSM(name="state") as fsm:
            m.d.comb += self.idle.eq(fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [taken.eq(0), answered.eq(0), received.eq(0), ended.eq(0), fault.eq(0), still.eq(0)]
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += back.eq(0)
                with m.If(taking & ~ended):
                    take_result(0)
                with m.Elif(taken != self.count):
                    m.d.sync += [read.arvalid.eq(1), ended.eq(0)]
                    m.next = "FETCH"
                with m.Elif(ended | (received == self.wanted) | tired):
                    m.next = "FINAL"
            with m.State("FETCH"):
                m.d.comb += read.rready.eq(~read.arvalid)
                with m.If(read.arready):
                    m.d.sync += read.arvalid.eq(0)
                with m.If(read.rvalid & read.rready):
                    m.d.sync += [operation.eq(read.rdata), fault.eq(fault | (read.rresp != 0)), still.eq(0)]
                    m.next = "DO"
            with m.State("DO"):
                with m.Switch(kind):
                    with m.Case(Operation.READ, Operation.WRITE):
                        m.d.comb += master.request.eq(1)
                        m.d.sync += tag.eq(tag + 1)
                        m.next = "REGISTER"
                    with m.Case(Operation.RESET):
                        m.d.comb += self.reset.eq(1)
                        m.d.sync += [resetting.eq(resetting + 1), full.eq(0)]
                        with m.If(resetting == RESET_CYCLES - 1):
                            m.d.sync += resetting.eq(0)
                            carried_out()
                            m.next = "NEXT"
                    with m.Default():
                        m.d.comb += self.commands.valid.eq(1)
                        with m.If(self.commands.ready):
                            carried_out()
                            m.next = "NEXT"
                        with m.Elif(taking):  # the decoder may take no command before its results are taken
                            take_result(1)
                        with m.Elif(tired):
                            m.next = "FINAL"
            with m.State("REGISTER"):
                with m.If(master.done):
                    carried_out()
                    m.d.sync += back.eq(0)
                    m.next = "NEXT"
                    with m.If(kind == Operation.READ):
                        answer(Cat(master.answer, Const(2, 2), master.fault))
            with m.State("STORE"):
                m.d.comb += write.bready.eq(~write.awvalid & ~write.wvalid)
                with m.If(write.awready):
                    m.d.sync += write.awvalid.eq(0)
                with m.If(write.wready):
                    m.d.sync += write.wvalid.eq(0)
                with m.If(write.bvalid & write.bready):
                    m.d.sync += fault.eq(fault | (write.bresp != 0))
                    with m.If(header):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
                    with m.Elif(back):
                        m.next = "DO"
                    with m.Else():
                        m.next = "NEXT"
            with m.State("FINAL"):
                answer(Cat(taken, fault, answered), of_header=1)
        return m


class Kernel(wiring.Component):
    """Top of the kernel: control registers (Vitis' ``ap_ctrl_hs``), the mover, and the generated decoder as an instance.

    Parameters
    ----------
    top : str
        Name of the decoder's module, with the ports of :class:`~intaglio.rtl.top.decoder_shell.DecoderShell`.
    """

    def __init__(self, top):
        self.top = top
        super().__init__(
            {
                "ap_clk": In(1),
                "ap_rst_n": In(1),
                "s_axi_control": In(axi4_lite(REGISTER_ADDRESS_BITS)),
                "m_axi_gmem0": Out(axi4_read(64, 64)),
                "m_axi_gmem1": Out(axi4_write(64, 64)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.ap_clk), ResetSignal().eq(~self.ap_rst_n)]
        m.submodules.mover = mover = Mover()
        words = {
            offset + 4 * part: getattr(mover, name)[32 * part : 32 * part + 32]
            for name, offset, size, _ in ARGUMENTS
            for part in range(size // 4)
        }
        m.submodules.control = lite = AxiLite([0, *INTERRUPTS, *words])
        wiring.connect(m, wiring.flipped(self.s_axi_control), lite.bus)
        wiring.connect(m, mover.gmem0, wiring.flipped(self.m_axi_gmem0))
        wiring.connect(m, mover.gmem1, wiring.flipped(self.m_axi_gmem1))

        # ap_ctrl_hs: bit 0 start (until the run is done), 1 done (cleared by reading), 2 idle, 3 ready
        start, done, running = Signal(), Signal(), Signal()
        at_control = lite.at[0]
        m.d.comb += mover.start.eq(start & mover.idle & ~running)
        m.d.sync += running.eq(start & ~mover.done)
        values = {0: Cat(start, done, mover.idle & ~start, done)}
        with m.If(mover.done):
            m.d.sync += [start.eq(0), done.eq(1)]
        with m.Elif(lite.read & at_control):
            m.d.sync += done.eq(0)
        with m.If(lite.written(0) & lite.write_data[0]):
            m.d.sync += start.eq(1)
        for offset, word in words.items():
            values[offset] = held = Signal(32, name=f"argument_{offset:02x}")
            m.d.comb += word.eq(held)
            with m.If(lite.written(offset)):
                m.d.sync += held.eq(lite.write_data)
        lite.answer(m, values, dict.fromkeys([*values, *INTERRUPTS], 1))

        running_n = Signal()
        m.d.comb += running_n.eq(self.ap_rst_n & ~mover.reset)
        ports = {
            "i_aclk": ClockSignal(),
            "i_aresetn": running_n,
            "i_s_axis_tdata": mover.commands.payload[:32],
            "i_s_axis_tlast": mover.commands.payload[32],
            "i_s_axis_tvalid": mover.commands.valid,
            "o_s_axis_tready": mover.commands.ready,
            "o_m_axis_tdata": mover.results.payload[:32],
            "o_m_axis_tlast": mover.results.payload[32],
            "o_m_axis_tvalid": mover.results.valid,
            "i_m_axis_tready": mover.results.ready,
            **instance_ports("s_axil", mover.registers),
        }
        m.submodules.decoder = Instance(self.top, **ports)
        return m
