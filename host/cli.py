"""``intaglio run``: a prompt in, text out."""

import argparse
import sys

from intaglio.progress import Progress

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="generate text with a device, simulated or real",
        description="Generate text with a device. The text goes to standard output as it comes, "
        "speeds and counters to standard error.",
    )
    parser.add_argument(
        "--device",
        required=True,
        metavar="SCHEME:REST",
        help="sim:OUT, a generated folder; serial:PORT?baud=N; tcp:HOST:PORT; record:FILE?target=...; replay:FILE",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="by default read from standard input")
    parser.add_argument(
        "--tokens", metavar="N,N,...", help="the prompt as tokens; what is generated is written as tokens too"
    )
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message: use the chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the message of the system before it")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder with the tokenizer's files, where it is not the simulated one"
    )
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default 0: always the most probable token"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the most probable share P")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="DIR",
        help="load a low-rank adapter (PEFT's files) and generate with it; may be repeated, the first one is used",
    )
    parser.add_argument(
        "--use", type=int, metavar="N", help="with several adapters, generate with the N-th of them, 0 for none"
    )
    parser.add_argument("--counters", action="store_true", help="show the device's counters afterwards")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after this time without a word"
    )
    parser.add_argument("--manifest", metavar="FILE", help="for devices that do not bring their manifest")
    parser.add_argument("--cache", metavar="DIR", help="folder for built simulations")
    parser.add_argument(
        "--trace", metavar="FILE", help="waveform of a simulation, .vcd or .fst, or counts of transitions, .saif"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generate as the arguments say; faults are left to the caller."""
    from intaglio.host.device import open

    if args.tokens is not None and (args.prompt is not None or args.chat or args.stop):
        raise ValueError("--tokens must be given without --prompt, --chat and --stop")
    if args.system is not None and not args.chat:
        raise ValueError("--system must be given with --chat")
    prompt = args.prompt if args.tokens is None else _numbers(args.tokens)
    if prompt is None:
        if sys.stdin.isatty():
            _note("reading the prompt from standard input; Ctrl-D ends it")
        prompt = sys.stdin.buffer.read()
    if not prompt:
        raise ValueError("a prompt must have at least one byte: give --prompt TEXT or text on standard input")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show every character
    if args.use is not None and not 0 <= args.use <= len(args.adapter):
        raise ValueError(f"--use must be in 0..{len(args.adapter)}, the adapters given, not {args.use}")
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    options = {name: value for name in ("cache", "trace") if (value := getattr(args, name)) is not None}
    with (
        Progress() as show,
        open(
            args.device,
            timeout=args.timeout,
            manifest=args.manifest,
            tokenizer=args.tokenizer,
            progress=lambda text, _: show(text),
            accept=lambda manifest: _check(manifest, args, prompt, sampling),
            **options,
        ) as device,
    ):
        slots = []
        for folder in args.adapter:
            show(f"loading the adapter {folder}")
            slots.append(device.load_adapter(folder))
            show.clear()
            _note(f"adapter {folder} in slot {slots[-1]}")
        use = args.use if args.use is not None else min(1, len(slots))
        chosen = slots[use - 1] if use else None
        _generate(device, show, prompt, args, chosen, sampling)
        _report(device)
        if args.counters:
            _report_counters(device.counters())


def _check(manifest, args, prompt, sampling):
    """Everything that can be told before a simulation is built."""
    from intaglio.host.adapter.loading import adapter_words
    from intaglio.host.generation import check_request, check_stops
    from intaglio.host.text import folder_of, text_of

    text = None if args.tokens else text_of(manifest, args.tokenizer or folder_of(args.device, args.manifest))
    check_request(manifest, _prompt_tokens(text, prompt, args), args.max_tokens, **sampling)
    check_stops(args.stop)
    for folder in args.adapter:
        adapter_words(manifest, folder)
    if len(args.adapter) > (slots := manifest.adapter["slots"] if manifest.adapter else 0):
        raise ValueError(
            f"--adapter must be given at most {slots} times, the adapters that the device has memory for, "
            f"not {len(args.adapter)}"
        )


def _generate(device, show, prompt, args, adapter, sampling):
    """The text to standard output as it comes; before it, and where it goes elsewhere than to the terminal, what the device is at."""
    from intaglio.host.generation import generate_text

    tokens = _prompt_tokens(None if args.tokens else device.text, prompt, args)
    count = len(tokens)
    show(f"prompt of {count} tokens")
    sampling |= {
        "adapter": adapter,
        "progress": lambda taken: show(f"prompt, {taken} of {count} tokens", taken / count),
    }
    if args.tokens:
        pieces = (f"{token} " for token in device.generate_tokens(tokens, args.max_tokens, **sampling))
    else:
        pieces = generate_text(device, tokens, args.max_tokens, stop=args.stop, **sampling)
    terminal = sys.stdout.isatty()
    try:
        for piece in pieces:
            if terminal:
                show.clear()
            sys.stdout.write(piece)
            sys.stdout.flush()
            if not terminal:
                rate = device.last["wall_tokens_per_second"]
                show(f"{device.last['generated_tokens']} tokens" + (f", {rate:.1f} tokens/s" if rate else ""))
    finally:
        show.clear()
        sys.stdout.write("\n")
        sys.stdout.flush()
        pieces.close()


def _numbers(text):
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--tokens must be integers with commas between them, not {text!r}") from None


def _prompt_tokens(text, prompt, args):
    """The prompt as tokens; ``text`` is None for one that is tokens already."""
    if text is None:
        return prompt
    if not args.chat:
        return text.encode(prompt)
    said = prompt if isinstance(prompt, str) else prompt.decode("utf-8", "strict")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return text.chat([*system, {"role": "user", "content": said}])


def _note(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _report(device):
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
        _note(line)


def _report_counters(counters):
    """Shares are of the cycles in which the device was at work; ``cycles`` and ``stall_in`` run on while it waits for the host."""
    phases = counters.pop("phases")
    work = sum(phases.values())
    for name, value in [*counters.items(), ("at work", work)]:
        _note(f"{name:<24}{value:>16}")
    for name, value in phases.items():
        _note(f"phase {name:<18}{value:>16}{100 * value / max(work, 1):>8.1f} %")
