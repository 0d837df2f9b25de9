"""``intaglio audit``: every file of an emitted model against its checkpoint."""

import argparse
import json
import sys
from pathlib import Path

from intaglio import Error
from intaglio.files import check_output
from intaglio.progress import Progress

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``audit``."""
    parser = subparsers.add_parser(
        "audit",
        help="check an emitted model against its checkpoint",
        description="Read every file of a folder that 'intaglio gen decoder' or 'gen banks' wrote: images word by word, banks of gates at "
        "every address, and compare them with the checkpoint; of other files, the digest that the manifest has. Exit code 1 if "
        "anything differs.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a decoder or of banks")
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint that it was made of")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="processes, default 2")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page, with zeros and gates of every bank")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from intaglio.gen.audit.banks import audit_banks
    from intaglio.gen.audit.decoder import audit_decoder
    from intaglio.gen.audit.report import Report
    from intaglio.gen.emit.output import described
    from intaglio.gen.pool import check_processes

    check_processes(args.processes)
    for path in (args.json, args.html):
        if path:
            check_output(path, "the report")
    folder = Path(args.folder)
    manifest = described(folder) or {}
    report = Report(folder=str(args.folder), model=str(args.model))
    with Progress() as progress:
        if manifest.get("format") == "intaglio-banks":
            audit_banks(folder, args.model, args.processes, progress, report)
        elif manifest.get("kind") == "decoder":
            audit_decoder(folder, manifest, args.model, progress, report)
        else:
            raise Error(
                f"{folder} must be a folder that 'intaglio gen decoder' or 'gen banks' wrote whole, and has no such manifest.json"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(report.json(), indent=1) + "\n", encoding="utf-8")
    if args.html:
        Path(args.html).write_text(report.page(), encoding="utf-8")
    sys.stdout.write(report.text())
    return int(bool(report.faults))
