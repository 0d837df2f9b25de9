"""The host of the prefill unit without one: what it refuses, before anything is sent, and what it does when nothing answers."""

import copy
import json

import numpy as np
import pytest
import torch

import intaglio.host as host
from intaglio import Error
from intaglio.host.attention.device import AttentionDevice
from intaglio.host.manifest import ManifestError, PrefillManifest
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout
from intaglio.host.transport import register

VOID = 1 << 23


class Recorder:
    """A transport that notes all that is sent, and gives what ``script`` has: pairs of beats and marks, then nothing."""

    def __init__(self, manifest):
        self.manifest, self.sent, self.script, self.closed, self.resets = manifest, [], [], 0, 0
        self.values = {}
        c = manifest["config"]
        for name, value in (
            ("magic", 0x494E5447),
            ("version", PrefillManifest.MAP_VERSION),
            ("digest", int(manifest["digest"][:8], 16)),
            ("capabilities", c["context"] // c["block"] | c["group"] << 16),
        ):
            self.values[manifest["registers"][name]["offset"]] = value

    def name(self, offset):
        return next(name for name, register in self.manifest["registers"].items() if register["offset"] == offset)

    def put(self, name, value):
        self.values[self.manifest["registers"][name]["offset"]] = value

    def write_memory(self, address, data):
        self.sent.append(("memory", len(data)))

    def write_register(self, offset, value):
        self.sent.append((self.name(offset), value))

    def read_register(self, offset):
        return self.values.get(offset, 0)

    def receive(self, capacity, timeout):
        """Of beats (values int16 [n, 4], tuser uint32 [n] with tlast in bit 31) the words of the contract."""
        beats, marks = self.script.pop(0) if self.script else ([], [])
        marks = np.asarray(marks, np.uint32)
        values = np.asarray(beats, np.int16).reshape(-1, 4).view(np.uint32)
        words = np.concatenate([values, marks[:, None] & 0x7FFFFFFF], 1, dtype=np.uint32)
        last = np.zeros(words.shape, bool)
        last[:, -1] = marks >> 31
        return words.ravel(), last.ravel()

    def reset(self):
        self.resets += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def manifest(small_prefill):
    return json.loads((small_prefill / "manifest.json").read_text())


@pytest.fixture
def recorder(manifest):
    return Recorder(manifest)


@pytest.fixture
def device(recorder):
    with AttentionDevice(recorder, timeout=0.05) as opened:
        yield opened
    assert recorder.closed == 1


def arrays(tokens=40, heads=2, kv_heads=1, dim=16):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, tokens, dim)) for n in (heads, kv_heads, kv_heads)]


def with_value(which, value):
    out = arrays()
    out[which][0, 7, 3] = value
    return out


BAD = [
    (arrays, {"last_only": True}, "q must have one token with last_only, the last, not 40"),
    (lambda: [x[0] for x in arrays()], {}, r"q must be of shape \[heads, tokens, head_dim\], not \[40, 16\]"),
    (lambda: arrays(dim=32), {}, "head_dim of q must be 16, the unit's, not 32"),
    (lambda: [*arrays()[:2], arrays(dim=8)[2]], {}, "head_dim of v must be 16, the unit's, not 8"),
    (lambda: arrays(tokens=513), {}, r"tokens of q must be in 1..512, the unit's context, not 513"),
    (lambda: arrays(tokens=0), {}, r"tokens of q must be in 1..512, the unit's context, not 0"),
    (lambda: arrays(heads=3), {}, "query heads must be 2, the unit's group, times the KV heads, not 3 for 1"),
    (
        lambda: arrays(heads=2, kv_heads=2),
        {},
        "query heads must be 2, the unit's group, times the KV heads, not 2 for 2",
    ),
    (
        lambda: arrays(heads=0, kv_heads=0),
        {},
        "query heads must be 2, the unit's group, times the KV heads, not 0 for 0",
    ),
    (lambda: [arrays()[0], *arrays(tokens=41)[1:]], {}, "q, k and v must have the same tokens"),
    (lambda: [*arrays()[:2], arrays(tokens=39)[2]], {}, "k and v the same shape"),
    *(
        (lambda n=n, x=x: with_value(n, x), {}, f"{'qkv'[n]} must be finite, not NaN or infinite")
        for n in range(3)
        for x in (np.nan, np.inf, -np.inf)
    ),
    (lambda: [x.astype(np.int64) for x in arrays()], {}, "q must be of a floating type, not int64"),
    (lambda: [x.astype(complex) for x in arrays()], {}, "q must be of a floating type, not complex128"),
    (lambda: [torch.tensor(x).int() for x in arrays()], {}, "q must be of a floating type, not int32"),
    (lambda: [torch.tensor(x) > 0 for x in arrays()], {}, "q must be of a floating type, not bool"),
    (lambda: [torch.tensor(x).cfloat() for x in arrays()], {}, "q must be of a floating type, not complex64"),
    (
        lambda: [torch.tensor(x).to_sparse() for x in arrays()],
        {},
        "q must be a dense array or tensor of numbers, not Tensor",
    ),
    (
        lambda: [torch.tensor(x, device="meta") for x in arrays()],
        {},
        "q must be a dense array or tensor of numbers, not Tensor",
    ),
    (lambda: [[[0.5], [0.5, 1.0]]] * 3, {}, "q must be a dense array or tensor of numbers, not list"),
    (lambda: [None] * 3, {}, "q must be of a floating type, not object"),
    *(
        (arrays, {"gamma": x}, rf"gamma must be above 0 and at most 1, not {x!r}")
        for x in (0, -0.1, 1.0001, float("nan"), float("inf"), "0.9", None, True)
    ),
    *((arrays, {"tau": x}, rf"tau must be in 0..0.8326, not {x!r}") for x in (-1e-9, 0.8327, float("nan"), "0", None)),
    *((arrays, {"tenant": x}, rf"tenant must be an integer in 0..255, not {x!r}") for x in (-1, 256, 1.0, True)),
    *(
        (arrays, {"hot_threshold": x}, rf"hot_threshold must be an integer in 0..65535, not {x!r}")
        for x in (-1, 65536, "1")
    ),
]


@pytest.mark.parametrize(
    ("make", "parameters", "message"), BAD, ids=[f"{n}-{message[:30]}" for n, (*_, message) in enumerate(BAD)]
)
def test_bad_input_is_told_before_anything_is_sent(device, recorder, make, parameters, message):
    with pytest.raises(ValueError, match=message):
        device.attention(*make(), **parameters)
    assert recorder.sent == [] and device.runs == []


def test_a_bad_second_head_is_told_before_the_first_runs(device, recorder):
    q, k, v = arrays(heads=4, kv_heads=2)
    k[1, 3, 3] = np.inf
    with pytest.raises(ValueError, match="k must be finite, not NaN or infinite"):
        device.attention(q, k, v)
    assert recorder.sent == []


def test_what_is_sent(device, recorder):
    """Memory, parameters and start, once for each KV head; the values that the registers must hold."""
    q, k, v = arrays(heads=4, kv_heads=2)
    with pytest.raises(DeviceTimeout):
        device.attention(q, k, v, gamma=0.5, tau=0.25, tenant=7, hot_threshold=3)
    sent = dict(recorder.sent)
    assert recorder.sent[0][0] == "memory" and recorder.sent[1] == ("control", 4)
    assert sent["tokens"] == 40 and sent["gamma16"] == 33793 and sent["tenant"] == 7 and sent["hot_threshold"] == 3
    assert (
        sent["threshold"] == int(2 * 0.0625 / np.log(2) * 2**28)
        and sent["inverse"] == 65536 // 8
        and sent["dense"] == 0
    )
    assert sent["timeout"] == 65536 and sent["kv_base_high"] == 0


def test_the_last_token_alone(device, recorder):
    """One packet of a row group, whose lanes are the heads; from fewer tokens than a block too."""
    q, k, v = arrays()
    recorder.script = [(np.arange(4 * 32), [1 | (n == 31) << 31 for n in range(32)])]
    out = device.attention(q[:, -1:], k, v, last_only=True)
    assert dict(recorder.sent)["single"] == 1 and out.shape == (2, 1, 16)
    values = np.arange(128).reshape(16, 8).T[:2, None]  # channel by channel, in it lane by lane
    assert np.array_equal(device.runs[0].values, values) and not device.runs[0].exponents.any()
    for marks in ([0] * 31 + [1 << 31], [1 | 1 << 14] * 31 + [1 | 1 << 14 | 1 << 31], [1] * 30 + [1 | 1 << 31] * 2):
        recorder.script = [(np.arange(4 * 32), marks)]
        with pytest.raises(DeviceError, match="the results of the last token must come in one packet, and did not"):
            device.attention(q[:, -1:], k, v, last_only=True)


@pytest.mark.parametrize(("gamma", "dense"), [(0.9999, 0), (0.99999, 1), (1, 1)])
def test_a_share_of_everything_runs_dense(device, recorder, gamma, dense):
    with pytest.raises(DeviceTimeout):
        device.attention(*arrays(tokens=64), gamma=gamma)
    sent = dict(recorder.sent)
    assert (sent["dense"], sent["gamma16"] == 65536) == (dense, bool(dense))


def test_silence_ends_at_the_time_limit(device, recorder):
    """A cancel, and, since that is not answered either, a reset."""
    recorder.put("status", 1 | 7 << 1)
    with pytest.raises(
        DeviceTimeout, match="nothing moved for 0.05 s in phase attend: 0 of 320 beats, status 0x0000000f"
    ):
        device.attention(*arrays())
    assert recorder.sent[-1] == ("control", 2) and recorder.resets == 2  # the run that nobody waited for, and this one


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (1 << 7, "the device refused the parameters of the run"),
        (1 << 8, "the run was broken off: cancelled"),
        (1 << 8 | 1 << 4, "the run was broken off: the memory answered a read with an error"),
        (1 << 8 | 2 << 4, "the run was broken off: the memory ended a burst at a wrong beat"),
        (
            1 << 8 | 3 << 4,
            r"the run was broken off: the memory did not answer in time \(status 0x00000130, after 99 beats, 1234 cycles\)",
        ),
    ],
)
def test_a_void_beat_is_told(device, recorder, status, message):
    recorder.script = [([1] * 8, [0, 0]), ([0] * 4, [VOID | 1 << 31])]
    recorder.put("status", status)
    recorder.put("beats", 99)
    recorder.put("cycles_lo", 1234)
    with pytest.raises(DeviceError, match=message):
        device.attention(*arrays())


def packets(order=((0, 0), (1, 0), (0, 1), (1, 1)), last=-1, short=32):
    """Beats of two heads and two blocks, the second of 8 rows, a row group: marks as the unit gives them."""
    marks = []
    for head, block in order:
        beats = short if block else 128
        marks += [block | head << 14 | (n == beats + last) << 31 for n in range(beats)]
    return [(np.arange(4 * len(marks)) % 1000, marks)]


def test_results_in_any_order(device, recorder):
    recorder.script = packets()
    one = device.attention(*arrays())
    recorder.script = [
        (x, m) for (x, _), (_, m) in zip(packets(), packets(((1, 1), (0, 0), (1, 0), (0, 1))), strict=True)
    ]
    two = device.attention(*arrays())
    assert one.shape == (2, 40, 16) and one.dtype == np.float32 and not np.array_equal(one, two)
    assert len(device.runs) == 1 and device.runs[0].map is None


def strided(x):
    """The same numbers, heads last in memory."""
    return torch.tensor(x).permute(1, 2, 0).contiguous().permute(2, 0, 1)


TENSORS = {  # what a tensor is made of by numbers that bfloat16 holds
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "float16": lambda x: torch.tensor(x).half(),
    "float32": lambda x: torch.tensor(x).float(),
    "float64": torch.tensor,
    "with a gradient": lambda x: torch.nn.Parameter(torch.tensor(x).bfloat16()),
    "from a model": lambda x: torch.nn.Parameter(torch.tensor(x).bfloat16()) * 1,
    "in another order": lambda x: strided(x).bfloat16(),
    "heads in a list": lambda x: [torch.nn.Parameter(torch.tensor(head).bfloat16()) for head in x],
    "negated view": lambda x: torch.complex(torch.tensor(x), -torch.tensor(x)).conj().imag,
    "numpy's float16": lambda x: x.astype(np.float16),
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_every_floating_type(device, recorder, monkeypatch, kind):
    """The same numbers arrive as from numpy's arrays, and the result is numpy's float32."""
    seen = []
    monkeypatch.setattr(recorder, "write_memory", lambda address, data: seen.append(data.tobytes()))
    numbers = [np.round(x * 16) / 16 for x in arrays()]
    for values in (numbers, [TENSORS[kind](x) for x in numbers]):
        recorder.script = packets()
        out = device.attention(*values)
        assert isinstance(out, np.ndarray) and out.dtype == np.float32
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "script",
    [
        packets(((0, 0), (0, 0), (0, 1), (1, 1))),
        packets(((0, 0), (1, 0), (0, 1), (2, 1))),
        packets(((0, 0), (1, 0), (0, 1), (1, 2))),
        packets(last=-2),
        packets(short=128),
    ],
    ids=["twice", "head", "block", "tlast", "length"],
)
def test_results_that_cannot_be(device, recorder, script):
    recorder.script = script
    with pytest.raises(
        DeviceError, match=r"each \(head, query block\) must come once, in a packet of its own, and did not"
    ):
        device.attention(*arrays())


def test_an_interrupt_breaks_the_run_off(device, recorder):
    recorder.script = [([1] * 4, [0]), ([0] * 4, [VOID | 1 << 31])]

    def stop(text, _):
        if "operands" not in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.attention(*arrays(), progress=stop)
    assert recorder.sent[-1] == ("control", 2) and not recorder.script and not recorder.resets


def test_a_closed_device(manifest):
    opened = AttentionDevice(Recorder(manifest))
    opened.close()
    opened.close()
    with pytest.raises(DeviceError, match="the device is closed"):
        opened.attention(*arrays())
    with pytest.raises(ValueError, match="register must be one of .*magic.*, not 'x'"):
        AttentionDevice(Recorder(manifest)).read_register("x")


@pytest.mark.parametrize("name", ["magic", "version", "digest", "capabilities"])
def test_another_device_is_refused(manifest, name):
    transport = Recorder(manifest)
    transport.put(name, 0x1234)
    with pytest.raises(ConfigMismatchError, match=f"the device's {name} register is 0x00001234, but its manifest"):
        AttentionDevice(transport)
    assert transport.sent == []


def drop(*path):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


def put(value, *path):
    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("decoder", "kind"), "must be a prefill attention unit, .* but it is a decoder, which `intaglio run` and"),
        (put(2, "format_version"), "a manifest's format_version must be 1, not 2"),
        (drop("format"), "a manifest's format must be"),
        (drop("config"), "a manifest's config must be of type dict, not None"),
        (put("x", "clock_hz"), "clock_hz must be of type int"),
        (put(0, "clock_hz"), "clock_hz must be positive, not 0"),
        (put("12", "digest"), "digest must be 64 hexadecimal digits, not '12'"),
        (drop("registers", "tokens"), "registers must include 'tokens'"),
        (drop("registers", "map_0"), "registers must include 'map_0'"),
        (drop("registers", "phase_mass"), "registers must include 'phase_mass'"),
        (drop("registers", "hits"), "registers must include 'hits'"),
        (put(64, "config", "columns"), "registers must include 'map_1'"),
        (put(7, "registers", "hits"), "register 'hits' must state offset"),
        (put(3, "registers", "hits", "offset"), "offset must be a multiple of 4 from 0, not 3"),
        (drop("config", "group"), "config.group must be a positive integer, not None"),
        (put(0, "config", "block"), "config.block must be a positive integer, not 0"),
        (put(True, "config", "drain"), "config.drain must be a positive integer, not True"),
        (drop("memory_bus"), "a manifest's memory_bus must be of type dict, not None"),
        (put("44", "memory_bus", "address_width"), "memory_bus.address_width must be a positive integer, not '44'"),
        (put([1], "counters"), r"counters must be a list of names, not \(1,\)"),
        (put({}, "monitor"), "monitor.phases must be a list of names"),
        (put(["idle"], "monitor", "phases"), "monitor.phases must be 8 names, not 1"),
    ],
)
def test_a_wrong_manifest_is_refused(manifest, change, message):
    changed = copy.deepcopy(manifest)
    if message.endswith("'map_1'"):
        del changed["registers"]["map_1"]
    change(changed)
    transport = Recorder(manifest)
    transport.manifest = changed
    with pytest.raises(ManifestError, match=message):
        AttentionDevice(transport)
    assert transport.sent == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"kind": "prefill-attention"}', '{"kind": 3, "top": "x", "files": {}}']
)
def test_a_truncated_manifest_of_a_folder(small_prefill, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Error, match="manifest"):
        host.open_attention(f"sim:{tmp_path}", cache=tmp_path / "cache")
    whole = (small_prefill / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(Error, match="is not a manifest .* generate it again"):
        host.open_attention(f"sim:{tmp_path}", cache=tmp_path / "cache")


def test_opening(manifest):
    transports = []

    def opener(rest, *, manifest=None, progress=None):
        transports.append(Recorder(rests[rest]))
        return transports[-1]

    rests = {"right": manifest, "wrong": {**manifest, "kind": "decoder"}}
    register("recorded", opener)
    try:
        with host.open_attention("recorded:right") as opened:
            assert opened.manifest.config["context"] == 512
        with pytest.raises(ManifestError):
            host.open_attention("recorded:wrong")
        assert [t.closed for t in transports] == [1, 1]
        with pytest.raises(ValueError, match="timeout must be a positive number of seconds, not 0"):
            host.open_attention("recorded:right", timeout=0)
    finally:
        register("recorded", None)
