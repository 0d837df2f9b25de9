"""A server that puts one device behind TCP: greets with the manifest, then is the device's end of the link (docs/link.md).

One client at a time; the next one begins with a session of its own, which resets the device. A client that begins none within 10 s is sent
away, so that nobody holds the device by connecting alone.
"""

import ipaddress
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Self

import numpy as np

from intaglio.host.manifest import manifest_of
from intaglio.host.protocol import DeviceError, DeviceTimeout
from intaglio.host.transport import Transport, check_memory
from intaglio.host.transport.frames import MEMORY_WORDS, Decoder, Kind, encode
from intaglio.host.transport.peer import Peer
from intaglio.host.transport.session import LinkLost
from intaglio.host.transport.tcp import GREETING_VERSION, SocketChannel, address_of

__all__ = ["DeviceEnd", "Server", "is_loopback", "listener"]

DEPTH = 128  # words of each direction in the server
SILENT_SECONDS = 10.0  # for which a client may hold the device without beginning a session
POLL_SECONDS = 0.02  # for which the device is waited for while the client is not served
KEEPALIVE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}  # a client whose computer has vanished frees the device in 25 s


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listener(listen: str) -> socket.socket:
    """A socket that listens at ``HOST:PORT``; errors as of :class:`Server`."""
    host, port = address_of(listen)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=4)
    except OSError as fault:
        raise DeviceError(
            f"the address to listen at must be free and this computer's, not {listen}: {fault.strerror or fault}"
        ) from fault


class Server:
    """Serves ``transport`` at ``listen``; a context manager that closes the sockets, not the transport.

    Parameters
    ----------
    transport : Transport
    listen : str
        ``HOST:PORT``; port 0 takes a free one.
    tell : callable
        Called with a line of text when a client comes or goes.

    Raises
    ------
    ValueError, DeviceError
        The address is not one, or cannot be listened at.
    """

    def __init__(
        self, transport: Transport, listen: str = "127.0.0.1:7000", *, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.transport, self.tell = transport, tell
        self._listener = listener(listen)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._client: _Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()
        if self._client is not None:
            self._client.close()
            self._client = None

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Serve until ``stop()`` or the device fails, which is raised."""
        while not stop():
            busy = self._client is not None and self._client.busy
            sockets = [self._listener, *([self._client.socket] if self._client else [])]
            ready, _, _ = select.select(sockets, [], [], 0 if busy else 0.1)
            if self._client is not None:
                self._step(self._client, self._client.socket in ready)
            if self._listener in ready:
                # A client that has closed its connection makes room for the one that follows at once.
                while self._client is not None and select.select([self._client.socket], [], [], 0)[0]:
                    self._step(self._client, True)
                self._accept()

    def _step(self, client, readable):
        try:
            client.step(readable)
        except _ClientGone as gone:
            self.tell(f"client {client.name} has gone{gone}")
            client.close()
            self._client = None

    def _accept(self):
        connection, (host, port, *_) = self._listener.accept()
        if self._client is not None:
            connection.settimeout(1.0)
            try:
                connection.sendall(
                    _line(error=f"the device is in use by {self._client.name}; only one client at a time")
                )
            except OSError:
                pass
            connection.close()
            return
        self.tell(f"client {host}:{port} has come")
        self._client = _Client(connection, f"{host}:{port}", self.transport)


def _line(**fields):
    return (json.dumps({"intaglio": GREETING_VERSION, **fields}) + "\n").encode()


class _ClientGone(Exception):
    """The client's connection has ended; not a fault of the device."""


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket, name: str, transport: Transport) -> None:
        self.socket, self.name = connection, name
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._channel, self._end = SocketChannel(connection, name), DeviceEnd(transport)
        self._outgoing, self._came = _line(manifest=transport.manifest), time.monotonic()

    def close(self):
        self.socket.close()

    @property
    def busy(self) -> bool:
        """Whether there is something to do without bytes from the client."""
        return bool(self._outgoing) or self._end.busy

    def step(self, readable):
        if self._end.peer.session is None and time.monotonic() - self._came > SILENT_SECONDS:
            raise _ClientGone(f": it began no session within {SILENT_SECONDS:g} s")
        try:
            self._end.feed(self._channel.read(0) if readable else b"")
            self._outgoing += self._end.step()
            if self._outgoing:
                self._channel.write(self._outgoing)
                self._outgoing = b""
        except _DeviceFault as fault:
            raise fault.args[0] from None
        except (LinkLost, DeviceTimeout) as fault:
            raise _ClientGone(f": {fault}") from fault


class _DeviceFault(Exception):
    """A fault of the device and not of the client's connection; its argument is the fault."""


class DeviceEnd:
    """The device's end of the link for any transport: bytes of frames in, bytes of frames out."""

    def __init__(self, transport: Transport) -> None:
        manifest = manifest_of(transport.manifest)
        self.transport, self._owed = transport, manifest.owed()
        self.peer = Peer(manifest.digest_word, depth=DEPTH, memory=bool(transport.manifest.get("memory_bus")))
        self._decoder, self._resets = Decoder(), 0
        self._given = 0  # commands given to the transport and not taken from the peer
        self._packet: list[int] = []  # words of the packet under way

    @property
    def busy(self) -> bool:
        """Whether the device has something to do."""
        return bool(self._owed and self.peer.room or self.transport.pending or self.peer.commands)

    def feed(self, data: bytes) -> None:
        """Bytes from the host."""
        for frame in self._decoder.feed(data):
            self.peer.receive(frame)
            try:
                self._obey()
            except (LinkLost, DeviceTimeout) as fault:
                raise _DeviceFault(fault) from fault

    def step(self) -> bytes:
        """Let the device work for a moment; bytes for the host."""
        try:
            self._move()
        except (LinkLost, DeviceTimeout) as fault:
            raise _DeviceFault(fault) from fault
        frames = []
        while (frame := self.peer.next_frame()) is not None:
            frames.append(encode(frame))
        return b"".join(frames)

    def _obey(self):
        """Reset, and access to registers and memory."""
        peer = self.peer
        if peer.resets != self._resets:
            self._resets = peer.resets
            self.transport.reset()
            self._owed.clear()
            self._given, self._packet = 0, []
        if peer.access is not None:
            try:
                peer.answer(*self._access(*peer.access))
            except (LinkLost, DeviceTimeout):
                raise
            except (DeviceError, ValueError):  # of the bus, or of what the client asks for
                peer.answer(0, fault=True)

    def _access(self, kind, address, value):
        """Carry out an access; the words of its answer."""
        if kind == Kind.READ:
            return (self.transport.read_register(address),)
        if kind == Kind.WRITE:
            self.transport.write_register(address, value)
            self._owed.wrote(address, value)
        elif isinstance(value, tuple):
            check_memory(self.transport.manifest, address, 4 * len(value))
            self.transport.write_memory(address, np.array(value, "<u4").view(np.uint8))
        elif not 0 < value <= MEMORY_WORDS:
            raise ValueError(f"an access must read 1 to {MEMORY_WORDS} words of memory, not {value}")
        else:
            check_memory(self.transport.manifest, address, 4 * value)
            return self.transport.read_memory(address, 4 * value).view("<u4").tolist()
        return (0,)

    def _move(self):
        """Commands to the device, results from it."""
        peer = self.peer
        if len(peer.commands) > self._given:
            words, last = (np.array(column) for column in zip(*peer.commands[self._given :], strict=True))
            words = words.astype(np.uint32)
            sent = self.transport.send(words, last, POLL_SECONDS)
            self._owed.add(words[:sent])
            self._given += sent
        taken = max(0, self._given - self.transport.pending)
        if taken:
            peer.take(taken)
            self._given -= taken
        if not peer.room or not (self._owed or self.transport.pending):
            return
        words, last = self.transport.receive(peer.room, POLL_SECONDS)
        for word, end in zip(words.tolist(), last.tolist(), strict=True):
            peer.put(word, end)
            self._packet.append(word)
            if end:
                self._owed.packet(self._packet)
                self._packet = []
