"""Columns of the matrix unit on the budgets of a target, at their edges."""

import pytest

from intaglio import Error
from intaglio.gen.estimate.targets import TARGETS, Split, split

LUTS = {"lut_per_column": 1000, "lut_per_pair": 500}


@pytest.mark.parametrize(
    "dsp, lut, columns, lut_columns",
    [
        (64, 1000, 4, 0),
        (63, 500, 2, 0),
        (63, 1499, 2, 0),
        (63, 1500, 3, 1),
        (31, 999, None, None),
        (31, 1000, 1, 1),
        (0, 2000, 2, 2),
        (64, 499, None, None),
        (64, 999, 2, 0),
        (64, 1999, 4, 0),
        (64, 2000, 5, 1),
    ],
)
def test_edges_of_the_budgets(dsp, lut, columns, lut_columns):
    if columns is None:
        with pytest.raises(Error, match="a column of 32 must fit"):
            split(dsp, lut, 32, **LUTS)
        return
    pairs = (columns - lut_columns) // 2
    assert split(dsp, lut, 32, **LUTS) == Split(
        columns=columns, lut_columns=lut_columns, dsp=32 * pairs, lut=500 * pairs + 1000 * lut_columns
    )


def test_reserved_share_and_limit():
    assert split(128, 20000, 32, **LUTS, reserved=0.5) == split(64, 10000, 32, **LUTS)
    assert split(65, 20000, 32, **LUTS, reserved=0.5).dsp == 32  # 32.5 are reserved: 33
    assert split(128, 20000, 32, **LUTS, limit=5) == Split(columns=5, lut_columns=1, dsp=64, lut=2000)
    assert split(128, 20000, 32, **LUTS, limit=4).lut_columns == 0


@pytest.mark.parametrize("pair", [0, 300, 1999, 2100, 5000])
@pytest.mark.parametrize("dsp, lut", [(9, 9000), (40, 7300), (3, 12345)])
def test_no_other_split_has_more_columns(pair, dsp, lut):
    best = max(2 * p + (lut - p * pair) // 1000 for p in range(dsp // 4 + 1) if p * pair <= lut)
    found = split(dsp, lut, 4, lut_per_column=1000, lut_per_pair=pair)
    assert found.columns == best and found.dsp <= dsp and found.lut <= lut


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name):
    """Both kinds of budget bind: one more pair or LUT column does not fit."""
    target = TARGETS[name]
    found = split(target.dsp, target.lut, 32, lut_per_column=1918, lut_per_pair=1688, reserved=0.25)
    dsp, lut = 0.75 * target.dsp, 0.75 * target.lut
    assert found.dsp <= dsp < found.dsp + 32 and found.lut <= lut < found.lut + 1918


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"target_dsp": -1}, "target_dsp must be an integer of 0 at least, not -1"),
        ({"head_dim": 0}, "head_dim must be an integer of 1 at least, not 0"),
        ({"lut_per_column": 0}, "lut_per_column must be"),
        ({"limit": 0}, "limit must be an integer of 1 at least, not 0"),
        ({"reserved": 1}, "reserved must be a share of 0 to less than 1, not 1"),
    ],
)
def test_errors(changed, message):
    with pytest.raises(Error, match=message):
        split(**{"target_dsp": 64, "target_lut": 5000, "head_dim": 32, **LUTS, **changed})
