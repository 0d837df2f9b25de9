"""The transport ``xrt:INDEX?xclbin=PATH&manifest=PATH``: a kernel on an Alveo card, through pyxrt (which comes with XRT).

The kernel (``intaglio.rtl.top.kernel``) takes a list of operations from one buffer and puts its answers into another; a run ends by itself.
Class of this code: tested with a stand-in for pyxrt, never on a card.
"""

import importlib
from pathlib import Path

import numpy as np

from intaglio import Error
from intaglio.host.manifest import read_json
from intaglio.host.protocol import DeviceError, DeviceTimeout
from intaglio.host.transport import options_of

__all__ = ["XrtTransport", "open_xrt"]

KERNEL = "intaglio_kernel"
COMMAND, LAST_COMMAND, READ, WRITE, RESET = range(5)
WORDS = 1024  # operations and answers of a run at most
OPERATIONS_ARGUMENT, ANSWERS_ARGUMENT = 0, 2
REGISTER_SECONDS, GRACE_SECONDS = 1.0, 5.0
LARGEST = (1 << 31) - 1  # pyxrt passes scalars as int


def open_xrt(rest, *, manifest=None, progress=None, accept=None):
    """Open the card ``INDEX?xclbin=PATH&manifest=PATH``; the entry point of the scheme ``xrt``.

    Parameters
    ----------
    rest : str
        The manifest defaults to ``manifest.json`` beside the xclbin.
    manifest : str or Path or None
        In place of the target's.
    progress : callable or None
        Called with a text and seconds.
    accept : callable or None
        Called with the manifest before the card is opened.

    Raises
    ------
    Error, ValueError, DeviceError
    """
    index, options = options_of(rest, {"xclbin": str, "manifest": str})
    if not index.isdecimal():
        raise ValueError(f"an xrt target must name a card by its index, xrt:0?xclbin=PATH, not {index!r}")
    if "xclbin" not in options:
        raise ValueError(f"an xrt target needs the kernel's binary: xrt:{index}?xclbin=PATH")
    xclbin = Path(options["xclbin"])
    if not xclbin.is_file():
        raise Error(f"the xclbin {xclbin} must be a file")
    described = read_json(manifest or options.get("manifest") or xclbin.parent / "manifest.json")
    if not isinstance(described, dict) or "kernel" not in described:
        raise ValueError("the manifest must be that of a card's package (intaglio board u280 or u55c)")
    if accept is not None:
        accept(described)
    try:
        pyxrt = importlib.import_module("pyxrt")
    except ModuleNotFoundError as fault:
        raise Error("cards need pyxrt, which comes with Xilinx XRT: source /opt/xilinx/xrt/setup.sh") from fault
    if progress:
        progress(f"loading {xclbin.name}", 0.0)
    return XrtTransport(pyxrt, int(index), xclbin, described)


class XrtTransport:
    """A kernel as a transport (see ``intaglio.host.transport``).

    Raises
    ------
    DeviceError
        XRT refuses the card, the binary or the buffers.
    """

    cycles, pending, watch = None, 0, None

    def __init__(self, pyxrt, index, xclbin, manifest):
        self.manifest, self._pyxrt = manifest, pyxrt
        self._clock_hz = int(manifest.get("clock_hz") or 0) or 200_000_000
        try:
            self._device = pyxrt.device(index)
            uuid = self._device.load_xclbin(str(xclbin))
            self._kernel = pyxrt.kernel(self._device, uuid, KERNEL, pyxrt.kernel.cu_access_mode.exclusive)
            self._operations, self._answers = (
                pyxrt.bo(self._device, 8 * (WORDS + 1), pyxrt.bo.flags.normal, self._kernel.group_id(number))
                for number in (OPERATIONS_ARGUMENT, ANSWERS_ARGUMENT)
            )
        except RuntimeError as fault:
            raise DeviceError(f"card {index} must load {xclbin}: {fault}") from fault

    def send(self, words, last, timeout) -> int:
        words, last = np.asarray(words, np.uint32), np.asarray(last, bool)
        taken = 0
        while taken < len(words):
            part = slice(taken, taken + WORDS)
            count = len(words[part])
            kinds = np.where(last[part], LAST_COMMAND, COMMAND).astype(np.uint64)
            done, _ = self._run(kinds << np.uint64(60) | words[part].astype(np.uint64), 0, timeout)
            taken += done
            if done < count:
                break
        return taken

    def receive(self, capacity, timeout):
        words, flags = [np.empty(0, np.uint32)], [np.empty(0, bool)]
        while capacity and not (len(flags[-1]) and flags[-1][-1]):
            _, answers = self._run(np.empty(0, np.uint64), min(capacity, WORDS), timeout)
            if not len(answers):
                break
            words.append((answers & np.uint64(0xFFFFFFFF)).astype(np.uint32))
            flags.append((answers >> np.uint64(32) & np.uint64(1)).astype(bool))
            capacity -= len(answers)
        return np.concatenate(words), np.concatenate(flags)

    def read_register(self, offset) -> int:
        done, answers = self._run(_operation(READ, offset), 0, REGISTER_SECONDS)
        if done != 1 or len(answers) != 1 or int(answers[0]) >> 34 & 1:
            raise DeviceError(f"the kernel must answer a read of register 0x{offset:x}")
        return int(answers[0]) & 0xFFFFFFFF

    def write_register(self, offset, value):
        if self._run(_operation(WRITE, offset, value), 0, REGISTER_SECONDS)[0] != 1:
            raise DeviceError(f"the kernel must carry out a write of register 0x{offset:x}")

    def reset(self):
        self._run(_operation(RESET), 0, REGISTER_SECONDS)

    def close(self):
        """XRT releases the card when the objects go."""
        self._kernel = self._operations = self._answers = self._device = None

    def _run(self, operations, wanted, patience):
        """One run: the number of operations that were carried out, and the answers ``uint64``."""
        if self._kernel is None:
            raise DeviceError("the card must be open")
        direction, completed = self._pyxrt.xclBOSyncDirection, self._pyxrt.ert_cmd_state.ERT_CMD_STATE_COMPLETED
        cycles = int(min(max(1, patience * self._clock_hz), LARGEST))
        limit = round(
            1000 * (GRACE_SECONDS + (len(operations) + wanted + 1) * cycles / self._clock_hz)
        )  # the kernel waits once a word
        try:
            if len(operations):
                self._operations.write(np.ascontiguousarray(operations, np.uint64), 0)
                self._operations.sync(direction.XCL_BO_SYNC_BO_TO_DEVICE, 8 * len(operations), 0)
            run = self._kernel(self._operations, len(operations), self._answers, wanted, cycles)
            state = run.wait(min(limit, LARGEST))
            self._answers.sync(direction.XCL_BO_SYNC_BO_FROM_DEVICE, 8 * (WORDS + 1), 0)
            answers = np.frombuffer(np.asarray(self._answers.read(8 * (WORDS + 1), 0)).tobytes(), "<u8")
        except RuntimeError as fault:
            raise DeviceError(f"XRT must carry out a run: {fault}") from fault
        if state != completed:
            raise DeviceTimeout(
                f"the kernel must end its run of {len(operations)} operations within {limit} ms; its state is {state}"
            )
        header = int(answers[0])
        count = header >> 32
        if header >> 31 & 1:
            raise DeviceError("the card's memory answered the kernel with an error")
        if count > WORDS:
            raise DeviceError(f"a run must have at most {WORDS} answers, not {count}")
        return header & LARGEST, answers[1 : 1 + count]


def _operation(kind, offset=0, value=0):
    return np.array([kind << 60 | offset << 32 | value], np.uint64)
