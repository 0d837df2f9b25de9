import importlib.util
from pathlib import Path

import pytest

from intaglio.host.device import Device
from intaglio.host.transport import register


@pytest.fixture(scope="session")
def double():
    """The module that describes the stand-in device."""
    spec = importlib.util.spec_from_file_location("decoder_double", Path(__file__).parents[1] / "double" / "design.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def device(double):
    """The stand-in in plain Python, behind the host's device."""
    with Device(double.PythonDevice(), timeout=0.05) as opened:
        yield opened


@pytest.fixture
def python_scheme(double):
    """The scheme ``double``, which opens the stand-in in plain Python."""
    register("double", lambda rest, *, manifest=None, progress=None: double.PythonDevice(double.describe()))
    yield "double:any"
    register("double", None)
