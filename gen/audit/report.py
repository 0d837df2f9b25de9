"""What an audit found, as text, JSON and HTML."""

import html
from collections import Counter
from dataclasses import asdict, dataclass, field

__all__ = ["Bank", "Report"]

SHOWN = 20  # faults in the text


@dataclass(frozen=True, kw_only=True)
class Bank:
    """One bank of weights: its file, bits of all words, and shares of zeros; ``gates`` is 0 for an image."""

    file: str
    words: int
    bits: int
    zero_bits: float
    zero_weights: float
    gates: int = 0

    @property
    def gates_per_bit(self) -> float:
        return self.gates / self.bits


@dataclass(kw_only=True)
class Report:
    """Members: the folder, the checkpoint, number of files looked at, ``faults`` as pairs of a file and what is wrong, and the banks."""

    folder: str
    model: str
    files: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    banks: list[Bank] = field(default_factory=list)

    def fault(self, file: str, what: str) -> None:
        self.faults.append((file, what))

    def summary(self) -> str:
        """One line."""
        bits = sum(bank.bits for bank in self.banks)
        kinds = Counter("logic" if bank.gates else "image" for bank in self.banks)
        parts = [f"{self.files:,} files", f"{len(self.banks):,} banks of {bits:,} bits"]
        if bits:
            parts.append(f"{sum(bank.zero_bits * bank.bits for bank in self.banks) / bits:.1%} of them zero")
        if kinds["logic"]:
            gates = sum(bank.gates for bank in self.banks)
            inside = sum(bank.bits for bank in self.banks if bank.gates)
            parts.append(f"{gates:,} gates, {gates / inside:.4f} a bit")
        verdict = f"{len(self.faults)} wrong" if self.faults else "all as the checkpoint says"
        return f"{', '.join(parts)}: {verdict}"

    def text(self) -> str:
        """The summary and the first faults."""
        lines = [f"{self.folder}: {self.summary()}"]
        lines += [f"  {file}: {what}" for file, what in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            lines.append(f"  and {len(self.faults) - SHOWN} more")
        return "\n".join(lines) + "\n"

    def json(self) -> dict:
        """All of it."""
        banks = [asdict(bank) | {"gates_per_bit": round(bank.gates_per_bit, 6)} for bank in self.banks]
        faults = [{"file": file, "fault": what} for file, what in self.faults]
        return {
            "format": "intaglio-audit",
            "format_version": 1,
            "sound": not self.faults,
            "files": self.files,
            "faults": faults,
            "banks": banks,
        }

    def page(self) -> str:
        """One page of HTML without scripts: faults first, then every bank."""
        rows = [
            f"<tr><td>{html.escape(bank.file)}<td>{bank.words:,}<td>{bank.bits:,}<td>{bank.zero_bits:.4f}<td>{bank.zero_weights:.4f}"
            f"<td>{bank.gates:,}<td>{bank.gates_per_bit:.4f}"
            for bank in self.banks
        ]
        faults = [f"<li><b>{html.escape(file)}</b>: {html.escape(what)}" for file, what in self.faults]
        return "\n".join(
            [
                '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Audit</title>',
                "<style>body{font-family:sans-serif}td,th{padding:0 .8em;text-align:right}td:first-child{text-align:left}</style>",
                f"<h1>{html.escape(self.folder)}</h1><p>{html.escape(self.summary())}",
                *(["<h2>Wrong</h2><ul>", *faults, "</ul>"] if faults else []),
                "<h2>Banks</h2><table><tr><th>file<th>words<th>bits<th>zero bits<th>zero weights<th>gates<th>gates a bit",
                *rows,
                "</table></html>",
                "",
            ]
        )
