"""The multipliers of the attention unit, shared by q.k, p.v and the head, with their adder trees and accumulators."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import INT8_MAX, INT16_MAX

__all__ = ["MacArray", "add_tree", "product_bits", "tree_stages"]

PRODUCT_MAX = INT16_MAX * INT8_MAX


def product_bits(terms):
    """Signed bits of a sum of ``terms`` products of 16 by 8 bits (both symmetric)."""
    return (PRODUCT_MAX * terms).bit_length() + 1


def tree_stages(terms):
    """Register stages of a tree of four-input adders over ``terms``."""
    stages = 0
    while terms > 1:
        terms, stages = -(-terms // 4), stages + 1
    return stages


def add_tree(m, terms, *, products, enables, name):
    """Balanced sum of ``terms``, registered after every two levels.

    Parameters
    ----------
    terms : list of Value
        Signed sums of ``products`` products each.
    enables : list of Value
        One for each of the ``tree_stages(len(terms))`` stages: take new values.

    Returns
    -------
    Value
        The sum, wide enough never to overflow; the only term itself where there is one.
    """
    count, stage = len(terms), 0
    while len(terms) > 1:
        halved, products = min(products * 2, products * count), min(products * 4, products * count)
        halves = []  # signals with names of their own, by which gen/synthesis/ecp5.py finds them and gives each a carry chain
        for i in range(0, len(terms), 2):
            half = Signal(signed(product_bits(halved)), name=f"half_{name}_{stage}_{i // 2}")
            m.d.comb += half.eq(sum(terms[i + 1 : i + 2], terms[i]))
            halves.append(half)
        sums = [
            Signal(signed(product_bits(products)), name=f"{name}_{stage}_{i}", reset_less=True)
            for i in range(-(-len(terms) // 4))
        ]
        with m.If(enables[stage]):
            m.d.sync += [total.eq(sum(halves[2 * i + 1 : 2 * i + 2], halves[2 * i])) for i, total in enumerate(sums)]
        terms, stage, count = sums, stage + 1, -(-count // 4)
    return terms[0]


class MacArray(wiring.Component):
    """``attention_heads * head_dim`` multipliers, signed 16 by signed 8 bits.

    Multiplier ``i`` belongs to head ``i // head_dim``, element ``i % head_dim``. ``load`` takes its operands:
    ``operand[i]`` or ``weight[head]``, times ``cached[element]`` or ``embedding[i]``.

    Members
    -------
    load : In(1)
        Take operands, in every cycle if need be.
    use_weight : In(1)
        With ``load``: the products are ``weight * cached`` and go to the accumulators, not to the trees.
    use_embedding : In(1)
        The second operand is ``embedding`` instead of ``cached``. Stable around ``load``.
    clear : In(1)
        Zeroes the accumulators.
    dot : Out(signed).array(attention_heads)
        Sums over the elements of each head, with ``dot_valid``; ``dot_soon`` comes two cycles earlier.
    accumulator : Out(signed(value_bits)).array(array)
        Sums over time.

    Latency: ``load`` to ``dot_valid`` 2 + tree_stages(head_dim) cycles; ``load`` to the accumulators 3.
    """

    def __init__(self, config):
        self.config = config
        heads, array, dim = config.attention_heads, config.array, config.head_dim
        self.dot_latency = 2 + tree_stages(dim)
        super().__init__(
            {
                "load": In(1),
                "use_weight": In(1),
                "use_embedding": In(1),
                "clear": In(1),
                "operand": In(signed(16)).array(array),
                "weight": In(signed(16)).array(heads),
                "cached": In(signed(8)).array(dim),
                "embedding": In(signed(8)).array(array),
                "dot_soon": Out(1),
                "dot_valid": Out(1),
                "dot": Out(signed(product_bits(dim))).array(heads),
                "accumulator": Out(signed(config.value_bits)).array(array),
            }
        )

    def elaborate(self, platform):
        m = Module()
        dim, array = self.config.head_dim, self.config.array
        left = [Signal(signed(16), name=f"left_{i}", reset_less=True) for i in range(array)]
        right = [Signal(signed(8), name=f"right_{i}", reset_less=True) for i in range(array)]
        product = [Signal(signed(product_bits(1)), name=f"product_{i}", reset_less=True) for i in range(array)]

        multiply, is_weight = Signal(), Signal()
        accumulate = Signal()
        tree = [Signal(name=f"tree_{i}") for i in range(tree_stages(dim) + 1)]
        m.d.sync += [
            multiply.eq(self.load),
            is_weight.eq(self.use_weight),
            accumulate.eq(multiply & is_weight),
            tree[0].eq(multiply & ~is_weight),
            *(tree[i + 1].eq(tree[i]) for i in range(len(tree) - 1)),
        ]
        with m.If(self.load):
            for i in range(array):
                m.d.sync += [
                    left[i].eq(Mux(self.use_weight, self.weight[i // dim], self.operand[i])),
                    right[i].eq(Mux(self.use_embedding, self.embedding[i], self.cached[i % dim])),
                ]
        with m.If(multiply):
            m.d.sync += [product[i].eq(left[i] * right[i]) for i in range(array)]
        with m.If(self.clear):
            m.d.sync += [self.accumulator[i].eq(0) for i in range(array)]
        with m.Elif(accumulate):
            m.d.sync += [self.accumulator[i].eq(self.accumulator[i] + product[i]) for i in range(array)]
        for head in range(self.config.attention_heads):
            total = add_tree(m, product[head * dim : (head + 1) * dim], products=1, enables=tree, name=f"sum_{head}")
            m.d.comb += self.dot[head].eq(total)
        m.d.comb += [self.dot_soon.eq([multiply & ~is_weight, *tree][-3]), self.dot_valid.eq(tree[-1])]
        return m
