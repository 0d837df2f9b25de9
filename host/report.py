"""What ``intaglio run`` tells on standard error."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intaglio.host.device import Device

__all__ = ["note", "report", "report_counters", "report_many"]


def note(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def report(device: Device) -> None:
    """Figures of the latest generation."""
    last, clock = device.last, f"{device.manifest.clock_hz / 1e6:g} MHz"
    lines = [
        f"prompt: {last['prompt_tokens']} tokens",
        f"generated: {last['generated_tokens']} tokens (end: {last['finish']})",
    ]
    if last["cycles_prefill"] is not None:
        lines[0] += (
            f", first token after {last['first_token_seconds'] * 1e3:.3f} ms at {clock} "
            f"({last['cycles_prefill']} cycles, {last['seconds_prefill']:.2f} s wall)"
        )
    if last["tokens_per_second"] is not None:
        lines[1] += f", {last['tokens_per_second']:.1f} tokens/s at {clock}"
    if last["wall_tokens_per_second"] is not None:
        lines[1] += f", {last['wall_tokens_per_second']:.1f} tokens/s wall"
    for line in lines:
        note(line)


def report_many(device: Device) -> None:
    """Figures of the latest generations at once."""
    last, clock = device.last, f"{device.manifest.clock_hz / 1e6:g} MHz"
    ends = Counter(row["finish"] for row in last["requests"])
    lines = [
        f"prompts: {len(last['requests'])} of {last['prompt_tokens']} tokens in all",
        f"generated: {last['generated_tokens']} tokens in all (end: {', '.join(f'{n} {end}' for end, n in ends.items())})",
    ]
    firsts = [row["first_token_seconds"] for row in last["requests"] if row["first_token_seconds"] is not None]
    if firsts:
        lines[0] += f", first tokens after {min(firsts) * 1e3:.3f} to {max(firsts) * 1e3:.3f} ms at {clock}"
    if last["tokens_per_second"] is not None:
        lines[1] += f", {last['tokens_per_second']:.1f} tokens/s in all at {clock} ({last['cycles']} cycles)"
    if last["wall_tokens_per_second"] is not None:
        lines[1] += f", {last['wall_tokens_per_second']:.1f} tokens/s wall"
    for line in lines:
        note(line)


def report_counters(counters: dict) -> None:
    """Shares are of the cycles in which the device was at work; ``cycles`` and ``stall_in`` run on while it waits for the host."""
    phases = counters.pop("phases")
    work = sum(phases.values())
    for name, value in [*counters.items(), ("at work", work)]:
        note(f"{name:<24}{value:>16}")
    for name, value in phases.items():
        note(f"phase {name:<18}{value:>16}{100 * value / max(work, 1):>8.1f} %")
