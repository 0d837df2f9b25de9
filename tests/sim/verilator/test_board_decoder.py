"""The shipped model as a board: its Verilog behind the UART, text over a real tty, every token that of the exact model."""

from pathlib import Path

import pytest

import intaglio.host as host
from bench.common import equal_to_exact
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.transport import open_transport
from intaglio.sim.verilator.board import SerialBoard, build_board
from tests.host.transport.channels import served

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
CLOCK_HZ, BAUD = 8_000_000, 1_000_000
PROMPT = "import os\n\ndef main("


def test_the_model_writes_its_text_over_a_tty(tmp_path):
    checkpoint = load_checkpoint(ROOT / "models" / "burin")
    folder = tmp_path / "generated"
    generate(checkpoint, "small", folder)
    model = quantise(checkpoint, config_for(checkpoint.config, "small"))
    library = build_board(folder, clock_hz=CLOCK_HZ, baud=BAUD, cache=ROOT / "build" / "test-cache")
    with SerialBoard(library, clock_hz=CLOCK_HZ, baud=BAUD) as board:
        with host.open(f"serial:{board.port}?baud={BAUD}&manifest={folder}") as device:
            text = "".join(device.generate(PROMPT, 24))
            figures = device.last
            board.noise(1, 0.002)
            again = "".join(device.generate(PROMPT, 24))
            drawn = list(device.generate_tokens([0, *PROMPT.encode()], 6, temperature=0.8, seed=2))
            board.noise(1, 0)
        faults = sum(board.faults)
        behind = open_transport(f"serial:{board.port}?baud={BAUD}&manifest={folder}")
        with served(behind) as address, host.open(f"tcp:{address}") as device:
            assert "".join(device.generate(PROMPT, 3)) == text[:3]
            over_tcp = device.last
    assert again == text and len(text) == 24 and faults > 3
    prompt = [0, *PROMPT.encode()]
    assert equal_to_exact(model, prompt, list(text.encode())) == 24
    assert equal_to_exact(model, prompt, drawn, temperature=0.8, seed=2) == 6
    cycles = [
        token_cycles(model, position, want=position >= len(prompt) - 1).total for position in range(len(prompt) + 23)
    ]
    assert figures["cycles_prefill"] == sum(cycles[: len(prompt)]) and figures["tokens_decode"] == 23
    assert figures["cycles_decode"] == sum(cycles[len(prompt) :])
    assert over_tcp["cycles_prefill"] == figures["cycles_prefill"]
    assert (over_tcp["tokens_decode"], over_tcp["cycles_decode"]) == (2, sum(cycles[len(prompt) : len(prompt) + 2]))
    assert over_tcp["tokens_per_second"] == 2 * device.manifest.clock_hz / over_tcp["cycles_decode"]
