"""The register map of the prefill unit. Offsets are in bytes; every register has 32 bits."""

from intaglio.rtl.bus.registers import Register
from intaglio.rtl.bus.streams import RunPhase
from intaglio.rtl.top.attention import MONITOR, PARAMETERS

__all__ = ["COUNTERS", "MAP_WORDS", "PHASES", "REGISTER_MAP", "VERSION", "parameter_words"]

VERSION = 3
MAP_WORDS = 4  # of 32 rows: a word of the map
PHASES = tuple(phase for phase in RunPhase if phase != RunPhase.IDLE)
COUNTERS = {
    "hits": "visits whose block was on chip",
    "misses": "blocks of K and V read for visits",
    "evictions": "blocks evicted that were live",
    "stalls": "cycles of attention without a visit whose block is there",
    "beats": "beats read, of head_dim bytes",
    "fetch_stalled": "cycles in which an address waited for the memory",
    "fetch_idle": "cycles with data owed but none there",
    "rows": "rows multiplied: of head_dim x columns multiply-accumulates each",
    "stall_out": "cycles in which a result waited to be taken",
}


def parameter_words():
    """(name, bit offset) of each register of parameters, those of more than 32 bits in two."""
    for name, bits in PARAMETERS.items():
        yield name, 0
        if bits > 32:
            yield f"{name}_high", 32


def _registers():
    yield "magic", 0x00, "ro", "0x494E5447, the letters INTG"
    yield "version", 0x04, "ro", "version of this register map"
    yield "digest", 0x08, "ro", "first 32 bits of the manifest's digest"
    yield "capabilities", 0x0C, "ro", "blocks of the longest context in bits 15:0, query heads in bits 23:16"
    yield (
        "status",
        0x10,
        "ro",
        (
            "bit 0: busy; bits 3:1: phase; bits 6:4: fault of the last run (1 response, 2 last, 3 timeout); "
            "bit 7: the last start was refused; bit 8: the last run was broken off"
        ),
    )
    yield (
        "control",
        0x14,
        "rw",
        "bit 0: write 1 to start a run; bit 1: to break it off; bit 2: to forget the blocks on chip",
    )
    yield "aware", 0x18, "ro", "query-aware heads of the last run"
    yield "cycles_lo", 0x20, "ro", "cycles of the last run, bits 31:0; reading latches bits 63:32"
    yield "cycles_hi", 0x24, "ro", "cycles of the last run, bits 63:32, as latched"
    for number, (name, what) in enumerate(COUNTERS.items()):
        yield name, 0x28 + 4 * number, "ro", f"of the last run: {what}"
    for number, phase in enumerate(PHASES):
        yield (
            f"phase_{phase.name.lower()}",
            0x60 + 4 * number,
            "ro",
            f"cycles of the last run in phase {phase.name.lower()}",
        )
    for number, (name, _) in enumerate(parameter_words()):
        yield name, 0x100 + 4 * number, "rw", "parameter of a run; a write during a run is refused"
    yield (
        "map_select",
        0x1C0,
        "rw",
        "word of the block map to read: key block in bits 13:0, batch in bits 23:14, head in bits 31:24",
    )
    for number in range(MAP_WORDS):
        yield (
            f"map_{number}",
            0x1D0 + 4 * number,
            "ro",
            f"that word, query blocks {32 * number} to {32 * number + 31} of the batch",
        )


assert len(MONITOR) <= 8 and 0x100 + 4 * sum(1 for _ in parameter_words()) <= 0x1C0
REGISTER_MAP = tuple(Register(name=n, offset=o, access=a, description=d) for n, o, a, d in _registers())
