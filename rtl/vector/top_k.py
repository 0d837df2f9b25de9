"""The best candidates of the head: the top k logits, kept sorted while they arrive."""

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["TopK"]


class TopK(wiring.Component):
    """Sorted list of the ``k`` best candidates: logit descending, on equal logits the one that came first.

    Every entry compares the candidate with its own logit; the entries behind the insertion point move back by one place.
    Tokens arrive in ascending order, so that "came first" is "lower token".

    Parameters
    ----------
    k : int
        Entries, at least 1.
    token_bits, logit_bits : int
        Widths of a token (unsigned) and of a logit (signed).

    Members
    -------
    clear : In(1)
        Empties the list; may come with no candidate in the same cycle.
    valid : In(1), token : In(token_bits), logit : In(signed(logit_bits))
        A candidate, taken in every cycle with ``valid``.
    index : In(range(k)), top_token, top_logit : Out
        Reads entry ``index``, 0 the best. Combinational.
    count : Out
        Entries that are filled, 0..k.

    Latency: a candidate is in the list one cycle after it. Throughput: one candidate a cycle.
    """

    def __init__(self, k, token_bits, logit_bits=32):
        for name, value in (("k", k), ("token_bits", token_bits), ("logit_bits", logit_bits)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        self.k = k
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "token": In(token_bits),
                "logit": In(signed(logit_bits)),
                "index": In(max(1, (k - 1).bit_length())),
                "top_token": Out(token_bits),
                "top_logit": Out(signed(logit_bits)),
                "count": Out(k.bit_length()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        tokens = [Signal(self.token.shape(), name=f"token_{i}", reset_less=True) for i in range(self.k)]
        logits = [Signal(self.logit.shape(), name=f"logit_{i}", reset_less=True) for i in range(self.k)]
        filled = [Signal(name=f"filled_{i}") for i in range(self.k)]
        before = [Signal(name=f"before_{i}") for i in range(self.k)]  # the candidate goes before entry i
        for i in range(self.k):  # by a subtraction: a carry chain, where a comparison becomes many levels of gates
            difference = Signal(signed(len(self.logit) + 1), name=f"difference_{i}")
            m.d.comb += [difference.eq(logits[i] - self.logit), before[i].eq(~filled[i] | difference[-1])]
        with m.If(self.valid):
            for i in range(self.k):
                first = before[i - 1] if i else 0
                with m.If(before[i]):
                    m.d.sync += [
                        tokens[i].eq(Mux(first, tokens[i - 1], self.token)),
                        logits[i].eq(Mux(first, logits[i - 1], self.logit)),
                        filled[i].eq(Mux(first, filled[i - 1], 1)),
                    ]
            with m.If(~filled[-1]):
                m.d.sync += self.count.eq(self.count + 1)
        with m.If(self.clear):
            m.d.sync += [self.count.eq(0), *(f.eq(0) for f in filled)]
        m.d.comb += [self.top_token.eq(Array(tokens)[self.index]), self.top_logit.eq(Array(logits)[self.index])]
        return m
