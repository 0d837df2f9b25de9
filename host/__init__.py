"""The host runtime: opens a device by its manifest and generates text with it. Needs numpy alone."""

from intaglio.host.adapter.files import AdapterError
from intaglio.host.attention.device import AttentionDevice, open_attention
from intaglio.host.device import Device, open
from intaglio.host.manifest import Manifest, ManifestError, PrefillManifest
from intaglio.host.pool import SequenceError
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout, RefusedError, Result
from intaglio.host.scheduler import RequestError
from intaglio.host.text import TextError
from intaglio.host.transport.session import LinkLost

__all__ = [
    "AdapterError",
    "AttentionDevice",
    "ConfigMismatchError",
    "Device",
    "DeviceError",
    "DeviceTimeout",
    "LinkLost",
    "Manifest",
    "ManifestError",
    "PrefillManifest",
    "RefusedError",
    "RequestError",
    "Result",
    "SequenceError",
    "TextError",
    "open",
    "open_attention",
]
