"""`intaglio run` with several prompts."""

import io
import sys

import pytest

from intaglio.host.transport import register
from tests.double.sequences import HistoryTransport
from tests.host.test_cli import run
from tests.host.test_many import opened


@pytest.fixture(params=[(4, 3), (1, 1), (2, 8)])
def scheme(request):
    batch, sequences = request.param
    register("many", lambda rest, **_: HistoryTransport(batch=batch, sequences=sequences, vocab=128, tokenizer="bytes"))
    yield "many:x"
    register("many", None)


def alone(prompt, count, **options):
    with opened(batch=1, sequences=1, vocab=128, tokenizer="bytes") as device:
        return "".join(device.generate(prompt, count, **options)), device.last["finish"]


def test_texts_one_after_another(scheme, tmp_path, capsys):
    (tmp_path / "c.txt").write_bytes(b"xyz\n")
    prompts = ("--prompt", "ab", "--prompt-file", str(tmp_path / "c.txt"), "--prompt", "d" * 30)
    assert run("--device", scheme, *prompts, "--max-tokens", "9", "--counters") == 0
    out, err = capsys.readouterr()
    names = {"prompt 1": "ab", f"prompt 2: {tmp_path / 'c.txt'}": "xyz\n", "prompt 3": "d" * 30}
    blocks = {f"==> {name} (end: length) <==\n{alone(prompt, 9)[0]}\n" for name, prompt in names.items()}
    assert len(out) == sum(map(len, blocks)) and all(block in out for block in blocks)
    assert "prompts: 3 of 36 tokens in all, first tokens after " in err and "phase busy" in err
    assert "generated: 27 tokens in all (end: 3 length), " in err and "tokens/s in all at 80 MHz (" in err


def test_stops_and_sampling_are_those_of_each_alone(scheme, capsys):
    options = ("--temperature", "2", "--seed", "3", "--top-k", "5", "--stop", "\x05", "--stop", "a")
    assert run("--device", scheme, "--prompt", "q", "--prompt", "r", "--max-tokens", "40", *options) == 0
    out, err = capsys.readouterr()
    for number, prompt in ((1, "q"), (2, "r")):
        text, finish = alone(prompt, 40, temperature=2.0, seed=3, top_k=5, stop=["\x05", "a"])
        assert f"==> prompt {number} (end: {finish}) <==\n{text}\n" in out


def test_tokens(scheme, capsys):
    assert run("--device", scheme, "--tokens", "1,2", "--tokens", "3", "--max-tokens", "3") == 0
    out = capsys.readouterr().out
    with opened(batch=1, sequences=1, vocab=128) as device:
        for number, tokens in ((1, [1, 2]), (2, [3])):
            text = "".join(f"{token} " for token in device.generate_tokens(tokens, 3))
            assert f"==> prompt {number} (end: length) <==\n{text}\n" in out


def test_one_file_is_one_prompt(scheme, tmp_path, capsys):
    (tmp_path / "c.txt").write_bytes(b"xyz")
    assert run("--device", scheme, "--prompt-file", str(tmp_path / "c.txt"), "--max-tokens", "9") == 0
    assert capsys.readouterr().out == alone("xyz", 9)[0] + "\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--prompt", "a", "--prompt", "b" * 49), "prompt 2: a prompt must have at most 48 tokens"),
        (("--prompt", "a", "--prompt", ""), "a prompt must have at least one byte"),
        (
            ("--prompt", "a", "--prompt-file", "/nowhere"),
            "must name a file that can be read, not '/nowhere': No such file",
        ),
        (("--prompt", "a", "--prompt-file", "/"), "must name a file that can be read, not '/': Is a directory"),
        (("--tokens", "1", "--prompt", "a"), "--tokens must be given without --prompt"),
        (("--tokens", "1", "--tokens", "2,x"), "--tokens must be integers"),
        (("--prompt", "a", "--prompt", "b", "--top-k", "99"), "prompt 1: top_k must be in 1..8"),
    ],
)
def test_faults_are_one_line(scheme, capsys, arguments, message):
    assert run("--device", scheme, *arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_one_fails(scheme, capsys, monkeypatch):
    from intaglio.host.text import Pieces

    push = Pieces.push

    def fails(self, token):
        if not hasattr(self, "count"):
            self.count = fails.count = fails.count + 1
        if self.count == 2:
            raise ValueError("no such character")
        return push(self, token)

    fails.count = 0
    monkeypatch.setattr(Pieces, "push", fails)
    assert run("--device", scheme, "--prompt", "a", "--prompt", "b", "--max-tokens", "4") == 2
    out, err = capsys.readouterr()
    assert "1 of 2 prompts failed: prompt 2: no such character" in err
    assert out.count("(end: length)") == 1 and "==> prompt 2 (end: error) <==\n\n" in out


def test_ctrl_c_shows_what_has_come(scheme, capsys, monkeypatch):
    from intaglio.host.measure import Totals

    count = Totals.count

    def interrupted(self):
        count(self)
        if self.generated == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Totals, "count", interrupted)
    assert run("--device", scheme, "--prompt", "a", "--prompt", "b", "--max-tokens", "9") == 130
    out = capsys.readouterr().out
    assert "==> prompt 1 (end: broken off) <==\n" + alone("a", 9)[0][:2] in out


def test_progress_between_the_texts(scheme, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("--device", scheme, "--prompt", "a", "--prompt", "b", "--max-tokens", "3") == 0
    err = capsys.readouterr().err
    assert "2 prompts of 2 tokens" in err


def test_standard_input_is_one_prompt(scheme, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"xyz")))
    assert run("--device", scheme, "--max-tokens", "9") == 0
    assert capsys.readouterr().out == alone("xyz", 9)[0] + "\n"
