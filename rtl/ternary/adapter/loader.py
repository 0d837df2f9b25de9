"""Loading of adapters at run time: words from the host into memory that no sequence reads, which becomes a slot's only when all is well."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.scalar import ScalarLayout
from intaglio.rtl.memory.ram import index_bits

__all__ = ["Loader", "Outcome", "image_words", "word_parts"]


class Outcome(enum.Enum, shape=4):
    """What became of the latest load."""

    NONE = 0
    LOADING = 1
    LOADED = 2
    NO_SUCH_SLOT = 3
    IN_USE = 4  # the token under way still reads the memory
    OTHER_DEVICE = 5  # the image is not for this device's digest
    INCOMPLETE = 6
    TOO_LONG = 7
    DAMAGED = 8  # the CRC differs


def word_parts(config):
    """32-bit words in a word of a lane's adapter memory."""
    return -(-2 * config.lane_width // 32)


def image_words(config):
    """Words of an adapter's image: the device's digest, the scales, the weights."""
    return 1 + config.adapter_scales + config.adapter_words * config.lanes * word_parts(config)


class Loader(wiring.Component):
    """Takes an image word by word and swaps it in.

    There is memory for ``adapters + 1`` adapters; the slots map to all of them but one, the spare. A load writes the spare. Its commit,
    one cycle, exchanges the spare with the slot's memory if the image was complete, was made for this device, and has the CRC-32 (that of
    zlib) that the commit states; otherwise nothing changes. A sequence keeps the memory that its slot had when it began, which is then the
    spare; the next load takes it away from the sequence (``lost``), though not while a token is under way.

    Parameters
    ----------
    config : DecoderConfig
    digest : int
        First word of an image.

    Members
    -------
    value : In(32)
    begin, data, commit : In(1)
        Strobes, at least two cycles apart: a load for slot ``value`` begins, and one under way is forgotten; ``value`` is the image's next
        word; the image ends, and ``value`` is its CRC. Image: digest; scales (``m`` in bits 15:0, ``e`` in 25:16) in the order of the
        program; weights, by address, then lane, then 32 bits from the lowest.
    active, running, memory : In
        A token is under way; the sequence computes with an adapter, from this memory.
    lost : Out(1)
        Strobe: the sequence's memory is being overwritten.
    selected : In(8), ok : Out(1), physical : Out
        Slot + 1; whether it holds an adapter, and its memory. Combinational.
    outcome : Out(Outcome), loaded : Out(adapters)
        Of the latest load; slots that hold an adapter.
    weight_en, weight_addr, weight_data, scale_en, scale_addr, scale_data : Out
        Write ports of the lanes' memories and of that of the scales.
    """

    def __init__(self, config, digest):
        self.config, self.digest = config, digest
        memories = config.adapters + 1
        super().__init__(
            {
                "value": In(32),
                "begin": In(1),
                "data": In(1),
                "commit": In(1),
                "active": In(1),
                "running": In(1),
                "memory": In(range(memories)),
                "lost": Out(1),
                "selected": In(8),
                "ok": Out(1),
                "physical": Out(range(memories)),
                "outcome": Out(Outcome),
                "loaded": Out(config.adapters),
                "weight_en": Out(config.lanes),
                "weight_addr": Out(index_bits(memories * config.adapter_words)),
                "weight_data": Out(2 * config.lane_width),
                "scale_en": Out(1),
                "scale_addr": Out(index_bits(memories * config.adapter_scales)),
                "scale_data": Out(ScalarLayout.size),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        memories, parts = config.adapters + 1, word_parts(config)
        m.submodules.crc = crc = CRC32_ISO_HDLC(32).create()
        slots = Array(Signal(range(memories), name=f"slot_{s}", init=s) for s in range(config.adapters))
        spare = Signal(range(memories), init=config.adapters)
        exists = Signal()
        m.d.comb += [
            exists.eq((self.selected != 0) & (self.selected <= config.adapters)),
            self.physical.eq(slots[(self.selected - 1)[:8]]),
            self.ok.eq(exists & (self.loaded << 1).bit_select(self.selected, 1)),
        ]

        loading, taken = Signal(), Signal()
        target = Signal(range(max(2, config.adapters)))
        head, weights, full, excess, foreign = Signal(), Signal(), Signal(), Signal(), Signal()
        scales_left = Signal(range(config.adapter_scales + 1))
        addresses_left = Signal(range(config.adapter_words + 1))
        lane, part = Signal(config.lanes), Signal(range(max(2, parts)))
        collected = Signal(32 * (parts - 1))
        m.d.comb += [
            taken.eq(self.data & loading),
            crc.start.eq(self.begin),
            crc.valid.eq(taken),
            crc.data.eq(self.value),
            self.scale_data.eq(self.value),
            self.weight_data.eq(Cat(collected, self.value)),
            self.scale_en.eq(taken & ~head & ~weights & ~full),
            self.weight_en.eq(Mux(taken & weights & (part == parts - 1), lane, 0)),
        ]
        in_use = self.running & (self.memory == spare)

        with m.If(self.begin):
            m.d.sync += loading.eq(0)
            with m.If(self.value >= config.adapters):
                m.d.sync += self.outcome.eq(Outcome.NO_SUCH_SLOT)
            with m.Elif(in_use & self.active):
                m.d.sync += self.outcome.eq(Outcome.IN_USE)
            with m.Else():
                m.d.comb += self.lost.eq(in_use)
                m.d.sync += [
                    self.outcome.eq(Outcome.LOADING),
                    loading.eq(1),
                    target.eq(self.value),
                    head.eq(1),
                    weights.eq(0),
                    full.eq(0),
                    excess.eq(0),
                    foreign.eq(0),
                    scales_left.eq(config.adapter_scales),
                    addresses_left.eq(config.adapter_words),
                    lane.eq(1),
                    part.eq(0),
                ]
                with m.Switch(spare):
                    for memory in range(memories):
                        with m.Case(memory):
                            m.d.sync += [
                                self.scale_addr.eq(memory * config.adapter_scales),
                                self.weight_addr.eq(memory * config.adapter_words),
                            ]
        with m.Elif(taken):
            with m.If(head):
                m.d.sync += [head.eq(0), foreign.eq(self.value != self.digest)]
            with m.Elif(full):
                m.d.sync += excess.eq(1)
            with m.Elif(~weights):
                m.d.sync += [
                    scales_left.eq(scales_left - 1),
                    self.scale_addr.eq(self.scale_addr + 1),
                    weights.eq(scales_left == 1),
                ]
            with m.Else():
                m.d.sync += part.eq(part + 1)
                if parts > 1:
                    m.d.sync += collected.eq(Cat(collected, self.value)[32:])
                with m.If(part == parts - 1):
                    m.d.sync += [part.eq(0), lane.eq(lane.rotate_left(1))]
                    with m.If(lane[-1]):
                        m.d.sync += [addresses_left.eq(addresses_left - 1), self.weight_addr.eq(self.weight_addr + 1)]
                        with m.If(addresses_left == 1):
                            m.d.sync += [full.eq(1), weights.eq(0)]
        with m.Elif(self.commit & loading):
            m.d.sync += loading.eq(0)
            with m.If(foreign):
                m.d.sync += self.outcome.eq(Outcome.OTHER_DEVICE)
            with m.Elif(~full):
                m.d.sync += self.outcome.eq(Outcome.INCOMPLETE)
            with m.Elif(excess):
                m.d.sync += self.outcome.eq(Outcome.TOO_LONG)
            with m.Elif(crc.crc != self.value):
                m.d.sync += self.outcome.eq(Outcome.DAMAGED)
            with m.Else():
                m.d.sync += [
                    self.outcome.eq(Outcome.LOADED),
                    spare.eq(slots[target]),
                    slots[target].eq(spare),
                    self.loaded.eq(self.loaded | (1 << target)),
                ]
        return m
