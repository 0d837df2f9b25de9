import pytest

from intaglio.host.device import Device

GREEDY = "".join(chr(c) for c in range(ord("d"), ord("x")))


def test_greedy_text(device):
    pieces = list(device.generate("abc", 20))
    assert "".join(pieces) == GREEDY and len(pieces) == 20
    last = device.last
    assert (last["prompt_tokens"], last["generated_tokens"], last["finish"]) == (4, 20, "length")
    assert last["cycles_prefill"] + last["cycles_decode"] == 10 * (4 + 19)
    assert last["tokens_per_second"] > 0 and last["wall_tokens_per_second"] > 0


@pytest.mark.parametrize("burst", [1, 2, 7, 256])
def test_bursts_do_not_change_the_text(device, burst):
    assert "".join(device.generate("abc", 20, burst=burst)) == GREEDY
    assert not device.transport.packets and not device.transport.running


def test_device_runs_bursts_itself(device):
    list(device.generate("abc", 20, burst=8))
    assert [word >> 16 & 0xFF for word in device.transport.commands] == [0, 0, 0, 7, 7, 3]


def test_characters_of_several_tokens_come_whole(device):
    assert list(device.generate(b"\xc2", 4)) == ["\u00e9", "A", "B"]  # C3 A9 41 42
    assert list(device.generate(b"\xc2", 1)) == ["\ufffd"]  # C3 alone
    assert list(device.generate(b"\x7f", 2)) == ["\ufffd", "\ufffd"]


def test_ends_at_the_end_token(device):
    assert list(device.generate_tokens([0xFC], 1)) == [0xFD]
    assert list(device.generate_tokens([0xFF], 9)) == []
    assert device.last["finish"] == "eos" and device.last["generated_tokens"] == 0


def test_ends_at_any_of_several_end_tokens(double):
    for end in (0xFE, 0x80):
        with Device(double.PythonDevice(double.describe(eos=[0xFE, 0x80]))) as device:
            assert list(device.generate_tokens([end - 3], 9)) == [end - 2, end - 1]
            assert device.last["finish"] == "eos" and device.last["generated_tokens"] == 2


def test_a_model_without_beginning_and_end(double):
    with Device(double.PythonDevice(double.describe(bos=None, eos=None))) as device:
        assert list(device.generate_tokens([0xFF], 2)) == [0, 1]
        assert "".join(device.generate("abc", 1)) == "d" and device.last["prompt_tokens"] == 3


def test_ends_at_the_context(device):
    assert list(device.generate_tokens(range(1, 61), 50)) == [61, 62, 63, 64, 65]
    assert device.last["finish"] == "context"
    assert list(device.generate_tokens(range(1, 65), 50)) == [65]
    assert list(device.generate_tokens(range(1, 61), 5)) == [61, 62, 63, 64, 65]
    assert device.last["finish"] == "length"


@pytest.mark.parametrize("stop, text, finish", [
    ("gh", "def", "stop"), (["zz", "k"], "defghij", "stop"), ("hz", GREEDY, "length"), ("wx", GREEDY, "length"),
    ("d", "", "stop"),
])
def test_stops_at_a_text(device, stop, text, finish):
    assert "".join(device.generate("abc", 20, stop=stop)) == text
    assert device.last["finish"] == finish


def test_sampling_is_determined_by_its_seed(device):
    def text(**options):
        return "".join(device.generate("abc", 30, temperature=2.0, **options))

    assert text(seed=5) == text(seed=5) != text(seed=6)
    assert text(top_k=1)[:20] == GREEDY == text(top_p=1e-9)[:20]
    assert {command >> 24 & 0x1F for command in device.transport.commands if command >> 30 & 1} == {16, 1}


def test_a_generator_left_early_leaves_the_device_usable(device):
    pieces = device.generate("abc", 20)
    assert next(pieces) == "d"
    pieces.close()
    assert device.last["finish"] == "closed" and device.transport.running
    assert "".join(device.generate("abc", 20)) == GREEDY


def test_a_device_closed_first(double):
    device = Device(double.PythonDevice())
    pieces = device.generate("abc", 20)
    next(pieces)
    device.close()
    pieces.close()
    assert device.last["finish"] == "closed"


@pytest.mark.parametrize("prompt, tokens, options, message", [
    ("", 1, {}, "at least one byte"), ("a", 0, {}, "max_tokens must be at least 1, not 0"),
    ("a" * 64, 1, {}, "at most 64 tokens, the device's context, not 65"), ("a", 1, {"burst": 0}, "burst must be in 1..256"),
    ("a", 1, {"stop": ""}, "empty text"), ("a", 1, {"top_k": 17}, "top_k must be in 1..16"),
])
def test_refuses(device, prompt, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        device.generate(prompt, tokens, **options)


def test_refuses_tokens(double, device):
    for tokens in ([256], [-1]):
        with pytest.raises(ValueError, match="tokens must be in 0..255"):
            device.generate_tokens(tokens, 1)
    with pytest.raises(ValueError, match="at least one token"):
        device.generate_tokens([], 1)
    with Device(double.PythonDevice(double.describe(vocab_size=128))) as small:
        with pytest.raises(ValueError, match="tokens must be in 0..127, not 195"):
            small.generate("\u00e9", 1)
    with Device(double.PythonDevice(double.describe(tokenizer="none"))) as bare:
        with pytest.raises(ValueError, match="use generate_tokens"):
            bare.generate("a", 1)
