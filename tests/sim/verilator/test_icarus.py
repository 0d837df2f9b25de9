"""Generated Verilog in Icarus: a second simulator, event-driven, reads it and gives the same tokens at the same cycles."""

import subprocess
from pathlib import Path

import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit import logic
from intaglio.gen.emit.attention import generate as generate_prefill
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.output import described
from intaglio.gen.presets.decoder import PRESETS, config_for
from intaglio.gen.tools import find_program
from intaglio.host.protocol import command
from intaglio.sim.reference.device import ReferenceDevice

IVERILOG, VVP = find_program("iverilog"), find_program("vvp")
pytestmark = pytest.mark.skipif(not (IVERILOG and VVP), reason="needs Icarus Verilog: apt install iverilog")

SHIPPED = Path(__file__).parents[3] / "models" / "burin"
MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
WIDTHS = {"context": 6, "lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 2, "top_k": 4}
PROMPT, MORE = (7, 31, 2), 2  # tokens; generated ones after the first
BENCH = """\
`timescale 1ns / 1ns
module bench;
  reg aclk = 0, aresetn = 0;
  reg [31:0] commands [0:{last}];
  integer sent = 0, cycle = 0;
  wire taken, valid, ends;
  wire [31:0] word;
  {top} dut (
    .aclk(aclk), .aresetn(aresetn), .s_axis_tdata(commands[sent]), .s_axis_tvalid(aresetn && sent <= {last}), .s_axis_tready(taken),
    .s_axis_tlast(sent == {last}), .m_axis_tdata(word), .m_axis_tvalid(valid), .m_axis_tlast(ends), .m_axis_tready(1'b1),
    .s_axil_awaddr(12'd0), .s_axil_awvalid(1'b0), .s_axil_wdata(32'd0), .s_axil_wstrb(4'd0), .s_axil_wvalid(1'b0), .s_axil_bready(1'b1),
    .s_axil_araddr(12'd0), .s_axil_arvalid(1'b0), .s_axil_rready(1'b1));
  always #5 aclk = ~aclk;
  initial begin
    $readmemh("commands.hex", commands);
    repeat (4) @(negedge aclk);
    aresetn = 1;
  end
  always @(negedge aclk) if (aresetn) begin  // what the next rising edge takes
    cycle <= cycle + 1;
    if (cycle == {limit}) $finish;
    if (valid) $display("WORD %0d %h %b", cycle, word, ends);
  end
  always @(posedge aclk) if (aresetn && taken && sent <= {last}) sent <= sent + 1;
endmodule
"""


def icarus(folder, top, out, files=()):
    """Read a generated folder with every warning; the compiled simulation is ``out``."""
    sources = [*sorted(str(path.relative_to(folder)) for path in folder.glob("rtl/*.v")), *map(str, files)]
    done = subprocess.run(
        [IVERILOG, "-g2005", "-Wall", "-s", top, "-o", str(out), *sources], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stderr


def answers(tmp_path, widths):
    """The model; what Icarus says to the prompt, packets and the cycles at which they end, and the packets of the exact model."""
    checkpoint, folder = random_checkpoint(MODEL, 21), tmp_path / "out"
    manifest = generate(checkpoint, "small", folder, **widths)
    model = quantise(checkpoint, config_for(MODEL, "small", **widths))
    last = len(PROMPT) - 1
    commands = [
        command(token, first=i == 0, want=i == last, top=2 * (i == last), run=MORE * (i == last))
        for i, token in enumerate(PROMPT)
    ]
    limit = 100 + sum(token_cycles(model, position).total for position in range(len(PROMPT) + MORE))
    (folder / "commands.hex").write_text("".join(f"{word:08x}\n" for word in commands))
    (tmp_path / "bench.v").write_text(BENCH.format(last=last, limit=limit, top=manifest["top"]))
    icarus(folder, "bench", tmp_path / "bench.vvp", [tmp_path / "bench.v"])
    done = subprocess.run(
        [VVP, "-n", str(tmp_path / "bench.vvp")], cwd=folder, capture_output=True, text=True, timeout=120
    )
    words = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("WORD ")]
    packets, times = [[]], []
    for cycle, word, ends in words:
        packets[-1].append(int(word, 16))
        if ends == "1":
            packets.append([])
            times.append(int(cycle))
    return model, packets, times, [*ReferenceDevice(model).run(commands), []]


@pytest.mark.parametrize(
    "changes",
    [{}, {"rom": "logic"}, {"rom": "logic", "packing": "5trit", "gate_words": 32}],
    ids=["images", "gates", "gated banks of gates"],
)
def test_a_prompts_tokens_and_cycles(changes, tmp_path):
    model, packets, times, expected = answers(tmp_path, WIDTHS | changes)
    assert packets == expected and len(expected) == MORE + 2
    assert len({packet[0] for packet in packets[:-1]}) == MORE + 1
    further = len(expected[0]) - 1  # words of a packet, a cycle each
    assert [after - before for before, after in zip(times, times[1:], strict=False)] == [
        token_cycles(model, position).total + further for position in range(len(PROMPT), len(PROMPT) + MORE)
    ]


def test_a_flipped_bit_of_the_gates_is_seen(tmp_path, monkeypatch):
    made = logic.bank

    def flipped(words, width, name, **options):
        words = words.copy()
        words[40, 0] ^= 1 * name.endswith("_1")  # a weight of the second lane
        return made(words, width, name, **options)

    monkeypatch.setattr(logic, "bank", flipped)
    _, packets, times, expected = answers(tmp_path, WIDTHS | {"rom": "logic"})
    assert packets != expected and len(times) == MORE + 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_shipped_model_is_read(preset, tmp_path):
    manifest = generate(SHIPPED, preset, tmp_path / "out")
    assert icarus(tmp_path / "out", manifest["top"], tmp_path / "out.vvp") == ""


def test_the_prefill_unit_is_read(small_prefill, tmp_path):
    assert icarus(small_prefill, described(small_prefill)["top"], tmp_path / "out.vvp") == ""


@pytest.mark.slow
def test_the_prefill_unit_of_the_shipped_model_is_read(tmp_path):
    manifest = generate_prefill("desk", tmp_path / "out")
    assert icarus(tmp_path / "out", manifest["top"], tmp_path / "out.vvp") == ""
