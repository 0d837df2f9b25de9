"""Selection of the index: in every lane the smallest set of largest scores that reaches a share of their sum, without a sort."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import SCORE_WORD
from intaglio.rtl.bus.streams import BLOCK_BITS
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["GAMMA_BITS", "Selector", "addition", "select_cycles"]

GAMMA_BITS = 17  # of a share in units of 2^-16, 1 included


def select_cycles(count, bits):
    """Cycles from ``start`` to ``done`` for ``count`` scores a lane, the largest of all lanes having ``bits`` bits."""
    return (bits + 2) * (count + 4) + GAMMA_BITS + 2


def addition(config):
    """An addition to one score: the payload of ``i_add``."""
    return data.StructLayout(
        {"index": index_bits(config.blocks), "lane": index_bits(2 * config.group), "addend": SCORE_WORD}
    )


class Selector(wiring.Component):
    """Memory of scores, a word of ``columns`` lanes for each index, and the search ``TOP(x)`` of docs/prefill.md in all lanes at once.

    A round reads all scores and adds those of at least the lane's candidate threshold. The first round (candidate 0) gives the total,
    which is multiplied serially by the share. Then the threshold is found bit by bit, from the highest bit that any score has. The sum
    at the last candidate that was too high is the sum of the scores above the threshold, since that candidate is the threshold plus one.
    The last round goes by ascending index: scores above the threshold are kept, equal ones until the target is reached.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    clear : In(1)
        Zero words 0..count-1 of all lanes, in ``count`` cycles up to ``done``.
    start : In(1)
        Search. ``clear`` and ``start`` are for an idle unit whose last addition is over; ``count`` and ``gamma16`` are then stable
        until ``done``.
    count : In
        Scores of a lane, 1..config.blocks.
    gamma16 : In(17)
        Share in units of 2^-16, 1..65536.
    write_en, write_index, write_lanes (columns bits), write_data (36 bits, columns) : In
        Write the lanes that are set. Only while idle, and not in the two cycles after an addition is taken.
    i_add : In(stream of index, lane, addend)
        Add ``addend`` (36 bits) to the score of ``lane``, 0..2 * group - 1, modulo 2^36. Not while the unit is busy. Ready every other
        cycle. The score is written two cycles after it is taken; an addition that follows sees it.
    o_valid, o_index, o_keep (columns bits) : Out
        What is kept, a word a cycle, ascending. Nothing is kept in a lane of zeros.
    busy : Out(1)
    done : Out(1)
        High for a cycle: ``o_valid`` is over, or the memory is cleared.

    Latency: :func:`select_cycles`, exactly. The scores stay in memory.
    """

    def __init__(self, config):
        self.config = config
        lanes, index = config.columns, index_bits(config.blocks)
        self.scores = [Ram(SCORE_WORD, config.blocks) for _ in range(lanes)]
        self.sum_bits = SCORE_WORD + index_bits(config.blocks)
        super().__init__(
            {
                "clear": In(1),
                "start": In(1),
                "count": In(BLOCK_BITS),
                "gamma16": In(GAMMA_BITS),
                "write_en": In(1),
                "write_index": In(index),
                "write_lanes": In(lanes),
                "write_data": In(SCORE_WORD).array(lanes),
                "i_add": In(stream.Signature(addition(config))),
                "o_valid": Out(1),
                "o_index": Out(index),
                "o_keep": Out(lanes),
                "busy": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        index = Signal(index_bits(c.blocks))  # of the word that is read or cleared
        reading, clearing, last_round, finishing = Signal(), Signal(), Signal(), Signal()
        judge, fix_goal, step = Signal(), Signal(), Signal()  # ends of rounds
        multiply, multiply_step = Signal(), Signal(range(GAMMA_BITS + 1))
        seen, bit = Signal(SCORE_WORD), Signal(SCORE_WORD)  # bits that any score has; the bit to find, one-hot
        gamma = Signal(GAMMA_BITS)
        last_word = Signal()
        m.d.comb += last_word.eq(index == self.count - 1)

        # One cycle after the read the word is there, one later the terms, two later the sums.
        there, added = Signal(), Signal()
        index_1, index_2 = Signal.like(index), Signal.like(index)
        m.d.sync += [
            there.eq(reading),
            added.eq(there),
            index_1.eq(index),
            index_2.eq(index_1),
            self.o_index.eq(index_2),
            self.o_valid.eq(added & last_round),
        ]

        with m.FSM(name="state") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.sync += [index.eq(0), last_round.eq(0), seen.eq(0), bit.eq(0)]
                with m.If(self.clear):
                    m.next = "CLEAR"
                with m.Elif(self.start):
                    m.next = "READ"
            with m.State("CLEAR"):
                m.d.comb += clearing.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(last_word):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("READ"):
                m.d.comb += reading.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(last_word):
                    m.d.sync += index.eq(0)
                    m.next = "TERM"
            with m.State("TERM"):
                m.next = "SUM"
            with m.State("SUM"):
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.comb += judge.eq(1)
                m.next = "STEP"
            with m.State("STEP"):
                m.d.comb += [step.eq(~last_round), self.done.eq(last_round)]
                m.next = "READ"
                with m.If(last_round):
                    m.next = "IDLE"
                with m.Elif(~bit.any()):  # the first round
                    m.d.comb += [step.eq(0), fix_goal.eq(1)]
                    m.d.sync += [gamma.eq(self.gamma16), multiply_step.eq(0)]
                    m.next = "MULTIPLY"
                with m.Else():
                    m.d.sync += [bit.eq(bit >> 1), last_round.eq(bit[0])]
            with m.State("MULTIPLY"):
                m.d.comb += multiply.eq(1)
                m.d.sync += [multiply_step.eq(multiply_step + 1), gamma.eq(gamma >> 1)]
                for place in range(SCORE_WORD):
                    with m.If(seen[place]):
                        m.d.sync += bit.eq(1 << place)
                with m.If(multiply_step == GAMMA_BITS):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.d.comb += finishing.eq(1)
                m.d.sync += last_round.eq(~bit.any())
                m.next = "READ"

        adding = self._additions(m)
        terms = []
        for lane in range(c.columns):
            m.submodules[f"scores_{lane}"] = ram = self.scores[lane]
            m.d.comb += [
                ram.read_en.eq(1),
                ram.read_addr.eq(index),
                ram.write_en.eq(clearing | (self.write_en & self.write_lanes[lane])),
                ram.write_addr.eq(Mux(clearing, index, self.write_index)),
                ram.write_data.eq(Mux(clearing, 0, self.write_data[lane])),
            ]
            if lane < 2 * c.group:
                adding(ram, lane)
            name = {
                text: f"{text}_{lane}"
                for text in ("pivot", "next", "term", "total", "goal", "above", "rest", "fits", "over", "equal")
            }
            # total: the sum of the round, or the product in the making. goal: the total of all scores, then the target.
            pivot = Signal(SCORE_WORD, name=name["pivot"])  # the candidate; in the last round the threshold
            term = Signal(self.sum_bits, name=name["term"], reset_less=True)
            total = Signal(self.sum_bits + 1, name=name["total"])
            goal, above = Signal(self.sum_bits, name=name["goal"]), Signal(self.sum_bits, name=name["above"])
            rest, fits = Signal(name=name["rest"]), Signal(name=name["fits"])
            over, equal = Signal(name=name["over"], reset_less=True), Signal(name=name["equal"], reset_less=True)
            score = ram.read_data
            reached = Signal(name=f"reached_{lane}")
            same, enough = Signal(name=f"same_{lane}"), Signal(name=f"enough_{lane}")
            following = Signal(self.sum_bits + 2, name=f"following_{lane}")
            m.d.comb += [
                reached.eq(total >= goal),
                same.eq(score == pivot),
                enough.eq(score >= pivot),
                following.eq(Mux(multiply, total >> 1, total) + term),
            ]
            with m.If(multiply):  # terms goal * bit of gamma, lowest first, and at last 1 if anything was shifted out
                m.d.sync += term.eq(Mux(gamma[0], goal, 0))
            with m.Else():
                m.d.sync += term.eq(Mux(there & Mux(last_round, same, enough), score, 0))
            m.d.sync += [over.eq(enough & ~same), equal.eq(same), self.o_keep[lane].eq(over | (equal & ~reached))]
            terms.append(term[:SCORE_WORD])
            with m.If(multiply & (multiply_step != 0)):
                m.d.sync += [total.eq(following), rest.eq(rest | total[0])]
            with m.Elif(finishing):
                m.d.sync += [goal.eq(total + rest), total.eq(0), pivot.eq(bit)]
            with m.Elif(fix_goal):
                m.d.sync += [goal.eq(total), total.eq(0), rest.eq(0), above.eq(0)]
            with m.Elif(step):
                m.d.sync += [pivot.eq(Mux(fits, pivot, pivot & ~bit) | (bit >> 1)), total.eq(0)]
                with m.If(~fits):
                    m.d.sync += above.eq(total)
                with m.If(bit[0]):
                    m.d.sync += total.eq(Mux(fits, above, total))
            with m.Elif(added):
                m.d.sync += total.eq(following)
            with m.If(judge):
                m.d.sync += fits.eq(reached)
            with m.If(self.start & ~self.busy):
                m.d.sync += [pivot.eq(0), total.eq(0)]
        with m.If(added):
            m.d.sync += seen.eq(seen | _any(terms))
        return m

    def _additions(self, m):
        """Read, add, write: the pipeline of ``i_add``. Returns what ties the memory of a lane to it."""
        c = self.config
        add = self.i_add.payload
        taken, due, write = Signal(), Signal(), Signal()
        index, addend = Signal(index_bits(c.blocks)), Signal(SCORE_WORD, reset_less=True)
        lane_1, lane_2 = Signal.like(add.lane), Signal.like(add.lane)
        write_index, again = Signal.like(index), Signal()
        m.d.comb += [self.i_add.ready.eq(~self.busy & ~due), taken.eq(self.i_add.valid & self.i_add.ready)]
        m.d.sync += [due.eq(taken), write.eq(due)]
        with m.If(taken):
            # The addition before is written in this cycle: its sum stands in for what is read.
            m.d.sync += [
                index.eq(add.index),
                lane_1.eq(add.lane),
                addend.eq(add.addend),
                again.eq(write & (write_index == add.index) & (lane_2 == add.lane)),
            ]
        with m.If(due):
            m.d.sync += [write_index.eq(index), lane_2.eq(lane_1)]

        def tie(ram, lane):
            total = Signal(SCORE_WORD, name=f"sum_{lane}", reset_less=True)
            with m.If(due):
                m.d.sync += total.eq(Mux(again, total, ram.read_data) + addend)
            with m.If(taken):
                m.d.comb += ram.read_addr.eq(add.index)
            with m.If(write):
                m.d.comb += [ram.write_en.eq(lane_2 == lane), ram.write_addr.eq(write_index), ram.write_data.eq(total)]

        return tie


def _any(words):
    while len(words) > 1:
        words = [words[i] | words[i + 1] if i + 1 < len(words) else words[i] for i in range(0, len(words), 2)]
    return words[0]
