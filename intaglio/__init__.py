"""intaglio: a PyTorch BitNet b1.58 decoder as synthesizable Verilog, driven from Python."""

__all__ = ["Error", "__version__"]

__version__ = "0.1.0"


class Error(RuntimeError):
    """A fault whose message tells the user what to do; the command shows it as one line, without a traceback."""
