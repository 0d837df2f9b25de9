"""The ``intaglio`` command, assembled from the rooms.

Each command is an entry point of the group ``intaglio.commands``, named as the command, whose value is a function
``register(subparsers)``. It adds a parser and sets its default ``run`` to a function of the parsed arguments that returns
an exit code or None. Modules of commands must import quickly: heavy imports belong into ``run``.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from intaglio import Error, __version__

__all__ = ["GROUP", "exit_code", "main", "number_or_text", "pairs"]

GROUP = "intaglio.commands"
BAD_USE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Callable[[], Any]] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list of str or None
        Arguments, by default those of the process.
    commands : dict of str to callable, or None
        Loaders by name, each returning a ``register(subparsers)``; by default the installed entry points.

    Returns
    -------
    int
        0, or what the command returned; 2 for a fault that the user can act on, told in one line; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if commands is None:
        commands = {found.name: found.load for found in entry_points(group=GROUP)}
    parser = argparse.ArgumentParser(prog="intaglio", description="A decoder language model as synthesizable Verilog.")
    parser.add_argument("--version", action="version", version=f"intaglio {__version__}")
    parser.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="NAME=PROGRAM",
        help="use this program in place of the environment's own: verilator, g++; may be given again",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    chosen = argv[0] if argv and argv[0] in commands else None
    for name in sorted(commands):
        if chosen in (None, name):  # the others are not needed, so neither are their modules
            _register(subparsers, name, commands[name])
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return BAD_USE
    return exit_code(lambda: _run(args))


def exit_code(run: Callable[[], int | None]) -> int:
    """What ``run`` returns, 0 for None; 2 for a fault that the user can act on, told in one line; 130 after Ctrl-C."""
    try:
        return run() or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Error, ValueError, OSError) as fault:
        sys.stderr.write("intaglio: error: " + " ".join(str(fault).split()) + "\n")
        return BAD_USE


def pairs(option: str, texts: Iterable[str], what: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    """``{name: value}`` of the texts ``NAME=VALUE`` of an option, each name once; ``what`` is what errors call them."""
    out = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if name in out:
            raise ValueError(f"{option} must give each name once, not {name} twice")
        try:
            out[name] = convert(value)
        except ValueError:
            separator = ""
        if not separator:
            raise ValueError(f"{option} must be {what}, not {text!r}")
    return out


def number_or_text(value: str) -> int | str:
    """The value of a width: an integer, or a word."""
    return int(value) if value.isdecimal() else value


def _run(args):
    if args.tool:
        from intaglio.gen.tools import use_all

        use_all(args.tool)
    return args.run(args)


def _register(subparsers, name, load):
    """Add one command; one that cannot be imported stays visible and says why when it is used."""
    try:
        register = load()
    except ImportError as fault:
        message = f"the command '{name}' is not available: {fault}"

        def unavailable(_args):
            raise Error(message)

        stub = subparsers.add_parser(
            name, help="(not available in this installation)", add_help=False, prefix_chars="\0"
        )
        stub.add_argument("rest", nargs="*")  # whatever it is: with that prefix, nothing is an option
        stub.set_defaults(run=unavailable)
        return
    register(subparsers)


if __name__ == "__main__":
    sys.exit(main())
