"""What tests of several folders share."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy machine takes its time
hypothesis.settings.load_profile("any machine")

# Amaranth's own back end, which some tests call, would prefer a Yosys on the path to the wheel's.
os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")

CACHE = Path(__file__).parents[1] / "build" / "test-cache"


def pytest_addoption(parser):
    parser.addoption(
        "--tool",
        action="append",
        default=[],
        metavar="NAME=PROGRAM",
        help="use this program in place of the environment's own: verilator, g++",
    )


def pytest_configure(config):
    from intaglio.gen.tools import use_all

    use_all(config.getoption("--tool"))


@pytest.fixture(scope="session")
def small_prefill(tmp_path_factory):
    """The folder of the prefill unit's preset ``small``, generated once; read only."""
    from intaglio.gen.emit.attention import generate

    folder = tmp_path_factory.mktemp("prefill") / "small"
    generate("small", folder)
    return folder


@pytest.fixture(scope="session")
def simulation_cache():
    """Where builds of simulations are kept from one session to the next."""
    os.makedirs(CACHE, exist_ok=True)
    return CACHE
