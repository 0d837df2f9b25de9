"""The register map of the decoder."""

from intaglio.rtl.bus.registers import Register
from intaglio.rtl.control.program import PHASES

__all__ = ["ADAPTER_REGISTERS", "GATE_REGISTERS", "REGISTER_MAP", "VERSION", "register_map"]

VERSION = 1

REGISTER_MAP = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        ("magic", 0x00, "ro", "0x494E5447, the letters INTG"),
        ("version", 0x04, "ro", "version of this register map and of the command protocol"),
        ("digest", 0x08, "ro", "first 32 bits of the manifest's digest"),
        ("capabilities", 0x0C, "ro", "context in bits 15:0, candidates of the head in bits 20:16"),
        ("status", 0x10, "w1c", "bit 0: busy; bit 1: a token did not fit the context (write 1 to clear)"),
        ("position", 0x14, "ro", "tokens of the sequence so far"),
        ("control", 0x18, "rw", "bit 0: write 1 to clear the counters"),
        (
            "cycles_lo",
            0x20,
            "ro",
            "clock cycles since the counters were cleared, bits 31:0; reading latches bits 63:32",
        ),
        ("cycles_hi", 0x24, "ro", "clock cycles, bits 63:32, as latched"),
        ("stall_in", 0x28, "ro", "cycles that the device waited for a command"),
        ("stall_out", 0x2C, "ro", "cycles that a result waited to be taken"),
        ("tokens", 0x30, "ro", "tokens processed"),
        *((f"phase_{phase}", 0x40 + 4 * i, "ro", f"cycles in phase {phase}") for i, phase in enumerate(PHASES)),
    )
)

# Only of a decoder with adapters; docs/adapters.md describes a load.
ADAPTER_REGISTERS = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        ("adapter_slots", 0x80, "ro", "slots in bits 7:0; bit 16 + n: slot n holds an adapter"),
        (
            "adapter_status",
            0x84,
            "w1c",
            "bits 3:0: latest load, 0 none, 1 loading, 2 loaded, else refused; bit 8: token refused (1 clears)",
        ),
        ("adapter_begin", 0x88, "rw", "write a slot: a load begins, and one under way is forgotten"),
        ("adapter_data", 0x8C, "rw", "write the next word of the adapter's image"),
        ("adapter_commit", 0x90, "rw", "write the CRC-32 of the image: the slot changes if all is well"),
    )
)

# Only of a decoder with power gating.
GATE_REGISTERS = tuple(
    Register(name=n, offset=o, access=a, description=d)
    for n, o, a, d in (
        (
            "gate_bank",
            0xA0,
            "rw",
            "write: the column of banks that the next three registers are of; read: the number of columns",
        ),
        ("gate_powered", 0xA4, "ro", "cycles that the column's power was on, waking included"),
        ("gate_reads", 0xA8, "ro", "words read from each of its banks"),
        ("gate_wakes", 0xAC, "ro", "times that its power was switched on"),
        ("gate_stall", 0xB0, "ro", "cycles that a word waited for its bank, all columns"),
    )
)


def register_map(config):
    """The registers of a decoder."""
    return REGISTER_MAP + (ADAPTER_REGISTERS if config.rank else ()) + (GATE_REGISTERS if config.gate_words else ())
