"""``intaglio attention``: sparse prefill attention on the activations of a model, by the exact model."""

import sys
from pathlib import Path

from intaglio import Error

__all__ = ["register"]


def register(subparsers):
    """Add the command ``attention``."""
    parser = subparsers.add_parser(
        "attention", help="sparse attention on a long text",
        description="Sparse prefill attention on the queries, keys and values that a model produces on a text, computed by the exact "
        "integer model of the hardware. This command simulates no Verilog yet.")
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder of a byte-level model")
    parser.add_argument("--text", required=True, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="tokens of the text to take, default 4096")
    parser.add_argument("--block", type=int, default=128, metavar="B", help="tokens of a block: 32, 64 or 128, default 128")
    parser.add_argument("--gamma", type=float, default=0.9, help="share of the estimated mass to keep, default 0.9")
    parser.add_argument("--tau", type=float, default=0.1, help="divergence below which a head is query-aware, default 0.1; 0: none")
    parser.add_argument("--window", type=int, default=8, metavar="W", help="query blocks on chip at once, default 8")
    parser.add_argument("--lines", type=int, default=12, metavar="L", help="blocks of K and V in the cache, default 12")
    parser.add_argument("--lookahead", type=int, default=3, metavar="A", help="visits that the cache looks ahead, default 3")
    parser.add_argument("--map", metavar="FILE.svg", help="write the block map as a picture")
    parser.set_defaults(run=run)


def _check(args):
    from intaglio.host.prefill.parameters import divergence_threshold, share

    if args.block not in (32, 64, 128):
        raise ValueError(f"--block must be 32, 64 or 128, not {args.block}")
    if args.tokens < 2 * args.block:
        raise ValueError(f"--tokens must be at least two blocks, {2 * args.block}, not {args.tokens}")
    if args.window < 1 or args.window & args.window - 1:
        raise ValueError(f"--window must be a power of 2, not {args.window}")
    if args.lookahead < 1 or args.lines < args.lookahead + 2:
        raise ValueError(f"--lines must be at least --lookahead + 2 and --lookahead at least 1, not {args.lines} and {args.lookahead}")
    if args.map and not args.map.endswith(".svg"):
        raise ValueError(f"--map must end in .svg, not {args.map!r}")
    return share(args.gamma), divergence_threshold(args.tau)


def run(args):
    gamma16, threshold = _check(args)
    try:
        text = Path(args.text).read_bytes()
    except OSError as fault:
        raise Error(f"the text cannot be read: {fault}") from fault
    try:
        from intaglio.gen.model import ModelConfig
        from intaglio.sim.prefill.picture import block_map_svg
        from intaglio.sim.prefill.report import layer_reports, traffic
    except ModuleNotFoundError as fault:
        raise Error(f"the command needs the Python module {fault.name!r}: pip install 'intaglio[sim]'") from fault

    layers = ModelConfig.from_json(Path(args.model) / "config.json").num_hidden_layers
    rows, keeps = [], []
    sys.stdout.write(f"exact model, {args.tokens} tokens, blocks of {args.block}, gamma {args.gamma:g}, tau {args.tau:g}\n"
                     "layer  KV head  density  kept mass, worst head  query-aware  error  change\n")
    for layer in range(layers):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[Klayer {layer + 1} of {layers}")
            sys.stderr.flush()
        for found in layer_reports(args.model, text, tokens=args.tokens, layer=layer, block=args.block, gamma16=gamma16,
                                   threshold=threshold):
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")
            sys.stdout.write(f"{layer:5}  {found.kv_head:7}  {found.density.mean():7.3f}  {found.kept_mass.min():21.4f}  "
                             f"{int(found.query_aware.sum()):5} of {len(found.query_aware):2}  {found.error:5.4f}  {found.change:6.4f}\n")
            keeps.append(found.keep)
            rows.append([(f"layer {layer}, head {found.kv_head * len(found.keep) + head}: {share:.0%}", found.keep[head].tolist(),
                          bool(found.query_aware[head])) for head, share in enumerate(found.density.tolist())])
    read = traffic(keeps, window=args.window, lines=args.lines, lookahead=args.lookahead)
    sys.stdout.write(
        "error: of the integers against float attention over the same blocks; change: of sparse against dense attention, both relative\n"
        f"blocks of K and V read, cache of {args.lines}, windows of {args.window} (counted by the cache's model): {read['ours']}, "
        f"optimum {read['belady']}, LRU {read['lru']}, no cache {read['visits']}, each job by itself {read['single']}\n")
    if args.map:
        try:
            Path(args.map).write_text(block_map_svg(rows), encoding="utf-8")
        except OSError as fault:
            raise Error(f"the picture cannot be written: {fault}") from fault
        sys.stdout.write(f"{args.map}: block maps; blue vertical-slash, orange query-aware heads\n")
