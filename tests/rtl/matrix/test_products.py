"""The packed product of all operands and all rows: its Verilog, compiled, on each of the 255^3 inputs. No sample, no assumption."""

import json
import os
import subprocess

import pytest
from amaranth.hdl import Cat, Module, Signal, signed

from intaglio.gen.emit.verilog import convert
from intaglio.rtl.matrix.products import PackedProduct, extract, pack
from intaglio.sim.verilator.build import COMPILER_FLAGS, find_tools

pytestmark = pytest.mark.verilator

LIMIT = 127
NO_TRACES = ("-DVM_TRACE=0", "-DVM_TRACE_VCD=0", "-DVM_TRACE_FST=0")
MAIN = """
#include <cstdio>
#include "Vtop.h"
double sc_time_stamp() { return 0; }
int main(int, char** words) {
    const int least = std::atoi(words[1]);
    VerilatedContext context;
    Vtop top(&context);
    long inputs = 0, low = 0, high = 0;
    for (int row = least; row <= 127; ++row)
        for (int upper = least; upper <= 127; ++upper)
            for (int lower = least; lower <= 127; ++lower, ++inputs) {
                top.row = row & 255, top.upper = upper & 255, top.lower = lower & 255;
                top.eval();
                low += static_cast<int32_t>(top.low << 12) >> 12 != lower * row;
                high += static_cast<int32_t>(top.high << 12) >> 12 != upper * row;
            }
    std::printf("[%ld, %ld, %ld]\\n", inputs, low, high);
}
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Verilator's run-time library, compiled once."""
    folder, tools = tmp_path_factory.mktemp("runtime"), find_tools()
    include = tools.root / "include"
    flags = [flag for flag in COMPILER_FLAGS if not flag.startswith("-DVL_USER")]  # faults end the program
    compiler = [tools.compiler, *flags, *NO_TRACES, f"-I{include}", f"-I{include / 'vltstd'}"]
    objects = [folder / f"{name}.o" for name in ("verilated", "verilated_threads")]
    for path in objects:
        subprocess.run([*compiler, "-O0", "-c", include / f"{path.stem}.cpp", "-o", path], check=True)
    return tools, compiler, objects


def wrong_products(runtime, folder, packed, least):
    """(inputs tried, wrong lower products, wrong upper products) of all operands and rows from ``least`` to 127."""
    tools, compiler, objects = runtime
    m = Module()
    m.submodules.product = dut = PackedProduct()
    lower, upper, row = (Signal(signed(8), name=name) for name in ("lower", "upper", "row"))
    low, high = Signal(signed(20), name="low"), Signal(signed(20), name="high")
    m.d.comb += [
        dut.pair.eq(packed(lower, upper)),
        dut.row.eq(row),
        low.eq(extract(dut.product)[0]),
        high.eq(extract(dut.product)[1]),
    ]
    ports = {signal.name: (signal, None) for signal in (lower, upper, row, low, high)}
    for name, text in convert(m, "top", ports).items():
        (folder / f"{name}.v").write_text(text)
    (folder / "main.cpp").write_text(MAIN)
    out = folder / "out"
    subprocess.run(
        [
            tools.verilator,
            "--cc",
            "-O3",
            "--prefix",
            "Vtop",
            "--top-module",
            "top",
            "--no-timing",
            "-Wno-fatal",
            "-Wno-lint",
            "-Mdir",
            out,
            *sorted(folder.glob("*.v")),
        ],
        check=True,
        env={**os.environ, "VERILATOR_ROOT": str(tools.root)},
    )
    subprocess.run(
        [
            *compiler,
            "-O2",
            f"-I{out}",
            folder / "main.cpp",
            *sorted(out.glob("*.cpp")),
            *objects,
            "-lpthread",
            "-o",
            folder / "all",
        ],
        check=True,
    )
    return json.loads(
        subprocess.run([folder / "all", str(least)], capture_output=True, text=True, check=True, timeout=300).stdout
    )


def test_all_products(runtime, tmp_path):
    assert wrong_products(runtime, tmp_path, pack, -LIMIT) == [255**3, 0, 0]


def test_a_lost_borrow_shows(runtime, tmp_path):
    """The upper operand as it is: wrong wherever the lower one is negative and the row is not 0."""
    inputs, low, high = wrong_products(runtime, tmp_path, lambda lower, upper: Cat(lower, upper), -LIMIT)
    assert (inputs, low, high) == (255**3, 0, 127 * 254 * 255)


def test_what_is_not_allowed_shows(runtime, tmp_path):
    """-128 as upper operand over a negative lower one has no 8 bits for its borrow."""
    inputs, low, high = wrong_products(runtime, tmp_path, pack, -LIMIT - 1)
    assert inputs == 256**3 and low == 0 and high > 0
