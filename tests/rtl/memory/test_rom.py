# amaranth: UnusedElaboratable=no
"""ROMs: simulated memory, images, the Verilog module."""

import re

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from intaglio.rtl.memory.logic import bank
from intaglio.rtl.memory.rom import Rom, hex_text, words_to_bytes


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
def test_reads_with_latency_1(depth):
    init = [(0x1F3 * (i + 1)) & 0xFFF for i in range(depth)]
    dut = Rom("table", 12, depth, init)
    seen = []

    async def bench(ctx):
        for i in range(depth):
            ctx.set(dut.addr, i)
            await ctx.tick()
            seen.append(ctx.get(dut.data))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert seen == init


@pytest.mark.parametrize("depth", [1, 300])
def test_instance_names_its_image(depth):
    text = verilog.convert(Rom("gain", 20, depth), name="top", emit_src=False)
    assert "intaglio_rom" in text and '"gain.hex"' in text


def test_logic_is_a_module_of_its_own():
    text = verilog.convert(Rom("gain", 20, 300, form="logic"), name="top", emit_src=False)
    assert "intaglio_gain rom (" in text and ".hex" not in text
    ports = ("clk", "addr", "data")
    assert all(f".{port}({port})" in text for port in ports)
    assert all(re.search(rf"\b(input|output) .*\b{port}\b", bank([5] * 300, 20, "b").verilog) for port in ports)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((0, 4), "width and depth of ROM r must be at least 1, not 0 and 4"),
        ((8, 0), "not 8 and 0"),
        ((8, 2, [1, 2, 3]), "at most depth = 2 words, not 3"),
        ((8, 2, [1, 256]), r"word 1 of ROM r must be in 0..2\^8 - 1, not 256"),
        ((8, 2, [-1]), "word 0 .* not -1"),
        ((8, 2, None, "gates"), "the form of ROM r must be one of image, logic, not 'gates'"),
    ],
)
def test_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        Rom("r", *arguments)


def test_hex_image():
    values = [0, 1, 0xABC, 0xFFF]
    assert hex_text(words_to_bytes(values, 12)) == b"0000\n0001\n0abc\n0fff\n"
    wide = [0x0123456789ABCDEF << 70, 7]
    assert [int(line, 16) for line in hex_text(words_to_bytes(wide, 140)).splitlines()] == wide
    assert hex_text(np.array([[0x34, 0x12]], np.uint8)) == b"1234\n"
    assert words_to_bytes([0x1234], 13).tolist() == [[0x34, 0x12]]
    with pytest.raises(ValueError, match="word 1 must be in"):
        words_to_bytes([0, 4096], 12)
