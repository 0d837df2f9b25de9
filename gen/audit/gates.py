"""What a bank of gates holds, read from its text: a reader of its own, which shares nothing with the generator of the gates."""

import re

import numpy as np

from intaglio import Error

__all__ = ["GateError", "read_gates"]

_WIRE = re.compile(r"    wire (\w+) = (.*);")
_DATA = re.compile(r"    assign data = \{(.*)\};")
_TOKEN = re.compile(r"a\[\d+\]|\w+|[~&|()]")
_CONSTANTS = {"1'b0": 0, "1'b1": -1}


class GateError(Error, ValueError):
    """The text is not that of a bank of gates."""


def read_gates(lines: list[str], inputs: int, depth: int) -> np.ndarray:
    """Words of the body ``lines`` at all addresses: bool ``[depth, width]``.

    Raises
    ------
    GateError
        A line is none that a bank has, or names what is not defined before it.
    """
    size = 1 << inputs
    ones = (1 << size) - 1
    values = {}
    for bit in range(inputs):
        period = ((1 << (1 << bit)) - 1) << (1 << bit)
        values[f"a[{bit}]"] = period * (ones // ((1 << (2 << bit)) - 1))
    outputs = None
    for line in lines:
        if line.startswith("    //"):
            continue
        if outputs is not None:
            raise GateError(f"nothing may follow the outputs, not {line.strip()!r}")
        if wire := _WIRE.fullmatch(line):
            if wire[1] in values:
                raise GateError(f"wire {wire[1]} must be defined once")
            values[wire[1]] = _value(wire[2], values, ones)
        elif data := _DATA.fullmatch(line):
            names = data[1].split(", ")[::-1]
            known = _CONSTANTS | values
            if not set(names) <= known.keys():
                raise GateError("an output must be a wire or a constant")
            outputs = [known[name] for name in names]
        else:
            raise GateError(f"a line must be a wire or the outputs, not {line.strip()!r}")
    if outputs is None:
        raise GateError("the outputs must be there")
    columns = [(value & ones).to_bytes(-(-size // 8), "little") for value in outputs]
    packed = np.frombuffer(b"".join(columns), np.uint8).reshape(len(outputs), -1)
    return np.unpackbits(packed, axis=1, bitorder="little")[:, :depth].T.astype(bool)


def _value(text, values, ones):
    """Value of an expression of ~, &, |, parentheses and names."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", ""):
        raise GateError(f"an expression must be of gates, not {text!r}")
    value, place = _either(tokens, 0, values, ones)
    if place != len(tokens):
        raise GateError(f"an expression must end where it ends, not {text!r}")
    return value


def _either(tokens, place, values, ones):
    value, place = _both(tokens, place, values, ones)
    while place < len(tokens) and tokens[place] == "|":
        other, place = _both(tokens, place + 1, values, ones)
        value |= other
    return value, place


def _both(tokens, place, values, ones):
    value, place = _one(tokens, place, values, ones)
    while place < len(tokens) and tokens[place] == "&":
        other, place = _one(tokens, place + 1, values, ones)
        value &= other
    return value, place


def _one(tokens, place, values, ones):
    token = tokens[place] if place < len(tokens) else ""
    if token == "~":
        value, place = _one(tokens, place + 1, values, ones)
        return value ^ ones, place
    if token == "(":
        value, place = _either(tokens, place + 1, values, ones)
        if tokens[place : place + 1] != [")"]:
            raise GateError("a parenthesis must be closed")
        return value, place + 1
    if token not in values:
        raise GateError(f"{token or 'an operand'} must be defined before it is used")
    return values[token], place + 1
