"""Transports: how words and registers reach a device, whatever it is.

A transport is found by the scheme of its target, ``SCHEME:REST``. Schemes are entry points of the group
``intaglio.transports``; the value of each is a function ``open(rest, *, manifest=None, progress=None, **options)``:
``manifest`` is a path where the device does not bring its manifest, ``progress`` is called with a text and seconds while
something long is prepared. One that has a parameter ``accept`` calls it with the manifest before anything long is prepared; it raises to
refuse the device.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from intaglio.host.protocol import DeviceError

__all__ = ["GROUP", "Transport", "check_memory", "open_transport", "options_of", "register"]

GROUP = "intaglio.transports"
_registered = {}


class Transport(Protocol):
    """What every transport offers. Subclassing is not needed. A device has what its manifest states: commands, if ``streams`` has them, a
    memory, if there is a ``memory_bus``; nothing else is asked of its transport.

    Words are 32 bits wide. Commands and results are AXI4-Streams whose last words of packets are marked. A result that is wider comes as
    several words, the least significant first, and its ``tuser``, where there is one, follows as a word of its own.

    Members
    -------
    manifest : dict
        The manifest of the device as read from its JSON file.
    pending : int
        Command words that are known not to have been taken by the device yet; 0 where this cannot be known.
    cycles : int or None
        Clock cycles since the transport was opened, where they can be known without asking the device.
    watch : callable or None
        Set by whoever wants to know how a wait goes, ``pending`` for one: called now and then in :meth:`send` and :meth:`receive`, without
        arguments. A transport that cannot look up while it waits leaves it alone.
    """

    manifest: dict
    watch: Callable[[], None] | None

    @property
    def pending(self) -> int: ...

    @property
    def cycles(self) -> int | None: ...

    def send(self, words: npt.NDArray[np.uint32], last: npt.NDArray[np.bool_], timeout: float) -> int:
        """Give the device command words ``uint32 [n]`` with flags ``bool [n]``; return how many were taken within
        ``timeout`` seconds. Those may wait in the transport; the others are forgotten."""

    def receive(self, capacity: int, timeout: float) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Wait for result words ``uint32 [m]`` and flags ``bool [m]``, ``m <= capacity``. Returns at the end of a packet,
        when ``capacity`` is reached, or with what there is when no word has moved for ``timeout`` seconds."""

    def read_register(self, offset: int) -> int:
        """Read the 32-bit register at byte ``offset``."""

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte ``offset``."""

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        """Write bytes ``uint8 [n]`` to the device's memory from byte ``address`` on, which :func:`check_memory` has found right."""

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        """Read ``length`` bytes ``uint8`` of the device's memory from byte ``address`` on, likewise."""

    def reset(self) -> None:
        """Reset the device and forget words under way; its memory stays as it is."""

    def close(self) -> None:
        """Release the device; closing twice does nothing."""


def check_memory(manifest: dict, address: int, length: int) -> None:
    """Refuse an access to memory that the device of ``manifest`` does not have.

    Raises
    ------
    DeviceError
        It has none at all.
    ValueError
        Address and length must be multiples of 4, and end within the addresses of the memory's bus.
    """
    bus = manifest.get("memory_bus")
    if bus is None:
        raise DeviceError("the device has no memory that the host can read or write")
    for name, value in (("address", address), ("length", length)):
        if value < 0 or value % 4:
            raise ValueError(f"{name} of a memory access must be a multiple of 4 from 0, not {value}")
    if address + length > 1 << bus["address_width"]:
        raise ValueError(
            f"a memory access must end within 2^{bus['address_width']} bytes, not at address {address + length:#x}"
        )


def register(scheme: str, opener: Callable[..., Transport] | None) -> None:
    """Make ``opener`` the transport of ``scheme`` in this process, before any installed one; None takes it back."""
    if opener is None:
        _registered.pop(scheme, None)
    else:
        _registered[scheme] = opener


def open_transport(
    target: str,
    *,
    manifest: str | Path | None = None,
    progress: Callable[[str, float], None] | None = None,
    accept: Callable[[dict], object] | None = None,
    **options,
) -> Transport:
    """Open ``SCHEME:REST``; ``accept`` is called with the manifest, as early as the transport can, and raises to refuse it.

    Raises
    ------
    ValueError
        The target has no scheme, an unknown one, or one that does not take an option.
    """
    scheme, colon, rest = str(target).partition(":")
    if not colon or not scheme or not rest:
        raise ValueError(f"target must be SCHEME:REST, for example sim:OUT, not {str(target)!r}")
    installed = {found.name: found for found in entry_points(group=GROUP)}
    if scheme not in _registered and scheme not in installed:
        known = ", ".join(sorted({*_registered, *installed})) or "none"
        raise ValueError(f"the scheme of a target must be that of an installed transport ({known}), not {scheme!r}")
    opener = _registered[scheme] if scheme in _registered else installed[scheme].load()
    signature = inspect.signature(opener)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for name in options:
            if name not in signature.parameters:
                raise ValueError(f"the transport {scheme!r} takes no option {name!r}")
    if accept is None or "accept" in signature.parameters:
        return opener(
            rest, manifest=manifest, progress=progress, **options, **({} if accept is None else {"accept": accept})
        )
    transport = opener(rest, manifest=manifest, progress=progress, **options)
    try:
        accept(transport.manifest)
    except BaseException:
        transport.close()
        raise
    return transport


def options_of(rest: str, known: dict[str, type]) -> tuple[str, dict]:
    """Split ``PLACE?NAME=VALUE&NAME=VALUE`` into the place and a dict of options.

    Parameters
    ----------
    rest : str
    known : dict
        The type of each option that there is, by name.

    Raises
    ------
    ValueError
        An option is unknown, given twice, or not of its type.
    """
    place, _, query = rest.partition("?")
    found = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"an option of the target must be one of {', '.join(sorted(known))}, not {name!r}")
        if name in found:
            raise ValueError(f"the option {name} of the target must be given once")
        try:
            found[name] = known[name](text)
        except ValueError:
            raise ValueError(
                f"the option {name} of the target must be of type {known[name].__name__}, not {text!r}"
            ) from None
    if not place:
        raise ValueError(f"a target must name a place before its options, not {rest!r}")
    return place, found
