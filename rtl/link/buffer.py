"""The word buffers of the link: small memories of LUTs with a combinational read, so that no block RAM is used."""

from amaranth.hdl import ClockSignal, Instance, MemoryData, Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["BUFFER_MODULE", "BUFFER_VERILOG", "WordBuffer", "check_depth"]

BUFFER_MODULE = "intaglio_word_buffer"

BUFFER_VERILOG = """\
// Memory of LUTs: one write port, one combinational read port. Contents are undefined until written.
module intaglio_word_buffer #(
    parameter WIDTH = 33,
    parameter DEPTH = 64
) (
    input wire clk,
    input wire write_en,
    input wire [$clog2(DEPTH) - 1:0] write_addr,
    input wire [WIDTH - 1:0] write_data,
    input wire [$clog2(DEPTH) - 1:0] read_addr,
    output wire [WIDTH - 1:0] read_data
);
    (* ram_style = "distributed" *) reg [WIDTH - 1:0] mem [0:DEPTH - 1];
    always @(posedge clk) if (write_en) mem[write_addr] <= write_data;
    assign read_data = mem[read_addr];
endmodule
"""


def check_depth(depth):
    """Raise ValueError unless ``depth`` is one that a buffer can have."""
    if depth not in (16, 32, 64, 128):
        raise ValueError(f"depth of a word buffer must be a power of 2 in 16..128, not {depth!r}")


class WordBuffer(wiring.Component):
    """``depth`` words of ``width`` bits.

    Parameters
    ----------
    width : int
    depth : int
        A power of 2, 16 to 128.

    Latency: reads 0 cycles; a word can be read in the cycle after its write.
    """

    def __init__(self, width, depth):
        check_depth(depth)
        self.width, self.depth = width, depth
        bits = depth.bit_length() - 1
        super().__init__(
            {
                "write_en": In(1),
                "write_addr": In(bits),
                "write_data": In(width),
                "read_addr": In(bits),
                "read_data": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        if platform is None:
            m.submodules.memory = memory = Memory(MemoryData(shape=self.width, depth=self.depth, init=[]))
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.write_en),
                write.addr.eq(self.write_addr),
                write.data.eq(self.write_data),
                read.addr.eq(self.read_addr),
                self.read_data.eq(read.data),
            ]
        else:
            m.submodules.memory = Instance(
                BUFFER_MODULE,
                p_WIDTH=self.width,
                p_DEPTH=self.depth,
                i_clk=ClockSignal(),
                i_write_en=self.write_en,
                i_write_addr=self.write_addr,
                i_write_data=self.write_data,
                i_read_addr=self.read_addr,
                o_read_data=self.read_data,
            )
        return m
