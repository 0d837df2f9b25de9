"""Read-only memories of ternary weights as standard-cell logic.

:func:`bank` turns words into a Verilog module with the ports and the latency of ``intaglio_rom``. ``structured`` banks are shaped for the
cells of a library and are a netlist that can be read at all addresses at once (:meth:`Netlist.evaluate`).
"""

from intaglio.rtl.memory.logic.cells import GENERIC, Cell, CellSet, kind_name
from intaglio.rtl.memory.logic.component import LogicRom
from intaglio.rtl.memory.logic.forms import Form
from intaglio.rtl.memory.logic.netlist import Netlist
from intaglio.rtl.memory.logic.strategies import STRATEGIES, Bank, bank, bank_verilog, bits_of_words

__all__ = [
    "GENERIC",
    "STRATEGIES",
    "Bank",
    "Cell",
    "CellSet",
    "Form",
    "LogicRom",
    "Netlist",
    "bank",
    "bank_verilog",
    "bits_of_words",
    "kind_name",
]
