"""Linear unit: `lanes` rows of a ternary matrix at once, a word of weights a lane and cycle for `batch` vectors, no bubble between rows."""

from amaranth.hdl import ClockSignal, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.memory.rom import Rom
from intaglio.rtl.ternary.adapter.intermediate import MatrixGroup
from intaglio.rtl.ternary.adapter.path import AdapterPath
from intaglio.rtl.ternary.gate import BankGate, GatedRom
from intaglio.rtl.ternary.lane import FORMS, LANE_MODULE, Lane, Source
from intaglio.rtl.ternary.post import RESIDUAL_BITS, Post, PostMode, r_address_bits, x_address_bits
from intaglio.rtl.ternary.tree import PLANES

__all__ = ["LinearUnit", "PostMode", "rom_name"]

GROUP_BITS = 16


def rom_name(lane):
    """Name of the weight ROM of a lane; its image is ``<name>.hex``."""
    return f"weights_{lane}"


class LinearUnit(wiring.Component):
    """Ternary matrix times the activations of buffer A, to R or into X, for ``batch`` slots in lockstep.

    A slot has buffers A, X and R and scales of its own; words, addresses and enables are those of all.

    Parameters
    ----------
    config : DecoderConfig
    weights : sequence of sequences of int or None
        Words of each lane's ROM, for simulation (``packing.pack_ints``); ``None``: instances, in the form of the configuration.
    lane_instance : bool
        Lanes and what they share are instances of ``intaglio_lane`` and ``intaglio_planes`` or ``intaglio_tables``, whose Verilog
        ``lane.lane_designs`` gives: one module for all lanes, and much faster in Verilator. Otherwise embedded.

    Members
    -------
    start : In(1)
        Strobe, while not busy: do ``groups * lanes`` rows of ``chunks * lane_width`` inputs, whose words follow those of the
        last operation. ``groups``, ``chunks`` (both at least 1) and ``mode`` are taken with it.
    restart : In(1)
        Strobe, while not busy, at the latest with ``start``: weights from word 0.
    scale_m : In(16) [batch], scale_e : In(signed(10)) [batch]
        Scale of RESIDUAL, and of the gate in GATED with SiLU; stable from four cycles after ``start`` (the first row's sum comes later)
        until not busy.
    busy, busy_next : Out(1)
        ``busy`` from the cycle after ``start``, for ``groups * chunks + fill(config, mode)`` cycles; low when its buffer has been given
        the last result.
        ``busy_next`` is what it is in the next cycle; combinational.
    act_addr : Out, act_data : In(8 * lane_width) [batch]
        Buffer A, element ``i`` of a word in bits ``8 i ..``; latency 1.
    x_rd_addr, x_rd_data [batch], x_wr_en, x_wr_addr, x_wr_data [batch]
        Buffer X, words of ``vector_width`` elements of 32 bits, read latency 1; bit ``k`` of ``x_wr_en`` writes ``lanes`` elements, all
        of ``x_wr_data``, from element ``k * lanes`` on. Words are read and written in one cycle, elements never: what those being written
        read as does not matter.
    r_wr_en, r_wr_addr, r_wr_data [batch]
        Buffer R, elements of ``result_bits``; bit ``k`` of ``r_wr_en`` writes ``lanes / 2`` elements, the lower half of ``r_wr_data``
        for an even ``k`` and else the upper, from element ``k * lanes / 2`` on.
    x_or : Out(31) [batch], r_or : Out(result_bits - 1) [batch]
        OR of ``v ^ sign(v)`` over all elements written to X, to R, since ``start``.

    With ``gate_words`` also:

    ahead : In(1)
        Strobe, while not busy: an operation follows; its first bank is switched on. ``start`` does the same, then the first word
        waits ``gate_wake + 2`` cycles less those since ``ahead``.
    gate_power, gate_reads : Out(gate_banks)
        Of :class:`~intaglio.rtl.ternary.gate.BankGate`.
    gate_stall : Out(1)
        A word waits for its bank; ``busy`` is longer by these cycles.

    Result ``i`` of group ``g`` is element ``g * lanes + i`` of its buffer, in GATED ``g * lanes / 2 + i``.

    With adapters also (:class:`~intaglio.rtl.ternary.adapter.path.AdapterPath` has the memories):

    adapt : In(1), kind : In(MatrixGroup)
        With ``start``: the rows are those of A of the operation of this kind, which is to follow; ``chunks`` words for each digit.
        Nothing goes to R or X. ``busy`` for ``groups * chunks * adapter_trits + ADAPT_FILL + groups + Intermediate.LATENCY``.
    adapted : In(1)
        With ``start``, not ``adapt``: each row is followed by its row of B, ``adapter_trits`` words.
    memory : In
        With ``restart``: which of the resident adapters.
    weight_*, scale_*
        Write ports of :class:`AdapterPath`.
    """

    # Address, ROM and activations, dot product, accumulator, post stage: see architecture.md, cycles of a linear phase.
    FILL = 1 + Lane.DOT_LATENCY + 1 + Post.LATENCY
    ADAPT_FILL = Lane.DOT_LATENCY + 1  # from the last word of A to its sum

    @staticmethod
    def early(config):
        """Cycles by which an operation may start before its activations are all written: they are read that long after ``start``."""
        return 1 + _lead(config)

    @classmethod
    def fill(cls, config, mode=PostMode.RAW):
        """Cycles that ``busy`` exceeds the words of an operation."""
        return cls.FILL + (AdapterPath.JOIN_LATENCY if config.rank else 0) + Post.extra(config, mode)

    def __init__(self, config, weights=None, lane_instance=False):
        if weights is not None and len(weights) != config.lanes:
            raise ValueError(f"weights must be one sequence for each of {config.lanes} lanes, not {len(weights)}")
        self.config, self.weights, self.lane_instance = config, weights, lane_instance
        inits = [None] * config.lanes if weights is None else weights
        if config.gate_words:
            self.gate = BankGate(config)
            self.roms = [GatedRom(rom_name(i), config, init) for i, init in enumerate(inits)]
        else:
            self.roms = [
                Rom(rom_name(i), config.weight_word_bits, config.weight_depth, init, config.rom)
                for i, init in enumerate(inits)
            ]
        depth = max(config.hidden, config.intermediate) // config.lane_width
        self.act_address_bits = max(1, ceil_log2(depth))
        width = config.vector_width
        adapter = (
            {}
            if not config.rank
            else {"adapt": In(1), "adapted": In(1), "kind": In(MatrixGroup), **AdapterPath.outer_members(config)}
        )
        gate = (
            {}
            if not config.gate_words
            else {
                "ahead": In(1),
                "gate_power": Out(config.gate_banks),
                "gate_reads": Out(config.gate_banks),
                "gate_stall": Out(1),
            }
        )
        super().__init__(
            {
                **adapter,
                **gate,
                "start": In(1),
                "restart": In(1),
                "groups": In(GROUP_BITS),
                "chunks": In(max(8, depth.bit_length())),
                "mode": In(PostMode),
                "scale_m": In(16).array(config.batch),
                "scale_e": In(signed(10)).array(config.batch),
                "busy": Out(1),
                "busy_next": Out(1),
                "act_addr": Out(self.act_address_bits),
                "act_data": In(PLANES * config.lane_width).array(config.batch),
                "x_rd_addr": Out(x_address_bits(config)),
                "x_rd_data": In(width * RESIDUAL_BITS).array(config.batch),
                "x_wr_en": Out(width // config.lanes),
                "x_wr_addr": Out(x_address_bits(config)),
                "x_wr_data": Out(config.lanes * RESIDUAL_BITS).array(config.batch),
                "r_wr_en": Out(2 * width // config.lanes),
                "r_wr_addr": Out(r_address_bits(config)),
                "r_wr_data": Out(config.lanes * config.result_bits).array(config.batch),
                "x_or": Out(RESIDUAL_BITS - 1).array(config.batch),
                "r_or": Out(config.result_bits - 1).array(config.batch),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.post = post = Post(config, external=self.weights is None)
        path = None
        activations = list(self.act_data)
        if config.rank:  # there is one slot
            m.submodules.adapter = path = AdapterPath(config)
            path.connect_outer(m, self)
            activations = [Signal.like(self.act_data[0], name="activations", reset_less=True)]
            chosen = activations[0].eq(Mux(path.source == Source.B, path.word, self.act_data[0]))
            if FORMS[config.dot][1].LATENCY:  # which has the register
                m.d.comb += chosen
            else:
                m.d.sync += chosen
        dot = FORMS[config.dot][2]
        operands = [self._operands(m, s, data) for s, data in enumerate(activations)]

        # Issue: one word a cycle.
        issuing = Signal()
        groups_left, chunks = Signal(GROUP_BITS), Signal.like(self.chunks)
        chunk = Signal.like(self.chunks)
        word = Signal(max(1, ceil_log2(config.weight_depth)))
        mode = Signal(PostMode)
        last_chunk, last_group = Signal(), Signal()
        begin, began = Signal(), Signal()
        m.d.sync += began.eq(begin if path is None else begin & ~self.adapt)
        m.d.comb += [
            begin.eq(self.start & ~self.busy),
            last_chunk.eq(chunk == chunks - 1),
            last_group.eq(groups_left == 1),
        ]
        address = chunk
        for stage in range(_lead(config)):  # the activations follow the weights
            later = Signal.like(chunk, name=f"chunk_{stage}")
            m.d.sync += later.eq(address)
            address = later
        m.d.comb += self.act_addr.eq(address)
        issue = issuing
        if config.gate_words:
            m.submodules.gate = gate = self.gate
            issue = Signal(name="issue")
            m.d.comb += [
                issue.eq(issuing & gate.ready),
                gate.word.eq(word),
                gate.read.eq(issue),
                gate.wake.eq((self.ahead & ~self.busy) | begin),
                gate.rest.eq(issue & last_chunk & last_group),
                self.gate_power.eq(gate.power),
                self.gate_reads.eq(gate.reads),
                self.gate_stall.eq(issuing & ~gate.ready),
            ]
        with m.If(self.restart & ~self.busy):
            m.d.sync += word.eq(0)
        with m.If(begin):
            m.d.sync += [
                issuing.eq(1),
                groups_left.eq(self.groups),
                chunks.eq(self.chunks),
                mode.eq(self.mode),
                chunk.eq(0),
            ]
        with m.Elif(issue):
            if path is None:
                m.d.sync += [word.eq(word + 1), chunk.eq(chunk + 1)]
                with m.If(last_chunk):
                    m.d.sync += [chunk.eq(0), groups_left.eq(groups_left - 1), issuing.eq(~last_group)]
            else:  # rows of A, digit by digit; or rows of the base, each followed by the digits of its row of B
                m.d.sync += word.eq(word + path.base)
                with m.If(path.base | path.of_a):
                    m.d.sync += chunk.eq(Mux(last_chunk, 0, chunk + 1))
                with m.If(path.row_end):
                    m.d.sync += [groups_left.eq(groups_left - 1), issuing.eq(~last_group)]
        if path is not None:
            m.d.comb += [
                path.begin.eq(begin),
                path.issuing.eq(issuing),
                path.chunk_first.eq(chunk == 0),
                path.chunk_last.eq(last_chunk),
                path.group_last.eq(last_group),
                path.mode.eq(mode),
            ]

        # Flags travel with the word: (ROM), dot product, then `enable`; a row's sum stands in the cycle after its last chunk.
        enable, first, last, final = issue, chunk == 0, issue & last_chunk, issue & last_chunk & last_group
        if path is not None:
            first, last, final = path.first, path.base_row, path.base_row & last_group
        for stage in range(1, 2 + Lane.DOT_LATENCY):
            enable, first, last, final = (
                _delay(m, value, f"{name}_{stage}")
                for value, name in ((enable, "enable"), (first, "first"), (last, "last"), (final, "final"))
            )
        valid = _delay(m, last, "row_valid") if path is None else path.o_valid
        for stage in range(Post.LATENCY + 1 + (path.JOIN_LATENCY if path is not None else 0)):
            final = _delay(m, final, f"row_final_{stage}")
        if extra := Post.extra(config, PostMode.GATED):
            late = final & (mode == PostMode.GATED)
            for stage in range(extra):
                late = _delay(m, late, f"gated_final_{stage}")
            final = Mux(mode == PostMode.GATED, late, final)
        m.d.comb += self.busy_next.eq(begin | (self.busy & ~(final if path is None else final | path.done)))
        m.d.sync += self.busy.eq(self.busy_next)

        for i, rom in enumerate(self.roms):
            if config.gate_words:
                m.d.comb += [rom.power.eq(gate.power), rom.awake.eq(gate.awake), rom.select.eq(gate.select)]
            m.submodules[f"rom_{i}"] = rom
            m.d.comb += rom.addr.eq(word[: len(rom.addr)])
            totals = [sums[i] for sums in post.sums] if path is None else [path.sums[i]]
            beside = {} if path is None else path.lane_inputs(i)
            if self.lane_instance:
                ports = {
                    f"i_{name}{s}_{k}": value
                    for s, of_slot in enumerate(operands)
                    for name, values in of_slot.items()
                    for k, value in enumerate(values)
                }
                ports |= {f"o_sum{s}": total for s, total in enumerate(totals)} | _masks(dot)
                ports |= {f"i_{name}": value for name, value in beside.items()}
                m.submodules[f"lane_{i}"] = Instance(
                    LANE_MODULE, i_clk=ClockSignal(), i_word=rom.data, i_enable=enable, i_first=first, **ports
                )
            else:
                m.submodules[f"lane_{i}"] = lane = Lane(config)
                m.d.comb += [lane.word.eq(rom.data), lane.enable.eq(enable), lane.first.eq(first)]
                m.d.comb += [getattr(lane, name).eq(value) for name, value in beside.items()]
                m.d.comb += [total.eq(lane.sum[s]) for s, total in enumerate(totals)]
                for s, of_slot in enumerate(operands):
                    for name, values in of_slot.items():
                        m.d.comb += [a.eq(b) for a, b in zip(getattr(lane, name)[s], values, strict=True)]
                m.d.comb += [lane.masks[k].eq(mask) for k, mask in enumerate(dot.MASKS)]

        if path is not None:
            m.d.comb += [post.sums[0][i].eq(total) for i, total in enumerate(path.totals)]
        m.d.comb += [post.clear.eq(began), post.valid.eq(valid), post.mode.eq(mode)]
        for name in ("scale_m", "scale_e", "x_rd_data"):
            m.d.comb += [a.eq(b) for a, b in zip(getattr(post, name), getattr(self, name), strict=True)]
        for name in ("x_rd_addr", "x_wr_en", "x_wr_addr", "r_wr_en", "r_wr_addr"):
            m.d.comb += getattr(self, name).eq(getattr(post, name))
        for name in ("x_wr_data", "r_wr_data", "x_or", "r_or"):
            m.d.comb += [a.eq(b) for a, b in zip(getattr(self, name), getattr(post, name), strict=True)]
        return m

    def _operands(self, m, slot, activations):
        """What the lanes take of the activations of a slot, by name: bit planes, or sums of pairs."""
        module, shared, _ = FORMS[self.config.dot]
        operands = {
            name: [Signal(shape, name=f"{name}_{slot}_{k}") for k in range(count)]
            for name, (shape, count) in shared.operands(self.config.lane_width).items()
        }
        if self.lane_instance:
            clock = {"i_clk": ClockSignal()} if shared.LATENCY else {}
            ports = {f"o_{name}{k}": value for name, values in operands.items() for k, value in enumerate(values)}
            m.submodules[f"planes_{slot}"] = Instance(module, i_data=activations, **ports, **clock, **_masks(shared))
        else:
            m.submodules[f"planes_{slot}"] = planes = shared(self.config.lane_width)
            m.d.comb += planes.data.eq(activations)
            for name, values in operands.items():
                m.d.comb += [a.eq(b) for a, b in zip(values, getattr(planes, name), strict=True)]
            m.d.comb += [planes.masks[k].eq(mask) for k, mask in enumerate(shared.MASKS)]
        return operands


def _lead(config):
    """Cycles by which activations follow the weights; one less where a register takes what tables make of them or adapters choose."""
    return Lane.LEAD - bool(config.rank or FORMS[config.dot][1].LATENCY)


def _masks(component):
    return {f"i_masks{k}": Const(mask, 64) for k, mask in enumerate(component.MASKS)}


def _delay(m, value, name):
    signal = Signal(name=name)
    m.d.sync += signal.eq(value)
    return signal
