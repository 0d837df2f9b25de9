"""Activity of the weight banks: counters of every column, read one column at a time."""

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BankActivity"]


class BankActivity(wiring.Component):
    """Counters of 32 bits that wrap.

    Parameters
    ----------
    banks : int

    Members
    -------
    power, reads : In(banks)
        Switches; the bank that is read.
    clear : In(1)
        Strobe: all counters to 0.
    bank : In(range(banks))
        The column that ``powered`` (cycles with power), ``read`` (words) and ``wakes`` (times switched on) are of; 0 beyond.
    """

    def __init__(self, banks):
        self.banks = banks
        super().__init__(
            {
                "power": In(banks),
                "reads": In(banks),
                "clear": In(1),
                "bank": In(range(banks)),
                "powered": Out(32),
                "read": Out(32),
                "wakes": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        before = Signal(self.banks)
        m.d.sync += before.eq(self.power)
        for name, events in (("powered", self.power), ("read", self.reads), ("wakes", self.power & ~before)):
            counters = [Signal(32, name=f"{name}_{b}") for b in range(self.banks)]
            for b, counter in enumerate(counters):
                with m.If(events[b]):
                    m.d.sync += counter.eq(counter + 1)
                with m.If(self.clear):
                    m.d.sync += counter.eq(0)
            m.d.comb += getattr(self, name).eq(Array(counters)[self.bank])
        return m
