"""Verilog modules of read-only banks, one word a cycle at latency 1, ports ``clk, addr, data``, in place of ``intaglio_rom``.

Words hold ternary weights in the planes of :mod:`intaglio.rtl.ternary.packing` (``2bit``): the lower half is 1 where a weight is +1, the
upper half where it is -1, which is TOM's code 00, 01, 10. Every strategy gives these words:

``plain``       a memory with its contents: block RAM or LUT RAM on an FPGA, multiplexers elsewhere.
``code``        the words as case statements: what they cost is left to the synthesiser (TOM's way).
``planes``      the same with a non-zero and a sign plane inside; the sign of a zero is free and repeats that of the word before.
``structured``  gates: subsets of groups of rows shared by all columns and outputs (:mod:`intaglio.rtl.memory.logic.forms`).

``plain`` registers its output, the others the address: the same words in the same cycles with fewer registers.
"""

from dataclasses import dataclass, replace

import numpy as np

from intaglio.rtl.memory.logic.cells import GENERIC
from intaglio.rtl.memory.logic.forms import Form, build
from intaglio.rtl.memory.logic.netlist import ONE, Netlist
from intaglio.rtl.memory.logic.search import best_form

__all__ = ["STRATEGIES", "Bank", "bank", "bank_verilog", "bits_of_words"]

STRATEGIES = ("plain", "code", "planes", "structured")
_REGISTER = "    always @(posedge clk) a <= addr;"
BLOCK = 256  # words of one case statement


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One bank.

    Members
    -------
    name, strategy : str
    width, depth : int
    verilog : str
        The module ``name``.
    description : str
        What was chosen.
    form, netlist
        Of ``structured``; None otherwise.
    """

    name: str
    strategy: str
    width: int
    depth: int
    verilog: str
    description: str
    form: Form | None = None
    netlist: Netlist | None = None

    def with_netlist(self, netlist, how):
        """The bank with another netlist of the same words; ``how`` it came about."""
        text = _structured(netlist, self.name, self.width, self.depth, f"{self.form}; {how}")
        return replace(
            self,
            netlist=netlist,
            verilog=text,
            description=f"{self.depth} x {self.width}: {self.form}; {how}, {len(netlist.kinds)} gates",
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
        return _module(self.name, self.width, self.depth, "\n".join([*lines, _data(netlist, names)]))

    def combinational(self):
        """The module without its register: ``data`` follows ``addr``; for measuring."""
        text = self.verilog.replace(_REGISTER, "    always @* a = addr;")
        return text.replace("always @(posedge clk) data <= mem[addr];", "always @* data = mem[addr];")


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


def bank(words, width, name, strategy="structured", *, cells=GENERIC, form=None, tries=3):
    """A :class:`Bank` of words.

    Parameters
    ----------
    words : uint8 ``[depth, ceil(width / 8)]`` little-endian, or a sequence of integers
    width : int
    name : str
        A Verilog identifier.
    strategy : str
        One of :data:`STRATEGIES`.
    cells : CellSet
        What ``structured`` is shaped for.
    form : Form or None
        Of ``structured``; None: the best of ``tries`` (:func:`intaglio.rtl.memory.logic.search.best_form`).

    Raises
    ------
    ValueError
        The strategy is unknown, the words are bad, the planes of ``planes`` are not ternary, or the library lacks a cell.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if not name.isidentifier():
        raise ValueError(f"name of a bank must be an identifier, not {name!r}")
    bits = bits_of_words(words, width)
    depth = len(bits)
    common = {"name": name, "strategy": strategy, "width": width, "depth": depth}
    if strategy == "plain":
        return Bank(verilog=_plain(bits, name), description=f"{depth} x {width} memory", **common)
    if strategy == "code":
        return Bank(verilog=_code(bits, name), description=f"{depth} x {width} in case statements", **common)
    if strategy == "planes":
        return Bank(
            verilog=_planes(bits, name),
            description=f"{depth} x {width} in case statements, non-zero and sign",
            **common,
        )
    if depth == 1:
        text = _module(name, width, depth, f"    assign data = {width}'h{_hex(bits)[0]};", address=False)
        return Bank(verilog=text, description="one word", **common)
    if depth == 2:  # nothing to share
        return Bank(verilog=_code(bits, name), description="two words", **common)
    if form is None:
        netlist, form = best_form(bits, cells, tries=tries)
    else:
        netlist = build(bits, form, cells)
    text = _structured(netlist, name, width, depth, form)
    return Bank(
        verilog=text,
        description=f"{depth} x {width}: {form}, {len(netlist.kinds)} gates for {cells.name}",
        form=form,
        netlist=netlist,
        **common,
    )


def bank_verilog(words, width, name, strategy="structured", **options):
    """Text of the module only; see :func:`bank`."""
    return bank(words, width, name, strategy, **options).verilog


def _hex(bits):
    """Hexadecimal digits of each row, the highest first."""
    data = np.packbits(bits, axis=1, bitorder="little")[:, ::-1]
    digits = -(-bits.shape[1] // 4)
    return [row.tobytes().hex()[-digits:] for row in data]


def _module(name, width, depth, body, address=True, register=None):
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
        lines += [f"    reg [{bits - 1}:0] a;", _REGISTER]
    return "\n".join([*lines, body, "endmodule", ""])


def _plain(bits, name):
    depth, width = bits.shape
    lines = [f"    reg [{width - 1}:0] mem [0:{depth - 1}];", "    initial begin"]
    lines += [f"        mem[{i}] = {width}'h{text};" for i, text in enumerate(_hex(bits))]
    lines += ["    end", "    always @(posedge clk) data <= mem[addr];"]
    return _module(name, width, depth, "\n".join(lines), address=False, register=True)


def _case(bits, target):
    """Case statements of at most BLOCK words; words of zeros are the default."""
    depth, width = bits.shape
    inputs = max(1, (depth - 1).bit_length())
    texts, lines = _hex(bits), []
    low = min(inputs, (BLOCK - 1).bit_length())
    blocks = range(0, depth, 1 << low)
    for number, start in enumerate(blocks):
        lines += [f"    reg [{width - 1}:0] {target}_{number};", f"    always @* case (a[{low - 1}:0])"]
        lines += [
            f"        {low}'d{i - start}: {target}_{number} = {width}'h{texts[i]};"
            for i in range(start, min(depth, start + (1 << low)))
            if texts[i].strip("0")
        ]
        lines += [f"        default: {target}_{number} = {width}'h0;", "    endcase"]
    lines += [f"    reg [{width - 1}:0] {target};"]
    if len(blocks) == 1:
        return [*lines, f"    always @* {target} = {target}_0;"]
    lines += [f"    always @* case (a[{inputs - 1}:{low}])"]
    lines += [f"        {inputs - low}'d{number}: {target} = {target}_{number};" for number in range(len(blocks))]
    return [*lines, f"        default: {target} = {width}'h0;", "    endcase"]


def _code(bits, name):
    return _module(name, bits.shape[1], len(bits), "\n".join([*_case(bits, "word"), "    assign data = word;"]))


def _planes(bits, name):
    depth, width = bits.shape
    if width % 2:
        raise ValueError(f"width of a ternary bank must be even, not {width}")
    plus, minus = bits[:, : width // 2], bits[:, width // 2 :]
    if (plus & minus).any():
        raise ValueError("a ternary word must not have a weight that is both plus and minus")
    sign = minus.copy()
    for row in range(1, depth):  # free where the weight is zero
        sign[row] = np.where(plus[row] | minus[row], minus[row], sign[row - 1])
    lines = _case(np.concatenate([plus | minus, sign], axis=1), "word")
    half = width // 2
    lines += [
        f"    wire [{half - 1}:0] some = word[{half - 1}:0], sign = word[{width - 1}:{half}];",
        "    assign data = {some & sign, some & ~sign};",
    ]
    return _module(name, width, depth, "\n".join(lines))


def _structured(netlist, name, width, depth, form):
    names = netlist.names()
    wires = names[netlist.inputs :]
    lines = [
        f"    // {form}.",
        "    // r: row lines, c: column lines, s<group>_<pattern>: subsets of row lines, shared; ...n: active low.",
    ]
    lines += [f"    wire {wire} = {text};" for wire, text in zip(wires, netlist.expressions(names), strict=True)]
    return _module(name, width, depth, "\n".join([*lines, _data(netlist, names)]))


def _data(netlist, names):
    constants = {None: "1'b0", ONE: "1'b1"}
    outputs = [constants[signal] if signal in constants else names[signal] for signal in netlist.outputs]
    return "    assign data = {" + ", ".join(reversed(outputs)) + "};"
