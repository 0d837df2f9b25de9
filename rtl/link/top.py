"""Top of a board: a generated decoder behind a UART."""

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import instance_ports
from intaglio.rtl.link.endpoint import Endpoint
from intaglio.rtl.link.uart import UartReceiver, UartTransmitter, uart_divisor

__all__ = ["SerialDevice"]


class SerialDevice(wiring.Component):
    """A decoder, which is an instance of its generated Verilog, and the link to the host.

    Runs in the domain ``sync``; the reset of the decoder is that of the domain or of a session's beginning, one cycle later.

    Parameters
    ----------
    top : str
        Name of the decoder's module, with the ports of :class:`~intaglio.rtl.top.decoder_shell.DecoderShell`.
    digest : int
        First 32 bits of the manifest's digest.
    clock_hz, baud : int
        Frequency of ``sync`` and speed of the line, see :func:`~intaglio.rtl.link.uart.uart_divisor`.
    depth : int
        Words of each buffer of the link.

    Members
    -------
    rx : In(1), tx : Out(1)
        The lines, high when idle; ``rx`` is asynchronous.
    """

    def __init__(self, top, digest, *, clock_hz, baud, depth=32):
        self.top, self.divisor = top, uart_divisor(clock_hz, baud)
        self.endpoint = Endpoint(digest, depth=depth)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self.divisor)
        m.submodules.endpoint = link = self.endpoint
        bus, commands, results = link.registers, link.commands, link.results
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx), link.broken.eq(receiver.error)]
        wiring.connect(m, receiver.o, link.i)
        wiring.connect(m, link.o, transmitter.i)
        running = Signal()
        m.d.sync += running.eq(~link.reset)
        ports = {
            "i_aclk": ClockSignal(),
            "i_aresetn": running,
            "i_s_axis_tdata": commands.payload[:32],
            "i_s_axis_tvalid": commands.valid,
            "o_s_axis_tready": commands.ready,
            "i_s_axis_tlast": commands.payload[32],
            "o_m_axis_tdata": results.payload[:32],
            "o_m_axis_tvalid": results.valid,
            "i_m_axis_tready": results.ready,
            "o_m_axis_tlast": results.payload[32],
            **instance_ports("s_axil", bus),
        }
        m.submodules.decoder = Instance(self.top, **ports)
        return m
