"""Loading an adapter into a device: registers of its loader, docs/adapters.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intaglio.host.adapter.files import AdapterError, quantise_adapter, read_adapter
from intaglio.host.adapter.image import adapter_image, image_crc
from intaglio.host.manifest import Manifest
from intaglio.host.protocol import DeviceError

if TYPE_CHECKING:
    from intaglio.host.device import Device


__all__ = ["adapter_words", "load_adapter"]

LOADING, LOADED = 1, 2
REFUSALS = {
    3: "the slot does not exist",
    4: "the token under way still reads the memory",
    5: "the image is for another device",
    6: "the image is incomplete",
    7: "the image is too long",
    8: "the CRC-32 differs: words were damaged on the way",
}


def load_adapter(device: Device, folder: Path | str, *, slot: int | None = None) -> int:
    """Load the adapter in ``folder``.

    The files are read, checked and rounded before the first word is sent. The words go into memory that no sequence reads; the slot
    changes at the end, at once, if the device finds the image whole. Whatever fails, the slots hold what they held.

    Parameters
    ----------
    device : Device
    folder : path
        With PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``.
    slot : int or None
        The slot to load, which may hold an adapter already; by default the first that holds none.

    Returns
    -------
    int : the slot.

    Raises
    ------
    AdapterError, TensorError
        The device has no adapters, or no slot left, or the files are damaged or do not fit.
    DeviceError
        The device refused the image.
    """
    words = adapter_words(device.manifest, folder)
    layout = device.manifest.adapter or {}
    if slot is None:
        free = [s for s in range(layout["slots"]) if s not in device.adapters]
        if not free:
            raise AdapterError(
                f"the device has memory for {layout['slots']} adapters, which are all loaded: name the slot to replace"
            )
        slot = free[0]
    if type(slot) is not int or not 0 <= slot < layout["slots"]:
        raise AdapterError(f"slot must be in 0..{layout['slots'] - 1}, not {slot!r}")
    device.drain()
    device.write_register("adapter_begin", slot)
    _expect(device, LOADING)
    for word in words.tolist():
        device.write_register("adapter_data", word)
    device.write_register("adapter_commit", image_crc(words))
    _expect(device, LOADED)
    return slot


def adapter_words(manifest: Manifest, folder: Path | str) -> np.ndarray:
    """The image uint32 [n] of the adapter in ``folder`` for a device of this manifest; errors as :func:`load_adapter`."""
    layout = manifest.adapter
    if layout is None:
        raise AdapterError("a device must have adapter hardware to load an adapter: generate it with --set rank=8")
    words = adapter_image(quantise_adapter(read_adapter(folder, layout), layout), layout, manifest.digest_word)
    if len(words) != layout["image_words"]:
        raise AdapterError(
            f"the image must have {layout['image_words']} words, not {len(words)}: host and generator differ in version"
        )
    return words


def _expect(device, outcome):
    found = device.read_register("adapter_status") & 15
    if found != outcome:
        raise DeviceError(
            f"the device refused the adapter, nothing has changed: {REFUSALS.get(found, f'status {found}')}"
        )
