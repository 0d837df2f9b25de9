"""Command words to groups of tokens: who is in a group, at which position of which sequence, and who goes on when it has ended.

A command word is ``token[t] | run[24 - t] | top[5] | 0 | want | first`` from its lowest bit, t being ``config.token_bits``; a word whose
reserved bit is set is no token: docs/batch.md, and docs/adapters.md for a machine with adapters.
"""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.ram import index_bits

__all__ = ["COUNT_BITS", "Group", "Kind", "command_layout"]

COUNT_BITS = 6  # of the tokens of a group, less 1, in a word of the kind GROUP


class Kind(enum.Enum, shape=5):
    """What a word with the reserved bit is; a machine with adapters takes each for ADAPTER, one without anything for a token."""

    ADAPTER = 0
    SEQUENCE = 1
    GROUP = 2


def command_layout(token_bits):
    """Fields of a command word where tokens have ``token_bits`` bits, 16 to 20: what a token takes more, ``run`` has less."""
    return data.StructLayout(
        {"token": token_bits, "run": 24 - token_bits, "top": 5, "reserved": 1, "want": 1, "first": 1}
    )


class Group(wiring.Component):
    """The tokens under way, a slot each.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    open : In(1)
        The sequencer rests: words may be taken.
    command_valid, command_ready, command_data : In, Out, In(32)
    valid, busy : Out(1)
        A group is there, until the cycle of ``done``; or the next of a run is being put together.
    done, finished : In(1)
        The group has ended, with its results answered; and it was computed, not only refused. The next of a run is there in the next
        cycle with one slot, else as many cycles later as the group has tokens.
    best_en, best_slot, best : In
        The greedy token of a slot, before ``done``: what it goes on with.
    tokens, positions, sequences, tops : Out, arrays
    live, wants, full : Out(batch)
        Slots with a token that is to be computed; that wants a result; whose sequence is full, so that it is refused.
    position : Out(16)
        Tokens so far of the sequence of the last token taken.

    With adapters also ``selected``, ``ok``, ``physical``, ``running``, ``memory``, ``lost`` as of
    :class:`~intaglio.rtl.control.sequencer.Sequencer`, and ``barred`` : Out(1), the sequence's adapter is not there.

    Latency: ``valid`` comes in the cycle after the group's last word.
    """

    def __init__(self, config):
        self.config = config
        memory = range(config.adapters + 1)
        adapter = (
            {}
            if not config.rank
            else {
                "selected": Out(8),
                "ok": In(1),
                "physical": In(memory),
                "running": Out(1),
                "memory": Out(memory),
                "lost": In(1),
                "barred": Out(1),
            }
        )
        batch = config.batch
        super().__init__(
            {
                **adapter,
                "open": In(1),
                "command_valid": In(1),
                "command_ready": Out(1),
                "command_data": In(32),
                "valid": Out(1),
                "busy": Out(1),
                "done": In(1),
                "finished": In(1),
                "best_en": In(1),
                "best_slot": In(index_bits(batch)),
                "best": In(config.token_bits),
                "tokens": Out(config.token_bits).array(batch),
                "positions": Out(16).array(batch),
                "sequences": Out(index_bits(config.sequences)).array(batch),
                "tops": Out(5).array(batch),
                "live": Out(batch),
                "wants": Out(batch),
                "full": Out(batch),
                "position": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, batch = self.config, self.config.batch
        command = data.View(command_layout(config.token_bits), self.command_data)
        # A token enters a slot: from a command, or again, with its best token.
        place, count = Signal(index_bits(batch)), Signal(index_bits(batch))  # the slot, and the group's last one
        enter, again, token = Signal(), Signal(), Signal()
        goes_on = Signal()  # the slot wanted a result, and had one
        best = [Signal(config.token_bits, name=f"best_{i}") for i in range(batch)]
        several = batch > 1 or config.sequences > 1  # such a machine takes words of all kinds
        run = Signal(24 - (COUNT_BITS if several else config.token_bits))
        grouped = Signal()  # by a word of that kind
        sequence = Signal(index_bits(config.sequences))  # of the commands to come
        m.d.comb += goes_on.eq((self.wants & ~self.full).bit_select(place, 1))
        position, fits = self._positions(m, token, again & goes_on, place, sequence, command.first)
        for i in range(batch):
            with m.If(self.best_en & (self.best_slot == i)):
                m.d.sync += best[i].eq(self.best)
            with m.If(enter & (place == i)):
                m.d.sync += [
                    self.tokens[i].eq(Mux(again, best[i], command.token)),
                    self.positions[i].eq(position),
                    self.wants[i].eq(Mux(again, goes_on, command.want | (~grouped & (command.run != 0)))),
                    self.live[i].eq(fits & (~again | goes_on)),
                    self.full[i].eq(~fits & (~again | goes_on)),
                ]
                with m.If(~again):
                    m.d.sync += [
                        self.sequences[i].eq(sequence),
                        self.tops[i].eq(Mux(command.top > config.top_k, config.top_k, command.top)),
                    ]
            with m.Elif(enter & ~again & (place == 0)):
                m.d.sync += [self.wants[i].eq(0), self.live[i].eq(0), self.full[i].eq(0)]

        taken, ready, last = Signal(), Signal(), Signal()
        m.d.comb += [self.command_ready.eq(ready), taken.eq(ready & self.command_valid), token.eq(taken)]
        if config.rank or several:
            m.d.comb += token.eq(taken & ~command.reserved)
            with m.If(taken & command.reserved):
                self._setting(m, place, sequence, grouped, count, run)
        with m.If(token & ~grouped):
            m.d.sync += run.eq(command.run)
        more = Signal()  # the run goes on
        m.d.comb += more.eq(self.finished & (run != 0) & (self.wants & ~self.full).any())
        with m.If(more):
            m.d.sync += run.eq(run - 1)
        with m.If(self.done):
            m.d.sync += [self.valid.eq(0), grouped.eq(grouped & more)]
        if config.rank:
            self._adapter(m, token & command.first)
        m.d.comb += self.busy.eq(self.valid)
        if batch == 1:
            m.d.comb += [again.eq(more), enter.eq(token | again), last.eq(1), ready.eq(self.open & ~self.valid)]
        else:
            going = Signal()  # the slots of the next group of a run are filled
            m.d.comb += [
                self.busy.eq(self.valid | going),
                again.eq(going),
                enter.eq(token | going),
                last.eq(place == Mux(grouped, count, 0)),
                ready.eq(self.open & ~self.valid & ~going),
            ]
            m.d.sync += going.eq(more | (going & ~last))
            with m.If(enter):
                m.d.sync += place.eq(Mux(last, 0, place + 1))
        with m.If(enter & last):
            m.d.sync += self.valid.eq(1)
        return m

    def _positions(self, m, token, again, place, sequence, first):
        """Position of the token that enters, and whether it fits; keeps the tokens so far of each sequence."""
        config = self.config
        so_far, position, fits = Signal(16), Signal(16), Signal()
        store, stored, at = Signal(), Signal(16), Signal(index_bits(config.sequences))
        m.d.comb += fits.eq(position != config.context)
        if config.sequences == 1:
            with m.If(store):
                m.d.sync += self.position.eq(stored)
            m.d.comb += so_far.eq(self.position)
        else:
            known = Signal(config.sequences)  # since reset
            m.submodules.so_far = memory = Memory(shape=16, depth=config.sequences, init=[])
            w, r = memory.write_port(), memory.read_port(domain="comb")
            of = Mux(again, Array(self.sequences)[place], sequence)
            m.d.comb += [w.addr.eq(at), w.data.eq(stored), w.en.eq(store), r.addr.eq(of)]
            m.d.comb += so_far.eq(Mux(known.bit_select(of, 1), r.data, 0))
            with m.If(store):
                m.d.sync += [known.bit_select(at, 1).eq(1), self.position.eq(stored)]
        fresh = token & first
        m.d.comb += position.eq(Mux(fresh, 0, so_far))
        if config.batch > 1:  # tokens of one sequence may follow one another in a group
            m.d.comb += [
                at.eq(Mux(again, Array(self.sequences)[place], sequence)),
                store.eq((token | again) & fits),
                stored.eq(position + 1),
            ]
        else:  # a token counts when it has been computed
            with m.If(again):
                m.d.comb += position.eq(self.positions[0] + 1)
            m.d.comb += [
                at.eq(Mux(self.done, self.sequences[0], sequence)),
                store.eq(self.finished | fresh),
                stored.eq(Mux(self.done, self.positions[0] + 1, 0)),
            ]
        return position, fits

    def _setting(self, m, place, sequence, grouped, count, run):
        """A word that is no token."""
        config, word = self.config, self.command_data
        if config.rank:
            m.d.sync += self.selected.eq(word)
            return
        if config.sequences > 1:
            with m.If(word[24:29] == Kind.SEQUENCE.value):
                most = config.sequences - 1
                m.d.sync += sequence.eq(word if most == 255 else Mux(word[:8] > most, most, word[:8]))
        with m.If((word[24:29] == Kind.GROUP.value) & (place == 0)):
            most = config.batch - 1
            m.d.sync += [grouped.eq(1), run.eq(word[COUNT_BITS:24])]
            if most:
                m.d.sync += count.eq(Mux(word[:COUNT_BITS] > most, most, word[:COUNT_BITS]))

    def _adapter(self, m, begins):
        """What a sequence computes with, from its begin on."""
        with m.If(self.lost):
            m.d.sync += [self.barred.eq(1), self.running.eq(0)]
        with m.If(begins):
            m.d.sync += [
                self.running.eq(self.ok),
                self.memory.eq(self.physical),
                self.barred.eq((self.selected != 0) & ~self.ok),
            ]
