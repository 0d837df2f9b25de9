"""What power gating does in a token: closed form of the banks' activity, and its picture.

python -m intaglio.gen.cycles.gating --model models/burin --preset desk --set gate_words=1024 -o timeline.svg
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio import Error
from intaglio.gen.cycles.decoder import TokenCycles, token_cycles
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.ternary.gate import BankGate

__all__ = ["Interval", "bank_activity", "powered_intervals", "timeline"]

_COLOURS = {
    "embed": "#bbb",
    "norm": "#e0c060",
    "linear": "#4a78b0",
    "rotary": "#b070b0",
    "attention": "#60a070",
    "head": "#c06050",
}
_POWERED, _OFF = "#999", "#f2f2f2"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bank ``bank`` has power in cycles ``first .. last``; ``reads`` words are read from it."""

    bank: int
    first: int
    last: int
    reads: int

    @property
    def cycles(self) -> int:
        return self.last - self.first + 1


def powered_intervals(config: DecoderConfig, streams: Iterable[tuple[int, int, int]]) -> list[Interval]:
    """The intervals of a token, in order, from :attr:`~intaglio.gen.cycles.decoder.TokenCycles.streams`.

    Of a stream that was announced in cycle ``a`` and reads words ``w .. w + n - 1`` in cycles ``r .. r + n - 1``, bank ``b`` is wanted
    from ``a + 1``, or from the cycle whose word is ``lead`` before its first one, to the cycle that reads its last one or the stream's.
    It has power from a cycle later to two cycles later.
    """
    out, word = [], 0
    size, lead = config.gate_words, BankGate.lead_words(config)
    for announced, first, words in streams:
        stop = word + words
        for bank in range(word // size, min((stop - 1 + lead) // size + 1, config.gate_banks)):
            begin, end = bank * size, (bank + 1) * size
            since = announced + 1 if begin <= word + lead else first + begin - lead - word
            until = first + min(end, stop) - 1 - word
            out.append(
                Interval(bank=bank, first=since + 1, last=until + 2, reads=max(0, min(end, stop) - max(begin, word)))
            )
        word = stop
    return out


def bank_activity(config: DecoderConfig, tokens: Iterable[TokenCycles]) -> dict[str, Any]:
    """What :meth:`~intaglio.host.device.Device.bank_activity` counts in ``tokens`` (TokenCycles) together."""
    out = {name: [0] * config.gate_banks for name in ("powered", "reads", "wakes")}
    stall = 0
    for token in tokens:
        for interval in powered_intervals(config, token.streams):
            out["powered"][interval.bank] += interval.cycles
            out["reads"][interval.bank] += interval.reads
            out["wakes"][interval.bank] += 1
        stall += token.linear_stall
    return {**out, "stall": stall}


def timeline(config: DecoderConfig, token: TokenCycles, title: str) -> str:
    """SVG of one token: a row for each column of banks, blue while words are read from it, grey while it only has power."""
    total, banks = token.total, config.gate_banks
    left, width, row, top = 64, 1000, 12, 46
    scale = width / total
    height = top + row * banks + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 16} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="8" y="16" font-size="13">{title}</text>',
    ]
    stops = [*(first for _, first in token.starts[1:]), total]
    for (name, first), stop in zip(token.starts, stops, strict=True):
        out.append(_box(left + first * scale, 26, (stop - first) * scale, 12, _COLOURS[name]))
    out.append('<text x="8" y="36">phase</text>')
    for bank in range(banks):
        y = top + row * bank
        out += [f'<text x="8" y="{y + 9}">bank {bank}</text>', _box(left, y + 1, width, row - 2, _OFF)]
    for i in powered_intervals(config, token.streams):
        y = top + row * i.bank + 1
        out.append(_box(left + i.first * scale, y, i.cycles * scale, row - 2, _POWERED))
        if i.reads:
            out.append(_box(left + (i.last - 1 - i.reads) * scale, y, i.reads * scale, row - 2, _COLOURS["linear"]))
    x, y = left, top + row * banks + 18
    for label, colour in [
        *((name, _COLOURS[name]) for name in _COLOURS),
        ("bank with power, not read", _POWERED),
        ("off", _OFF),
    ]:
        out += [_box(x, y - 9, 10, 10, colour), f'<text x="{x + 14}" y="{y}">{label}</text>']
        x += 30 + 7 * len(label)
    out.append(f'<text x="{left + width}" y="{y}" text-anchor="end">{total:,} cycles</text></svg>')
    return "\n".join(out) + "\n"


def _box(x, y, width, height, colour):
    return f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height}" fill="{colour}"/>'


def main(arguments: Sequence[str] | None = None) -> int:
    from intaglio.gen.checkpoint.quantised import quantise
    from intaglio.gen.checkpoint.reader import load_checkpoint
    from intaglio.gen.cli import changes
    from intaglio.gen.presets.decoder import config_for

    parser = argparse.ArgumentParser(
        prog="python -m intaglio.gen.cycles.gating", description="Draw which banks have power during a token."
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--preset", default="desk", metavar="NAME")
    parser.add_argument(
        "--set", action="append", default=[], metavar="WIDTH=VALUE", help="change one width of the preset"
    )
    parser.add_argument("--position", type=int, default=127, metavar="N", help="of the token, default 127")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="SVG to write")
    args = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(args.model)
        widths = changes(args.set, "WIDTH")
        config = config_for(checkpoint.config, args.preset, **{"gate_words": 1024, **widths})
        if not config.gate_words:
            raise ValueError("gate_words must be more than 0 for a picture of gated banks")
        if not 0 <= args.position < config.context:
            raise ValueError(f"--position must be in 0..{config.context - 1}, not {args.position}")
        token = token_cycles(quantise(checkpoint, config), args.position)
        title = (
            f"{Path(args.model).name} on {args.preset}, token {args.position}: {config.gate_banks} columns of banks of "
            f"{config.gate_words:,} words, wake-up {config.gate_wake} cycles"
        )
        Path(args.out).write_text(timeline(config, token, title))
    except (Error, ValueError, OSError) as fault:
        sys.stderr.write(f"intaglio: error: {fault}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
