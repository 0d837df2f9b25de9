"""Transports: how words and registers reach a device, whatever it is.

A transport is found by the scheme of its target, ``SCHEME:REST``. Schemes are entry points of the group
``intaglio.transports``; the value of each is a function ``open(rest, *, manifest=None, progress=None, **options)``:
``manifest`` is a path where the device does not bring its manifest, ``progress`` is called with a text and seconds while
something long is prepared. One that has a parameter ``accept`` calls it with the manifest before anything long is prepared; it raises to
refuse the device.
"""

import inspect
from importlib.metadata import entry_points
from typing import Protocol
from urllib.parse import parse_qsl

import numpy as np

__all__ = ["GROUP", "Transport", "open_transport", "options_of", "register"]

GROUP = "intaglio.transports"
_registered = {}


class Transport(Protocol):
    """What every transport offers. Subclassing is not needed.

    Words are 32 bits wide. Commands and results are AXI4-Streams whose last words of packets are marked.

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
    pending: int
    cycles: int | None
    watch: object

    def send(self, words: np.ndarray, last: np.ndarray, timeout: float) -> int:
        """Give the device command words ``uint32 [n]`` with flags ``bool [n]``; return how many were taken within
        ``timeout`` seconds. Those may wait in the transport; the others are forgotten."""

    def receive(self, capacity: int, timeout: float) -> tuple[np.ndarray, np.ndarray]:
        """Wait for result words ``uint32 [m]`` and flags ``bool [m]``, ``m <= capacity``. Returns at the end of a packet,
        when ``capacity`` is reached, or with what there is when no word has moved for ``timeout`` seconds."""

    def read_register(self, offset: int) -> int:
        """Read the 32-bit register at byte ``offset``."""

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte ``offset``."""

    def reset(self) -> None:
        """Reset the device and forget words under way."""

    def close(self) -> None:
        """Release the device; closing twice does nothing."""


def register(scheme, opener):
    """Make ``opener`` the transport of ``scheme`` in this process, before any installed one; None takes it back."""
    if opener is None:
        _registered.pop(scheme, None)
    else:
        _registered[scheme] = opener


def open_transport(target, *, manifest=None, progress=None, accept=None, **options) -> Transport:
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


def options_of(rest, known):
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
