"""A bank of read-only memory as a Verilog module of gates, one word a cycle at latency 1, ports ``clk, addr, data``, as ``intaglio_rom``.

Words of ternary weights are in the planes of :mod:`intaglio.rtl.ternary.packing` (``2bit``): the lower half is 1 where a weight is +1, the
upper half where it is -1, which is TOM's code 00, 01, 10. Any other words do as well. ``intaglio_rom`` registers its output, a bank the
address: the same words in the same cycles with fewer registers.
"""

from dataclasses import dataclass, replace

import numpy as np

from intaglio.rtl.memory.logic.cells import GENERIC
from intaglio.rtl.memory.logic.forms import Form
from intaglio.rtl.memory.logic.netlist import Netlist
from intaglio.rtl.memory.logic.search import PYTHON, best_form

__all__ = ["REGISTER", "Bank", "bank", "bits_of_words", "hex_rows", "module_text"]

REGISTER = "    always @(posedge clk) a <= addr;"


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One bank.

    Members
    -------
    name : str
    width, depth : int
    verilog : str
        The module ``name``.
    description : str
        What was chosen.
    form, netlist
        None for one or two words, in which there is nothing to share.
    """

    name: str
    width: int
    depth: int
    verilog: str
    description: str
    form: Form | None = None
    netlist: Netlist | None = None

    def with_netlist(self, netlist, how):
        """The bank with another netlist of the same words; ``how`` it came about."""
        return replace(
            self,
            netlist=netlist,
            verilog=_structured(netlist, self.name, self.width, self.depth, f"{self.form}; {how}"),
            description=f"{self.depth} x {self.width}: {self.form}; {how}, {len(netlist)} gates",
        )

    def mapped(self, cells):
        """The module as instances of the library's cells, for a flow that keeps them (size only); None without a netlist."""
        if self.netlist is None:
            return None
        names, netlist = self.netlist.names(), self.netlist
        lines = [f"    wire {', '.join(names[i : i + 12])};" for i in range(netlist.inputs, len(names), 12)]
        for i, (kind, ins) in enumerate(zip(netlist.kinds, netlist.ins, strict=True)):
            cell = cells.cells[kind]
            pins = ", ".join(f".{pin}({names[signal]})" for pin, signal in zip(cell.pins, ins, strict=True))
            lines.append(f"    {cell.name} u{i} ({pins}, .{cell.output}({names[netlist.inputs + i]}));")
        return module_text(self.name, self.width, self.depth, "\n".join([*lines, netlist.data(names)]))


def bits_of_words(words, width):
    """bool ``[depth, width]`` of words: uint8 ``[depth, bytes]`` little-endian (``packing.pack``), or integers.

    Raises
    ------
    ValueError
        There is no word, ``width`` is less than 1, or a word does not fit.
    """
    if width < 1:
        raise ValueError(f"width of a bank must be at least 1, not {width}")
    if not isinstance(words, np.ndarray) or words.ndim != 2:
        size = -(-width // 8)
        for i, word in enumerate(words):
            if not 0 <= int(word) < 1 << width:
                raise ValueError(f"word {i} must be in 0..2^{width} - 1, not {word}")
        words = np.frombuffer(b"".join(int(word).to_bytes(size, "little") for word in words), np.uint8).reshape(
            -1, size
        )
    if words.dtype != np.uint8 or words.shape[1] != -(-width // 8):
        raise ValueError(
            f"words of {width} bits must be uint8 [depth, {-(-width // 8)}], not {words.dtype} {list(words.shape)}"
        )
    if not len(words):
        raise ValueError("a bank must have at least one word")
    bits = np.unpackbits(words, axis=1, bitorder="little")
    if bits[:, width:].any():
        raise ValueError(f"word {int(np.argmax(bits[:, width:].any(axis=1)))} must fit {width} bits")
    return bits[:, :width].astype(bool)


def bank(words, width, name, *, cells=GENERIC, form=None, tries=3, maker=PYTHON):
    """A :class:`Bank` of words, whose netlist has been read at every address.

    Parameters
    ----------
    words : uint8 ``[depth, ceil(width / 8)]`` little-endian, or a sequence of integers
    width : int
    name : str
        A Verilog identifier.
    cells : CellSet
        What the gates are shaped for.
    form : Form or None
        None: the best of ``tries`` (:func:`intaglio.rtl.memory.logic.search.best_form`).
    maker : Maker
        What builds netlists (:class:`intaglio.rtl.memory.logic.search.Maker`); the result does not depend on it.

    Raises
    ------
    ValueError
        The words are bad, or the library lacks a cell.
    """
    if not name.isidentifier():
        raise ValueError(f"name of a bank must be an identifier, not {name!r}")
    bits = bits_of_words(words, width)
    depth = len(bits)
    common = {"name": name, "width": width, "depth": depth}
    if depth <= 2:
        texts = [f"{width}'h{text}" for text in hex_rows(bits)]
        body = f"    assign data = {f'a ? {texts[1]} : {texts[0]}' if depth == 2 else texts[0]};"
        text = module_text(name, width, depth, body, address=depth == 2)
        return Bank(verilog=text, description=f"{depth} x {width}: nothing to share", **common)
    if form is None:
        netlist, form = best_form(bits, cells, tries=tries, maker=maker)
    else:
        netlist = maker.build(bits, form, cells)
    if not netlist.holds(bits):
        raise RuntimeError(f"the netlist of {name} must hold its words, which it does not: a fault of the generator")
    return Bank(
        verilog=_structured(netlist, name, width, depth, form),
        description=f"{depth} x {width}: {form}, {len(netlist)} gates for {cells.name}",
        form=form,
        netlist=netlist,
        **common,
    )


def hex_rows(bits):
    """Hexadecimal digits of each row of bool ``[depth, width]``, the highest first."""
    data = np.packbits(bits, axis=1, bitorder="little")[:, ::-1]
    digits = -(-bits.shape[1] // 4)
    return [row.tobytes().hex()[-digits:] for row in data]


def module_text(name, width, depth, body, address=True, register=False):
    """The module with the lines ``body``; ``a`` is the registered address if ``address``, ``data`` a register if ``register``."""
    bits = max(1, (depth - 1).bit_length())
    lines = [
        f"// {depth} words of {width} bits, latency 1.",
        f"module {name} (",
        "    input wire clk,",
        f"    input wire [{bits - 1}:0] addr,",
        f"    output {'reg' if register else 'wire'} [{width - 1}:0] data",
        ");",
    ]
    if address:
        lines += [f"    reg [{bits - 1}:0] a;", REGISTER]
    return "\n".join([*lines, body, "endmodule", ""])


def _structured(netlist, name, width, depth, form):
    lines = [
        f"    // {form}.",
        "    // r: row lines, c: column lines, s<group>_<pattern>: subsets of row lines, shared; ...n: active low.",
        netlist.body(),
    ]
    return module_text(name, width, depth, "\n".join(lines))
