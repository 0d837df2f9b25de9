"""A read-only memory as logic, with the interface of :class:`intaglio.rtl.memory.rom.Rom`."""

from amaranth.hdl import ClockSignal, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["LogicRom"]


class LogicRom(wiring.Component):
    """Instance of a :class:`~intaglio.rtl.memory.logic.strategies.Bank`.

    Members
    -------
    addr : In(max(1, ceil(log2(depth))))
    data : Out(width)
        The word at ``addr``. Latency 1, like :class:`~intaglio.rtl.memory.rom.Rom`.
    """

    def __init__(self, bank):
        self.bank = bank
        super().__init__({"addr": In(max(1, ceil_log2(bank.depth))), "data": Out(bank.width)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.bank = Instance(self.bank.name, i_clk=ClockSignal(), i_addr=self.addr, o_data=self.data)
        return m
