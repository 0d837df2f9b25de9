"""Columns of INT8 dot products against a streamed row: packed pairs on DSP blocks, the others in LUTs."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.matrix.products import PACKED, SHIFT, BoothProduct, NibbleProduct, PackedProduct, extract, ones, pack

__all__ = ["LUT_FORMS", "LutColumn", "MatrixUnit", "PackedPair", "add_stage", "dot_bits", "latency", "tree_groups"]

LUT_FORMS = ("booth", "nibble")
PRODUCT_MAX = 127 * 127
BOOTH_MAX = PRODUCT_MAX + 85  # a product less its ones


def dot_bits(head_dim):
    """Signed bits of a dot product of ``head_dim`` products of -127..127."""
    return (PRODUCT_MAX * head_dim).bit_length() + 1


def tree_groups(head_dim):
    """Terms that the adders of each register stage take together. All but the ends of PACKED products take place packed;
    the last stages, one at least, come after that."""
    groups, terms, products = [], head_dim, 1
    while terms > 1 and products < PACKED:
        groups.append(min(4, terms))
        terms, products = -(-terms // 4), products * 4
    groups.append(min(4, terms))
    terms = -(-terms // 4)
    while terms > 1:
        groups.append(min(4, terms))
        terms = -(-terms // 4)
    return groups


def latency(head_dim):
    """Cycles from ``go`` to ``valid``: the operands, the products, the stages of the trees."""
    return 2 + len(tree_groups(head_dim))


def add_stage(m, terms, group, enable, *, largest, name, extra=()):
    """Register sums of ``group`` terms each, and of ``extra``; none is larger than ``largest``."""
    sums = []
    with m.If(enable):
        for first in range(0, len(terms), group):
            part = terms[first : first + group]
            halves = [sum(part[i + 1 : i + 2], part[i]) for i in range(0, len(part), 2)]
            total = Signal(signed(largest.bit_length() + 1), name=f"{name}_{first // group}", reset_less=True)
            m.d.sync += total.eq(sum([*halves[1:], *extra], halves[0]))
            sums.append(total)
    return sums


class _Columns(wiring.Component):
    """What both kinds of columns share: two banks that shift elements in, and the choice of one with ``take``."""

    def __init__(self, head_dim, count, members):
        self.head_dim = head_dim
        super().__init__(
            {
                "load_a": In(1),
                "load_a_data": In(signed(8)).array(count),
                "load_b": In(1),
                "load_b_data": In(signed(8)).array(count),
                "take": In(1),
                "bank": In(1),
                "row": In(8 * head_dim),
                "enable": In(1 + len(tree_groups(head_dim))),
                "dot": Out(signed(dot_bits(head_dim))).array(count),
                **members,
            }
        )

    def chosen(self, m, element_of):
        """Register of the chosen bank, a vector of elements ``element_of(load data)``."""
        banks = []
        for name, load, values in (("a", self.load_a, self.load_a_data), ("b", self.load_b, self.load_b_data)):
            element = element_of(values)
            bank = Signal(len(element) * self.head_dim, name=f"bank_{name}", reset_less=True)
            with m.If(load):
                m.d.sync += bank.eq(Cat(bank[len(element) :], element))
            banks.append(bank)
        operands = Signal.like(banks[0], name="operands", reset_less=True)
        with m.If(self.take):
            m.d.sync += operands.eq(Mux(self.bank, banks[1], banks[0]))
        return operands


class PackedPair(_Columns):
    """Two columns that share ``head_dim`` multipliers.

    Members
    -------
    load_a, load_a_data, load_b, load_b_data, take, bank
        As in :class:`MatrixUnit`, ``take`` being its ``go``.
    row : In(8 * head_dim)
        One cycle after ``take``.
    enable : In
        Bit i: stage i (the products, then the tree) takes new values; bit 0 is one cycle after ``take``, the others follow.
    dot : Out(signed(dot_bits)).array(2)
    """

    def __init__(self, head_dim):
        super().__init__(head_dim, 2, {})

    def elaborate(self, platform):
        m = Module()
        operands = self.chosen(m, lambda values: pack(*values))
        terms = []
        for k in range(self.head_dim):
            m.submodules[f"multiply_{k}"] = multiply = PackedProduct()
            product = Signal.like(multiply.product, name=f"product_{k}", reset_less=True)
            m.d.comb += [multiply.pair.eq(operands[16 * k : 16 * k + 16]), multiply.row.eq(self.row[8 * k : 8 * k + 8])]
            with m.If(self.enable[0]):
                m.d.sync += product.eq(multiply.product)
            terms.append(product)
        products, stages = 1, tree_groups(self.head_dim)
        halves = None
        for stage, group in enumerate(stages):
            enable = self.enable[stage + 1]
            if products < PACKED and stage < len(stages) - 1:
                products *= group
                largest = PRODUCT_MAX * products * ((1 << SHIFT) + 1)
                terms = add_stage(m, terms, group, enable, largest=largest, name=f"packed_{stage}")
                continue
            halves = halves or list(zip(*map(extract, terms), strict=True))
            products *= group
            halves = [
                add_stage(
                    m, half, group, enable, largest=PRODUCT_MAX * min(products, self.head_dim), name=f"{name}_{stage}"
                )
                for name, half in zip(("lower", "upper"), halves, strict=True)
            ]
        m.d.comb += [dot.eq(half[0]) for dot, half in zip(self.dot, halves, strict=True)]
        return m


class LutColumn(_Columns):
    """One column without multipliers.

    Parameters
    ----------
    head_dim : int
    form : "booth" or "nibble"

    Members
    -------
    ones : In
        Form "booth": sum of :func:`~intaglio.rtl.matrix.products.ones` over the row, with the last bit of ``enable``.

    The others as in :class:`PackedPair`, with an array of one.
    """

    def __init__(self, head_dim, form):
        self.form = form
        super().__init__(head_dim, 1, {"ones": In((85 * head_dim).bit_length())} if form == "booth" else {})

    def elaborate(self, platform):
        m = Module()
        operands = self.chosen(m, lambda values: values[0])
        terms = []
        booth = self.form == "booth"
        for k in range(self.head_dim):
            m.submodules[f"multiply_{k}"] = multiply = BoothProduct() if booth else NibbleProduct()
            product = Signal(signed(15), name=f"product_{k}", reset_less=True)  # operands are in -127..127
            m.d.comb += [multiply.operand.eq(operands[8 * k : 8 * k + 8]), multiply.row.eq(self.row[8 * k : 8 * k + 8])]
            with m.If(self.enable[0]):
                m.d.sync += product.eq(multiply.product)
            terms.append(product)
        products, stages = 1, tree_groups(self.head_dim)
        for stage, group in enumerate(stages):
            products = min(products * group, self.head_dim)
            last = stage == len(stages) - 1
            terms = add_stage(
                m,
                terms,
                group,
                self.enable[stage + 1],
                largest=(PRODUCT_MAX if last else BOOTH_MAX) * products,
                name=f"sum_{stage}",
                extra=[self.ones] if booth and last else [],
            )
        m.d.comb += self.dot[0].eq(terms[0])
        return m


class MatrixUnit(wiring.Component):
    """``columns`` dot products of held vectors with a row that streams through, one row a cycle.

    The first ``columns - lut_columns`` columns are pairs on DSP blocks (``head_dim`` of them a pair), the others are made of LUTs;
    all give the same numbers at the same time. All operands are in -127..127.

    Parameters
    ----------
    head_dim, columns, lut_columns : int
        ``columns - lut_columns`` is even.
    lut_form : "booth" or "nibble"

    Members
    -------
    load_a, load_b : In(1)
        Shift an element into bank a (b) of every column; after ``head_dim`` of them the bank is full, the first one being element 0.
        May come in any cycle; a row that comes with it still sees the bank as it was.
    load_a_data, load_b_data : In(signed(8)).array(columns)
    go : In(1)
        Multiply ``row`` with bank ``bank`` (0: a, 1: b), in every cycle if need be.
    bank : In(1)
    row : In(signed(8)).array(head_dim)
    valid : Out(1)
    dot : Out(signed(dot_bits)).array(columns)
        Exact sums; held between results.

    Latency: :attr:`latency` cycles from ``go`` to ``valid``, 5 for head_dim 16 to 64. Throughput: one row a cycle.

    Raises
    ------
    ValueError
        A size is not a positive integer, ``lut_columns`` leaves an odd number of columns or none, or the form is unknown.
    """

    def __init__(self, head_dim, columns, lut_columns=0, lut_form="booth"):
        for name, value in (("head_dim", head_dim), ("columns", columns)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if not (isinstance(lut_columns, int) and 0 <= lut_columns <= columns and (columns - lut_columns) % 2 == 0):
            raise ValueError(
                f"lut_columns must be at most {columns} and leave an even number of columns, not {lut_columns!r}"
            )
        if lut_form not in LUT_FORMS:
            raise ValueError(f"lut_form must be one of {', '.join(LUT_FORMS)}, not {lut_form!r}")
        self.head_dim, self.columns, self.lut_columns, self.lut_form = head_dim, columns, lut_columns, lut_form
        self.latency = latency(head_dim)
        super().__init__(
            {
                "load_a": In(1),
                "load_a_data": In(signed(8)).array(columns),
                "load_b": In(1),
                "load_b_data": In(signed(8)).array(columns),
                "go": In(1),
                "bank": In(1),
                "row": In(signed(8)).array(head_dim),
                "valid": Out(1),
                "dot": Out(signed(dot_bits(head_dim))).array(columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        stages = tree_groups(self.head_dim)
        row = Signal(8 * self.head_dim, name="row_held", reset_less=True)
        enable = Signal(len(stages) + 2)  # bit i: stage i has a row; the last bit is valid
        m.d.sync += enable.eq(Cat(self.go, enable))
        m.d.comb += self.valid.eq(enable[-1])
        with m.If(self.go):
            m.d.sync += row.eq(Cat(*self.row))

        booth = self.lut_columns and self.lut_form == "booth"
        if booth:
            completing = [ones(row[8 * k : 8 * k + 8]) for k in range(self.head_dim)]
            for stage, group in enumerate(stages):
                completing = add_stage(
                    m, completing, group, enable[stage], largest=85 * self.head_dim, name=f"ones_{stage}"
                )
        pairs = (self.columns - self.lut_columns) // 2
        parts = [(f"pair_{i}", PackedPair(self.head_dim), range(2 * i, 2 * i + 2)) for i in range(pairs)]
        parts += [
            (f"lut_{i}", LutColumn(self.head_dim, self.lut_form), range(i, i + 1))
            for i in range(2 * pairs, self.columns)
        ]
        for name, part, places in parts:
            m.submodules[name] = part
            m.d.comb += [
                part.load_a.eq(self.load_a),
                part.load_b.eq(self.load_b),
                part.take.eq(self.go),
                part.bank.eq(self.bank),
                part.row.eq(row),
                part.enable.eq(enable),
            ]
            for i, place in enumerate(places):
                m.d.comb += [
                    part.load_a_data[i].eq(self.load_a_data[place]),
                    part.load_b_data[i].eq(self.load_b_data[place]),
                    self.dot[place].eq(part.dot[i]),
                ]
            if len(places) == 1 and booth:
                m.d.comb += part.ones.eq(completing[0])
        return m
