"""Tile engine: tiles through the matrix unit, its softmax and the accumulators, with no bubble between tiles that follow one another."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import WEIGHT_OFFSET
from intaglio.rtl.attention.accumulate import Accumulators
from intaglio.rtl.attention.drain import Drain, results
from intaglio.rtl.attention.softmax import SCALE_BITS, TileSoftmax
from intaglio.rtl.attention.states import RowStates
from intaglio.rtl.bus.streams import TileMode, masses, retired, store_read, tile_command
from intaglio.rtl.matrix.unit import add_stage
from intaglio.rtl.memory.ram import index_bits

__all__ = ["TileEngine"]


class TileEngine(wiring.Component):
    """Takes tile commands in order and computes them as docs/prefill.md says.

    On the matrix unit a tile of MAX or MASS takes ``head_dim`` cycles (queries against keys), one of ATTEND twice as many (weights
    against values as well, after the keys of the next tile). Queries of a tile with ``load`` are shifted in meanwhile: in ATTEND
    during the values of the tile before the last, else into the other bank. Another mode, and NORM, wait for all that was begun.

    Parameters
    ----------
    config : PrefillConfig
    matrix : wiring.Component
        A :class:`~intaglio.rtl.matrix.unit.MatrixUnit` of ``head_dim`` and ``columns``, or what has its members and its ``latency``.

    Members
    -------
    i_tile : In(stream of tile_command)
    store : Out(:func:`~intaglio.rtl.bus.streams.store_read`), of which
    k_read, k_row
        Row ``tile * head_dim + key`` of line ``read_line``; ``k_data`` (head_dim bytes) comes one cycle later, as for all reads.
    v_read, v_row, v_data
        Values: channel d of a tile at row ``tile * head_dim + d``, of line ``read_line`` too: keys and values are never read in the same
        cycle.
    x_read, x_data
        Scale bytes of the keys of tile ``x_tile`` of line ``read_line``, then those of its values.
    q_read, q_slot, q_beat, q_data
        Channels of a row group, or scales, as :class:`~intaglio.rtl.attention.stores.Stores` has them. ``q_data`` is held until the next
        read.
    masses : Out(:func:`~intaglio.rtl.bus.streams.masses`)
        Probabilities and scores of a key in MASS.
    o : Out(stream of :func:`~intaglio.rtl.attention.drain.results`)
    o_retired : Out(retired)
        ``visit`` in the cycle of the last read of a line whose last tile this is; ``slot`` when the last result of a slot is taken.
    idle : Out(1)

    Throughput: MAX and MASS a tile every ``head_dim`` cycles (``head_dim + 1`` with ``load``), ATTEND every ``2 * head_dim``.
    """

    def __init__(self, config, matrix):
        self.config, self.matrix = config, matrix
        c = config
        super().__init__(
            {
                "i_tile": In(stream.Signature(tile_command(c))),
                "store": Out(store_read(c)),
                "masses": Out(masses(c)),
                "o": Out(stream.Signature(results(c))),
                "o_retired": Out(retired(c)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        dim, word = c.head_dim, tile_command(c)
        m.submodules.matrix = matrix = self.matrix
        m.submodules.softmax = softmax = TileSoftmax(c)
        m.submodules.states = states = RowStates(c)
        m.submodules.values = values = Accumulators(c)
        m.submodules.drain = drain = Drain(c)
        # A tile's way: next (queries being loaded), early and late (scored, late is the older), weighed, with values; out and merged
        # follow the weights as they leave.
        next_, early, late, weighed, valued, out, merged = (
            Signal(word, name=name) for name in ("next", "early", "late", "weighed", "valued", "out", "merged")
        )
        held, loaded, scored, known, owes = Signal(), Signal(), Signal(2), Signal(2), Signal()
        settle, weights_left = Signal(range(dim + 64)), Signal(range(dim + 5))
        left, values_now = Signal(range(dim + 1)), Signal()  # of the phase on the matrix unit
        place, bank, mode = Signal(index_bits(dim)), Signal(), Signal(2)
        issue_keys, issue_values, weigh, calm = Signal(), Signal(), Signal(), Signal()
        drain_owed, free = Signal(), Signal()
        slot, head, block, final_group, draining = (
            Signal.like(x) for x in (drain.slot, drain.head, drain.block, drain.final_group, drain.slot)
        )
        attend, keys_now = mode == TileMode.ATTEND, (left != 0) & ~values_now

        # Phases: at most one of the two issues may come in a cycle, values first.
        m.d.comb += [
            free.eq(left == 0),
            issue_values.eq(free & owes & (weights_left == 0) & ~(weighed.finish & drain_owed)),
            issue_keys.eq(free & held & loaded & ~issue_values & (Mux(attend, scored == 0, scored < 2))),
            weigh.eq((known != 0) & (~attend | (~owes & ((left <= 5) | ~values_now)))),
        ]
        reading_values = issue_values | (~free & values_now)
        reading_keys = issue_keys | keys_now
        place_now, tile_now = Signal.like(place), Signal(word)
        m.d.comb += [
            place_now.eq(Mux(free, 0, place)),
            tile_now.eq(
                Mux(
                    issue_keys,
                    next_,
                    Mux(issue_values, weighed, Mux(values_now, valued, Mux(scored == 2, early, late))),
                )
            ),
            self.store.read_line.eq(tile_now.line),
            self.store.k_read.eq(reading_keys),
            self.store.v_read.eq(reading_values),
            self.store.k_row.eq(tile_now.tile * dim + place_now),
            self.store.v_row.eq(self.store.k_row),
            self.store.x_read.eq(issue_keys),
            self.store.x_tile.eq(tile_now.tile),
            self.o_retired.visit.eq(
                (place_now == dim - 1) & tile_now.retire & Mux(attend, reading_values, reading_keys)
            ),
        ]
        with m.If(reading_keys | reading_values):
            m.d.sync += [place.eq(place_now + 1), left.eq(Mux(free, dim - 1, left - 1))]
        with m.If(free):
            m.d.sync += values_now.eq(issue_values)
        with m.If(issue_values):
            m.d.sync += [valued.eq(weighed), owes.eq(0)]

        shift, into_b = self._load(m, next_, held, loaded, mode, calm, issue_keys, keys_now, bank)
        # Tiles between their keys and their weights: the older one is late; the keys now read belong to the newer one.
        m.d.sync += [scored.eq(scored + issue_keys - weigh), known.eq(known + softmax.e_valid - weigh)]
        with m.If(issue_keys):
            with m.If((scored - weigh)[:2] == 0):
                m.d.sync += late.eq(next_)
            with m.Else():
                m.d.sync += early.eq(next_)
        with m.If(weigh):
            with m.If(scored == 2):
                m.d.sync += late.eq(early)
            m.d.sync += [weighed.eq(late), owes.eq(attend), weights_left.eq(dim + 4)]
        with m.Elif(weights_left != 0):
            m.d.sync += weights_left.eq(weights_left - 1)
        with m.If(weigh | issue_values):
            m.d.sync += settle.eq(dim + 14 + matrix.latency)
        with m.Elif(settle != 0):
            m.d.sync += settle.eq(settle - 1)
        m.d.comb += [
            calm.eq(~held & (scored == 0) & free & ~owes & (settle == 0) & ~drain_owed & ~drain.busy & ~states.busy),
            self.idle.eq(calm & ~self.i_tile.valid),
        ]

        last_value = self._matrix(
            m, matrix, softmax, values, issue_keys, reading_keys, reading_values, place_now, next_, bank
        )
        weighing = [Signal(name=f"weighing_{i}") for i in range(softmax.WEIGHT_LATENCY)]
        m.d.sync += [after.eq(before) for before, after in zip([weigh, *weighing], weighing, strict=False)]
        with m.If(weighing[-1]):
            m.d.sync += out.eq(weighed)
        with m.If(softmax.p_valid & (softmax.key == dim - 1)):
            m.d.sync += merged.eq(out)
        m.d.comb += [
            softmax.start.eq(weighing[0]),
            softmax.mode.eq(weighed.mode),
            matrix.load_b.eq(softmax.p_valid & (out.mode == TileMode.ATTEND)),
            self.masses.valid.eq(softmax.p_valid & (out.mode == TileMode.MASS)),
            self.masses.key.eq(softmax.key),
            self.masses.tag.head.eq(out.head),
            self.masses.tag.row_group.eq(out.row_group),
            self.masses.tag.tile.eq(out.tile),
            self.masses.tag.finish.eq(out.finish),
        ]
        with m.If(softmax.p_valid & (out.mode == TileMode.ATTEND)):
            m.d.comb += [
                data.eq(weight - WEIGHT_OFFSET) for data, weight in zip(matrix.load_b_data, softmax.weight, strict=True)
            ]
        with m.Else():
            m.d.comb += [data.eq(load) for data, load in zip(matrix.load_b_data, matrix.load_a_data, strict=True)]
            m.d.comb += matrix.load_b.eq(shift & into_b)
        norm = self.i_tile.valid & calm & (self.i_tile.payload.mode == TileMode.NORM)
        read = weigh & (late.mode == TileMode.MASS)
        m.d.comb += [
            states.merge.eq(softmax.sums_valid & (merged.mode != TileMode.MASS)),
            states.first.eq(merged.first),
            states.read.eq(read),
            states.norm.eq(norm),
            states.walk.eq(norm | (drain.walk & drain.walk_granted)),
            drain.walk_granted.eq(~states.merge & ~states.busy),
            states.address.eq(Mux(states.merge, merged.state, drain.walk_address)),
            drain.lane_valid.eq(states.lane_valid),
            drain.lane_mantissa.eq(states.lane_mantissa),
            drain.lane_shift.eq(states.lane_shift),
            drain.word_exponent.eq(states.word_exponent),
            states.exponent.eq(softmax.sums_exponent),
            values.address.eq(valued.state),
            values.first.eq(valued.first),
            values.read.eq(drain.read),
            values.read_address.eq(drain.read_address),
            values.read_channel.eq(drain.read_channel),
            drain.read_granted.eq(~values.valid),
            self.o_retired.slot.eq(drain.done),
            self.o_retired.index.eq(draining),
        ]
        with m.If(norm):
            m.d.comb += states.address.eq(self.i_tile.payload.state)
        with m.Elif(read):
            m.d.comb += states.address.eq(late.state)
        pairs = (
            (softmax.log, states.log),
            (states.e, softmax.sums_e),
            (states.f, softmax.sums_f),
            (states.sums, softmax.sums),
            (values.kept, states.kept),
            (values.added, states.added),
            (drain.word, values.word),
            (self.masses.p, softmax.p),
            (self.masses.t, softmax.t),
            (softmax.dot, matrix.dot),
        )
        m.d.comb += [a.eq(b) for left_, right in pairs for a, b in zip(left_, right, strict=True)]

        m.d.comb += [
            drain.start.eq(drain_owed & ~drain.busy),
            drain.slot.eq(slot),
            drain.head.eq(head),
            drain.block.eq(block),
            drain.final_group.eq(final_group),
        ]
        with m.If(drain.start):
            m.d.sync += [drain_owed.eq(0), draining.eq(slot)]
        with m.If(last_value & valued.finish):
            m.d.sync += [drain_owed.eq(1), slot.eq(valued.slot), head.eq(valued.head), block.eq(valued.block)]
            m.d.sync += final_group.eq(valued.row_group)
        wiring.connect(m, wiring.flipped(self.o), drain.o)
        return m

    def _load(self, m, next_, held, loaded, mode, calm, issue_keys, keys_now, bank):
        """Takes the next command and shifts its queries into the bank that is free. Returns that an element comes, and for bank b."""
        c = self.config
        per_beat = c.head_dim // c.columns
        command = self.i_tile.payload
        is_norm = command.mode == TileMode.NORM
        m.d.comb += self.i_tile.ready.eq(calm | ((~held | issue_keys) & ~is_norm & (command.mode == mode)))
        with m.If(issue_keys):
            m.d.sync += [held.eq(0), loaded.eq(0)]
        with m.If(self.i_tile.valid & self.i_tile.ready & ~is_norm):
            m.d.sync += [next_.eq(command), held.eq(1), loaded.eq(~command.load), mode.eq(command.mode)]
        count, element, shift = Signal(index_bits(c.head_dim)), Signal(index_bits(per_beat)), Signal()
        attend = mode == TileMode.ATTEND
        loading = Signal()
        m.d.comb += loading.eq(held & ~loaded & ~(attend & keys_now))
        into, into_b = Signal(), Signal()
        m.d.comb += into.eq(Mux(attend, 0, ~bank))
        beats = next_.row_group * c.columns + count // per_beat
        with m.If(issue_keys):
            m.d.comb += [
                self.store.q_read.eq(next_.load),
                self.store.q_beat.eq(c.block + next_.row_group * c.columns // c.head_dim),
            ]
        with m.Else():
            m.d.comb += [self.store.q_read.eq(loading & (count % per_beat == 0)), self.store.q_beat.eq(beats)]
        m.d.comb += self.store.q_slot.eq(next_.slot)
        m.d.sync += [shift.eq(loading), element.eq(count % per_beat), into_b.eq(into)]
        with m.If(loading):
            m.d.sync += [count.eq(count + 1), loaded.eq(count == c.head_dim - 1)]
        with m.If(issue_keys & next_.load):
            m.d.sync += bank.eq(into)
        m.d.comb += self.matrix.load_a.eq(shift & ~into_b)
        elements = self.store.q_data.word_select(element, 8 * c.columns)
        m.d.comb += [data.eq(elements[8 * i : 8 * i + 8]) for i, data in enumerate(self.matrix.load_a_data)]
        return shift, into_b

    def _offset(self, m, channels):
        """What sums of weights less 127 lack: 127 times the sum of a channel's values, the same in all lanes."""
        dim = self.config.head_dim
        terms, largest, stage = [self.store.v_data[8 * i : 8 * i + 8].as_signed() for i in range(dim)], 127, 0
        while len(terms) > 1:
            largest *= 4
            terms = add_stage(m, terms, 4, channels[stage], largest=largest, name=f"values_{stage}")
            stage += 1
        offset = terms[0] * WEIGHT_OFFSET
        for late in range(stage, len(channels) - 1):
            held = Signal(signed((127 * dim * WEIGHT_OFFSET).bit_length() + 1), name=f"offset_{late}", reset_less=True)
            m.d.sync += held.eq(offset)
            offset = held
        return offset

    def _matrix(self, m, matrix, softmax, values, issue_keys, reading_keys, reading_values, place, next_, bank):
        """Rows to the matrix unit; scales and mask of a tile at the place where its dot products leave. Returns the last channel."""
        c = self.config
        steps = matrix.latency + 1
        keys, channels, firsts, lasts = (
            [Signal(name=f"{name}_{i}") for i in range(steps)] for name in ("keys", "channels", "first", "last")
        )
        starts = (reading_keys, reading_values, issue_keys, reading_values & (place == c.head_dim - 1))
        for start, chain in zip(starts, (keys, channels, firsts, lasts), strict=True):
            m.d.sync += [after.eq(before) for before, after in zip([start, *chain], chain, strict=False)]
        m.d.comb += [
            matrix.go.eq(keys[0] | channels[0]),
            matrix.bank.eq(channels[0] | bank),
            softmax.valid.eq(keys[-1]),
            values.valid.eq(channels[-1]),
        ]
        row = Mux(channels[0], self.store.v_data, self.store.k_data)
        m.d.comb += [data.eq(row[8 * i : 8 * i + 8]) for i, data in enumerate(matrix.row)]
        offset = self._offset(m, channels)
        m.d.comb += [o.eq(dot + offset) for o, dot in zip(values.o, matrix.dot, strict=True)]

        limit, alike, loads, group = Signal.like(softmax.limit), Signal(), Signal(), Signal.like(next_.row_group)
        of_keys, of_values = (
            Signal(SCALE_BITS * c.head_dim, name=f"scales_of_{name}", reset_less=True) for name in ("keys", "values")
        )
        queries = [Signal(SCALE_BITS, name=f"scale_{i}", reset_less=True) for i in range(c.columns)]
        with m.If(issue_keys):
            m.d.sync += [limit.eq(next_.limit), alike.eq(next_.alike), loads.eq(next_.load), group.eq(next_.row_group)]
        parts = self.store.q_data.word_select(group % (c.head_dim // c.columns), 8 * c.columns)
        with m.If(firsts[0]):
            with m.If(loads):
                m.d.sync += Cat(*queries).eq(parts)
        with m.If(firsts[-2]):
            m.d.sync += [
                Cat(of_keys, of_values).eq(self.store.x_data),
                softmax.limit.eq(limit),
                softmax.alike.eq(alike),
            ]  # read until the next tile's
            m.d.sync += [xq.eq(query) for xq, query in zip(softmax.xq, queries, strict=True)]
        with m.Elif(keys[-1]):
            m.d.sync += [scales.eq(scales[SCALE_BITS:]) for scales in (of_keys, of_values)]
        m.d.comb += [softmax.xk.eq(of_keys[:SCALE_BITS]), softmax.xv.eq(of_values[:SCALE_BITS])]
        return lasts[-1]
