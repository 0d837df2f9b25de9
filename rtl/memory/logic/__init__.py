"""Read-only memories of ternary weights as standard-cell logic: what a :class:`~intaglio.rtl.memory.rom.Rom` of the form ``logic`` is.

:func:`bank` turns words into a Verilog module with the ports and the latency of ``intaglio_rom``. It is shaped for the cells of a library
and is a netlist that can be read at many addresses at once (:meth:`Netlist.evaluate`).
"""

from intaglio.rtl.memory.logic.bank import Bank, bank, bits_of_words, hex_rows, module_text
from intaglio.rtl.memory.logic.cells import GENERIC, Cell, CellSet, kind_name
from intaglio.rtl.memory.logic.forms import Form
from intaglio.rtl.memory.logic.netlist import Netlist

__all__ = [
    "GENERIC",
    "Bank",
    "Cell",
    "CellSet",
    "Form",
    "Netlist",
    "bank",
    "bits_of_words",
    "hex_rows",
    "kind_name",
    "module_text",
]
