"""Placement of matrices on an FPGA by budget."""

import pytest

from intaglio import Error
from intaglio.gen.synthesis.fpga import measure_fpga
from intaglio.gen.synthesis.rom_choice import Budget, choose, lut_rom, rom_blocks
from intaglio.gen.synthesis.rom_report import random_trits
from intaglio.rtl.memory.logic import bank_verilog
from intaglio.rtl.ternary.packing import pack

MATRICES = {"large": random_trits(64, 512, 0.4), "small": random_trits(16, 32, 0.4), "tiny": random_trits(8, 16, 0.4)}


def test_the_budget_decides():
    def forms(lut, bram):
        found = choose(MATRICES, 16, Budget(lut=lut, bram=bram))
        assert sum(c.lut for c in found.values()) <= lut and sum(c.bram for c in found.values()) <= bram
        return {name: choice.form for name, choice in found.items()}

    assert forms(0, 10) == {"large": "block", "small": "block", "tiny": "block"}
    assert forms(600, 2) == {"large": "block", "small": "lut", "tiny": "hardwired"}
    assert forms(5000, 2) == {"large": "block", "small": "hardwired", "tiny": "hardwired"}
    assert forms(5000, 0)["large"] == "lut"


def test_a_wired_matrix_takes_one_cycle():
    found = choose(MATRICES, 16, Budget(lut=5000, bram=10))
    assert (
        found["tiny"].cycles == 1
        and found["large"].cycles == 64 * 512 // 16
        and found["large"].bram == rom_blocks(32, 2048)
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(Error, match="large needs 2 block RAMs or 1376 LUTs, and 1 and 10 are left"):
        choose(MATRICES, 16, Budget(lut=10, bram=1))
    with pytest.raises(Error, match="lane_width must divide the 512 inputs of large, not be 48"):
        choose(MATRICES, 48, Budget(lut=10, bram=1))
    with pytest.raises(ValueError, match="lut must be an integer of at least 0, not -1"):
        Budget(lut=-1, bram=1)


@pytest.mark.parametrize("depth", [64, 256])
def test_luts_of_a_rom_are_those_of_yosys(depth):
    trits = random_trits(depth, 8, 0.4)
    cells = measure_fpga(bank_verilog(pack(trits, "2bit"), 16, "b", "code"), "b", "xc7")
    assert cells.bram == 0 and 0.5 * lut_rom(16, depth) <= cells.lut <= 1.2 * lut_rom(16, depth)
