"""A generated folder whose device is a stand-in for the protocol, and the same device in plain Python."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np

CONTEXT, TOP_K, HANG = 64, 16, 254
NEXT = [(token + 1) % 256 for token in range(256)]
NEXT[0xC3], NEXT[0xA9] = 0xA9, 0x41  # after C3 comes a character of two bytes
OFFSETS = {
    "magic": 0x00,
    "version": 0x04,
    "digest": 0x08,
    "capabilities": 0x0C,
    "status": 0x10,
    "position": 0x14,
    "control": 0x18,
    "cycles_lo": 0x20,
    "cycles_hi": 0x24,
    "stall_in": 0x28,
    "stall_out": 0x2C,
    "tokens": 0x30,
    "phase_busy": 0x40,
    "phase_send": 0x44,
}
WRITABLE = {"status": "w1c", "control": "rw"}


def describe(digest="5e" * 32, **model) -> dict:
    """The manifest of the stand-in."""
    return {
        "format": "intaglio-manifest",
        "format_version": 1,
        "generator": "0.1.0",
        "kind": "decoder",
        "top": "decoder_double",
        "digest": digest,
        "clock": "aclk",
        "reset": "aresetn",
        "clock_hz": 80_000_000,
        "streams": {
            "command": {"prefix": "s_axis", "direction": "in", "width": 32},
            "result": {"prefix": "m_axis", "direction": "out", "width": 32},
        },
        "register_bus": {"prefix": "s_axil", "address_width": 12, "data_width": 32},
        "registers": {
            name: {"offset": offset, "access": WRITABLE.get(name, "ro"), "description": name}
            for name, offset in OFFSETS.items()
        },
        "phases": ["busy", "send"],
        "model": {
            "vocab_size": 256,
            "context": CONTEXT,
            "layers": 0,
            "hidden": 0,
            "top_k": TOP_K,
            "bos": 0,
            "eos": 0,
            "tokenizer": "bytes",
            "ternary_weights": 0,
            **model,
        },
        "config": {},
        "files": {"verilog": ["rtl/decoder_double.v"], "rom": ["rom/next.hex"], "lint": ["lint.vlt"]},
        "tools": {},
    }


def write_design(folder, *, next_tokens=NEXT, digest=None) -> Path:
    """Write the stand-in as a generated folder; ``digest`` replaces the manifest's."""
    folder = Path(folder)
    (folder / "rtl").mkdir(parents=True)
    (folder / "rom").mkdir()
    text = (Path(__file__).parent / "decoder_double.v").read_text()
    true = hashlib.sha256(text.encode()).hexdigest()
    text = text.replace("DIGEST = 0", f"DIGEST = 32'h{true[:8]}")
    (folder / "rtl" / "decoder_double.v").write_text(text)
    (folder / "rom" / "next.hex").write_text("".join(f"{token:02x}\n" for token in next_tokens))
    (folder / "lint.vlt").write_text("`verilator_config\nlint_off -rule WIDTHTRUNC\nlint_off -rule WIDTHEXPAND\n")
    (folder / "manifest.json").write_text(json.dumps(describe(digest or true)))
    return folder


class PythonDevice:
    """A transport to the stand-in, computed in Python: one token takes ten cycles."""

    def __init__(self, manifest=None, *, registers=None, next_tokens=NEXT):
        self.manifest = manifest or describe()
        self.registers = {"magic": 0x494E5447, "version": 1, "digest": int(self.manifest["digest"][:8], 16)}
        self.registers |= registers or {}
        self.next_tokens, self.packets, self.commands = next_tokens, [], []
        self.position = self.cycles = self.tokens = self.pending = 0
        self.running = None
        self.closed = False

    def send(self, words, last, timeout):
        for word in words.tolist():
            self.commands.append(word)
            run = word >> 16 & 0xFF
            self._feed(word & 0xFFFF, run, word >> 24 & 0x1F, word >> 30 & 1 or run > 0, word >> 31)
        return len(words)

    def _feed(self, token, run, top, want, first):
        self.position = 0 if first else self.position
        if self.position == CONTEXT or token == HANG:
            self.running = None
            if token != HANG and want:
                self.packets.append([0xFFFF | self.position << 16])
            return
        following = self.next_tokens[token]
        packet = [following | self.position << 16]
        if top:
            packet += [0xFFFC0001] + [word for i in range(top) for word in ((following + i) & 255, 1000 - 10 * i)]
        if want:
            self.packets.append(packet)
        self.position += 1
        self.cycles += 10
        self.tokens += 1
        self.running = (following, run - 1, top, want, 0) if run else None

    def receive(self, capacity, timeout):
        if not self.packets and self.running:
            self._feed(*self.running)
        if not self.packets:
            time.sleep(min(timeout, 0.01))
            return np.empty(0, np.uint32), np.empty(0, bool)
        packet = self.packets.pop(0)
        if len(packet) > capacity:
            self.packets.insert(0, packet[capacity:])
        words, flags = np.array(packet[:capacity], dtype=np.uint32), np.zeros(min(len(packet), capacity), dtype=bool)
        flags[-1] = len(packet) <= capacity
        return words, flags

    def read_register(self, offset):
        name = next(name for name, at in OFFSETS.items() if at == offset)
        counters = {"cycles_lo": self.cycles, "phase_busy": self.cycles, "tokens": self.tokens}
        return counters[name] & 0xFFFFFFFF if name in counters else self.registers.get(name, 0)

    def write_register(self, offset, value):
        if offset == OFFSETS["control"]:
            self.cycles = self.tokens = 0

    def reset(self):
        self.packets.clear()
        self.position, self.running = 0, None

    def close(self):
        self.closed = True
