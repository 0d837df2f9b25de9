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
    assert [word >> 16 & 0xFF for word in device.transport.commands] == [0, 0, 0, 0, 7, 7, 2]


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


@pytest.mark.parametrize(
    "stop, text, finish",
    [
        ("gh", "def", "stop"),
        (["zz", "k"], "defghij", "stop"),
        ("hz", GREEDY, "length"),
        ("wx", GREEDY, "length"),
        ("d", "", "stop"),
    ],
)
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
    assert [next(pieces), next(pieces)] == ["d", "e"]
    pieces.close()
    assert device.last["finish"] == "closed" and device.transport.running
    assert "".join(device.generate("abc", 20)) == GREEDY


def test_figures_belong_to_the_tokens_that_were_computed(double, device):
    """The double takes ten cycles a token, whatever else its counters say."""

    def figures(device=device):
        last = device.last
        return last["cycles_prefill"], last["tokens_decode"], last["cycles_decode"], last["tokens_per_second"]

    speed = device.manifest.clock_hz / 10
    for count in (2, 3, 20):
        assert len(list(device.generate_tokens([1, 2, 3], count))) == count
        assert figures() == (30, count - 1, 10 * (count - 1), speed)
    assert "".join(device.generate("abc", 1)) == "d" and figures() == (40, 0, 0, None)
    assert "".join(device.generate("abc", 20, stop="gh")) == "def" and device.last["finish"] == "stop"
    assert figures() == (40, 8, 80, speed)  # the whole burst was computed
    with Device(double.PythonDevice(double.describe(eos=ord("h")))) as ending:
        assert "".join(ending.generate("abc", 20)) == "defg" and ending.last["finish"] == "eos"
        assert figures(ending) == (40, 8, 80, speed)
    pieces = device.generate("abc", 20)
    assert next(pieces) == "d"
    pieces.close()
    assert figures() == (40, None, None, None) and device.last["first_token_seconds"] == 40 / device.manifest.clock_hz


def test_figures_that_cannot_be_told_are_not(device, monkeypatch):
    """A device that is still at work, one whose counters may have gone round, and one that has computed something else meanwhile."""
    names = ("cycles_prefill", "first_token_seconds", "cycles_decode", "tokens_per_second")
    device.transport.registers["status"] = 1
    assert "".join(device.generate("abc", 4)) == "defg" and {device.last[name] for name in names} == {None}
    device.transport.registers |= {"status": 0, "cycles_hi": 1}  # a phase may have begun anew from 0
    assert "".join(device.generate("abc", 4)) == "defg" and {device.last[name] for name in names} == {None}
    device.transport.registers["cycles_hi"] = 0
    pieces = device.generate("abc", 4)
    device.transport.tokens = 1
    clear = device.clear_counters
    monkeypatch.setattr(device, "clear_counters", lambda: (clear(), setattr(device.transport, "tokens", 1)))
    assert "".join(pieces) == "defg" and {device.last[name] for name in names} == {None}
    assert device.last["seconds_prefill"] >= 0


def test_progress_through_the_prompt(device):
    class Slow(type(device.transport)):
        """Takes a word at each look."""

        def send(self, words, last, timeout):
            self.pending = len(words)
            for word in words:
                super().send(words[:1] * 0 + word, last[:1], timeout)
                self.pending -= 1
                if self.watch:
                    self.watch()
            return len(words)

    device.transport.__class__, told = Slow, []
    assert "".join(device.generate("abc", 4, progress=told.append)) == "defg"
    assert told == [1, 2, 3, 4] and device.transport.watch is None


def test_a_device_closed_first(double):
    device = Device(double.PythonDevice())
    pieces = device.generate("abc", 20)
    next(pieces)
    device.close()
    pieces.close()
    assert device.last["finish"] == "closed"


@pytest.mark.parametrize(
    "prompt, tokens, options, message",
    [
        ("", 1, {}, "at least one byte"),
        ("a", 0, {}, "max_tokens must be at least 1, not 0"),
        ("a" * 64, 1, {}, "at most 64 tokens, the device's context, not 65"),
        ("a", 1, {"burst": 0}, "burst must be in 1..256"),
        ("a", 1, {"stop": ""}, "empty text"),
        ("a", 1, {"top_k": 17}, "top_k must be in 1..16"),
    ],
)
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
        with pytest.raises(ValueError, match="text needs a model with a tokenizer"):
            bare.generate("a", 1)
