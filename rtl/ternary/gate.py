"""Power gating of the weight banks: which banks have power, from the words that the linear unit is about to read.

A column of banks (bank ``b`` of every lane) holds words ``b * gate_words ..`` and is one power domain with one switch. Weight words are
read in the order of the program, so the next words are known: a column is switched on ``gate_wake + 1`` words ahead of its first read and
off behind its last. Between operations all columns are off; NORM8, which precedes every LINEAR, switches on the first one again.
"""

from amaranth.hdl import ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.memory.rom import Rom

__all__ = ["POWER_MODULE", "POWER_VERILOG", "BankGate", "GatedRom", "bank_depth", "bank_name"]

POWER_MODULE = "intaglio_power"

POWER_VERILOG = """\
// Output of a read-only bank whose power can be switched off. A synthesiser sees a wire (the domain, its switch and its isolation are in
// the UPF). In simulation a word is right only if the bank had power, for more than WAKE cycles, when its address came and when it is used;
// otherwise it is the complement.
module intaglio_power #(
    parameter WIDTH = 8,
    parameter WAKE = 0
) (
    input wire clk,
    input wire power,
    input wire [WIDTH - 1:0] bank,
    output wire [WIDTH - 1:0] data
);
`ifdef SYNTHESIS
    assign data = bank;
`else
    reg [7:0] age;
    reg sound;
    initial {sound, age} = 0;
    wire settled = power && age >= WAKE;
    always @(posedge clk) begin
        age <= !power ? 8'd0 : age == 8'd255 ? age : age + 8'd1;
        sound <= settled;
    end
    assign data = sound && settled ? bank : ~bank;
`endif
endmodule
"""


def bank_name(name, bank):
    """Name of bank ``bank`` of the ROM ``name``; its image is ``<name>_<bank>.hex``."""
    return f"{name}_{bank}"


def bank_depth(config, bank):
    """Words of bank ``bank``; the last one may be shorter."""
    return min(config.gate_words, config.weight_depth - bank * config.gate_words)


class BankGate(wiring.Component):
    """Switches and isolation of all columns.

    Parameters
    ----------
    config : DecoderConfig
        With ``gate_words``.

    Members
    -------
    word : In
        Address of the next word. While ``read``, it counts up or is held; it may be set to 0 at any other time.
    wake : In(1)
        Strobe: words will be read, from ``word`` on.
    rest : In(1)
        Strobe, with the last of these reads. ``wake`` in the same cycle counts.
    ready : Out(1)
        The bank of ``word`` may be read in this cycle. Nothing may be read without it.
    read : In(1)
        ``word`` is read in this cycle; for ``reads`` and ``select``.
    power : Out(banks)
        Switches.
    awake : Out(banks)
        Banks that have had power for more than ``gate_wake`` cycles and whose isolation is open; falls one cycle before the power.
    select : Out
        Bank whose data stand in this cycle: that of ``word`` a cycle ago.
    reads : Out(banks)
        The bank that is read in this cycle.

    Latency
    -------
    A bank is awake :meth:`latency` cycles after ``wake``. A stream of a word a cycle that began with ``ready`` is never interrupted.
    """

    @staticmethod
    def latency(config):
        """Cycles from ``wake`` to ``ready``."""
        return config.gate_wake + 2

    @staticmethod
    def lead_words(config):
        """Words before the first of a bank at which it is switched on."""
        return config.gate_wake + 1

    def __init__(self, config):
        self.config, self.wake_cycles = config, config.gate_wake
        self.lead = self.lead_words(config)
        banks = config.gate_banks
        self.demand = Signal()  # words are read, or will be
        super().__init__(
            {
                "word": In(max(1, ceil_log2(config.weight_depth))),
                "wake": In(1),
                "rest": In(1),
                "ready": Out(1),
                "read": In(1),
                "power": Out(banks),
                "awake": Out(banks),
                "select": Out(range(banks)),
                "reads": Out(banks),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        shift = ceil_log2(config.gate_words)
        demand = self.demand
        with m.If(self.wake):
            m.d.sync += demand.eq(1)
        with m.Elif(self.rest):
            m.d.sync += demand.eq(0)
        now, soon = Signal(len(self.word) - shift), Signal(len(self.word) - shift + 1)
        m.d.comb += [now.eq(self.word >> shift), soon.eq((self.word + self.lead) >> shift)]
        m.d.sync += self.select.eq(now)
        readable = Signal(config.gate_banks)
        for b in range(config.gate_banks):
            m.submodules[f"bank_{b}"] = bank = _Switch(self.wake_cycles)
            here = Signal(name=f"here_{b}")
            m.d.comb += [
                here.eq(now == b),
                bank.want.eq(demand & (here | (soon == b))),
                self.power[b].eq(bank.switch),
                self.awake[b].eq(bank.open),
                readable[b].eq(here & bank.open),
                self.reads[b].eq(here & self.read),
            ]
        m.d.comb += self.ready.eq(readable.any())
        return m


class _Switch(wiring.Component):
    """One column: on a cycle after ``want``; the isolation closes a cycle after ``want`` falls, the switch opens a cycle later."""

    def __init__(self, wake):
        self.wake = wake
        super().__init__({"want": In(1), "switch": Out(1), "open": Out(1)})

    def elaborate(self, platform):
        m = Module()
        held, tail, age = Signal(), Signal(), Signal(range(self.wake + 1))
        m.d.sync += [held.eq(self.want), tail.eq(held)]
        with m.If(~held):
            m.d.sync += age.eq(0)
        with m.Elif(age != self.wake):
            m.d.sync += age.eq(age + 1)
        m.d.comb += [self.switch.eq(held | tail), self.open.eq(held & (age == self.wake))]
        return m


class GatedRom(wiring.Component):
    """Weight ROM of one lane in banks: like :class:`~intaglio.rtl.memory.rom.Rom`, whose power is that of a :class:`BankGate`.

    Parameters
    ----------
    name : str
    config : DecoderConfig
    init : sequence of int or None
        As for ``Rom``; the banks are named by :func:`bank_name`.

    Members
    -------
    addr : In
        Word inside its bank: the lower bits of the address.
    power, awake, select : In
        Of :class:`BankGate`.
    data : Out(weight_word_bits)
        Latency 1, like every bank of ``banks``. With ``gate_isolation`` a bank that is not awake gives 0, whatever its output.
    """

    def __init__(self, name, config, init=None):
        self.config = config
        banks = config.gate_banks
        self.banks = [
            Rom(
                bank_name(name, b),
                config.weight_word_bits,
                bank_depth(config, b),
                None if init is None else init[b * config.gate_words : (b + 1) * config.gate_words],
                config.rom,
            )
            for b in range(banks)
        ]
        super().__init__(
            {
                "addr": In(ceil_log2(config.gate_words)),
                "power": In(banks),
                "awake": In(banks),
                "select": In(range(banks)),
                "data": Out(config.weight_word_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, words = self.config, []
        for b, bank in enumerate(self.banks):
            m.submodules[f"bank_{b}"] = bank
            m.d.comb += bank.addr.eq(self.addr[: len(bank.addr)])
            data = Signal(config.weight_word_bits, name=f"bank_{b}_data")
            m.submodules[f"power_{b}"] = power = _Power(len(data), config.gate_wake)
            m.d.comb += [power.on.eq(self.power[b]), power.raw.eq(bank.data), data.eq(power.word)]
            word = Signal(config.weight_word_bits, name=f"bank_{b}_word")
            m.d.comb += word.eq(data & self.awake[b].replicate(len(data)) if config.gate_isolation else data)
            words.append(word)
        with m.Switch(self.select):
            for b, word in enumerate(words):
                with m.Case(b):
                    m.d.comb += self.data.eq(word)
        return m


class _Power(wiring.Component):
    """Instance of ``intaglio_power`` (:data:`POWER_VERILOG`), or the same for Amaranth's simulator."""

    def __init__(self, width, wake):
        self.width, self.wake = width, wake
        super().__init__({"on": In(1), "raw": In(width), "word": Out(width)})

    def elaborate(self, platform):
        m = Module()
        if platform is not None:
            m.submodules.model = Instance(
                POWER_MODULE,
                p_WIDTH=self.width,
                p_WAKE=self.wake,
                i_clk=ClockSignal(),
                i_power=self.on,
                i_bank=self.raw,
                o_data=self.word,
            )
            return m
        age, sound, settled = Signal(8), Signal(), Signal()
        m.d.comb += [settled.eq(self.on & (age >= self.wake)), self.word.eq(Mux(sound & settled, self.raw, ~self.raw))]
        m.d.sync += [sound.eq(settled), age.eq(Mux(self.on, Mux(age == 255, age, age + 1), 0))]
        return m
