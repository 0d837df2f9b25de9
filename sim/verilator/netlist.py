"""A netlist of ECP5 cells as Verilog for a simulator: what placement gets, instead of what synthesis got.

Cells are read as Yosys's models of them say (``share/lattice/common_sim.vh``, ``ccu2c_sim.vh``); block RAMs, multipliers and the PLL, of
which it has none, as Lattice FPGA-TN-02204 (memories), FPGA-TN-02205 (multipliers) and the mapping ``brams_map_16kd.v`` use them. Forms of
cells that this project's netlists do not have are refused.
"""

import json
from collections import defaultdict
from pathlib import Path

from intaglio import Error

__all__ = ["TOP", "netlist_verilog"]

TOP = "intaglio_netlist"


def netlist_verilog(path):
    """Verilog of a flat netlist of a board.

    Parameters
    ----------
    path : path
        JSON of Yosys, as :func:`intaglio.gen.synthesis.ecp5.synthesise_ecp5` writes it: ports ``clk_in``, ``rx``, ``tx``.

    Returns
    -------
    dict : name and Verilog of one module, :data:`TOP`, with the ports ``clk``, ``rst`` (not connected: a board starts by itself), ``rx``,
    ``tx``. The PLL passes its input on.

    Raises
    ------
    Error
        A cell, or a form of it, is not known.
    """
    modules = json.loads(Path(path).read_text())["modules"]
    (top,) = (module for module in modules.values() if int(module.get("attributes", {}).get("top", "0"), 2))
    ports = {name: port["bits"][0] for name, port in top["ports"].items()}
    lines = [
        f"module {TOP}(input wire clk, input wire rst, input wire rx, output wire tx);",
        f"assign {_net(ports['clk_in'])} = clk;",
        f"assign {_net(ports['rx'])} = rx;",
        f"assign tx = {_net(ports['tx'])};",
    ]
    nets = {
        bit
        for cell in top["cells"].values()
        for bits in cell["connections"].values()
        for bit in bits
        if isinstance(bit, int)
    }
    nets |= {bit for bit in ports.values() if isinstance(bit, int)}
    registers, clocked = {}, defaultdict(list)
    for number, (name, cell) in enumerate(top["cells"].items()):
        if cell["type"] not in _CELLS:
            raise Error(f"cell {name} must be one of {', '.join(_CELLS)}, not {cell['type']}")
        try:
            _CELLS[cell["type"]](_Cell(cell, number), lines, registers, clocked)
        except ValueError as fault:
            raise Error(f"{cell['type']} {name}: {fault}") from fault
    declared = [
        f"reg {_net(bit)} = {registers[bit]};" if bit in registers else f"wire {_net(bit)};" for bit in sorted(nets)
    ]
    for (sensitivity, reset, enable), moves in clocked.items():
        resets, sets = "\n".join(move[0] for move in moves), "\n".join(move[1] for move in moves)
        body = f"if ({enable}) begin {sets} end"
        lines.append(
            f"always @({sensitivity}) " + (body if reset == "1'b0" else f"if ({reset}) begin {resets} end else {body}")
        )
    return {TOP: "\n".join([lines[0], *declared, *lines[1:], "endmodule"]) + "\n"}


def _net(bit):
    return f"n{bit}" if isinstance(bit, int) else f"1'b{int(bit == '1')}"


class _Cell:
    """A cell: ``cell["A"]`` is a net or a constant; :meth:`word` joins ``A0``, ``A1``, ...; ``cell.param(NAME)`` a number or a text."""

    def __init__(self, cell, number):
        self.parameters, self.connections, self.number = cell["parameters"], cell["connections"], number

    def __getitem__(self, port):
        bits = self.connections.get(port, ["0"])
        return _net(bits[0]) if len(bits) == 1 else "{" + ", ".join(_net(bit) for bit in reversed(bits)) + "}"

    def word(self, port, first, last):
        return "{" + ", ".join(self[f"{port}{i}"] for i in range(last, first - 1, -1)) + "}"

    def outputs(self, port, count):
        """Names of the bits ``port0``...; a bit that goes nowhere is None."""
        return [
            next((bit for bit in self.connections.get(f"{port}{i}", []) if isinstance(bit, int)), None)
            for i in range(count)
        ]

    def param(self, name, default=""):
        return self.parameters.get(name, default)

    def number_of(self, name, default="0"):
        return int(self.param(name, default).replace("x", "0"), 2)


def _must(what, allowed, given):
    if given not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, not {given!r}")


def _table(init, cell, inputs):
    return f"(16'h{init:04x} >> {{{', '.join(cell[port] for port in reversed(inputs))}}}) & 1'b1"


def _lut4(cell, lines, *_):
    lines.append(f"assign {cell['Z']} = {_table(cell.number_of('INIT'), cell, 'ABCD')};")


def _pfumx(cell, lines, *_):
    lines.append(f"assign {cell['Z']} = {cell['C0']} ? {cell['ALUT']} : {cell['BLUT']};")


def _l6mux21(cell, lines, *_):
    lines.append(f"assign {cell['Z']} = {cell['SD']} ? {cell['D1']} : {cell['D0']};")


def _ccu2c(cell, lines, *_):
    carry, k = cell["CIN"], cell.number
    for half in "01":
        inputs = [port + half for port in "ABCD"]
        init, inject = cell.number_of(f"INIT{half}"), cell.param(f"INJECT1_{half}")
        _must("INJECT1", ("YES", "NO"), inject)
        own = inject == "NO"
        lines.append(f"wire l{k}_{half} = {_table(init, cell, inputs)};")
        generated = f"(4'h{init & 15:x} >> {{{cell[inputs[1]]}, {cell[inputs[0]]}}}) & 1'b1" if own else "1'b0"
        if cell.connections.get(f"S{half}"):
            lines.append(f"assign {cell[f'S{half}']} = l{k}_{half}{' ^ ' + carry if own else ''};")
        lines.append(f"wire c{k}_{half} = l{k}_{half} ? {carry} : {generated};")
        carry = f"c{k}_{half}"
    if cell.connections.get("COUT"):
        lines.append(f"assign {cell['COUT']} = {carry};")


def _trellis_ff(cell, lines, registers, clocked):
    _must("CLKMUX", ("CLK",), cell.param("CLKMUX"))
    _must("LSRMUX", ("LSR",), cell.param("LSRMUX"))
    (q,) = cell.connections["Q"]
    value = f"1'b{int(cell.param('REGSET') == 'SET')}"
    enable = {"1": "1'b1", "CE": cell["CE"], "INV": "!" + cell["CE"]}[cell.param("CEMUX").strip() or "1"]
    sensitivity = f"posedge {cell['CLK']}"
    if cell.param("SRMODE") == "ASYNC":
        sensitivity += f" or posedge {cell['LSR']}"
    registers[q] = value
    clocked[sensitivity, cell["LSR"], enable].append((f"n{q} <= {value};", f"n{q} <= {cell['DI']};"))


def _dpr16x4(cell, lines, *_):
    _must("WCKMUX", ("WCK", ""), cell.param("WCKMUX"))
    _must("WREMUX", ("WRE", ""), cell.param("WREMUX"))
    m, init = f"m{cell.number}", cell.number_of("INITVAL")
    lines += [
        f"reg [3:0] {m} [0:15];",
        "initial begin " + " ".join(f"{m}[{i}] = {init >> 4 * i & 15};" for i in range(16)) + " end",
        f"always @(posedge {cell['WCK']}) if ({cell['WRE']}) {m}[{cell['WAD']}] <= {cell['DI']};",
    ]
    lines += [
        f"assign n{bit} = {m}[{cell['RAD']}][{i}];"
        for i, bit in enumerate(cell.connections["DO"])
        if isinstance(bit, int)
    ]


def _dp16kd(cell, lines, *_):
    k = cell.number
    widths = {port: cell.number_of(f"DATA_WIDTH_{port}") for port in "AB"}
    for port in "AB":
        _must(f"DATA_WIDTH_{port}", (18, 36), widths[port])
        _must(f"REGMODE_{port}", ("NOREG",), cell.param(f"REGMODE_{port}"))
        _must(f"CLK{port}MUX", (f"CLK{port}",), cell.param(f"CLK{port}MUX"))
        _must(f"RST{port}", ("1'b0",), cell[f"RST{port}"])
        _must(f"CS{port}", ("{1'b0, 1'b0, 1'b0}",), cell.word(f"CS{port}", 0, 2))
    if 36 in widths.values():  # one port writes, the other reads
        _must("WEB of a memory 36 bits wide", ("1'b0",), cell["WEB"])
    image = 0
    for row in range(64):
        bits = cell.number_of(f"INITVAL_{row:02X}")
        for i in range(16):
            image |= (bits >> 20 * i & 0x3FFFF) << 18 * (16 * row + i)
    lines += [
        f"reg [17:0] m{k} [0:1023];",
        f"localparam [18431:0] i{k} = 18432'h{image:x};",
        f"integer j{k};",
        f"initial for (j{k} = 0; j{k} < 1024; j{k} = j{k} + 1) m{k}[j{k}] = i{k}[18 * j{k} +: 18];",
    ]
    for port, width in widths.items():
        if cell[f"CE{port}"] == "1'b0":
            continue
        begin = f"always @(posedge {cell[f'CLK{port}']}) if ({cell[f'CE{port}']})"
        halves = width // 18
        at = cell.word(f"AD{port}", 3 + halves, 13)
        for half in range(halves):
            word = f"m{k}[{at}]" if halves == 1 else f"m{k}[{{{at}, 1'b{half}}}]"
            if cell[f"WE{port}"] != "1'b0":
                data = cell.word(f"DI{'AB'[half] if halves == 2 else port}", 0, 17)
                for byte in (0, 1):
                    lines.append(
                        f"{begin} if ({cell[f'WE{port}']} & {cell[f'AD{port}{2 * half + byte}']}) "
                        f"{word}[{9 * byte} +: 9] <= {data} >> {9 * byte};"
                    )
            out = cell.outputs(f"DO{'AB'[half] if halves == 2 else port}", 18)
            if any(bit is not None for bit in out) and (halves == 1 or port == "B"):
                read = f"r{k}_{port}{half}"
                lines += [f"reg [17:0] {read} = 0;", f"{begin} {read} <= {word};"]
                lines += [f"assign n{bit} = {read}[{i}];" for i, bit in enumerate(out) if bit is not None]


def _mult18x18d(cell, lines, *_):
    k = cell.number

    def stored(side, name, value, width, signed=""):
        """The value of a side, from its register if it has one (gen/synthesis/dsp.py)."""
        prefix = {"a": "REG_INPUTA", "b": "REG_INPUTB", "p": "REG_OUTPUT"}[side]
        clock = cell.param(f"{prefix}_CLK", "NONE")
        _must(f"{prefix}_CLK", ("NONE", "CLK0"), clock)
        _must("RST0", ("1'b0",), cell["RST0"])
        if clock == "NONE":
            lines.append(f"wire{signed} [{width - 1}:0] {name} = {value};")
        else:
            lines.append(f"reg{signed} [{width - 1}:0] {name} = 0;")
            lines.append(f"always @(posedge {cell[clock]}) if ({cell[cell.param(f'{prefix}_CE')]}) {name} <= {value};")

    for port in "AB":
        _must(f"SIGNED{port}", ("1'b0", "1'b1"), cell[f"SIGNED{port}"])
        _must(f"SOURCE{port}", ("1'b0",), cell[f"SOURCE{port}"])
        top = cell[f"{port}17"] if cell[f"SIGNED{port}"] == "1'b1" else "1'b0"
        stored(port.lower(), f"{port.lower()}{k}", f"{{{{18{{{top}}}}}, {cell.word(port, 0, 17)}}}", 36, " signed")
    stored("p", f"p{k}", f"a{k} * b{k}", 36)
    lines += [f"assign n{bit} = p{k}[{i}];" for i, bit in enumerate(cell.outputs("P", 36)) if bit is not None]


def _ehxplll(cell, lines, *_):
    lines += [f"assign {cell['CLKOP']} = {cell['CLKI']};", f"assign {cell['LOCK']} = 1'b1;"]


_CELLS = {
    "LUT4": _lut4,
    "PFUMX": _pfumx,
    "L6MUX21": _l6mux21,
    "CCU2C": _ccu2c,
    "TRELLIS_FF": _trellis_ff,
    "TRELLIS_DPR16X4": _dpr16x4,
    "DP16KD": _dp16kd,
    "MULT18X18D": _mult18x18d,
    "EHXPLLL": _ehxplll,
}
