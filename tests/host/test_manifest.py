import json

import pytest

from intaglio.host import Manifest, ManifestError, PrefillManifest
from intaglio.host.manifest import manifest_of, read_json


def test_reads_a_folder_and_a_file(double, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(double.describe()))
    for path in (tmp_path, tmp_path / "manifest.json"):
        manifest = Manifest.read(path)
        assert manifest.registers["digest"].offset == 8 and manifest.phases == ("busy", "send")
        assert manifest.digest_word == 0x5E5E5E5E


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "format must be 'intaglio-manifest', not 'other'"),
        ({"format_version": 2}, "format_version must be 1, not 2"),
        ({"digest": "12"}, "64 hexadecimal digits"),
        ({"digest": None}, "digest must be of type str"),
        ({"clock_hz": 0}, "clock_hz must be positive, not 0"),
        ({"phases": ["unknown"]}, "registers must include 'phase_unknown'"),
        ({"registers": {"magic": {"offset": 2, "access": "ro"}}}, "multiple of 4 from 0, not 2"),
        ({"registers": {"magic": {"offset": 0, "access": "x"}}}, "'ro', 'rw' or 'w1c', not 'x'"),
        ({"registers": {"magic": 4}}, "must state offset and access"),
        ({"registers": {}}, "registers must include 'magic'"),
        ({"model": {}}, "model must state 'vocab_size'"),
    ],
)
def test_refuses(double, change, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_dict({**double.describe(), **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 257}, "at most 256 for the byte tokenizer"),
        ({"vocab_size": "x"}, "non-negative integer"),
        ({"context": 1}, "context must be in 2..65535"),
        ({"eos": 256}, r"eos must be a token in 0..255, not 256"),
        ({"eos": [0, 256]}, "eos must be a token in 0..255, not 256"),
        ({"eos": [True]}, "eos must be a token in 0..255, not True"),
        ({"tokenizer": "x"}, "tokenizer must be"),
        ({"batch": 0}, "batch must be an integer in 1..32, not 0"),
        ({"batch": True}, "batch must be an integer in 1..32, not True"),
        ({"sequences": 257}, "sequences must be an integer in 1..256, not 257"),
        ({"bos": "a"}, "bos must be a token in 0..255, not 'a'"),
    ],
)
def test_refuses_a_model(double, change, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_dict(double.describe(**change))


def test_refuses_files(tmp_path):
    with pytest.raises(ManifestError, match="no manifest at"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="is not a manifest .*generate it again"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    with pytest.raises(ManifestError, match="cannot be read: Too many levels"):
        Manifest.read(tmp_path)
    with pytest.raises(ManifestError, match="cannot be read: File name too long"):
        Manifest.read("x" * 300)


def test_says_what_a_device_of_another_kind_is_for(double):
    with pytest.raises(
        ManifestError, match="must be a decoder, .* but it is a prefill attention unit, which `intaglio attention` and"
    ):
        Manifest.from_dict(double.describe() | {"kind": "prefill-attention"})
    for kind in ("toaster", 3, []):
        with pytest.raises(ManifestError, match="kind must be one of decoder, prefill-attention, not"):
            Manifest.from_dict(double.describe() | {"kind": kind})


def test_one_of_any_kind(double, small_prefill):
    raw = read_json(small_prefill)
    assert isinstance(manifest_of(double.describe()), Manifest) and isinstance(manifest_of(raw), PrefillManifest)
    assert manifest_of(raw) == PrefillManifest.read(small_prefill)
    for wrong in (None, [], {}, {**raw, "kind": None}, {**raw, "config": 3}):
        with pytest.raises(ManifestError):
            manifest_of(wrong)
