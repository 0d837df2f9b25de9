"""From an Amaranth design to readable Verilog: plain module names, one module per distinct piece of logic, one file per module."""

import re
from collections.abc import Mapping
from typing import Any

from amaranth._toolchain.yosys import _BuiltinYosys
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

__all__ = ["VERILOG", "VerilogPlatform", "convert", "merge_equal", "modules_of", "whole"]

# Unlike verilog.convert's passes, these keep clock enables: `if (en) q <= d`, where a compiled simulation would otherwise copy every
# register in every cycle.
_PASSES = ("proc -norom", "opt_clean", "opt_dff", "opt_clean", "memory_collect")
_ATTRIBUTES = (
    "-remove generator -remove top -remove src -remove amaranth.hierarchy -remove amaranth.decoding -remove unused_bits"
)

_HEADER = re.compile(r"^module (\\\S+ |\w+)", re.MULTILINE)
_TRIGGER = re.compile(
    r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ "
)  # Yosys' aid for event-driven simulators, numbered anew
_INITIAL = re.compile(r"^  reg ((?:\[\d+:\d+\] )?)(\\\S+ |\w+) = (.+;)$", re.MULTILINE)
_INNER = re.compile(r"\\\$(?:procmux|procdff|auto)\S* ")  # names that Yosys numbers through the whole design
_PORT = re.compile(r"\\port\$\d+\$\d+ ")
_CONNECTED = re.compile(r"\.(\\port\$\d+\$\d+ )\(")
_INSTANCE = re.compile(r"^  (?P<module>\w+) (?:\\?\S+) +\(\n.*?^  \);", re.MULTILINE | re.DOTALL)
_ESCAPED_MODULE = r"\\(?P<path>{top}(?:\.[\w$]+)+) "


class VerilogPlatform:
    """Platform of generated Verilog: memories and power models become instances of modules that have Verilog of their own.

    Amaranth's simulator elaborates without a platform and gets what it can simulate.
    """


VERILOG = VerilogPlatform()


def convert(design: Elaboratable, name: str, ports: Any) -> dict[str, str]:
    """Verilog of ``design`` as a dict of module name to text, in the order of the hierarchy.

    Modules with the same logic become one; the name of the first one stays. The same design gives the same text.
    """
    passes = (*_PASSES, f"attrmap {_ATTRIBUTES}", f"attrmap -modattr {_ATTRIBUTES}")
    return merge_equal(plain_ports(modules_of(_written(design, name, ports, passes), name)))


def whole(design: Elaboratable, name: str, ports: Any) -> str:
    """Verilog of ``design`` in one text, by the passes of Amaranth's own back end."""
    return _written(design, name, ports, ("proc -nomux -norom", "memory_collect"))


def _written(design, name, ports, passes):
    ilang = rtlil.convert(design, name=name, platform=VERILOG, ports=ports, emit_src=False)
    script = [f"read_rtlil <<rtlil\n{ilang}\nrtlil", *passes, "write_verilog -norename"]
    # The wheel's Yosys, which the manifest states. Amaranth's own look-up would prefer one on the path, of whatever version.
    return _BuiltinYosys.run(["-q", "-"], "\n".join(script), ignore_warnings=True)


def modules_of(text: str, top: str) -> dict[str, str]:
    """Split Verilog into modules and give hierarchical (escaped) module names a plain form: ``\\top.a.b `` becomes ``top_a_b``."""
    escaped = re.compile(_ESCAPED_MODULE.format(top=re.escape(top)))
    found = {}
    for part in text.split("endmodule")[:-1]:
        start = next(_HEADER.finditer(part)).start()
        body = escaped.sub(lambda match: re.sub(r"\W", "_", match["path"]), part[start:]) + "endmodule\n"
        body = _TRIGGER.sub("initial_trigger ", body)
        body = _INITIAL.sub(
            r"  reg \1\2;\n  initial \2 = \3", body
        )  # new linters object to both in one line, old ones cannot waive it
        name = next(_HEADER.finditer(body))[1].strip()
        if name in found:
            raise ValueError(f"module names must differ after escaping, but {name} comes twice")
        found[name] = body
    return found


def plain_ports(modules: Mapping[str, str]) -> dict[str, str]:
    """Ports that carry a slice of an outer signal, and inner nets, have no name of their own; number them inside each module."""
    names = {name: {} for name in modules}
    for name, body in modules.items():
        for port in _PORT.findall(_CONNECTED.sub("", body)):
            names[name].setdefault(port, f"slice_{len(names[name])}")
    return {name: _renumbered(body, names, names[name]) for name, body in modules.items()}


def _renumbered(body, names, own):
    """The module with the ``names`` of ports by module, of which ``own`` are its own."""

    def connections(match):
        inner = names.get(match["module"], {})
        return _CONNECTED.sub(lambda port: f".{inner[port[1]]} (" if port[1] in inner else port[0], match[0])

    nets = {}
    body = _PORT.sub(lambda port: own[port[0]] + " ", _INSTANCE.sub(connections, body))
    return _INNER.sub(lambda net: nets.setdefault(net[0], f"net_{len(nets)} "), body)


def merge_equal(modules: dict[str, str]) -> dict[str, str]:
    """Modules whose text is the same but for their own name become one, again until no two are the same."""
    while True:
        first, renamed = {}, {}
        for name, body in modules.items():
            key = body.replace(f"module {name}", "module ", 1)
            if key in first:
                renamed[name] = first[key]
            else:
                first[key] = name
        if not renamed:
            return modules
        instance = re.compile(r"^  (" + "|".join(map(re.escape, renamed)) + r")(?= )", re.MULTILINE)
        modules = {name: _with_names(body, instance, renamed) for name, body in modules.items() if name not in renamed}


def _with_names(body, instance, names):
    return instance.sub(lambda match: f"  {names[match[1]]}", body)
