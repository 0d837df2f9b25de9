"""What power gating does in a token: closed form of the banks' activity, and its picture.

python -m intaglio.gen.cycles.gating --model models/burin --preset desk --set gate_words=1024 -o timeline.svg
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.cli import exit_code, number_or_text, pairs
from intaglio.gen import plot
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
    """SVG of one token: its phases, and a row for each column of banks, blue while words are read from it, grey while it only has power."""
    drawn = plot.figure(10.0, 1.4 + 0.13 * config.gate_banks)
    axes = drawn.subplots()
    stops = [*(first for _, first in token.starts[1:]), token.total]
    phases = [(name, (first, stop - first)) for (name, first), stop in zip(token.starts, stops, strict=True)]
    bars = {(-1, _COLOURS[name]): [span for one, span in phases if one == name] for name in _COLOURS}
    for i in powered_intervals(config, token.streams):
        bars.setdefault((i.bank, _POWERED), []).append((i.first, i.cycles))
        bars.setdefault((i.bank, _COLOURS["linear"]), []).append((i.last - 1 - i.reads, i.reads))
    axes.barh(range(config.gate_banks), token.total, color=_OFF, label="off")
    for (row, colour), spans in bars.items():
        axes.broken_barh(spans, (row - 0.4, 0.8), color=colour)
    for name, colour in [("bank with power, not read", _POWERED), *_COLOURS.items()]:
        axes.barh(0, 0, color=colour, label=name)
    axes.set(title=title, xlabel="cycles", xlim=(0, token.total), ylim=(config.gate_banks - 0.5, -1.5))
    axes.set_yticks(range(-1, config.gate_banks), ["phase", *(f"bank {bank}" for bank in range(config.gate_banks))])
    axes.tick_params(axis="y", labelsize=7, length=0)
    drawn.legend(loc="outside lower center", ncols=4, fontsize=8)
    return plot.svg(drawn)


def main(arguments: Sequence[str] | None = None) -> int:
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
    return exit_code(lambda: _draw(args))


def _draw(args):
    from intaglio.gen.checkpoint.quantised import quantise
    from intaglio.gen.checkpoint.reader import load_checkpoint
    from intaglio.gen.presets.decoder import config_for

    checkpoint = load_checkpoint(args.model)
    widths = pairs("--set", args.set, "WIDTH=VALUE", number_or_text)
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


if __name__ == "__main__":
    sys.exit(main())
