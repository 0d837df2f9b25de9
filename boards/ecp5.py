"""ECP5 boards: PLL, top and constraints. Limits of the PLL: Lattice FPGA-DS-02012, sysCLOCK PLL timing."""

from dataclasses import dataclass

from intaglio.boards.config import Board
from intaglio.gen.emit.link import SERIAL_TOP

__all__ = ["TOP", "Pll", "constraints", "pll", "top_verilog"]

TOP = "intaglio_board"
RESET_CYCLES = 256
MARGIN = 0.01  # by which the clock is wanted faster: what the router counts as met can be a little slower in the end (0.5 % of 70 MHz)


@dataclass(frozen=True, kw_only=True)
class Pll:
    """Dividers of an EHXPLLL with its feedback from CLKOP: ``output = input / reference * feedback``, ``vco = output * post``."""

    reference: int
    feedback: int
    post: int


def pll(input_hz: int, output_hz: int) -> Pll:
    """The PLL that makes ``output_hz`` of ``input_hz``, exactly, with the highest phase detector frequency.

    Raises
    ------
    ValueError
        No dividers within the limits give it.
    """
    for reference in range(1, 129):
        detector = input_hz / reference
        if not 3_125_000 <= detector <= 400_000_000 or output_hz * reference % input_hz:
            continue
        feedback = output_hz * reference // input_hz
        # the VCO in the middle of 400..800 MHz
        posts = sorted(range(1, 129), key=lambda post: abs(output_hz * post - 600_000_000))
        if 1 <= feedback <= 128 and 400_000_000 <= output_hz * posts[0] <= 800_000_000:
            return Pll(reference=reference, feedback=feedback, post=posts[0])
    raise ValueError(
        f"a PLL must be able to make clock_hz = {output_hz} of {input_hz} Hz, with integer dividers up to 128, a phase "
        "detector of at least 3.125 MHz and a VCO of 400..800 MHz"
    )


def top_verilog(board: Board) -> str:
    """Verilog of the board's top: PLL, reset, and the serial decoder."""
    p = pll(board.input_hz, board.clock_hz)
    ports = "".join(f", output wire {name}" for name, _ in board.high)
    held = "".join(f"    assign {name} = 1'b1;\n" for name, _ in board.high)
    return f"""\
// {board.description}: {board.input_hz} Hz to {board.clock_hz} Hz, and a reset of {RESET_CYCLES} cycles after the PLL has locked.
module {TOP}(input wire clk_in, input wire rx, output wire tx{ports});
    wire clk, locked;
    (* ICP_CURRENT = "12", LPF_RESISTOR = "8", MFG_ENABLE_FILTEROPAMP = "1", MFG_GMCREF_SEL = "2" *)
    EHXPLLL #(
        .PLLRST_ENA("DISABLED"), .INTFB_WAKE("DISABLED"), .STDBY_ENABLE("DISABLED"), .DPHASE_SOURCE("DISABLED"),
        .OUTDIVIDER_MUXA("DIVA"), .OUTDIVIDER_MUXB("DIVB"), .OUTDIVIDER_MUXC("DIVC"), .OUTDIVIDER_MUXD("DIVD"),
        .CLKI_DIV({p.reference}), .CLKFB_DIV({p.feedback}), .FEEDBK_PATH("CLKOP"),
        .CLKOP_ENABLE("ENABLED"), .CLKOP_DIV({p.post}), .CLKOP_CPHASE({p.post - 1}), .CLKOP_FPHASE(0)
    ) pll (
        .CLKI(clk_in), .CLKFB(clk), .CLKOP(clk), .LOCK(locked), .RST(1'b0), .STDBY(1'b0), .CLKINTFB(), .ENCLKOP(1'b0),
        .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b1), .PHASESTEP(1'b1), .PHASELOADREG(1'b1), .PLLWAKESYNC(1'b0)
    );
    reg [{RESET_CYCLES.bit_length() - 1}:0] held = 0;
    reg rst = 1;
    always @(posedge clk or negedge locked)
        if (!locked) held <= 0;
        else if (!held[{RESET_CYCLES.bit_length() - 1}]) held <= held + 1;
    always @(posedge clk) rst <= !held[{RESET_CYCLES.bit_length() - 1}];
    {SERIAL_TOP} device (.clk(clk), .rst(rst), .rx(rx), .tx(tx));
{held}endmodule
"""


def constraints(board: Board) -> str:
    """Pins, and the oscillator's clock with its margin, in Lattice's preference format (LPF); nextpnr derives the PLL's clock from it."""
    lines = []
    for port, pin in (("clk_in", board.clock), ("rx", board.rx), ("tx", board.tx), *board.high):
        lines.append(f'LOCATE COMP "{port}" SITE "{pin.ball}";')
        attributes = " ".join(f"{key}={value}" for key, value in pin.attributes)
        lines.append(f'IOBUF PORT "{port}" {attributes};')
    lines.append(f'FREQUENCY PORT "clk_in" {board.input_hz * (1 + MARGIN) / 1e6:g} MHZ;')
    return "\n".join(lines) + "\n"
