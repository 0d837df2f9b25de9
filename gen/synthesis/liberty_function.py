"""Logic functions of Liberty cells: the text of an attribute ``function`` as a truth table, and the kind of gate that a table is.

The grammar, loosest first: ``a + b`` and ``a | b`` (or); ``a * b``, ``a & b`` and ``a b`` (and); ``a ^ b`` (exclusive or); ``!a``, ``~a``
and ``a'`` (not); parentheses, the constants 0 and 1, names of pins, in quotation marks where they begin with a digit.

A truth table of n inputs is an integer of 2^n bits: bit i is the value where input k is bit k of i.
"""

import re
from collections.abc import Sequence

__all__ = ["gate_kind", "truth_table"]

_TOKEN = re.compile(r'\s*(?:([A-Za-z_][\w\[\]]*)|\\?"([^"\\]+)\\?"|([01])(?!\w)|([!~()\'*&+|^]))')
_FIRST = set("!~(") | {"0", "1", "name"}  # what an operand begins with


def truth_table(text: str, inputs: Sequence[str]) -> int | None:
    """Truth table of an expression.

    Parameters
    ----------
    text : str
    inputs : sequence of str
        Names of the pins.

    Returns
    -------
    int or None
        None if the text is no expression of these pins (of a register's state, say).
    """
    tokens = _tokens(text)
    if tokens is None:
        return None
    size = 1 << len(inputs)
    ones = (1 << size) - 1
    variables = {pin: sum(1 << i for i in range(size) if i >> k & 1) for k, pin in enumerate(inputs)}

    def take(*signs):
        return tokens.pop(0) if tokens[0][0] in signs else None

    def alternatives():
        value = product()
        while take("+", "|"):
            value |= product()
        return value

    def product():
        value = difference()
        while take("*", "&") or tokens[0][0] in _FIRST:
            value &= difference()
        return value

    def difference():
        value = operand()
        while take("^"):
            value ^= operand()
        return value

    def operand():
        sign, name = tokens.pop(0)
        if sign in ("!", "~"):
            value = operand() ^ ones
        elif sign == "(":
            value = alternatives()
            if not take(")"):
                raise KeyError(")")
        elif sign in ("0", "1"):
            value = ones * int(sign)
        else:
            value = variables[name]
        while take("'"):
            value ^= ones
        return value

    try:
        value = alternatives()
    except (KeyError, RecursionError):
        return None
    return value if tokens == [("", None)] else None


def _tokens(text):
    """``(sign, name)`` one after the other, sign ``name`` for a name, and an empty one at the end; None if something else is there."""
    found, place, text = [], 0, text.replace("\\\n", " ").rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if not match:
            return None
        name = match[1] or match[2]
        found.append(("name", name) if name else (match[3] or match[4], None))
        place = match.end()
    return [*found, ("", None)]


def gate_kind(table: int, inputs: Sequence[str]) -> tuple[tuple, tuple[str, ...]] | None:
    """The kind (:mod:`intaglio.rtl.memory.logic.cells`) of a truth table.

    Parameters
    ----------
    table : int
    inputs : sequence of str

    Returns
    -------
    tuple or None
        The kind, and the pins in its order; None if no gate of two levels that uses every input once computes the table.
    """
    size = 1 << len(inputs)
    if table in (0, (1 << size) - 1):
        return None
    for inverting in (True, False):
        values = table ^ ((1 << size) - 1) if inverting else table
        bits = [values >> i & 1 for i in range(size)]
        full = size - 1
        if any(bits[i] > bits[i | 1 << k] for i in range(size) for k in range(len(inputs))):
            continue  # not monotone
        false = [
            i for i in range(size) if not bits[i] and all(i >> k & 1 or bits[i | 1 << k] for k in range(len(inputs)))
        ]
        true = [
            i
            for i in range(size)
            if bits[i] and all(not i >> k & 1 or not bits[i & ~(1 << k)] for k in range(len(inputs)))
        ]
        for form, masks in (
            (("oai" if inverting else "oa"), [full & ~i for i in false]),
            (("aoi" if inverting else "ao"), true),
        ):
            if sum(masks) == full and all(a & b == 0 for n, a in enumerate(masks) for b in masks[:n]):
                groups = sorted(
                    ([pin for k, pin in enumerate(inputs) if mask >> k & 1] for mask in masks),
                    key=lambda g: (-len(g), g),
                )
                return (form, tuple(map(len, groups))), tuple(pin for group in groups for pin in group)
    return None
