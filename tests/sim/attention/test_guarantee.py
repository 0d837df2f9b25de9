"""What the index promises, piece by piece and as a whole: at least gamma of the float64 mass, at every length."""

import math

import pytest
import torch

from intaglio.host.attention import parameters
from intaglio.host.attention.parameters import WHOLE, share
from intaglio.rtl.arithmetic import attention as numerics
from intaglio.sim.attention import exact
from intaglio.sim.attention.accuracy import kept
from intaglio.sim.attention.heads import MASSES, mass_head, mixture

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = 131072  # the longest that a unit may have
# docs/prefill.md, "What is guaranteed", in its words:
TABLE, LOG_ERROR, STEP = 2.0**-16, 0.125, 1 / 256  # of EXP; of LOG, in steps of L; a step of L and t, in octaves
LEAST = 2 ** (-(LOG_ERROR + 0.5) * STEP) * (1 - TABLE) / (1 + TABLE)  # a
MOST = 2 ** ((LOG_ERROR + 0.5) * STEP) * (1 + TABLE) / (1 - TABLE - CONTEXT * (1 + 1 / 16) * 2.0**-27)  # b
GAMMAS = (0.001, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)


def truncate(monkeypatch):
    """Probabilities of the index with 16 fraction bits, as they once were."""
    whole = exact.exp2
    monkeypatch.setattr(exact, "exp2", lambda x: whole(x) >> 12 << 12)


def test_tables_are_as_good_as_the_argument_says():
    assert max(abs(value / 65536 / 2 ** (-f / 256) - 1) for f, value in enumerate(numerics.EXP)) <= TABLE
    for m, value in enumerate(numerics.LOG_TABLE):  # the ends of the interval of n / 2^msb that an entry stands for
        assert (
            256 * max(abs(value / 4096 - math.log2(1 + (m + end) / len(numerics.LOG_TABLE))) for end in (0, 1))
            <= LOG_ERROR
        )


@pytest.mark.parametrize("tokens", [32, 4096, CONTEXT])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_margin_covers_what_the_unit_may_lose(gamma, tokens):
    gamma16 = share(gamma, tokens)
    assert 1 <= gamma16 <= WHOLE and gamma16 / WHOLE >= gamma
    unkept = 2**STEP * ((1 - gamma16 / WHOLE) * MOST / LEAST + tokens * 2.0**-28 / LEAST)
    assert gamma16 == WHOLE or unkept <= 1 - gamma
    assert gamma16 < WHOLE or gamma >= 0.999  # all blocks only where little may be left out


def test_the_margin_is_needed(monkeypatch):
    monkeypatch.setattr(parameters, "MARGIN", 0)
    assert (1 - share(0.9, 4096) / WHOLE) * MOST / LEAST > 0.1


def score_rows(kind, tokens):
    """Integer scores int64 [2, N]: row 0 as ``kind`` says, row 1 the same, 100 lower and shuffled."""
    t = torch.zeros(tokens, dtype=torch.int64)
    if (
        kind == "spike"
    ):  # alone at the lower end of its octave; the others just too small for the pass over maxima, together 2^-11
        t[1:] = -28 * 256
    elif kind == "spike above":  # at the upper end
        t[0], t[1:] = 255, 255 - 28 * 256
    elif (
        kind == "rising"
    ):  # each tile's maximum an octave above the one before, as long as scores go: every merge shifts
        t = (torch.arange(tokens) // 16).clamp(max=500) * 256 + torch.arange(tokens) * 37 % 256 - 256 * 256
    elif kind == "levels":
        t = -(torch.arange(tokens) * 2654435761 % (27 * 256))
    elif kind == "half":
        t[tokens // 2 :] = -1
    picks = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))
    return torch.stack([t, t[picks] - 100])


@pytest.mark.parametrize("tokens", [48, CONTEXT])
@pytest.mark.parametrize("kind", ["flat", "spike", "spike above", "rising", "levels", "half"])
def test_every_mass_is_between_the_bounds(kind, tokens, monkeypatch):
    """a p* - 2^-28 <= p <= b p*, p* in float64; masses of 16 bits are not."""
    t = score_rows(kind, tokens)
    hidden = torch.zeros_like(t, dtype=torch.bool)
    true = torch.softmax(t.double() * (math.log(2) / 256), -1)

    def inside():
        found = exact.masses(t, exact.log_sums(t, hidden, 16), hidden).double() / 2.0**28
        return ((found >= LEAST * true - 2.0**-28) & (found <= MOST * true * (1 + 1e-12))).all()

    assert inside()
    if tokens == CONTEXT and "spike" not in kind:  # where all others are below a bit anyway
        truncate(monkeypatch)
        assert not inside()


@pytest.mark.parametrize(("tokens", "tau"), [(4096, 0), (4096, 0.1), (16384, 0.1)])
@pytest.mark.parametrize("kind", MASSES)
def test_masses_made_to_be_lost(kind, tokens, tau):
    found = kept(*mass_head(kind, tokens), block=128, gamma=0.9, tau=tau)
    assert found.mass.min() >= 0.9 and found.vertical.min() >= 0.9


@pytest.mark.parametrize(("kind", "gamma"), [("flat", 0.9), ("spike_flat", 0.99)])
def test_the_longest_prompt(kind, gamma):
    found = kept(*mass_head(kind, CONTEXT, block=32), block=32, gamma=gamma, tau=0)
    assert found.mass.min() >= gamma and found.vertical.min() >= gamma


def test_tails_were_lost(monkeypatch):
    truncate(monkeypatch)
    assert kept(*mass_head("spike_flat", 16384), block=128, gamma=0.9, tau=0).mass.min() < 0.85
    assert kept(*mass_head("flat", CONTEXT, block=32), block=32, gamma=0.9, tau=0).mass.min() < 0.01


def below_gamma(seeds):
    """Heads of mixtures that keep less than gamma: with all chosen blocks, and with the vertical ones alone."""
    found = [(kept(m.q, m.k, m.v, block=m.block, gamma=m.gamma, tau=m.tau), m.gamma) for m in map(mixture, seeds)]
    return tuple(sum(int((getattr(x, name) < gamma).sum()) for x, gamma in found) for name in ("mass", "vertical"))


def test_random_heads():
    assert below_gamma(range(40, 80)) == (0, 0)  # 320 heads


@pytest.mark.parametrize("fault", ["truncated", "no margin"])
def test_random_heads_notice_faults(fault, monkeypatch):
    if fault == "truncated":
        truncate(monkeypatch)
    else:
        monkeypatch.setattr(parameters, "MARGIN", -1 / 32)
    assert below_gamma([61, 110])[1] > 0


def test_a_share_of_everything_is_everything():
    found = kept(*mass_head("flat", 4096), block=128, gamma=1.0, tau=0.1)
    assert found.mass.item() == found.density.item() == 1
