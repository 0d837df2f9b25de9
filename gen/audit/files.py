"""One file of an emitted model against what the checkpoint says it holds."""

from pathlib import Path

import numpy as np

from intaglio.gen.audit.gates import GateError, read_gates
from intaglio.gen.audit.report import Bank, Report
from intaglio.rtl.memory.logic import bank, bits_of_words, module_text
from intaglio.rtl.memory.rom import hex_text

__all__ = ["check_image", "check_logic", "compared", "read"]

_BODY = "@"


def read(report: Report, folder: Path, name: str) -> bytes | None:
    """The file, or None and a fault."""
    report.files += 1
    try:
        return (folder / name).read_bytes()
    except OSError as fault:
        report.fault(name, f"cannot be read: {fault.strerror}")
        return None


def compared(report: Report, name: str, found: bytes, expected: bytes) -> None:
    """A fault unless the image ``found`` is ``expected``, with the first bit that differs."""
    if found == expected:
        return
    lines, wanted = found.split(b"\n"), expected.split(b"\n")
    for word, (line, want) in enumerate(zip(lines, wanted, strict=False)):
        if line != want:
            try:
                if len(line) != len(want):
                    raise ValueError
                differs = int(line, 16) ^ int(want, 16)
            except ValueError:
                report.fault(name, f"word {word} must be {len(want)} hexadecimal digits")
                return
            if differs:
                report.fault(name, f"bit {(differs & -differs).bit_length() - 1} of word {word} is wrong")
            else:
                report.fault(name, f"word {word} must be written in small letters")
            return
    report.fault(name, f"must have {len(wanted) - 1:,} words, not {len(lines) - 1:,}")


def _bank(name, words, bits, zero_weights, gates=0):
    zero_bits = 1 - np.bitwise_count(words).sum() / (len(words) * bits)
    return Bank(
        file=name,
        words=len(words),
        bits=len(words) * bits,
        zero_bits=round(float(zero_bits), 6),
        zero_weights=round(zero_weights, 6),
        gates=gates,
    )


def check_image(report: Report, name: str, found: bytes, words: np.ndarray, bits: int, zero_weights: float) -> None:
    """A bank of weights as image: uint8 ``words [depth, bytes]``."""
    compared(report, name, found, hex_text(words))
    report.banks.append(_bank(name, words, bits, zero_weights))


def check_logic(
    report: Report, name: str, found: bytes, words: np.ndarray, bits: int, zero_weights: float, module: str
) -> None:
    """A bank of weights as gates, read at every address."""
    depth, gates = len(words), 0
    wanted = bits_of_words(words, bits)
    try:
        text = found.decode("ascii")
        if depth <= 2:  # no gates
            if text != bank(words, bits, module).verilog:
                raise GateError("its one or two words are wrong")
        else:
            head, tail = module_text(module, bits, depth, _BODY).split(_BODY + "\n")
            if not (text.startswith(head) and text.endswith("\n" + tail)):
                raise GateError("must be a module of its name, depth and width")
            lines = text[len(head) : -len(tail) - 1].split("\n")
            values = read_gates(lines, (depth - 1).bit_length(), depth)
            gates = sum(line.startswith("    wire ") for line in lines)
            if values.shape != wanted.shape:
                raise GateError(f"must have {bits} outputs, not {values.shape[1]}")
            if len(wrong := np.argwhere(values != wanted)):
                word, bit = wrong[0]
                raise GateError(f"bit {bit} of word {word} is wrong, of {len(wrong):,} such bits")
    except ValueError as fault:  # also where it is not ASCII
        report.fault(name, str(fault))
    report.banks.append(_bank(name, words, bits, zero_weights, gates))
