"""Read-write memories: one write and one read port, an instance in the generated Verilog and a plain memory in simulation."""

from functools import cached_property

from amaranth.hdl import ClockSignal, Instance, MemoryData, Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["RAM_MODULE", "RAM_VERILOG", "Ram", "index_bits"]

RAM_MODULE = "intaglio_ram"

RAM_VERILOG = """\
// Memory with one write and one read port, latency 1. Contents are undefined until written.
// What a read returns in the cycle of a write to its address is never used: block RAM needs no logic to make it the old word.
// Up to 64 words are kept out of block RAM, which small devices lack.
module intaglio_ram #(
    parameter WIDTH = 8,
    parameter DEPTH = 2
) (
    input wire clk,
    input wire write_en,
    input wire [(DEPTH > 1 ? $clog2(DEPTH) : 1) - 1:0] write_addr,
    input wire [WIDTH - 1:0] write_data,
    input wire read_en,
    input wire [(DEPTH > 1 ? $clog2(DEPTH) : 1) - 1:0] read_addr,
    output reg [WIDTH - 1:0] read_data
);
    generate  // attributes are literals: not every tool evaluates a parameter there
        if (DEPTH <= 64) begin : few
            (* no_rw_check, ram_style = "distributed" *) reg [WIDTH - 1:0] mem [0:DEPTH - 1];
            always @(posedge clk) if (write_en) mem[write_addr] <= write_data;
            always @(posedge clk) if (read_en) read_data <= mem[read_addr];
        end else begin : many
            (* no_rw_check *) reg [WIDTH - 1:0] mem [0:DEPTH - 1];
            always @(posedge clk) if (write_en) mem[write_addr] <= write_data;
            always @(posedge clk) if (read_en) read_data <= mem[read_addr];
        end
    endgenerate
endmodule
"""


def index_bits(count):
    """Unsigned bits of an index below ``count``, at least one."""
    return max(1, (count - 1).bit_length())


class Ram(wiring.Component):
    """Memory with one write and one read port, without initial contents.

    For a platform it is an instance of ``intaglio_ram`` (:data:`RAM_VERILOG`), so that no initial value is written for every word; for
    Amaranth's simulator, which has no platform, a plain memory.

    Parameters
    ----------
    width, depth : int

    Attributes
    ----------
    data : MemoryData
        The words, in Amaranth's simulator.

    Latency: reads 1 cycle. Nothing may depend on what a read returns in the cycle of a write to its address (here the old word).
    """

    def __init__(self, width, depth):
        self.width, self.depth = width, depth
        bits = index_bits(depth)
        super().__init__(
            {
                "write_en": In(1),
                "write_addr": In(bits),
                "write_data": In(width),
                "read_en": In(1),
                "read_addr": In(bits),
                "read_data": Out(width),
            }
        )

    @cached_property
    def data(self):
        return MemoryData(shape=self.width, depth=self.depth, init=[])

    def elaborate(self, platform):
        m = Module()
        if platform is not None:
            m.submodules.ram = Instance(
                RAM_MODULE,
                p_WIDTH=self.width,
                p_DEPTH=self.depth,
                i_clk=ClockSignal(),
                i_write_en=self.write_en,
                i_write_addr=self.write_addr,
                i_write_data=self.write_data,
                i_read_en=self.read_en,
                i_read_addr=self.read_addr,
                o_read_data=self.read_data,
            )
        else:
            m.submodules.ram = memory = Memory(self.data)
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.en.eq(self.write_en),
                write.addr.eq(self.write_addr),
                write.data.eq(self.write_data),
                read.en.eq(self.read_en),
                read.addr.eq(self.read_addr),
                self.read_data.eq(read.data),
            ]
        return m
