"""Strategies by which ``intaglio synth`` makes a bank: the project's own gates, and what they are compared with.

``plain``       a memory with its contents: block RAM or LUT RAM on an FPGA, multiplexers elsewhere; registers its output.
``code``        the words as case statements: what they cost is left to the synthesiser (TOM's way).
``planes``      the same with a non-zero and a sign plane inside; the sign of a zero is free and repeats that of the word before.
``structured``  gates: subsets of groups of rows shared by all columns and outputs (:mod:`intaglio.rtl.memory.logic`).
"""

from collections.abc import Sequence

import numpy as np

from intaglio.rtl.memory.logic import GENERIC, Bank, CellSet, bank, bits_of_words, hex_rows, module_text
from intaglio.rtl.memory.logic.bank import REGISTER

__all__ = ["STRATEGIES", "combinational", "strategy_bank"]

STRATEGIES = ("plain", "code", "planes", "structured")
BLOCK = 256  # words of one case statement


def strategy_bank(
    words: np.ndarray | Sequence[int], width: int, name: str, strategy: str, *, cells: CellSet = GENERIC
) -> Bank:
    """A :class:`~intaglio.rtl.memory.logic.bank.Bank` by one of :data:`STRATEGIES`; words and cells as for ``bank``.

    Raises
    ------
    ValueError
        The strategy is unknown, the words are bad, the planes of ``planes`` are not ternary, or the library lacks a cell.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if strategy == "structured":
        return bank(words, width, name, cells=cells)
    bits = bits_of_words(words, width)
    make, what = {
        "plain": (_plain, "memory"),
        "code": (_code, "in case statements"),
        "planes": (_planes, "in case statements, non-zero and sign"),
    }[strategy]
    description = f"{len(bits)} x {width} {what}"
    return Bank(name=name, width=width, depth=len(bits), verilog=make(bits, name), description=description)


def combinational(bank: Bank) -> str:
    """The module of a bank without its register: ``data`` follows ``addr``; for measuring."""
    text = bank.verilog.replace(REGISTER, "    always @* a = addr;")
    return text.replace("always @(posedge clk) data <= mem[addr];", "always @* data = mem[addr];")


def _plain(bits, name):
    depth, width = bits.shape
    lines = [f"    reg [{width - 1}:0] mem [0:{depth - 1}];", "    initial begin"]
    lines += [f"        mem[{i}] = {width}'h{text};" for i, text in enumerate(hex_rows(bits))]
    lines += ["    end", "    always @(posedge clk) data <= mem[addr];"]
    return module_text(name, width, depth, "\n".join(lines), address=False, register=True)


def _case(bits, target):
    """Case statements of at most BLOCK words; words of zeros are the default."""
    depth, width = bits.shape
    inputs = max(1, (depth - 1).bit_length())
    texts, lines = hex_rows(bits), []
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
    return module_text(name, bits.shape[1], len(bits), "\n".join([*_case(bits, "word"), "    assign data = word;"]))


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
    return module_text(name, width, depth, "\n".join(lines))
