"""``intaglio attention``: sparse prefill attention on the activations of a model, by a device or by the exact model."""

import json
import sys
from pathlib import Path

from intaglio import Error
from intaglio.files import check_output
from intaglio.progress import Progress

__all__ = ["register"]

TOKENS = 4096  # taken where nothing else bounds them
MODELLED = {"block": 128, "window": 8, "lines": 12, "lookahead": 3}  # of the exact model; a device has its own


def register(subparsers):
    """Add the command ``attention``."""
    parser = subparsers.add_parser(
        "attention",
        help="sparse attention on a long text",
        description="Sparse prefill attention on the queries, keys and values that a model produces on a text: by a device (the generated "
        "Verilog, simulated), or without one by the exact integer model of the hardware.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder of a byte-level model")
    parser.add_argument("--text", required=True, metavar="FILE")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"tokens (bytes) of the text, at least two blocks, default {TOKENS} or "
        "what the unit's context holds; of a shorter text, all are taken",
    )
    parser.add_argument("--layers", metavar="L,L", help="layers to run, from 0, default all")
    parser.add_argument("--gamma", type=float, default=0.9, help="share of the estimated mass to keep, default 0.9")
    parser.add_argument(
        "--tau", type=float, default=0.1, help="divergence below which a head is query-aware, default 0.1; 0: none"
    )
    parser.add_argument("--map", metavar="FILE.svg", help="write the block map as a picture")
    parser.add_argument(
        "--allow-constant",
        action="store_true",
        help="accept matrices of one value throughout and norms of zeros, which no trained model has",
    )
    device = parser.add_argument_group("with a device")
    device.add_argument(
        "--device",
        metavar="SCHEME:REST",
        help="sim:OUT, a folder of 'intaglio gen prefill'; serial:PORT?baud=N; tcp:HOST:PORT; record:FILE?target=...; replay:FILE",
    )
    device.add_argument("--manifest", metavar="FILE", help="for devices that do not bring their manifest")
    device.add_argument(
        "--memory", metavar="NAME", help="memory of a simulation: hbm2-u280, hbm2-u280-all, ddr4 or ddr4-one"
    )
    device.add_argument("--check", action="store_true", help="compare every result with the exact model")
    device.add_argument("--timeline", metavar="FILE.json", help="write the time line as a Chrome trace")
    device.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after this time without progress"
    )
    device.add_argument("--cache", metavar="DIR", help="folder for built simulations")
    model = parser.add_argument_group("without a device")
    for name, what in (
        ("block", "tokens of a block: 32, 64 or 128"),
        ("window", "query blocks on chip at once"),
        ("lines", "blocks of K and V in the cache"),
        ("lookahead", "visits that the cache looks ahead"),
    ):
        model.add_argument(f"--{name}", type=int, metavar="N", help=f"{what}, default {MODELLED[name]}")
    parser.set_defaults(run=run)


def _check(args):
    """Everything that can be told before work starts."""
    from intaglio.host.attention.parameters import divergence_threshold, share

    for name, value in MODELLED.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif args.device:
            raise ValueError(f"--{name} must not be given with --device, whose own it is")
    for name in ("memory", "timeline", "check", "manifest"):
        if getattr(args, name) and not args.device:
            raise ValueError(f"--{name} needs --device")
    if args.block not in (32, 64, 128):
        raise ValueError(f"--block must be 32, 64 or 128, not {args.block}")
    if args.window < 1 or args.window & args.window - 1:
        raise ValueError(f"--window must be a power of 2, not {args.window}")
    if args.lookahead < 1 or args.lines < args.lookahead + 2:
        raise ValueError(
            f"--lines must be at least --lookahead + 2 and --lookahead at least 1, not {args.lines} and {args.lookahead}"
        )
    for name, suffix in (("map", ".svg"), ("timeline", ".json")):
        value = getattr(args, name)
        if value and not value.endswith(suffix):
            raise ValueError(f"--{name} must end in {suffix}, not {value!r}")
        if value:
            check_output(value, f"--{name}")
    share(args.gamma, 1), divergence_threshold(args.tau)


def _layers(text, count):
    try:
        layers = range(count) if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        layers = [-1]
    if any(not 0 <= layer < count for layer in layers):
        raise ValueError(f"--layers must be numbers in 0..{count - 1} with commas between them, not {text!r}")
    return list(layers)


def _tokens(args, text, block, context=None):
    """How many tokens of ``text`` are taken: what was asked for as far as the text has it, at most what the unit's context holds."""
    wanted = TOKENS if args.tokens is None else args.tokens
    if context is not None and args.tokens is None:
        wanted = min(wanted, context)
    if wanted < 2 * block:
        raise ValueError(f"--tokens must be at least two blocks, {2 * block}, not {wanted}")
    if context is not None and wanted > context:
        raise ValueError(f"--tokens must be at most {context}, the unit's context, not {wanted}")
    if len(text) < 2 * block:
        raise ValueError(f"the text must have at least two blocks, {2 * block} bytes, not {len(text)}")
    if len(text) < wanted:
        sys.stderr.write(f"intaglio: the text has {len(text)} bytes: all are taken, not {wanted}\n")
    return min(wanted, len(text))


def run(args):
    _check(args)
    try:
        text = Path(args.text).read_bytes()
    except OSError as fault:
        raise Error(f"the text {args.text} cannot be read: {fault.strerror or fault}") from fault
    try:
        from intaglio.gen.checkpoint.reader import load_checkpoint
        from intaglio.sim.attention.activations import check_bytes
        from intaglio.sim.attention.picture import block_map_svg
        from intaglio.sim.attention.report import traffic
    except ModuleNotFoundError as fault:
        raise Error(f"the command needs the Python module {fault.name!r}: pip install 'intaglio[sim]'") from fault

    with Progress() as show:
        show(f"reading {args.model}")
        args.model = load_checkpoint(args.model, allow_constant=args.allow_constant)
        check_bytes(args.model.config)
        layers = _layers(args.layers, args.model.config.num_hidden_layers)
        rows, keeps = [], []
        for found in (_device if args.device else _exact)(args, text, layers, show):
            keeps.append(found.keep)
            rows.append(
                [
                    (
                        f"layer {found.layer}, head {found.kv_head * len(found.keep) + head}: {share:.0%}",
                        found.keep[head].tolist(),
                        bool(found.query_aware[head]),
                    )
                    for head, share in enumerate(found.density.tolist())
                ]
            )
        show("counting the blocks of K and V read")
        read = traffic(keeps, window=args.window, lines=args.lines, lookahead=args.lookahead)
    sys.stdout.write(
        "error: of the integers against float attention over the same blocks; change: of sparse against dense attention, both relative\n"
        f"blocks of K and V read, cache of {args.lines}, windows of {args.window} (counted by the cache's model): {read['ours']}, "
        f"optimum {read['belady']}, LRU {read['lru']}, no cache {read['visits']}, each job by itself {read['single']}\n"
    )
    if args.map:
        _write(args.map, block_map_svg(rows))
        sys.stdout.write(f"{args.map}: block maps; blue vertical-slash, orange query-aware heads\n")


def _write(path, text):
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as fault:
        raise Error(f"{path} cannot be written: {fault}") from fault


_HEAD = "layer  KV head  density  kept mass, worst head  query-aware  error  change"


def _line(found):
    return (
        f"{found.layer:5}  {found.kv_head:7}  {found.density.mean():7.3f}  {found.kept_mass.min():21.4f}  "
        f"{int(found.query_aware.sum()):5} of {len(found.query_aware):2}  {found.error:5.4f}  {found.change:6.4f}"
    )


def _exact(args, text, layers, show):
    from intaglio.host.attention.parameters import divergence_threshold, share
    from intaglio.sim.attention.report import layer_reports

    tokens = _tokens(args, text, args.block)
    show.clear()
    sys.stdout.write(
        f"exact model, {tokens} tokens, blocks of {args.block}, gamma {args.gamma:g}, tau {args.tau:g}\n{_HEAD}\n"
    )
    for done, layer in enumerate(layers):
        show(f"layer {layer}", done / len(layers))
        for found in layer_reports(
            args.model,
            text,
            tokens=tokens,
            layer=layer,
            block=args.block,
            gamma16=share(args.gamma, tokens),
            threshold=divergence_threshold(args.tau),
        ):
            show.clear()
            sys.stdout.write(_line(found) + "\n")
            sys.stdout.flush()
            yield found
            show(f"layer {layer}", done / len(layers))


def _device(args, text, layers, show):
    from intaglio.gen.cycles.attention import dense_cycles
    from intaglio.host import open_attention
    from intaglio.rtl.config.attention import PrefillConfig
    from intaglio.sim.attention.report import device_reports
    from intaglio.sim.attention.timeline import chrome_trace

    shape, taken = args.model.config, []

    def fits(manifest):
        """Refuse a unit that cannot take the model's heads or so many tokens, before it is built."""
        unit = manifest.config
        for name, wanted in (
            ("head_dim", shape.head_dim),
            ("group", shape.num_attention_heads // shape.num_key_value_heads),
        ):
            if unit[name] != wanted:
                raise ValueError(
                    f"{name} of the unit must be {wanted}, the model's, not {unit[name]}: generate one with "
                    f"`intaglio gen prefill --set {name}={wanted}`"
                )
        taken.append(_tokens(args, text, unit["block"], unit["context"]))

    options = {name: value for name in ("cache", "memory") if (value := getattr(args, name))}
    times, total = [], {"sparse": 0, "dense": 0, "rows": 0, "equal": True}
    with open_attention(
        args.device,
        timeout=args.timeout,
        manifest=args.manifest,
        progress=lambda step, _: show(step),
        accept=fits,
        **options,
    ) as device:
        config, tokens = PrefillConfig.from_json(device.manifest.config), taken[0]
        args.block, args.window, args.lines, args.lookahead = (
            config.block,
            config.window,
            config.lines,
            config.lookahead,
        )
        simulation = getattr(device.transport, "simulation", None)
        if args.timeline and simulation is None:
            raise ValueError(f"--timeline needs a simulated device, sim:OUT, not {args.device!r}")
        dense = dense_cycles(config, -(-tokens // config.block))
        show.clear()
        sys.stdout.write(
            f"{args.device}, {tokens} tokens, blocks of {config.block}, gamma {args.gamma:g}, tau {args.tau:g}; times at "
            f"{config.clock_hz / 1e6:g} MHz{', simulated' if simulation else ''}; dense: closed form of this hardware\n"
            f"{_HEAD}  cycles      ms  utilisation  hit rate  MB read  dense / sparse{'  equal' if args.check else ''}\n"
        )
        for layer in layers:
            if args.timeline:
                simulation.record(True)
            show(f"layer {layer}: the model's queries, keys and values")
            for found, told, equal in device_reports(
                device,
                args.model,
                text,
                tokens=tokens,
                layer=layer,
                gamma=args.gamma,
                tau=args.tau,
                check=args.check,
                progress=lambda step, share, layer=layer: show(f"layer {layer}: {step}", share),
            ):
                show.clear()
                count = told.counters
                total["sparse"] += told.cycles
                total["dense"] += dense
                total["rows"] += count["rows"]
                total["equal"] &= equal is not False
                visits = count["hits"] + count["misses"]
                sys.stdout.write(
                    f"{_line(found)}  {told.cycles:9,}  {told.cycles / config.clock_hz * 1e3:5.2f}  {count['rows'] / told.cycles:11.3f}  "
                    f"{count['hits'] / visits:8.2f}  {count['beats'] * config.head_dim / 1e6:7.2f}  {dense / told.cycles:14.2f}"
                    f"{'' if equal is None else '  yes' if equal else '  NO'}\n"
                )
                sys.stdout.flush()
                yield found
                show(f"layer {layer}")
            if args.timeline:
                times.append((f"layer {layer}", *simulation.events()))
        show.clear()
    sys.stdout.write(
        f"all: {total['sparse']:,} cycles, {total['sparse'] / config.clock_hz * 1e3:.2f} ms, utilisation "
        f"{total['rows'] / total['sparse']:.3f}, dense / sparse {total['dense'] / total['sparse']:.2f}\n"
    )
    if args.timeline:
        _write(args.timeline, json.dumps(chrome_trace(times, device.manifest.monitor, config.clock_hz)))
        sys.stdout.write(f"{args.timeline}: time line, to be opened in ui.perfetto.dev or chrome://tracing\n")
    if not total["equal"]:
        raise Error("the device's results differ from the exact model's")
