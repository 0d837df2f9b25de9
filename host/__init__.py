"""The host runtime: opens a device by its manifest and generates text with it. Needs numpy alone."""

from intaglio.host.device import Device, open
from intaglio.host.manifest import Manifest, ManifestError
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout, Result
from intaglio.host.transport.session import LinkLost

__all__ = ["ConfigMismatchError", "Device", "DeviceError", "DeviceTimeout", "LinkLost", "Manifest", "ManifestError", "Result", "open"]
