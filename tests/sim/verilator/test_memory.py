"""The memory model: its times against closed forms, presets, and the C++ class against Python cycle by cycle."""

import ctypes
import random
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

import intaglio.sim.verilator.memory as memory_module
from intaglio.gen.tools import find_tools
from intaglio.sim.verilator.memory import DECERR, OKAY, PRESETS, SLVERR, MemoryModel, ReadSlave

IMAGE = random.Random(1).randbytes(4096)
NEVER = (1 << 64) - 1
GLUE = """
#include "memory.h"
using intaglio::Contents;
using intaglio::ReadSlave;
extern "C" {
Contents* fill() { return new Contents; }
void put(Contents* contents, uint64_t address, const uint8_t* bytes, uint64_t size) { contents->write(address, bytes, size); }
void get(Contents* contents, uint64_t address, uint8_t* bytes, uint64_t size) { contents->read(address, bytes, size); }
bool inside(Contents* contents, uint64_t address, uint64_t size) { return contents->find(address, size); }
void spill(Contents* contents) { delete contents; }
ReadSlave* make(const Contents* contents, uint32_t beat, uint32_t latency, uint32_t earn, uint32_t per, uint32_t bursts, uint64_t error,
                uint64_t silent) {
    return new ReadSlave(*contents, beat, latency, earn, per, bursts, error, silent);
}
void drop(ReadSlave* slave) { delete slave; }
void edge(ReadSlave* slave, bool valid, uint32_t id, uint64_t address, uint32_t beats, bool ready) {
    slave->edge(valid, id, address, beats, ready);
}
// Bits: arready, rvalid, last, response (2), id.
uint32_t look(ReadSlave* slave, uint8_t* data) {
    const auto& beat = slave->beat();
    for (size_t i = 0; i < beat.data.size(); ++i) data[i] = beat.data[i];
    return slave->arready() | slave->rvalid() << 1 | beat.last << 2 | beat.response << 3 | beat.id << 5;
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    (folder / "glue.cpp").write_text(GLUE, encoding="utf-8")
    command = [
        find_tools().compiler,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-I",
        Path(memory_module.__file__).parent,
        folder / "glue.cpp",
        "-o",
        folder / "glue.so",
    ]
    subprocess.run([str(part) for part in command], check=True)
    loaded = ctypes.CDLL(str(folder / "glue.so"))
    u8, u32, u64, flag = ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_bool
    handle = ctypes.c_void_p
    for name, result, arguments in (
        ("fill", handle, []),
        ("put", None, [handle, u64, u8, u64]),
        ("get", None, [handle, u64, u8, u64]),
        ("inside", flag, [handle, u64, u64]),
        ("spill", None, [handle]),
        ("make", handle, [handle, u32, u32, u32, u32, u32, u64, u64]),
        ("drop", None, [handle]),
    ):
        getattr(loaded, name).restype, getattr(loaded, name).argtypes = result, arguments
    loaded.edge.restype, loaded.edge.argtypes = None, [ctypes.c_void_p, flag, u32, u64, u32, flag]
    loaded.look.restype, loaded.look.argtypes = u32, [ctypes.c_void_p, ctypes.c_char_p]
    return loaded


def python_look(slave):
    beat = slave.beat
    if beat is None:
        return slave.arready, None
    return slave.arready, (beat.id, beat.data, beat.response, beat.last)


def native_look(library, slave, beat_bytes):
    content = ctypes.create_string_buffer(beat_bytes)
    word = library.look(slave, content)
    if not word & 2:
        return bool(word & 1), None
    return bool(word & 1), (word >> 5, content.raw, word >> 3 & 3, bool(word & 4))


def traffic(seed, cycles, base, beat):
    picks = random.Random(seed)
    for _ in range(cycles):
        burst = None
        if picks.random() < 0.2:
            address = base + picks.randrange(-4, len(IMAGE) // beat + 4) * beat
            burst = (picks.randrange(16), address, picks.choice([1, 2, 7, 32]))
        yield burst, picks.random() < 0.8


@pytest.mark.parametrize("seed", range(8))
def test_the_class_in_cpp_is_the_same(library, seed):
    picks = random.Random(seed)
    beat = picks.choice([16, 64, 128])
    rate = Fraction(picks.randrange(1, 4 * beat), picks.randrange(1, 4))
    model = MemoryModel(latency_cycles=picks.randrange(1, 50), bytes_per_cycle=rate, bursts=picks.randrange(1, 9))
    error, silent = (picks.choice([None, picks.randrange(40)]) for _ in range(2))
    base = 1 << 40
    slave = ReadSlave(model, IMAGE, beat_bytes=beat, base=base, error_beat=error, silent_burst=silent)

    contents = library.fill()
    library.put(contents, base, IMAGE, len(IMAGE))

    def native(latency):
        return library.make(
            contents,
            beat,
            latency,
            rate.numerator,
            rate.denominator,
            model.bursts,
            NEVER if error is None else error,
            NEVER if silent is None else silent,
        )

    same, other = native(model.latency_cycles), native(model.latency_cycles + 1)
    seen, differ = 0, False
    for burst, ready in traffic(seed, 1500, base, beat):
        look = python_look(slave)
        assert native_look(library, same, beat) == look
        differ |= native_look(library, other, beat) != look
        seen += look[1] is not None
        slave.edge(burst=burst, rready=ready)
        for handle in (same, other):
            library.edge(handle, burst is not None, *(burst or (0, 0, 0)), ready)
    assert silent == 0 or seen and differ  # a cycle more must show
    library.drop(same)
    library.drop(other)
    library.spill(contents)


@pytest.mark.parametrize("seed", range(4))
def test_contents_are_what_was_written(library, seed):
    """Pieces in any order, apart, beside and over each other, against one flat array."""
    picks, size, base = random.Random(seed), 600, (1 << 44) - 700
    flat, known, contents = bytearray(size), bytearray(size), library.fill()
    for _ in range(40):
        first = picks.randrange(size)
        piece = picks.randbytes(picks.randrange(0, min(90, size - first) + 1))
        library.put(contents, base + first, piece, len(piece))
        flat[first : first + len(piece)], known[first : first + len(piece)] = piece, b"\1" * len(piece)
        whole = ctypes.create_string_buffer(size + 8)
        library.get(contents, base, whole, size + 8)
        assert whole.raw == bytes(flat) + bytes(8)
        for _ in range(20):
            at, count = picks.randrange(size), picks.randrange(1, 40)
            assert library.inside(contents, base + at, count) == (known[at : at + count] == b"\1" * count)
    assert not library.inside(contents, 0, 1) and not library.inside(contents, (1 << 64) - 4, 8)
    library.spill(contents)


def beat_times(model, bursts, beat=16, cycles=600, **faults):
    """Cycles and beats; burst n is offered from cycle n on, one after another."""
    slave, queue, out = ReadSlave(model, IMAGE, beat_bytes=beat, **faults), list(bursts), []
    for cycle in range(cycles):
        if slave.beat is not None:
            out.append((cycle, slave.beat))
        taken = queue and slave.arready
        slave.edge(burst=queue[0] if queue else None, rready=True)
        if taken:
            queue.pop(0)
    return out


@pytest.mark.parametrize("latency", [1, 36])
@pytest.mark.parametrize("rate", [Fraction(16), Fraction(100), Fraction(12), Fraction(16, 3), Fraction(5, 7)])
def test_times(latency, rate):
    out = beat_times(MemoryModel(latency_cycles=latency, bytes_per_cycle=rate), [(3, 0, 20), (4, 512, 10)], cycles=1200)
    first = out[0][0]
    assert len(out) == 30 and first >= latency
    assert rate < 16 or first == latency
    for n, (cycle, beat) in enumerate(out):  # never more than the rate and a beat, never less than the rate less a beat
        assert (cycle - first) * min(rate, 16) <= 16 * (n + 1) <= ((cycle - first) * rate + 32 + rate)
        burst, at = (0, n) if n < 20 else (1, n - 20)
        start = 512 * burst + 16 * at
        assert beat == (3 + burst, IMAGE[start : start + 16], OKAY, n in (19, 29))


def test_an_idle_bus_saves_no_bandwidth_up():
    model = MemoryModel(latency_cycles=300, bytes_per_cycle=4)
    out = beat_times(model, [(0, 0, 20)])
    assert out[0][0] == 300 and out[-1][0] - out[0][0] >= 4 * 19 - 4


def test_faults():
    model = MemoryModel(latency_cycles=3, bytes_per_cycle=16)
    out = beat_times(model, [(0, 0, 4), (1, 0, 4), (2, 0, 4)], error_beat=5, silent_burst=2)
    assert [beat.response for _, beat in out] == [OKAY] * 5 + [SLVERR] + [OKAY] * 2
    outside = beat_times(model, [(0, len(IMAGE) - 16, 2)])
    assert [beat.response for _, beat in outside] == [OKAY, DECERR] and not any(outside[1][1].data)


def test_presets():
    assert MemoryModel.preset("hbm2-u280") == MemoryModel(latency_cycles=36, bytes_per_cycle=48)
    assert MemoryModel.preset("hbm2-u280-all").bytes_per_cycle == Fraction(4600, 3)
    assert MemoryModel.preset("ddr4") == MemoryModel(latency_cycles=27, bytes_per_cycle=Fraction(380, 3))
    assert MemoryModel.preset("ddr4-one", clock_hz=150_000_000) == MemoryModel(latency_cycles=14, bytes_per_cycle=128)
    assert set(PRESETS) == {"hbm2-u280", "hbm2-u280-all", "ddr4", "ddr4-one"}


@pytest.mark.parametrize(
    "fields, text",
    [
        (dict(latency_cycles=0), "latency_cycles must be an integer in 1..65535, not 0"),
        (dict(latency_cycles=True), "not True"),
        (dict(bursts=2000), "bursts must be an integer in 1..1024, not 2000"),
        (dict(bytes_per_cycle=0), "bytes_per_cycle must be a fraction more than 0, not 0"),
        (dict(bytes_per_cycle=1.5), "not 1.5"),
        (dict(bytes_per_cycle=Fraction(1, 1 << 31)), "less than 2\\^31"),
    ],
)
def test_invalid_models(fields, text):
    with pytest.raises(ValueError, match=text):
        MemoryModel(**dict(latency_cycles=1, bytes_per_cycle=1) | fields)


def test_invalid_presets():
    with pytest.raises(ValueError, match="a memory must be one of .*, not 'ddr9'"):
        MemoryModel.preset("ddr9")
    with pytest.raises(ValueError, match="clock_hz must be an integer of at least 1, not 0"):
        MemoryModel.preset("ddr4", clock_hz=0)
