"""One hierarchy of exceptions: whoever catches :class:`intaglio.Error` has every fault that is meant for a user."""

import ast
from pathlib import Path

from intaglio import Error
from intaglio.gen.checkpoint.model import CheckpointError

ROOT = Path(__file__).parents[1]
ROOMS = ("intaglio", "rtl", "gen", "sim", "host", "boards", "bench")
CHECKS = {"ContractError"}  # of the cocotb agents: a bus's contract is broken, a test has failed


def exceptions():
    """Bases by name of every public class that is an exception by its name or its bases'."""
    found = {}
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    kinds = {"BaseException", "Exception"}
    while more := {name for name, bases in found.items() if bases & kinds or any("Error" in b for b in bases)} - kinds:
        kinds |= more
    return {name: found[name] for name in sorted(kinds & set(found))}


def test_every_public_exception_is_an_error_of_the_project():
    bases, known = exceptions(), {"Error"}
    while more := {name for name in bases if bases[name] & known} - known:
        known |= more
    assert len(bases) > 10 and set(bases) - known == CHECKS


def test_a_damaged_checkpoint_is_one_too():
    assert issubclass(CheckpointError, Error) and issubclass(CheckpointError, ValueError)
