"""What a device of every kind is to the host: opened by its target, known by its manifest, and read and written by names of registers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from intaglio.host.manifest import DeviceManifest
from intaglio.host.protocol import ConfigMismatchError, DeviceError
from intaglio.host.transport import Transport, check_memory, open_transport

__all__ = ["BaseDevice"]


class BaseDevice:
    """A device behind a transport; a context manager that closes it.

    Parameters
    ----------
    transport : Transport
    timeout : float
        Seconds without anything moving after which an operation fails.

    Attributes
    ----------
    manifest : DeviceManifest
        Of the kind that :attr:`MANIFEST` is.
    info : dict
        What the device is: top, digest, generator, clock_hz, version, capabilities and the figures of its shape.

    Raises
    ------
    ConfigMismatchError
        A register that tells what the device is differs from the manifest's.
    ManifestError
    """

    MANIFEST: ClassVar[type[DeviceManifest]]
    SHAPE: ClassVar[str]  # where the manifest has the figures of the device's shape

    transport: Any  # a Transport, with what else its kind has
    manifest: Any

    def __init__(self, transport: Transport, *, timeout: float = 60.0) -> None:
        self.transport, self.timeout, self._closed = transport, timeout, False
        self.manifest = self.MANIFEST.from_dict(transport.manifest)
        expected, found = self.manifest.identity, {}
        for name in (*expected, *({"capabilities"} - expected.keys())):
            found[name] = self.read_register(name)
            if found[name] != expected.get(name, found[name]):
                raise ConfigMismatchError(
                    f"the device's {name} register is 0x{found[name]:08x}, but its manifest "
                    f"(digest {self.manifest.digest[:16]}) says 0x{expected[name]:08x}: "
                    "device and manifest must come from the same generated folder"
                )
        said = {name: getattr(self.manifest, name) for name in ("top", "digest", "generator", "clock_hz")}
        told = {name: found[name] for name in ("version", "capabilities")}
        self.info = said | told | getattr(self.manifest, self.SHAPE)

    @classmethod
    def open(
        cls,
        target: str,
        *,
        timeout: float = 60.0,
        manifest: str | Path | None = None,
        progress: Callable[[str, float], None] | None = None,
        accept: Callable[[DeviceManifest], object] | None = None,
        **options: Any,
    ) -> Self:
        """Open the device at ``SCHEME:REST``, for example ``sim:OUT`` with a generated folder.

        Parameters
        ----------
        target : str
        timeout : float
            Seconds without anything moving after which an operation fails.
        manifest : str or Path or None
            The manifest, for transports that do not bring it.
        progress : callable or None
            Called with a text and seconds while something long is prepared, such as the build of a simulation.
        accept : callable or None
            Called with the manifest before that; raises where the device does not suit.
        options
            Passed to the transport, for example ``cache=FOLDER``.

        Raises
        ------
        ConfigMismatchError
            The device is not the one that the manifest describes.
        ManifestError, ValueError
        """
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")

        def judge(described):
            found = cls.MANIFEST.from_dict(described)
            if accept is not None:
                accept(found)

        transport = open_transport(target, manifest=manifest, progress=progress, accept=judge, **options)
        try:
            return cls(transport, timeout=timeout)
        except BaseException:
            transport.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Release the transport; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self.transport.close()

    def _check_open(self):
        if self._closed:
            raise DeviceError("the device is closed")

    def _register(self, name):
        self._check_open()
        if name not in self.manifest.registers:
            raise ValueError(f"register must be one of {', '.join(sorted(self.manifest.registers))}, not {name!r}")
        return self.manifest.registers[name]

    def read_register(self, name: str) -> int:
        """Value of the register ``name``, 0 to 2**32 - 1."""
        return self.transport.read_register(self._register(name).offset)

    def write_register(self, name: str, value: int) -> None:
        """Write ``value`` to the register ``name``, which the manifest must declare writable."""
        register = self._register(name)
        if register.access == "ro":
            raise ValueError(f"register {name!r} must be writable, but it is read-only")
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError(f"a register's value must fit 32 bits, not {value}")
        self.transport.write_register(register.offset, value)

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        """Write bytes ``uint8 [n]`` to the device's memory, see :func:`intaglio.host.transport.check_memory`."""
        self._check_open()
        check_memory(self.transport.manifest, address, len(data))
        self.transport.write_memory(address, data)

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        """``length`` bytes of the device's memory from byte ``address`` on, ``uint8 [length]``."""
        self._check_open()
        check_memory(self.transport.manifest, address, length)
        return self.transport.read_memory(address, length)

    def read_cycles(self) -> int:
        """The 64-bit cycle counter, read without tearing."""
        high = self.read_register("cycles_hi")
        while True:
            low, again = self.read_register("cycles_lo"), self.read_register("cycles_hi")
            if again == high:
                return high << 32 | low
            high = again
