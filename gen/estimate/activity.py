"""Inputs of the energy model: transitions from SAIF, and what a NAND2 of a Liberty file costs."""

import re
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.liberty import NAND2, read_liberty

__all__ = ["ASAP7", "Cells", "Net", "Saif", "read_cells", "read_saif"]

_NET = re.compile(r"\((\S+) \(T0 (\d+)\) \(T1 (\d+)\) .*?\(TC (\d+)\)\)")
_INSTANCE = re.compile(r"\(INSTANCE (\S+)")
_UNITS = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}


@dataclass(frozen=True)
class Net:
    """One bit: time at 1 and number of transitions."""

    high: int
    transitions: int


@dataclass(frozen=True, kw_only=True)
class Saif:
    """Nets by instance path (``core/linear/gate``, without the top) and name (``power[3]``); ``duration`` in the same unit as times."""

    duration: int
    instances: dict

    def net(self, path: str, name: str) -> Net:
        """Raises ``Error`` if it is not there."""
        try:
            return self.instances[path][name]
        except KeyError:
            raise Error(
                f"the SAIF must have the net {name} of {path or 'the top'}: trace the decoder that the estimate is of"
            ) from None


def read_saif(path: Path | str, top: str) -> Saif:
    """Read what Verilator writes (``intaglio run --trace FILE.saif``).

    Raises
    ------
    Error
        The file is missing, not SAIF, cut off, or has no instance ``top``.
    """
    instances, stack, duration, closed = {}, [], None, False
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if found := _NET.search(line):
                    name, _, high, count = found.groups()
                    instances.setdefault("/".join(stack), {})[name.replace("\\", "")] = Net(int(high), int(count))
                elif found := _INSTANCE.search(line):
                    stack.append(found[1])
                elif line.strip() == ")":
                    stack, closed = (
                        (stack[:-1], False) if len(line) - len(line.lstrip()) == len(stack) and stack else (stack, True)
                    )
                elif "(DURATION" in line:
                    duration = next((int(number) for number in re.findall(r"\d+", line)), None)
    except (OSError, UnicodeDecodeError) as fault:
        raise Error(f"the SAIF {path} cannot be read: {fault}") from fault
    if duration is None or not closed or stack:
        raise Error(f"{path} must be a complete SAIF with a duration; it is cut off or something else")
    prefix = next((name for name in instances if name.split("/")[-1] == top), None)
    if prefix is None:
        raise Error(f"{path} must have an instance {top}")
    inner = {
        name[len(prefix) :].lstrip("/"): nets
        for name, nets in instances.items()
        if name == prefix or name.startswith(prefix + "/")
    }
    return Saif(duration=duration, instances=inner)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A NAND2: leakage (W, mean over its inputs), capacitance of an input (F), supply (V)."""

    leakage: float
    pin: float
    volt: float
    source: str


ASAP7 = Cells(
    leakage=30.4155e-12,
    pin=0.341683e-15,
    volt=0.7,
    source="anchor: NAND2xp33 of ASAP7, 7 nm predictive, TT, 0.7 V, 25 C, as --liberty reads it",
)


def read_cells(path: Path | str) -> Cells:
    """The smallest NAND2 of a Liberty file (``.lib`` or ``.lib.gz``).

    Raises
    ------
    Error
        The file is missing, or has no NAND2 with area, leakage and capacitance (an area-only library).
    """
    library = read_liberty(path)
    text = library.text
    power = re.search(r'leakage_power_unit\s*:\s*"?\s*([\d.]+)\s*([munpf]?)W', text)
    load = re.search(r'capacitive_load_unit\s*\(\s*([\d.]+)\s*,\s*"?\s*([munpf]?)f"?\s*\)', text, re.IGNORECASE)
    volt = re.search(r"nom_voltage\s*:\s*([\d.]+)", text)
    found = []
    for cell in library.of_kind(NAND2, "a NAND2"):
        whole = re.search(r"\bcell_leakage_power\s*:\s*\"?([-\d.eE+]+)", cell.body)
        values = [
            float(v) for v in re.findall(r"leakage_power\s*\(\s*\)\s*\{[^}]*?value\s*:\s*\"?([-\d.eE+]+)", cell.body)
        ]
        values = [value for value in values if value > 0]
        if (whole or values) and cell.capacitance > 0:
            found.append((float(whole[1]) if whole else sum(values) / len(values), cell))
    if not found or not power or not load or not volt:
        raise Error(
            f"cell library {path} must have a NAND2 with area, leakage and input capacitance, units and a voltage; an area-only "
            "library has none: leave it out and the anchors count"
        )
    leakage, cell = found[0]
    pin = cell.capacitance / 2
    return Cells(
        leakage=leakage * float(power[1]) * _UNITS[power[2]],
        pin=pin * float(load[1]) * _UNITS[load[2]],
        volt=float(volt[1]),
        source=f"{cell.name} of {Path(path).name}",
    )
