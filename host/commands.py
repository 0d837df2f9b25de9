"""``intaglio devices``: what is connected. ``intaglio serve``: a device behind TCP."""

import argparse
import sys

__all__ = ["register_devices", "register_serve"]


def register_devices(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``devices``."""
    parser = subparsers.add_parser(
        "devices",
        help="list the serial ports, and ask what is behind them",
        description="List the serial ports of this computer. With --probe each is opened and asked for its "
        "digest, which resets an intaglio device and sends a few bytes to whatever else is there. Exit code 1 "
        "if what was asked for is missing: the device of a --manifest, one at every --port, any at all.",
    )
    parser.add_argument("--probe", action="store_true", help="ask each port whether an intaglio device is behind it")
    parser.add_argument("--port", action="append", metavar="PORT", help="ask this port only; may be repeated")
    parser.add_argument("--baud", type=int, default=1_000_000, metavar="N", help="baud rate to ask at, default 1000000")
    parser.add_argument(
        "--manifest",
        action="append",
        default=[],
        metavar="PATH",
        help="name the device whose manifest this is, when its digest is found; may be repeated",
    )
    parser.set_defaults(run=devices)


def devices(args: argparse.Namespace) -> int:
    """List serial ports, one line each on standard output; 1 if a device that was asked for is not there."""
    from intaglio.host.manifest import manifest_of, read_json
    from intaglio.host.protocol import DeviceError
    from intaglio.host.transport.serial import Port, delay, ports, probe

    asking = args.probe or bool(args.port)
    if args.manifest and not asking:
        raise ValueError("--manifest needs --probe or --port, which ask for its digest")
    manifests = {path: manifest_of(read_json(path)) for path in args.manifest}
    known = {manifest.digest_word: f"{path} ({manifest.top})" for path, manifest in manifests.items()}
    rows = ports()
    if args.port:
        found = {row.port: row for row in rows}
        rows = [found.get(port, Port(port=port, description="", vendor=None, product=None)) for port in args.port]
    answers = []
    for row in rows:
        line = [row.port, "-" if row.vendor is None else f"{row.vendor:04x}:{row.product:04x}", row.description or "-"]
        if asking:
            try:
                answers.append(probe(row.port, args.baud))
                line.append(
                    f"intaglio device, digest {answers[-1]:08x}"
                    + (f": {known[answers[-1]]}" if answers[-1] in known else "")
                )
                line += [slow] if (slow := delay(row)) else []
            except DeviceError as fault:
                line.append(str(fault))
        sys.stdout.write("\t".join(line) + "\n")
        sys.stdout.flush()
    if not rows:
        sys.stdout.write("no serial ports\n")
    if not asking:
        if rows:
            sys.stderr.write("intaglio: --probe asks each port for its device\n")
        return 0
    missing = [text for digest, text in known.items() if digest not in answers]
    if args.port and len(answers) < len(rows):
        missing.append(f"a device at {len(rows) - len(answers)} of {len(rows)} ports")
    elif not answers and not missing:
        missing.append("any device")
    for text in missing:
        _note(f"not found: {text}")
    return int(bool(missing))


def register_serve(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="put a device behind TCP",
        description="Open a device and serve it to one client at a time, which opens it as tcp:HOST:PORT. "
        "Whoever can reach the address can use the device: there is no password and no encryption.",
    )
    parser.add_argument("--device", required=True, metavar="SCHEME:REST", help="for example sim:OUT or serial:PORT")
    parser.add_argument(
        "--listen",
        default="127.0.0.1:7000",
        metavar="HOST:PORT",
        help="default 127.0.0.1:7000, which only this computer can reach; 0.0.0.0:7000 is every network",
    )
    parser.add_argument("--manifest", metavar="FILE", help="for devices that do not bring their manifest")
    parser.add_argument("--cache", metavar="DIR", help="folder for built simulations")
    parser.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    from intaglio.host import AttentionDevice, Device
    from intaglio.host.manifest import manifest_of
    from intaglio.host.server import Server, is_loopback, listener
    from intaglio.host.transport import open_transport
    from intaglio.host.transport.tcp import address_of
    from intaglio.progress import Progress

    host, _ = address_of(args.listen)
    listener(args.listen).close()  # told before anything is built
    options = {} if args.cache is None else {"cache": args.cache}
    with Progress() as show:
        transport = open_transport(
            args.device, manifest=args.manifest, progress=lambda text, _: show(text), accept=manifest_of, **options
        )
    try:
        kind = type(manifest_of(transport.manifest))
        opened = next(found for found in (Device, AttentionDevice) if found.MANIFEST is kind)
        described = opened(transport).info  # a wrong bitstream is refused here
        with Server(transport, args.listen, tell=_note) as server:
            reach = (
                "this computer only"
                if is_loopback(host)
                else "WARNING: anyone who can reach this address can use the device"
            )
            _note(f"{args.device} (digest {described['digest'][:8]}) at tcp:{server.address}, {reach}; Ctrl-C ends")
            server.run()
    finally:
        transport.close()


def _note(text):
    sys.stderr.write(f"intaglio: {text}\n")
    sys.stderr.flush()
