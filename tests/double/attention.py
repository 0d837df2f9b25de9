"""A stand-in for the prefill attention unit in plain Python, as a transport: its results are what is in its memory."""

import time

import numpy as np

from intaglio.host.protocol import DeviceError
from intaglio.rtl.top.attention_registers import VERSION

VOID, MEMORY = 1 << 23, 1 << 22
REFUSED, FAULT, HANG = 252, 253, 254  # KV heads whose runs are refused, meet a fault of the memory, and never end


class PythonAttention:
    """The values of a result are the bytes of its query block; words, registers and memory as the unit has them."""

    cycles, pending, watch = None, 0, None

    def __init__(self, manifest):
        self.manifest, self.memory, self.closed = manifest, np.zeros(MEMORY, np.uint8), False
        self.registers, self.config = manifest["registers"], manifest["config"]
        self.names = {found["offset"]: name for name, found in self.registers.items()}
        self.reset()

    def reset(self):
        c = self.config
        self.values = dict.fromkeys(self.registers, 0) | {
            "magic": 0x494E5447,
            "version": VERSION,
            "digest": int(self.manifest["digest"][:8], 16),
            "capabilities": c["context"] // c["block"] | c["group"] << 16,
        }
        self.words = []  # (word, last)

    def read_register(self, offset):
        return self.values.get(self.names.get(offset), 0)

    def write_register(self, offset, value):
        name = self.names.get(offset)
        if name is None or self.registers[name]["access"] == "ro":
            raise DeviceError(f"the register bus answered a write of 0x{offset:x} with error 2")
        self.values[name] = value
        if name == "control" and value & 1:
            self.run()
        elif name == "control" and value & 2 and self.values["status"] & 1:
            self.end(1 << 8)
        elif name == "map_select":
            self.values["map_0"] = value * 0x9E3779B1 & (1 << self.config["columns"]) - 1

    def write_memory(self, address, data):
        self.memory[(address + np.arange(len(data))) % MEMORY] = data

    def read_memory(self, address, length):
        return self.memory[(address + np.arange(length)) % MEMORY]

    def end(self, status):
        """The beat that ends a run early."""
        self.words += [(0, False)] * (self.config["drain"] // 2) + [(VOID, True)]
        self.values["status"] = status

    def run(self):
        c, head, tokens = self.config, self.values["kv_head"], self.values["tokens"]
        dim, columns, drain = c["head_dim"], c["columns"], c["drain"]
        if head == REFUSED or not tokens:
            return self.end(1 << 7)
        self.values["status"] = 1 | 7 << 1 if head == HANG else 0
        blocks = 0 if head in (HANG, FAULT) else -(-tokens // c["block"])
        for block in range(blocks):
            for query in range(c["group"]):
                base = self.values["q_base"] + (query * blocks + block) * (dim + 1) * c["block"]
                rows = (
                    -(-min(c["block"], tokens - block * c["block"]) // columns) * columns
                )  # of row groups that have some
                bytes_ = self.read_memory(base, rows * dim).astype(np.int16).reshape(-1, columns // drain, drain, dim)
                beats = bytes_.transpose(0, 3, 1, 2).reshape(-1, drain).copy().view(np.uint32)
                for number, beat in enumerate(beats.tolist()):
                    last = number == len(beats) - 1
                    self.words += [*((word, False) for word in beat), (block | query << 14, last)]
        if head == FAULT:
            self.end(1 << 8 | 1 << 4)
        self.values |= {"rows": tokens, "beats": 3 * tokens, "cycles_lo": 100 * tokens, "cycles_hi": 1, "aware": 2}

    def send(self, words, last, timeout):
        raise DeviceError("a prefill unit takes no commands")

    def receive(self, capacity, timeout):
        if not self.words:
            time.sleep(min(timeout, 0.01))
        count = next((n + 1 for n, (_, last) in enumerate(self.words[:capacity]) if last), capacity)
        given, self.words = self.words[:count], self.words[count:]
        return np.array([word for word, _ in given], np.uint32), np.array([last for _, last in given], bool)

    def close(self):
        self.closed = True
