"""Agents for cocotb benches: those of cocotbext-axi with random pauses, and what it lacks: checks that a bus keeps its rules, and a memory
with latency and faults.

What is here looks at settled signals right after the falling edge, and sees what the next rising edge takes.
"""

import logging
from itertools import repeat

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiRamRead,
    AxiReadBus,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

__all__ = ["AxiMemory", "AxilMaster", "AxisSink", "AxisSource", "ContractError", "ram", "reset", "set_pauses"]

PAGE = 4096  # bytes; no burst crosses a multiple
LIMIT = (3, "us")  # that an access to a register may take


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


def set_pauses(agents, rng, share):
    """Let each agent (or channel) of cocotbext-axi pause in a share of the cycles."""
    for agent in agents:
        if share:
            agent.set_pause_generator(rng.random() < share for _ in repeat(None))
        else:
            agent.set_pause_generator(None)
            agent.pause = False


def _arguments(dut):
    logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)  # not a line for each transfer
    return {"clock": dut.aclk, "reset": dut.aresetn, "reset_active_level": False}


def ram(dut, prefix, base, image):
    """cocotbext-axi's memory behind a read port, with an image of bytes at address ``base``."""
    memory = AxiRamRead(
        AxiReadBus.from_prefix(dut, prefix), **_arguments(dut), size=1 << len(getattr(dut, f"{prefix}_araddr"))
    )
    memory.write(base, image)
    return memory


class AxisSource:
    """Offers words in packets, each word until it is taken. A reset forgets them."""

    def __init__(self, dut, prefix):
        self.agent = AxiStreamSource(AxiStreamBus.from_prefix(dut, prefix), **_arguments(dut), byte_lanes=1)

    def send(self, words):
        self.agent.send_nowait(AxiStreamFrame(words))

    def idle(self):
        return self.agent.idle()

    def clear(self):
        self.agent.clear()


class _Monitor:
    """Looks at signals ``prefix_suffix`` of a design in each cycle."""

    def __init__(self, dut, prefix):
        self.dut, self.prefix, self.cycle = dut, prefix, 0
        self.held = {}  # by channel: what waits to be taken
        cocotb.start_soon(self._run())

    def __getattr__(self, suffix):
        return getattr(self.dut, f"{self.prefix}_{suffix}")

    async def _run(self):
        while True:
            await FallingEdge(self.dut.aclk)
            self.cycle += 1
            await ReadOnly()
            if self.dut.aresetn.value:
                self.look()
            else:
                self.held.clear()
                self.forget()

    def forget(self):
        """There is a reset."""

    def taken(self, channel, fields):
        """The values of a channel that are taken in this cycle, or None. Checks that one that waits neither goes nor changes."""
        there, ready = (getattr(self, channel + name).value for name in ("valid", "ready"))
        seen = {field: int(getattr(self, field).value) for field in fields} if there else None
        if self.held.get(channel) is not None and seen != self.held[channel]:
            raise ContractError(
                f"{self.prefix}_{channel} must hold {self.held[channel]} until it is taken, not show {seen} "
                f"(cycle {self.cycle})"
            )
        self.held[channel] = None if ready else seen
        return seen if ready else None


class AxisSink(_Monitor):
    """Takes packets: :attr:`packets` are lists of words, with ``user`` of pairs of tdata and tuser.

    :attr:`partial` has the words so far of a packet under way, ``times`` the cycle of each packet's last word.
    """

    def __init__(self, dut, prefix, *, user=False):
        self.agent = AxiStreamSink(AxiStreamBus.from_prefix(dut, prefix), **_arguments(dut), byte_lanes=1)
        self.user, self.partial, self.times, self._packets = user, 0, [], []
        super().__init__(dut, prefix)

    @property
    def packets(self):
        while not self.agent.empty():
            frame = self.agent.recv_nowait(compact=False)
            self._packets.append(list(zip(frame.tdata, frame.tuser, strict=True)) if self.user else list(frame.tdata))
        return self._packets

    @property
    def waiting(self):
        """The word that waits to be taken, as a dict of its signals, or None."""
        return self.held.get("t")

    def stop(self, stopped):
        """Take no more, or take again, without pauses."""
        set_pauses([self.agent], None, 0)
        self.agent.pause = stopped

    def clear(self):
        self.packets.clear()
        self.times.clear()

    def forget(self):
        self.partial = 0

    def look(self):
        word = self.taken("t", ("tdata", "tlast", *(["tuser"] if self.user else ())))
        if word is not None:
            self.partial = 0 if word["tlast"] else self.partial + 1
            if word["tlast"]:
                self.times.append(self.cycle)


class AxilMaster(_Monitor):
    """Reads and writes registers; with pauses, address and data come in any order.

    Checks that an answer waits to be taken, and that none comes that was not asked for.
    """

    def __init__(self, dut, prefix):
        self.agent = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), **_arguments(dut))
        writes, reads = self.agent.write_if, self.agent.read_if
        self.channels = [writes.aw_channel, writes.w_channel, writes.b_channel, reads.ar_channel, reads.r_channel]
        self.forget()
        super().__init__(dut, prefix)

    async def write(self, address, value, strobe=0xF):
        """Write ``value``; returns the response. Strobes are neighbours."""
        first, count = (strobe & -strobe).bit_length() - 1, strobe.bit_count()
        if strobe != (1 << count) - 1 << first:
            raise ValueError(f"strobes must be neighbours, not {strobe:04b}")
        part = value.to_bytes(4, "little")[first : first + count]
        return int((await with_timeout(self.agent.write(address + first, part), *LIMIT)).resp)

    async def read(self, address):
        """The value at ``address``."""
        answer = await with_timeout(self.agent.read(address, 4), *LIMIT)
        assert int(answer.resp) == 0
        return int.from_bytes(answer.data, "little")

    def forget(self):
        self.asked = {"aw": 0, "w": 0, "ar": 0}

    def look(self):
        answers = {"b": self.taken("b", ("bresp",)), "r": self.taken("r", ("rdata", "rresp"))}
        for channel, before in (("b", ("aw", "w")), ("r", ("ar",))):
            if self.held[channel] is not None or answers[channel] is not None:
                if not all(self.asked[name] for name in before):
                    raise ContractError(
                        f"{self.prefix}_{channel} must not answer what was not asked (cycle {self.cycle})"
                    )
            if answers[channel] is not None:
                for name in before:
                    self.asked[name] -= 1
        for name in self.asked:
            self.asked[name] += self.taken(name, ()) is not None


class _Agent:
    """Signals ``prefix_suffix`` of a design, its clock and reset, and a random share of cycles in which it pauses."""

    def __init__(self, dut, prefix, rng, pause):
        self.dut, self.prefix, self.rng, self.pause = dut, prefix, rng, pause
        self.task = cocotb.start_soon(self._run())

    def __getattr__(self, suffix):
        return getattr(self.dut, f"{self.prefix}_{suffix}")

    def pausing(self):
        return self.rng.random() < self.pause


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
                raise ContractError(
                    f"{self.prefix} must hold the address {self.waiting} until it is taken, not show {seen}"
                )
            self.waiting = None if ready else seen
            if ready and seen:
                self._check(*seen)
                queue.append([cycle + self.latency, seen[2], seen[0], seen[1] + 1])
                self.bursts.append((seen[0], seen[1] + 1))
            if shown is not None and self.rready.value:
                shown = None

    def _check(self, address, length, _, size, burst):
        end = address + (length + 1) * self.beat_bytes
        if (
            1 << size != self.beat_bytes
            or burst != 1
            or address % self.beat_bytes
            or address // PAGE != (end - 1) // PAGE
        ):
            raise ContractError(
                f"{self.prefix}: a burst must be of whole beats, incrementing and inside a page, not address "
                f"0x{address:x}, length {length + 1}, size {size}, kind {burst}"
            )
        if address < self.base or end > self.base + len(self.image):
            raise ContractError(
                f"{self.prefix}: a burst must lie in 0x{self.base:x}..0x{self.base + len(self.image) - 1:x}, not at "
                f"0x{address:x}, {length + 1} beats"
            )

    def _beat(self, queue):
        head = queue[0]
        place = head[2] - self.base
        beat = {
            "rdata": int.from_bytes(self.image[place : place + self.beat_bytes], "little"),
            "rid": head[1],
            "rresp": 0,
            "rlast": head[3] == 1,
        }
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
