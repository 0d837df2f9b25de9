"""Agents for cocotb benches: AXI4-Stream source and sink, AXI4-Lite master, AXI4 memory; with random pauses and checks of the contract.

Every agent drives its signals at the falling edge and looks at the settled signals right after it: what it sees is what the
next rising edge takes.
"""

import cocotb
from cocotb.triggers import Event, FallingEdge, ReadOnly

__all__ = ["AxiMemory", "AxilMaster", "AxisSink", "AxisSource", "ContractError", "reset"]

PAGE = 4096  # bytes; no burst crosses a multiple


class ContractError(AssertionError):
    """A signal broke a rule of its bus."""


async def reset(clock, signal, cycles=4):
    """Hold the active-low reset for ``cycles``, and release it for one."""
    await FallingEdge(clock)
    signal.value = 0
    for _ in range(cycles):
        await FallingEdge(clock)
    signal.value = 1
    await FallingEdge(clock)


class _Agent:
    """Signals ``prefix_suffix`` of a design, its clock and reset, and a random share of cycles in which it pauses."""

    def __init__(self, dut, prefix, rng, pause):
        self.dut, self.prefix, self.rng, self.pause = dut, prefix, rng, pause
        self.task = cocotb.start_soon(self._run())

    def __getattr__(self, suffix):
        return getattr(self.dut, f"{self.prefix}_{suffix}")

    def pausing(self):
        return self.rng.random() < self.pause


class AxisSource(_Agent):
    """Offers the words of :attr:`queue`, each until it is taken; ``taken`` counts them. A reset forgets the queue."""

    def __init__(self, dut, prefix, rng, pause=0.0):
        self.queue, self.taken, self.offering = [], 0, False
        super().__init__(dut, prefix, rng, pause)

    async def _run(self):
        while True:
            await FallingEdge(self.dut.aclk)
            if not self.dut.aresetn.value:
                self.queue.clear()
                self.offering = False
            self.offering = bool(self.queue) and (self.offering or not self.pausing())
            self.tvalid.value = self.offering
            self.tdata.value = self.queue[0] if self.offering else self.rng.getrandbits(32)
            self.tlast.value = self.offering and len(self.queue) == 1
            await ReadOnly()
            if self.offering and self.tready.value and self.dut.aresetn.value:
                self.queue.pop(0)
                self.taken += 1
                self.offering = False


class AxisSink(_Agent):
    """Collects packets (lists of words) in :attr:`packets`, the unfinished one in :attr:`partial`; ``cycle`` counts cycles and
    ``times`` has the cycle of each packet's last word. Checks that a word that waits neither goes nor changes.
    With ``user`` a word is a pair of tdata and tuser."""

    def __init__(self, dut, prefix, rng, pause=0.0, *, user=False):
        self.packets, self.partial, self.times, self.cycle, self.waiting = [], [], [], 0, None
        self.stopped, self.user = False, user
        super().__init__(dut, prefix, rng, pause)

    def _word(self):
        return (int(self.tdata.value), int(self.tuser.value)) if self.user else int(self.tdata.value)

    async def _run(self):
        while True:
            await FallingEdge(self.dut.aclk)
            ready = not self.stopped and not self.pausing()
            self.tready.value = ready
            self.cycle += 1
            await ReadOnly()
            if not self.dut.aresetn.value:
                self.partial, self.waiting = [], None
                continue
            seen = (self._word(), bool(self.tlast.value)) if self.tvalid.value else None
            if self.waiting is not None and seen != self.waiting:
                raise ContractError(f"{self.prefix} must hold {self.waiting} until it is taken, not show {seen} "
                                    f"(cycle {self.cycle})")
            self.waiting = None if ready else seen
            if ready and seen:
                self.partial.append(seen[0])
                if seen[1]:
                    self.packets.append(self.partial)
                    self.times.append(self.cycle)
                    self.partial = []


class AxilMaster(_Agent):
    """Reads and writes registers; the channels of one access pause independently, so address and data come in any order."""

    LIMIT = 300  # cycles that an access may take

    def __init__(self, dut, prefix, rng, pause=0.0):
        self.requests = {name: [] for name in ("aw", "w", "b", "ar", "r")}
        self.held = {}
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
            getattr(dut, f"{prefix}_{name}").value = 0
        super().__init__(dut, prefix, rng, pause)

    async def write(self, address, value, strobe=0xF):
        """Write ``value``; returns the response."""
        _, _, answer = self._ask("aw", awaddr=address), self._ask("w", wdata=value, wstrb=strobe), self._ask("b")
        return (await self._wait(answer))["bresp"]

    async def read(self, address):
        """The value at ``address``."""
        _, answer = self._ask("ar", araddr=address), self._ask("r")
        found = await self._wait(answer)
        assert found["rresp"] == 0
        return found["rdata"]

    def _ask(self, channel, **values):
        request = {"values": values, "done": Event(), "found": None}
        self.requests[channel].append(request)
        return request

    async def _wait(self, request):
        for _ in range(self.LIMIT):
            if request["done"].is_set():
                return request["found"]
            await FallingEdge(self.dut.aclk)
        raise ContractError(f"{self.prefix} must answer within {self.LIMIT} cycles")

    async def _run(self):
        active = dict.fromkeys(self.requests, False)
        while True:
            await FallingEdge(self.dut.aclk)
            for name, queue in self.requests.items():
                inward = name in ("b", "r")
                active[name] = bool(queue) and (active[name] and not inward or not self.pausing())
                getattr(self, name + ("ready" if inward else "valid")).value = active[name]
                for signal, value in (queue[0]["values"] if active[name] else {}).items():
                    getattr(self, signal).value = value
            await ReadOnly()
            for name, queue in self.requests.items():
                inward = name in ("b", "r")
                fields = {"b": ("bresp",), "r": ("rdata", "rresp")}.get(name, ())
                there = bool(getattr(self, name + ("valid" if inward else "ready")).value)
                found = {field: int(getattr(self, field).value) for field in fields} if there else None
                if inward:
                    if self.held.get(name) is not None and found != self.held[name]:
                        raise ContractError(f"{self.prefix}_{name} must hold {self.held[name]} until it is taken, "
                                            f"not show {found}")
                    self.held[name] = None if active[name] else found
                if active[name] and there:
                    request = queue.pop(0)
                    request["found"] = found
                    request["done"].set()
                    active[name] = False


class AxiMemory(_Agent):
    """An AXI4 slave for reads: bursts are answered in order, ``latency`` cycles after their address at the earliest.

    ``image`` (bytes, from address ``base``) is read beat by beat. ``bursts`` has (address, beats) of all that were taken, ``beats``
    counts beats. ``spoil``, if not None, is called with the number of a beat and its signals as a dict, and gives what is shown, or None
    for silence from then on. Checks that an address that waits neither goes nor changes, and that bursts are of whole beats, incrementing,
    inside a page and inside the image.
    """

    def __init__(self, dut, prefix, rng, pause=0.0, *, latency=20):
        self.image, self.base, self.latency, self.spoil = b"", 0, latency, None
        self.bursts, self.beats, self.waiting, self.stopped = [], 0, None, False
        self.beat_bytes = len(getattr(dut, f"{prefix}_rdata")) // 8
        super().__init__(dut, prefix, rng, pause)

    async def _run(self):
        queue, shown, cycle = [], None, 0  # bursts: [due, id, address, beats left]
        while True:
            await FallingEdge(self.dut.aclk)
            cycle += 1
            ready = not self.stopped and not self.pausing()
            self.arready.value = ready
            if shown is None and queue and queue[0][0] <= cycle and not self.pausing():
                shown = self._beat(queue)
            self.rvalid.value = shown is not None
            for signal, value in (shown or {"rdata": self.rng.getrandbits(8 * self.beat_bytes)}).items():
                getattr(self, signal).value = value
            await ReadOnly()
            if not self.dut.aresetn.value:
                queue, shown, self.waiting = [], None, None
                continue
            names = ("araddr", "arlen", "arid", "arsize", "arburst")
            seen = tuple(int(getattr(self, name).value) for name in names) if self.arvalid.value else None
            if self.waiting is not None and seen != self.waiting:
                raise ContractError(f"{self.prefix} must hold the address {self.waiting} until it is taken, not show {seen}")
            self.waiting = None if ready else seen
            if ready and seen:
                self._check(*seen)
                queue.append([cycle + self.latency, seen[2], seen[0], seen[1] + 1])
                self.bursts.append((seen[0], seen[1] + 1))
            if shown is not None and self.rready.value:
                shown = None

    def _check(self, address, length, _, size, burst):
        end = address + (length + 1) * self.beat_bytes
        if 1 << size != self.beat_bytes or burst != 1 or address % self.beat_bytes or address // PAGE != (end - 1) // PAGE:
            raise ContractError(f"{self.prefix}: a burst must be of whole beats, incrementing and inside a page, not address "
                                f"0x{address:x}, length {length + 1}, size {size}, kind {burst}")
        if address < self.base or end > self.base + len(self.image):
            raise ContractError(f"{self.prefix}: a burst must lie in 0x{self.base:x}..0x{self.base + len(self.image) - 1:x}, not at "
                                f"0x{address:x}, {length + 1} beats")

    def _beat(self, queue):
        head = queue[0]
        place = head[2] - self.base
        beat = {"rdata": int.from_bytes(self.image[place:place + self.beat_bytes], "little"), "rid": head[1], "rresp": 0,
                "rlast": head[3] == 1}
        if self.spoil is not None:
            beat = self.spoil(self.beats, beat)
            if beat is None:
                queue.clear()
                return None
        self.beats += 1
        head[2:] = head[2] + self.beat_bytes, head[3] - 1
        if head[3] == 0:
            queue.pop(0)
        return beat
