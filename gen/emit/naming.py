"""Names of a generated design: modules, ROM images and macros begin with the name of its top, so that designs can stand in one project.

A design is made under plain names (``intaglio_decoder``, ``intaglio_lane``, ``rom/gains.hex``) and renamed as text at the end, because
its default prefix follows from the digest of its contents.
"""

import re
from collections.abc import Mapping

from intaglio.rtl.memory.rom import ROM_DIR, ROM_DIR_DEFAULT

__all__ = ["PREFIX_LENGTH", "checked_prefix", "renamed", "top_name"]

PREFIX_LENGTH = 64
_ROOT = "intaglio_"
_FILE = re.compile(r'\.FILE\("(\w+\.hex)"\)')
_MODULE, _INSTANCE = (
    re.compile(r"^module (\w+)", re.MULTILINE),
    re.compile(r"^  (\w+)(?= (?:#\(|\S+ +\())", re.MULTILINE),
)


def checked_prefix(prefix: str | None) -> str | None:
    """``prefix``, a str or None; raises ``ValueError`` unless module names, file names and macros can begin with it."""
    if prefix is not None and not (
        isinstance(prefix, str) and re.fullmatch(rf"[A-Za-z]\w{{0,{PREFIX_LENGTH - 1}}}", prefix, re.ASCII)
    ):
        raise ValueError(
            f"the prefix must be a letter and then letters, digits or underscores, {PREFIX_LENGTH} characters at most, "
            f"not {prefix!r}"
        )
    return prefix


def top_name(kind: str, digest: str, prefix: str | None = None) -> str:
    """Name of the top of a design of ``kind`` ("decoder" or "prefill"): ``<prefix>_<kind>``, by default with the digest's first digits."""
    return f"{prefix or _ROOT + digest[:8]}_{kind}"


def renamed(modules: Mapping[str, str], kind: str, top: str) -> dict[str, str]:
    """Modules (dict of name to Verilog) under the names of the design ``top``: ``intaglio_<kind>`` becomes ``top``, ``intaglio_<kind>_x``
    and ``intaglio_x`` become ``<top>_x``, the ROM image ``x.hex`` becomes ``<top>_x.hex``, and ``<TOP>_ROM_DIR`` may say where images are.
    """
    names = {}
    for name in modules:
        rest = name.removeprefix(_ROOT)
        names[name] = top if rest == kind else f"{top}_{rest.removeprefix(kind + '_')}"
    if len(set(names.values())) != len(names):
        raise ValueError(f"the modules of {top} must have different names, not {sorted(names.values())}")

    def one(text):
        text = _MODULE.sub(lambda match: f"module {names[match[1]]}", text)
        text = _INSTANCE.sub(lambda match: f"  {names.get(match[1], match[1])}", text)
        text = _FILE.sub(lambda match: f'.FILE("{top}_{match[1]}")', text)
        own = f"{top.upper()}_ROM_DIR"
        default = (
            f'`ifndef {own}\n`ifdef {ROM_DIR}\n`define {own} `{ROM_DIR}\n`else\n`define {own} "rom/"\n`endif\n`endif\n'
        )
        head, found, rest = text.partition(ROM_DIR_DEFAULT)
        return head + default + rest.replace(f"`{ROM_DIR}", f"`{own}") if found else text

    return {names[name]: one(text) for name, text in modules.items()}
