"""``intaglio run``: prompts in, text out."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from intaglio.host.report import note, report, report_counters, report_many
from intaglio.progress import Progress

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="generate text with a device, simulated or real",
        description="Generate text with a device. The text goes to standard output as it comes, that of several prompts one after "
        "another when each ends; speeds and counters go to standard error.",
    )
    parser.add_argument(
        "--device",
        required=True,
        metavar="SCHEME:REST",
        help="sim:OUT, a generated folder; serial:PORT?baud=N; tcp:HOST:PORT; record:FILE?target=...; replay:FILE",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        dest="prompts",
        default=[],
        metavar="TEXT",
        help="by default read from standard input; may be repeated: several are generated at once, and each text is shown when it ends",
    )
    parser.add_argument(
        "--prompt-file",
        action="append",
        dest="prompts",
        type=Path,
        metavar="FILE",
        help="a file whose content is a prompt, as it is; may be repeated",
    )
    parser.add_argument(
        "--tokens",
        action="append",
        default=[],
        metavar="N,N,...",
        help="a prompt as tokens; what is generated is written as tokens too; may be repeated",
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

    if args.tokens and (args.prompts or args.chat or args.stop):
        raise ValueError("--tokens must be given without --prompt, --prompt-file, --chat and --stop")
    if args.system is not None and not args.chat:
        raise ValueError("--system must be given with --chat")
    prompts = _prompts(args)
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
            accept=lambda manifest: _check(manifest, args, prompts, sampling),
            **options,
        ) as device,
    ):
        slots = []
        for folder in args.adapter:
            show(f"loading the adapter {folder}")
            slots.append(device.load_adapter(folder))
            show.clear()
            note(f"adapter {folder} in slot {slots[-1]}")
        use = args.use if args.use is not None else min(1, len(slots))
        sampling["adapter"] = slots[use - 1] if use else None
        if len(prompts) == 1:
            [prompt] = prompts.values()
            _generate(device, show, prompt, args, sampling)
            report(device)
        else:
            _generate_many(device, show, prompts, args, sampling)
            report_many(device)
        if args.counters:
            report_counters(device.counters())


def _prompts(args):
    """Prompts by what they are called: texts, bytes or tokens."""
    given = [*args.prompts, *map(_numbers, args.tokens)]
    if not given:
        if sys.stdin.isatty():
            note("reading the prompt from standard input; Ctrl-D ends it")
        given = [sys.stdin.buffer.read()]
    prompts = {}
    for number, prompt in enumerate(given, 1):
        name = f"prompt {number}"
        if isinstance(prompt, Path):
            name = f"{name}: {prompt}"
            try:
                prompt = prompt.read_bytes()
            except OSError as fault:
                raise ValueError(
                    f"--prompt-file must name a file that can be read, not '{prompt}': {fault.strerror or fault}"
                ) from fault
        if not prompt:
            raise ValueError(
                "a prompt must have at least one byte: give --prompt TEXT, --prompt-file FILE or text on standard input"
            )
        prompts[name] = prompt
    return prompts


def _check(manifest, args, prompts, sampling):
    """Everything that can be told before a simulation is built."""
    from intaglio.host.adapter.loading import adapter_words
    from intaglio.host.generation import check_request
    from intaglio.host.text import check_stops, folder_of, text_of

    text = None if args.tokens else text_of(manifest, args.tokenizer or folder_of(args.device, args.manifest))
    for name, prompt in prompts.items():
        try:
            check_request(manifest, _prompt_tokens(text, prompt, args), args.max_tokens, **sampling)
        except ValueError as fault:
            raise ValueError(f"{name}: {fault}" if len(prompts) > 1 else str(fault)) from fault
    check_stops(args.stop)
    for folder in args.adapter:
        adapter_words(manifest, folder)
    if len(args.adapter) > (slots := manifest.adapter["slots"] if manifest.adapter else 0):
        raise ValueError(
            f"--adapter must be given at most {slots} times, the adapters that the device has memory for, "
            f"not {len(args.adapter)}"
        )


def _generate(device, show, prompt, args, sampling):
    """The text to standard output as it comes; before it, and where it goes elsewhere than to the terminal, what the device is at."""
    from intaglio.host.generation import generate_text

    tokens = _prompt_tokens(None if args.tokens else device.text, prompt, args)
    count = len(tokens)
    show(f"prompt of {count} tokens")
    sampling |= {"progress": lambda taken: show(f"prompt, {taken} of {count} tokens", taken / count)}
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


def _generate_many(device, show, prompts, args, sampling):
    """The texts to standard output one after another, each under its prompt's name when it ends; meanwhile, what the device is at."""
    from intaglio.host.many import text_events, token_events
    from intaglio.host.scheduler import RequestError

    text, names = None if args.tokens else device.text, list(prompts)
    tokens = [_prompt_tokens(text, prompt, args) for prompt in prompts.values()]
    count = sum(map(len, tokens))
    show(f"{len(names)} prompts of {count} tokens")
    sampling |= {"progress": lambda taken: show(f"prompts, {taken} of {count} tokens", taken / count)}
    events: Iterator[tuple[int, str, str | None]]
    if text is None:
        events = (
            (index, "" if token is None else f"{token} ", finish)
            for index, token, finish in token_events(device, tokens, args.max_tokens, **sampling)
        )
    else:
        events = text_events(device, tokens, args.max_tokens, stop=args.stop, **sampling)
    texts = dict.fromkeys(range(len(names)), "")  # of those that have not ended
    ended = 0

    def write(index, finish):
        show.clear()
        sys.stdout.write(f"==> {names[index]} (end: {finish}) <==\n{texts.pop(index)}\n")
        sys.stdout.flush()

    try:
        for index, piece, finish in events:
            texts[index] += piece
            if finish is not None:
                write(index, finish)
                ended += 1
            last = device.last
            show(f"{ended} of {len(names)} prompts ended, {last['generated_tokens']} tokens")
    except RequestError:
        failed = [
            f"{name}: {row['error']}" for name, row in zip(names, device.last["requests"], strict=True) if row["error"]
        ]
        raise RequestError(f"{len(failed)} of {len(names)} prompts failed: {'; '.join(failed)}") from None
    finally:
        show.clear()
        for index in [index for index, text in texts.items() if text]:
            write(index, "broken off")


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
