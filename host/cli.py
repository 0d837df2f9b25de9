"""``intaglio run``: a prompt in, text out."""

import sys
import time

__all__ = ["Progress", "register"]


def register(subparsers):
    """Add the command ``run``."""
    parser = subparsers.add_parser("run", help="generate text with a device, simulated or real",
                                   description="Generate text with a device. The text goes to standard output as it comes, "
                                   "speeds and counters to standard error.")
    parser.add_argument("--device", required=True, metavar="SCHEME:REST",
                        help="sim:OUT, a generated folder; serial:PORT?baud=N; tcp:HOST:PORT; record:FILE?target=...; replay:FILE")
    parser.add_argument("--prompt", metavar="TEXT", help="by default read from standard input")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0: always the most probable token")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the most probable share P")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--adapter", action="append", default=[], metavar="DIR",
                        help="load a low-rank adapter (PEFT's files) and generate with it; may be repeated, the first one is used")
    parser.add_argument("--use", type=int, metavar="N", help="with several adapters, generate with the N-th of them, 0 for none")
    parser.add_argument("--counters", action="store_true", help="show the device's counters afterwards")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after this time without a word")
    parser.add_argument("--manifest", metavar="FILE", help="for devices that do not bring their manifest")
    parser.add_argument("--cache", metavar="DIR", help="folder for built simulations")
    parser.add_argument("--trace", metavar="FILE", help="waveform of a simulation, .vcd or .fst, or counts of transitions, .saif")
    parser.set_defaults(run=run)


def run(args):
    """Generate as the arguments say; faults are left to the caller."""
    from intaglio.host.device import open

    prompt = args.prompt
    if prompt is None:
        if sys.stdin.isatty():
            _note("reading the prompt from standard input; Ctrl-D ends it")
        prompt = sys.stdin.buffer.read()
    if not prompt:
        raise ValueError("a prompt must have at least one byte: give --prompt TEXT or text on standard input")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show every character
    if args.max_tokens < 1:  # told before a simulation is built
        raise ValueError(f"max_tokens must be at least 1, not {args.max_tokens}")
    if args.use is not None and not 0 <= args.use <= len(args.adapter):
        raise ValueError(f"--use must be in 0..{len(args.adapter)}, the adapters given, not {args.use}")
    options = {name: value for name in ("cache", "trace") if (value := getattr(args, name)) is not None}
    with open(args.device, timeout=args.timeout, manifest=args.manifest, progress=Progress(), **options) as device:
        slots = [device.load_adapter(folder) for folder in args.adapter]
        for folder, slot in zip(args.adapter, slots, strict=True):
            _note(f"adapter {folder} in slot {slot}")
        use = args.use if args.use is not None else min(1, len(slots))
        chosen = slots[use - 1] if use else None
        pieces = device.generate(prompt, args.max_tokens, adapter=chosen, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
                                 seed=args.seed, stop=args.stop)
        meter = _Meter(device)
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
                meter.show()
        finally:
            meter.clear()
            sys.stdout.write("\n")
            sys.stdout.flush()
            pieces.close()
        _report(device)
        if args.counters:
            _report_counters(device.counters())


def _note(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class _Meter:
    """Tokens and their speed in one changing line, where the text goes elsewhere than to the terminal; at most five times a second."""

    def __init__(self, device):
        self.device, self.shown = device, 0.0
        self.wanted = sys.stderr.isatty() and not sys.stdout.isatty()
        if self.wanted:
            sys.stderr.write("intaglio: waiting for the first token")
            sys.stderr.flush()

    def show(self):
        if not self.wanted or time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        rate = self.device.last.get("wall_tokens_per_second")
        sys.stderr.write(f"\r\x1b[Kintaglio: {self.device.last['generated_tokens']} tokens" + (f", {rate:.1f} tokens/s" if rate else ""))
        sys.stderr.flush()

    def clear(self):
        if self.wanted:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Progress:
    """Steps of a build: one line that changes on a terminal, else a line for each step."""

    def __call__(self, text, seconds):
        line = f"intaglio: {text} ({seconds:.0f} s)"
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" + line + ("\n" if text.endswith("built") else ""))
            sys.stderr.flush()
        else:
            _note(line)


def _report(device):
    last, clock = device.last, f"{device.manifest.clock_hz / 1e6:g} MHz"
    lines = [f"prompt: {last['prompt_tokens']} tokens"]
    if "cycles_prefill" in last:
        lines[0] += (f", first token after {last['first_token_seconds'] * 1e3:.3f} ms at {clock} "
                     f"({last['cycles_prefill']} cycles, {last['seconds_prefill']:.2f} s wall)")
    lines.append(f"generated: {last['generated_tokens']} tokens (end: {last['finish']})")
    if last.get("tokens_per_second"):
        wall = last["wall_tokens_per_second"] or 0.0
        lines[1] += f", {last['tokens_per_second']:.1f} tokens/s at {clock}, {wall:.1f} tokens/s wall"
    for line in lines:
        _note(line)


def _report_counters(counters):
    phases = counters.pop("phases")
    for name, value in counters.items():
        _note(f"{name:<24}{value:>16}")
    for name, value in phases.items():
        _note(f"phase {name:<18}{value:>16}{100 * value / max(counters['cycles'], 1):>8.1f} %")
