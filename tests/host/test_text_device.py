"""Text of a device whose model brings a tokenizer: through `open`, and the command; where its files are looked for."""

import hashlib
import json

import pytest

import intaglio.host as host
from intaglio.host.text import TextError, folder_of
from intaglio.host.transport import register
from tests.host.test_cli import run

PIECES = ["<unk>", "<s>", "</s>", "<|user|>", "▁", "a", "b", "c", "d", "▁hello", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
FOX = [PIECES.index(f"<0x{byte:02X}>") for byte in "🦊".encode()]
ANSWER = [PIECES.index("▁hello"), PIECES.index("▁"), *FOX, PIECES.index("d"), 2]  # and the end
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"


def tokenizer_files():
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(text) for text in ("<unk>", "<s>", "</s>", "<|user|>")])
    config = {"bos_token": "<s>", "chat_template": TEMPLATE}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture
def folder(tmp_path):
    """A generated folder's manifest and tokenizer."""
    folder = tmp_path / "out"
    (folder / "tokenizer").mkdir(parents=True)
    for name, data in tokenizer_files().items():
        (folder / "tokenizer" / name).write_bytes(data)
    return folder


@pytest.fixture
def scheme(double, folder):
    """Opens the stand-in that answers "a" with :data:`ANSWER`, as the manifest in ``folder`` has it."""
    files = {f"tokenizer/{path.name}": path.read_bytes() for path in (folder / "tokenizer").iterdir()}
    manifest = double.describe(tokenizer="tokenizers", bos=1, eos=2)
    manifest["files"]["tokenizer"] = sorted(files)
    manifest["content"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    following = dict(zip([PIECES.index("a"), *ANSWER], ANSWER, strict=False))

    def opened(rest, **_):
        return double.PythonDevice(manifest, next_tokens=[following.get(n, 0) for n in range(256)])

    register("spoken", opened)
    yield "spoken:any"
    register("spoken", None)


def test_text_and_chat(scheme, folder):
    with host.open(scheme, manifest=folder / "manifest.json") as device:
        assert device.tokenizer == folder and device.text.encode("a") == [1, 5]
        pieces = list(device.generate("a", 20))
        assert "".join(pieces) == " hello 🦊d" and "\ufffd" not in "".join(pieces)
        assert device.last["finish"] == "eos" and device.last["prompt_tokens"] == 2
        assert "".join(device.generate("a", 20, stop="🦊")) == " hello "
        assert "".join(device.generate("a", 4)) == " hello \ufffd\ufffd"  # an answer that ends in mid-character
        assert device.text.chat([{"role": "user", "content": "a"}]) == [1, 3, 5]
        assert "".join(device.chat([{"role": "user", "content": "a"}], 20)) == " hello 🦊d"
        assert list(device.generate_tokens([1, 5], 20)) == ANSWER[:-1]


def test_where_the_files_are(scheme, folder, tmp_path):
    assert folder_of("sim:a/b?trace=x") == tmp_path.__class__("a/b") and folder_of("tcp:h:1") is None
    assert folder_of("serial:p", folder) == folder_of("serial:p", folder / "manifest.json") == folder
    with host.open(scheme) as device:
        with pytest.raises(TextError, match=r"open\(tokenizer=DIR\)"):
            device.generate("a", 1)
        assert list(device.generate_tokens([1, 5], 1)) == ANSWER[:1]
    with host.open(scheme, tokenizer=folder / "tokenizer") as device:  # as the checkpoint's folder has them
        assert device.text.encode("a") == [1, 5]
    for name, message in (("tokenizer.json", "is another"), ("tokenizer_config.json", "must be readable")):
        path = folder / "tokenizer" / name
        kept = path.read_bytes()
        path.write_bytes(kept + b" ") if "another" in message else path.unlink()
        with host.open(scheme, tokenizer=folder) as device, pytest.raises(TextError, match=f"{name}.* {message}"):
            device.text  # noqa: B018
        path.write_bytes(kept)


def test_the_command(scheme, folder, capsys):
    beside = ("--device", scheme, "--manifest", str(folder))
    for arguments, text in (
        (("--prompt", "a"), " hello 🦊d\n"),
        (("--prompt", "a", "--chat"), " hello 🦊d\n"),
        (("--prompt", "a", "--chat", "--system", "b", "--max-tokens", "1"), " hello\n"),
        (("--tokens", "1,5", "--max-tokens", "3"), "9 4 10 \n"),
    ):
        assert run(*beside, *arguments) == 0
        assert capsys.readouterr().out == text
    assert run("--device", scheme, "--tokens", "1,5", "--max-tokens", "1") == 0  # no files needed
    for arguments, message in (
        (("--prompt", "a"), "--tokenizer DIR"),
        (("--prompt", "a", "--tokenizer", "/nowhere"), "/nowhere/tokenizer.json must be readable"),
        (("--tokens", "1,x"), "--tokens must be integers with commas between them, not '1,x'"),
        (("--tokens", "1", "--chat"), "--tokens must be given without"),
        (("--prompt", "a", "--system", "b"), "--system must be given with --chat"),
        (("--tokens", "1,999"), "tokens must be in 0..255, not 999"),
    ):
        capsys.readouterr()
        assert run("--device", scheme, *arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_a_model_of_bytes_has_no_chat(python_scheme, capsys):
    assert run("--device", python_scheme, "--prompt", "a", "--chat") == 2
    assert "must have a model with a chat template" in capsys.readouterr().err


def test_a_manifest_without_its_tokenizer(double):
    manifest = double.describe(tokenizer="tokenizers")
    with pytest.raises(host.ManifestError, match=r"files.tokenizer must include a tokenizer.json, not \[\]"):
        host.Manifest.from_dict(manifest)
