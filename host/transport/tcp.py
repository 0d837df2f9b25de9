"""The transport ``tcp:HOST:PORT``: a device behind a server (``intaglio serve``).

A server greets with one line of JSON, ``{"intaglio": 1, "manifest": {...}}`` or ``{"intaglio": 1, "error": TEXT}``; then both sides speak
the link of docs/link.md.
"""

import json
import socket
import time

from intaglio.host.manifest import read_json
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout
from intaglio.host.transport.link import LinkTransport
from intaglio.host.transport.session import LinkLost

__all__ = ["GREETING_VERSION", "SocketChannel", "address_of", "open_tcp"]

GREETING_VERSION = 1
CONNECT_SECONDS, WRITE_SECONDS, GREETING_LIMIT = 10.0, 10.0, 1 << 22


def address_of(text):
    """Host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises
    ------
    ValueError
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(
            f"an address must be HOST:PORT with a port in 0..65535, for example 127.0.0.1:7000, not {text!r}"
        )
    return host.strip("[]"), int(port)


def open_tcp(rest, *, manifest=None, progress=None, accept=None):
    """Open the device behind the server at ``HOST:PORT``; the entry point of the scheme ``tcp``.

    Parameters
    ----------
    rest : str
    manifest : str or Path or None
        What the device must be; by default the manifest that the server has is taken as it is.
    progress : None
        Not used.
    accept : callable or None
        Called with the manifest before the device is asked anything.

    Raises
    ------
    ValueError, DeviceError
    """
    host, port = address_of(rest)
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except TimeoutError as fault:
        raise DeviceTimeout(
            f"{rest} must accept a connection within {CONNECT_SECONDS:g} s, but it did not: is the host reachable?"
        ) from fault
    except OSError as fault:
        raise DeviceError(
            f"no connection to {rest}: {fault.strerror or fault}; is `intaglio serve` running there?"
        ) from fault
    channel = SocketChannel(connection, f"tcp:{rest}")
    try:
        described = _greeting(channel)
        if manifest is not None and (wanted := read_json(manifest).get("digest")) != described.get("digest"):
            raise ConfigMismatchError(
                f"the device at {channel.name} has the digest {described.get('digest')}, but the manifest {manifest} "
                f"says {wanted}"
            )
        if accept is not None:
            accept(described)
        return LinkTransport(channel, described)
    except BaseException:
        channel.close()
        raise


def _greeting(channel):
    """The manifest in a server's greeting."""
    data, end = b"", time.monotonic() + CONNECT_SECONDS
    while b"\n" not in data:
        if (left := end - time.monotonic()) <= 0:
            raise DeviceTimeout(
                f"{channel.name} must greet within {CONNECT_SECONDS:g} s, but it did not: is it an intaglio server?"
            )
        data += channel.read(left)
        if len(data) > GREETING_LIMIT:
            break
    line, _, rest = data.partition(b"\n")
    try:
        greeting = json.loads(line)
        version, error, manifest = greeting["intaglio"], greeting.get("error"), greeting.get("manifest")
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DeviceError(f"{channel.name} must greet as an intaglio server, not with {line[:40]!r}") from fault
    if version != GREETING_VERSION:
        raise DeviceError(
            f"the server at {channel.name} must have version {GREETING_VERSION} of the greeting, not {version}"
        )
    if error is not None:
        raise DeviceError(f"the server at {channel.name} says: {error}")
    if not isinstance(manifest, dict) or len(str(manifest.get("digest"))) != 64:
        raise DeviceError(f"the greeting of {channel.name} must have a manifest with a digest")
    channel.put_back(rest)
    return manifest


class SocketChannel:
    """Bytes over a connected socket."""

    def __init__(self, connection, name):
        self.name, self._socket, self._first = name, connection, b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put_back(self, data):
        """Bytes that the next read returns first."""
        self._first = data + self._first

    def read(self, seconds) -> bytes:
        if self._first:
            data, self._first = self._first, b""
            return data
        try:
            self._socket.settimeout(max(seconds, 1e-3))
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return b""
        except OSError as fault:
            raise LinkLost(f"the connection to {self.name} has ended: {fault.strerror or fault}") from fault
        if not data:
            raise LinkLost(f"the connection to {self.name} was closed by the other side")
        return data

    def write(self, data):
        try:
            self._socket.settimeout(WRITE_SECONDS)
            self._socket.sendall(data)
        except TimeoutError as fault:
            raise DeviceTimeout(
                f"{self.name} must take {len(data)} bytes within {WRITE_SECONDS:g} s, but it did not"
            ) from fault
        except OSError as fault:
            raise LinkLost(f"the connection to {self.name} has ended: {fault.strerror or fault}") from fault

    def close(self):
        self._socket.close()
