"""Read-only memories: a named ROM, in the generated Verilog an image file or a module of gates, in simulation an initialised memory."""

import numpy as np
from amaranth.hdl import ClockSignal, Instance, Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.memory import ROM_FORMS

__all__ = [
    "ROM_DIR",
    "ROM_DIR_DEFAULT",
    "ROM_MODULE",
    "ROM_VERILOG",
    "Rom",
    "hex_text",
    "logic_module",
    "words_to_bytes",
]

ROM_MODULE = "intaglio_rom"
ROM_DIR = "INTAGLIO_ROM_DIR"  # macro: the folder of the images
ROM_DIR_DEFAULT = f"""\
`ifndef {ROM_DIR}
`define {ROM_DIR} "rom/"
`endif
"""

ROM_VERILOG = (
    ROM_DIR_DEFAULT
    + """
// Read-only memory with one read port, latency 1; its image is `INTAGLIO_ROM_DIR followed by FILE, one word a line.
module intaglio_rom #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter FILE = ""
) (
    input wire clk,
    input wire [(DEPTH > 1 ? $clog2(DEPTH) : 1) - 1:0] addr,
    output reg [WIDTH - 1:0] data
);
    reg [WIDTH - 1:0] mem [0:DEPTH - 1];
    generate
        if (FILE != "") begin : image  // so that the module can be read before it has parameters
            initial $readmemh({`INTAGLIO_ROM_DIR, FILE}, mem);
        end
    endgenerate
    always @(posedge clk) data <= mem[addr];
endmodule
"""
)


def logic_module(name):
    """Name of the module of gates that the ROM ``name`` is in the form ``logic``."""
    return f"intaglio_{name}"


class Rom(wiring.Component):
    """Read-only memory, always enabled.

    Parameters
    ----------
    name : str
        Names the image, ``<name>.hex``, or the module, :func:`logic_module`.
    width, depth : int
        Bits of a word; words. Both at least 1.
    init : sequence of int or None
        The words (missing ones at the end are 0), for simulation. ``None`` gives an instance of a module that the generator writes.
    form : str
        Of that module: ``image``, which is ``intaglio_rom`` (:data:`ROM_VERILOG`) with the file, or ``logic``, a module of its own with
        the same ports, whose words are gates (:mod:`intaglio.rtl.memory.logic`). Units do not see the difference.

    Members
    -------
    addr : In(max(1, ceil(log2(depth))))
    data : Out(width)
        The word at ``addr``. Latency 1.

    Raises
    ------
    ValueError
        ``width`` or ``depth`` is less than 1, the form is unknown, or ``init`` has too many words or one that does not fit.
    """

    def __init__(self, name, width, depth, init=None, form="image"):
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth of ROM {name} must be at least 1, not {width} and {depth}")
        if form not in ROM_FORMS:
            raise ValueError(f"the form of ROM {name} must be one of {', '.join(ROM_FORMS)}, not {form!r}")
        if init is not None:
            init = [int(word) for word in init]
            if len(init) > depth:
                raise ValueError(f"ROM {name} must have at most depth = {depth} words, not {len(init)}")
            for i, word in enumerate(init):
                if not 0 <= word < 1 << width:
                    raise ValueError(f"word {i} of ROM {name} must be in 0..2^{width} - 1, not {word}")
        self.name, self.width, self.depth, self.init, self.form = name, width, depth, init, form
        super().__init__({"addr": In(max(1, ceil_log2(depth))), "data": Out(width)})

    @property
    def file(self):
        """Name of the image."""
        return f"{self.name}.hex"

    def elaborate(self, platform):
        m = Module()
        if self.init is None:
            ports = {"i_clk": ClockSignal(), "i_addr": self.addr, "o_data": self.data}
            if self.form == "logic":
                m.submodules.rom = Instance(logic_module(self.name), **ports)
            else:
                m.submodules.rom = Instance(
                    ROM_MODULE, p_WIDTH=self.width, p_DEPTH=self.depth, p_FILE=self.file, **ports
                )
        else:
            m.submodules.memory = mem = memory.Memory(shape=self.width, depth=self.depth, init=self.init)
            port = mem.read_port()
            m.d.comb += [port.addr.eq(self.addr), self.data.eq(port.data)]
        return m


def words_to_bytes(values, width):
    """uint8 ``[len(values), ceil(width / 8)]``, little-endian, of integers in 0..2^width - 1.

    Raises
    ------
    ValueError
        A value does not fit.
    """
    size = -(-width // 8)
    rows = []
    for i, value in enumerate(values):
        value = int(value)
        if not 0 <= value < 1 << width:
            raise ValueError(f"word {i} must be in 0..2^{width} - 1, not {value}")
        rows.append(value.to_bytes(size, "little"))
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size)


def hex_text(words):
    """The image (ASCII bytes, one word a line) of uint8 ``words [depth, bytes]``, little-endian; for millions of words."""
    words = np.ascontiguousarray(words, np.uint8)
    if words.ndim != 2:
        raise ValueError(f"words must be uint8 [depth, bytes], not of shape {list(words.shape)}")
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    big = words[:, ::-1]
    text = np.empty((words.shape[0], 2 * words.shape[1] + 1), np.uint8)
    text[:, 0:-1:2], text[:, 1:-1:2], text[:, -1] = digits[big >> 4], digits[big & 15], ord("\n")
    return text.tobytes()
