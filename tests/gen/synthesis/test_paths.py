# amaranth: UnusedElaboratable=no
"""No output of any top depends on an input but through a register, as AXI demands; the search finds a path where there is one."""

import pytest

from intaglio import Error
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.link import SERIAL_TOP, serial_verilog
from intaglio.gen.emit.output import described
from intaglio.gen.emit.verilog import convert
from intaglio.gen.synthesis.paths import combinational_paths
from intaglio.rtl.bus.axi import port_map
from intaglio.rtl.top.kernel import KERNEL_TOP, Kernel, Mover

MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
WIDTHS = {"plain": {}, "adapters": {"rank": 2}, "gated": {"gate_words": 32}}


def write(folder, modules):
    folder.mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.v").write_text(text)
    return sorted(folder.glob("*.v"))


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("paths")
    return {
        name: (root / name, generate(random_checkpoint(MODEL), "small", root / name, **widths))
        for name, widths in WIDTHS.items()
    }


@pytest.mark.parametrize("name", WIDTHS)
def test_decoder(decoders, name):
    folder, manifest = decoders[name]
    assert combinational_paths(sorted(folder.glob("rtl/*.v")), manifest["top"], ignore={"aclk"}) == []


@pytest.mark.slow
def test_prefill(small_prefill):
    assert (
        combinational_paths(sorted(small_prefill.glob("rtl/*.v")), described(small_prefill)["top"], ignore={"aclk"})
        == []
    )


def test_kernel_and_serial_top(decoders, tmp_path):
    folder, manifest = decoders["plain"]
    kernel = Kernel(manifest["top"])
    files = sorted(folder.glob("rtl/*.v"))
    tops = {
        KERNEL_TOP: (convert(kernel, KERNEL_TOP, port_map(kernel)), {"ap_clk"}),
        SERIAL_TOP: (serial_verilog(manifest, clock_hz=80_000_000, baud=2_000_000), {"clk"}),
    }
    for top, (modules, clock) in tops.items():
        assert combinational_paths([*write(tmp_path / top, modules), *files], top, ignore=clock) == []


def test_the_movers_inner_buses(tmp_path):
    mover = Mover()
    ports = {"_".join(map(str, path)): (value, None) for path, _, value in mover.signature.flatten(mover)}
    found = combinational_paths(write(tmp_path / "rtl", convert(mover, "mover", ports)), "mover", ignore={"clk"})
    assert set(found) <= {
        ("operations", "gmem0_araddr"),
        ("gmem1_bvalid", "done"),
    }  # a register outside, the end of a run


def test_a_ready_that_waits_for_valid_is_found(tmp_path):
    manifest = generate(random_checkpoint(MODEL), "small", tmp_path / "out")
    top = tmp_path / "out" / "rtl" / f"{manifest['top']}.v"
    text = top.read_text()
    ready = "assign s_axil_awready = s_axil__awready;"
    assert text.count(ready) == 1
    top.write_text(text.replace(ready, ready.replace(";", " & s_axil_awvalid;")))
    found = combinational_paths(sorted(tmp_path.glob("out/rtl/*.v")), manifest["top"], ignore={"aclk"})
    assert found == [("s_axil_awvalid", "s_axil_awready")]


DESIGN = """\
module inner(input [3:0] a, input [3:0] b, input s, output [3:0] y);
  assign y = s ? a : b;
endmodule
module design(input clk, input [1:0] a, input b, input c, input [1:0] at, output sum, output apart, output [3:0] word, output kept,
              output looked);
  reg held, other;
  reg [1:0] mem [0:3];
  wire [3:0] y;
  inner i(.a({2'b0, a}), .b({b, 3'b0}), .s(held), .y(y));
  assign {word, kept} = {y, held};
  assign apart = y[0];
  assign sum = a + c;
  assign looked = ^mem[at];
  always @(posedge clk) begin
    held <= c;
    other <= b;
    mem[{held, other}] <= a;
  end
endmodule
"""


def test_words_are_taken_apart(tmp_path):
    (file,) = write(tmp_path / "rtl", {"design": DESIGN})
    found = combinational_paths([file], "design")
    assert found == [("a", "apart"), ("a", "sum"), ("a", "word"), ("at", "looked"), ("b", "word"), ("c", "sum")]
    assert combinational_paths([file], "design", ignore={"a", "at", "b"}) == [("c", "sum")]
    with pytest.raises(Error, match="Yosys must map the paths of nothing"):
        combinational_paths([file], "nothing")
