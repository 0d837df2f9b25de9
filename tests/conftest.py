"""What tests of several folders share."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy machine takes its time
hypothesis.settings.load_profile("any machine")

CACHE = Path(__file__).parents[1] / "build" / "test-cache"


@pytest.fixture(scope="session")
def small_prefill(tmp_path_factory):
    """The folder of the prefill unit's preset ``small``, generated once; read only."""
    from intaglio.gen.prefill.generate import generate

    folder = tmp_path_factory.mktemp("prefill") / "small"
    generate("small", folder)
    return folder


@pytest.fixture(scope="session")
def simulation_cache():
    """Where builds of simulations are kept from one session to the next."""
    os.makedirs(CACHE, exist_ok=True)
    return CACHE
