"""``intaglio devices``: what is connected. ``intaglio serve``: a device behind TCP."""

import sys

__all__ = ["register_devices", "register_serve"]


def register_devices(subparsers):
    """Add the command ``devices``."""
    parser = subparsers.add_parser("devices", help="list the serial ports, and ask what is behind them",
                                   description="List the serial ports of this computer. With --probe each is opened and asked for its "
                                   "digest, which resets an intaglio device and sends a few bytes to whatever else is there.")
    parser.add_argument("--probe", action="store_true", help="ask each port whether an intaglio device is behind it")
    parser.add_argument("--port", action="append", metavar="PORT", help="ask this port only; may be repeated")
    parser.add_argument("--baud", type=int, default=1_000_000, metavar="N", help="baud rate to ask at, default 1000000")
    parser.add_argument("--manifest", action="append", default=[], metavar="PATH",
                        help="name the device whose manifest this is, when its digest is found; may be repeated")
    parser.set_defaults(run=devices)


def devices(args):
    """List serial ports; one line each on standard output."""
    from intaglio.host.manifest import Manifest
    from intaglio.host.protocol import DeviceError
    from intaglio.host.transport.serial import ports, probe

    known = {manifest.digest_word: f"{path} ({manifest.top})" for path in args.manifest for manifest in [Manifest.read(path)]}
    rows = [(port.port, "-" if port.vendor is None else f"{port.vendor:04x}:{port.product:04x}", port.description or "-")
            for port in ports()]
    if args.port:
        found = {row[0]: row for row in rows}
        rows = [found.get(port, (port, "-", "-")) for port in args.port]
    if not rows:
        sys.stdout.write("no serial ports\n")
        return
    for port, usb, description in rows:
        answer = []
        if args.probe or args.port:
            try:
                digest = probe(port, args.baud)
                answer = [f"intaglio device, digest {digest:08x}" + (f": {known[digest]}" if digest in known else "")]
            except DeviceError as fault:
                answer = [str(fault)]
        sys.stdout.write("\t".join([port, usb, description, *answer]) + "\n")
        sys.stdout.flush()
    if not (args.probe or args.port):
        sys.stderr.write("intaglio: --probe asks each port for its device\n")


def register_serve(subparsers):
    """Add the command ``serve``."""
    parser = subparsers.add_parser("serve", help="put a device behind TCP",
                                   description="Open a device and serve it to one client at a time, which opens it as tcp:HOST:PORT. "
                                   "Whoever can reach the address can use the device: there is no password and no encryption.")
    parser.add_argument("--device", required=True, metavar="SCHEME:REST", help="for example sim:OUT or serial:PORT")
    parser.add_argument("--listen", default="127.0.0.1:7000", metavar="HOST:PORT",
                        help="default 127.0.0.1:7000, which only this computer can reach; 0.0.0.0:7000 is every network")
    parser.add_argument("--manifest", metavar="FILE", help="for devices that do not bring their manifest")
    parser.add_argument("--cache", metavar="DIR", help="folder for built simulations")
    parser.set_defaults(run=serve)


def serve(args):
    """Serve until Ctrl-C."""
    from intaglio.host.cli import Progress
    from intaglio.host.device import Device
    from intaglio.host.server import Server, is_loopback
    from intaglio.host.transport import open_transport
    from intaglio.host.transport.tcp import address_of

    host, _ = address_of(args.listen)  # told before anything is built
    options = {} if args.cache is None else {"cache": args.cache}
    transport = open_transport(args.device, manifest=args.manifest, progress=Progress(), **options)
    try:
        described = Device(transport).info  # a wrong bitstream is refused here
        with Server(transport, args.listen, tell=_note) as server:
            reach = "this computer only" if is_loopback(host) else "WARNING: anyone who can reach this address can use the device"
            _note(f"{args.device} (digest {described['digest'][:8]}) at tcp:{server.address}, {reach}; Ctrl-C ends")
            server.run()
    finally:
        transport.close()


def _note(text):
    sys.stderr.write(f"intaglio: {text}\n")
    sys.stderr.flush()
