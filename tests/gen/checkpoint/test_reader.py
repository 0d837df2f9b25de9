"""Checkpoints: what is written is read back, and everything damaged or unsupported is refused with its name."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.cli import main
from intaglio.gen.banks.layout import BankLayout
from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import (
    EMBEDDING,
    MATRIX_TENSORS,
    Layer,
    Ternary,
    absmean_ternary,
    load_checkpoint,
    save_checkpoint,
)
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.checkpoint.tensorfile import Tensor
from intaglio.gen.emit.banks import emit
from intaglio.gen.emit.decoder import generate
from intaglio.host.manifest import Manifest

CONFIG = ModelConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
)
ODD = BankLayout(lanes=2, units=1, width=8, height=7)
Q = "model.layers.1.self_attn.q_proj.weight"


def assert_equal(a, b):
    assert a.config == b.config
    np.testing.assert_array_equal(a.embed, b.embed)
    np.testing.assert_array_equal(a.final_norm, b.final_norm)
    for one, two in zip(a.layers, b.layers, strict=True):
        for name, matrix in one.matrices.items():
            np.testing.assert_array_equal(matrix.weights, two.matrices[name].weights)
            assert matrix.scale == two.matrices[name].scale
        for name, gains in one.norms.items():
            np.testing.assert_array_equal(gains, two.norms[name])


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path, random_checkpoint(CONFIG))
    return tmp_path


def tensors_of(folder):
    return tensorfile.from_bytes((folder / "model.safetensors").read_bytes())


def rewrite(folder, **changes):
    """Replace tensors (``None`` removes one) and write the file again."""
    tensors = {**tensors_of(folder), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (folder / "model.safetensors").write_bytes(tensorfile.to_bytes(tensors))


def change_config(folder, **changes):
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_round_trip_and_equal_bytes(tmp_path, linear_class):
    checkpoint = random_checkpoint(dataclasses.replace(CONFIG, linear_class=linear_class))
    save_checkpoint(tmp_path / "a", checkpoint)
    loaded = load_checkpoint(tmp_path / "a")
    assert_equal(loaded, checkpoint)
    save_checkpoint(tmp_path / "b", loaded)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@given(st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_any_scale_is_stable_after_one_round_trip(tmp_path_factory, scale):
    folder = tmp_path_factory.mktemp("scale")
    checkpoint = random_checkpoint(CONFIG)
    layer = checkpoint.layers[0]
    matrices = {**layer.matrices, "q": Ternary(weights=layer.matrices["q"].weights, scale=scale)}
    layers = (Layer(matrices=matrices, norms=layer.norms), *checkpoint.layers[1:])
    save_checkpoint(folder, dataclasses.replace(checkpoint, layers=layers))
    once = load_checkpoint(folder)
    assert once.layers[0].matrices["q"].scale == pytest.approx(scale, rel=2**-23)
    save_checkpoint(folder, once)
    assert_equal(load_checkpoint(folder), once)


@pytest.mark.parametrize(("dtype", "relative"), [("BF16", 2**-8), ("F16", 2**-11)])
def test_half_embeddings(tmp_path, dtype, relative):
    checkpoint = random_checkpoint(CONFIG)
    save_checkpoint(tmp_path, checkpoint, dtype)
    loaded = load_checkpoint(tmp_path)
    np.testing.assert_allclose(loaded.embed, checkpoint.embed, rtol=relative, atol=2.0**-25)
    save_checkpoint(tmp_path / "again", loaded, dtype)
    assert_equal(load_checkpoint(tmp_path / "again"), loaded)
    with pytest.raises(CheckpointError, match="must fit F16"):
        Tensor.from_float32(np.array([1e6], np.float32), "F16")
    with pytest.raises(CheckpointError, match="must be F32, BF16 or F16, not 'I8'"):
        save_checkpoint(tmp_path, checkpoint, "I8")


def test_bfloat16_rounds_as_torch(saved):
    import torch

    values = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(Tensor.from_float32(values, "BF16").to_float32(), expected)


def test_safetensors_library_reads_what_is_written(saved):
    from safetensors.numpy import load_file

    loaded = load_file(saved / "model.safetensors")
    assert loaded[Q].dtype == np.uint8 and loaded[Q].shape == (4, 16)
    np.testing.assert_array_equal(loaded["model.norm.weight"], random_checkpoint(CONFIG).final_norm)


def test_shards(saved):
    expected = load_checkpoint(saved)
    tensors = tensors_of(saved)
    (saved / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == shard}
        (saved / shard).write_bytes(tensorfile.to_bytes(part))
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_equal(load_checkpoint(saved), expected)
    index.write_text(json.dumps({"weight_map": {**places, "extra": shard}}))
    with pytest.raises(CheckpointError, match=r"differing: extra \(1\)"):
        load_checkpoint(saved)
    for wrong in ("../x.safetensors", "/etc/x.safetensors", "model.bin"):
        index.write_text(json.dumps({"weight_map": {**places, "extra": wrong}}))
        with pytest.raises(CheckpointError, match="a shard must be a plain .safetensors file name"):
            load_checkpoint(saved)
    index.write_text(json.dumps({"weight_map": {**places, "extra": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match="gone.safetensors must be a readable file"):
        load_checkpoint(saved)
    for text in ("{", "[]", '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="must be JSON|weight_map"):
            load_checkpoint(saved)


def latent(saved, seed=5):
    """Replace every matrix by a float one; return them."""
    rng = np.random.default_rng(seed)
    found, changes = {}, {}
    for index in range(CONFIG.num_hidden_layers):
        for name, shape in CONFIG.matrix_shapes.items():
            stem = f"model.layers.{index}.{MATRIX_TENSORS[name]}"
            tensor = Tensor.from_float32(rng.normal(scale=0.03, size=shape).astype(np.float32), "BF16")
            found[index, name] = tensor.to_float32()
            changes |= {f"{stem}.weight": tensor, f"{stem}.weight_scale": None}
    rewrite(saved, **changes)
    return found


def test_online_latent_weights_are_rounded(saved):
    weights = latent(saved)
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    change_config(saved, quantization_config=quantization)
    loaded = load_checkpoint(saved)
    assert loaded.config.quantization_mode == "offline"
    for (index, name), weight in weights.items():
        matrix = loaded.layers[index].matrices[name]
        assert matrix.scale == pytest.approx(np.abs(weight).mean(dtype=float))
        np.testing.assert_array_equal(matrix.weights, np.where(np.abs(weight) < matrix.scale / 2, 0, np.sign(weight)))
    change_config(saved, quantization_config={**quantization, "quantization_mode": "offline"})
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.q_proj.weight_scale \[1\] is missing"):
        load_checkpoint(saved)
    rewrite(
        saved, **{f"model.layers.{index}.{MATRIX_TENSORS[name]}.weight_scale": floats(1) for index, name in weights}
    )
    with pytest.raises(CheckpointError, match="q_proj.weight must hold only -1, 0 and 1"):
        load_checkpoint(saved)
    change_config(saved, quantization_config={"quant_method": "bitnet"})
    with pytest.raises(CheckpointError, match="must be U8 .*, not BF16"):
        load_checkpoint(saved)


def test_offline_unpacked_ternary_weights(tmp_path):
    checkpoint = random_checkpoint(dataclasses.replace(CONFIG, linear_class="autobitlinear"))
    save_checkpoint(tmp_path, checkpoint)
    changes = {}
    for index, layer in enumerate(checkpoint.layers):
        for name, matrix in layer.matrices.items():
            tensor = Tensor.from_float32(matrix.weights.astype(np.float32), "BF16")
            changes[f"model.layers.{index}.{MATRIX_TENSORS[name]}.weight"] = tensor
    rewrite(tmp_path, **changes)
    assert_equal(load_checkpoint(tmp_path), checkpoint)


def test_absmean_of_zeros_and_ties():
    assert not absmean_ternary(np.zeros((4, 4), np.float32)).weights.any()
    matrix = absmean_ternary(np.array([[0.5, 1.0, 1.5, -0.5, -1.5, 1.0]], np.float32))
    assert matrix.scale == 1.0 and matrix.weights.tolist() == [[0, 1, 1, 0, -1, 1]]


def floats(*values):
    return Tensor.from_float32(np.array(values, np.float32), "F32")


def raw(*values):
    return Tensor("F32", (len(values),), np.array(values, "<f4").tobytes())


SCALE = Q + "_scale"
NORM = "model.layers.0.mlp.ffn_sub_norm.weight"
WRONG_TENSORS = [
    (Q, None, r"q_proj.weight \[4, 16\] is missing"),
    (SCALE, None, r"weight_scale \[1\] is missing"),
    (NORM, None, r"ffn_sub_norm.weight \[24\] is missing"),
    ("lm_head.bias", floats(1), r"not lm_head.bias \(1 unexpected\)"),
    ("lm_head.weight", floats(1), r"lm_head.weight must have shape \[20, 16\], not \[1\]"),
    (Q, Tensor.from_uint8(np.zeros((4, 12), np.uint8)), r"must have shape \[4, 16\], not \[4, 12\]"),
    (Q, Tensor.from_uint8(np.full((4, 16), 0xC0, np.uint8)), r"q_proj.weight must hold ternary codes 0, 1 and 2"),
    (Q, Tensor("I8", (4, 16), bytes(64)), "must be U8 .*, not I8"),
    (NORM, Tensor("U8", (24,), bytes(24)), "must be F32, BF16 or F16, not U8"),
    (NORM, raw(*[np.nan] * 24), "must be finite, but 24 values are not"),
    (NORM, raw(*[np.inf] + [1] * 23), "must be finite, but 1 values are not"),
    (SCALE, raw(np.nan), "weight_scale must be finite"),
    (SCALE, floats(0), "weight_scale must be above 0 .*, not 0.0"),
    (SCALE, floats(-2), "weight_scale must be above 0 .*, not -2.0"),
    (SCALE, floats(1, 1), r"must have shape \[1\], not \[2\]"),
]


@pytest.mark.parametrize(("name", "tensor", "message"), WRONG_TENSORS)
def test_wrong_tensor_is_named(saved, name, tensor, message):
    rewrite(saved, **{name: tensor})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_stored_head_must_be_the_embedding(tmp_path, dtype):
    checkpoint = random_checkpoint(CONFIG)
    save_checkpoint(tmp_path, checkpoint, "BF16")
    rewrite(tmp_path, **{"lm_head.weight": Tensor.from_float32(tensors_of(tmp_path)[EMBEDDING].to_float32(), dtype)})
    tied = load_checkpoint(tmp_path)
    emit(tmp_path, tmp_path / "banks", layout=ODD, processes=1)
    rewrite(tmp_path, **{"lm_head.weight": None})
    assert_equal(load_checkpoint(tmp_path), tied)
    head = tied.embed.copy()
    head[3, 5:7] += 1
    rewrite(tmp_path, **{"lm_head.weight": Tensor.from_float32(head, dtype)})
    message = "lm_head.weight must equal model.embed_tokens.weight, .* but 2 values differ: the model is not tied"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        emit(tmp_path, tmp_path / "more", layout=ODD, processes=1)
    assert not (tmp_path / "more").exists()


def test_an_untied_head_is_read_as_it_is(tmp_path):
    checkpoint = random_checkpoint(dataclasses.replace(CONFIG, model_type="llama", tie_word_embeddings=False))
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path)
    assert_equal(loaded, checkpoint)
    np.testing.assert_array_equal(loaded.head, checkpoint.head)
    for tensor, message in (
        (None, r"tensor lm_head.weight \[20, 16\] is missing"),
        (
            Tensor.from_uint8(np.zeros((5, 16), np.uint8)),
            "lm_head.weight must be F32, BF16 or F16, not U8 .*ternary one",
        ),
        (Tensor.from_float32(np.ones((20, 16), np.float32), "F32"), r"unlike lm_head.weight \(all 1\)"),
        (
            Tensor.from_float32(np.ones((20, 15), np.float32), "F32"),
            r"lm_head.weight must have shape \[20, 16\], not \[20, 15\]",
        ),
    ):
        rewrite(tmp_path, **{"lm_head.weight": tensor})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize("storage", ["packed", "floats", "latent"])
def test_every_storage_is_read_alike(tmp_path, storage):
    checkpoint = random_checkpoint(dataclasses.replace(CONFIG, model_type="llama", linear_class="autobitlinear"))
    save_checkpoint(tmp_path, checkpoint, storage=storage)
    loaded = load_checkpoint(tmp_path)
    for one, two in zip(checkpoint.layers, loaded.layers, strict=True):
        for name, matrix in one.matrices.items():
            np.testing.assert_array_equal(two.matrices[name].weights, matrix.weights)
            assert abs(two.matrices[name].scale / matrix.scale - 1) < 1e-6
    with pytest.raises(CheckpointError, match="storage must be packed for linear_class 'bitlinear', not 'latent'"):
        save_checkpoint(tmp_path, random_checkpoint(CONFIG), storage="latent")


K, V = "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"
CONSTANT = {  # tensors, and how they are named
    "zeros, packed": (
        {K: Tensor.from_uint8(np.full((2, 16), 0x55, np.uint8))},
        rf"unlike {K} \(all 0\): the file is damaged",
    ),
    "zero bytes": ({K: Tensor.from_uint8(np.zeros((2, 16), np.uint8))}, rf"unlike {K} \(all -1\)"),
    "ones": ({V: Tensor.from_uint8(np.full((2, 16), 0xAA, np.uint8))}, rf"unlike {V} \(all 1\)"),
    "two matrices and a norm": (
        {name: Tensor.from_uint8(np.full((2, 16), 0x55, np.uint8)) for name in (K, V)} | {NORM: floats(*[0] * 24)},
        rf"unlike {K} \(all 0\), {NORM} \(all 0\), {V} \(all 0\): the file",
    ),
    "final norm": ({"model.norm.weight": floats(*[0] * 16)}, r"unlike model.norm.weight \(all 0\)"),
    "embedding": (
        {EMBEDDING: Tensor.from_float32(np.full((20, 16), 0.5, np.float32), "F32")},
        rf"unlike {EMBEDDING} \(all 0.5\)",
    ),
}


@pytest.mark.parametrize("kind", CONSTANT)
def test_tensors_that_no_trained_model_has(saved, kind):
    tensors, message = CONSTANT[kind]
    rewrite(saved, **tensors)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=message):
        emit(saved, saved / "banks", layout=ODD, processes=1)
    assert not (saved / "banks").exists()
    loaded = load_checkpoint(saved, allow_constant=True)
    save_checkpoint(saved / "again", loaded)
    assert_equal(load_checkpoint(saved / "again", allow_constant=True), loaded)
    emit(saved, saved / "banks", layout=ODD, processes=1, allow_constant=True)


def test_many_constant_tensors_are_counted(saved):
    """Latent weights that underflowed in a conversion: every matrix of the model."""
    rewrite(
        saved,
        **{
            f"model.layers.{index}.{MATRIX_TENSORS[name]}.weight": Tensor.from_float32(
                np.zeros(shape, np.float32), "BF16"
            )
            for index in range(2)
            for name, shape in CONFIG.matrix_shapes.items()
        },
        **{f"model.layers.{index}.{stem}.weight_scale": None for index in range(2) for stem in MATRIX_TENSORS.values()},
    )
    change_config(
        saved,
        quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    )
    with pytest.raises(
        CheckpointError, match=r"q_proj.weight \(all 0\), .*layers.1.self_attn.q_proj.weight \(all 0\) and 6 more: "
    ):
        load_checkpoint(saved)


def test_several_end_tokens_reach_the_manifest(saved, tmp_path):
    change_config(saved, eos_token_id=[1, 3], bos_token_id=[2])
    described = generate(saved, "small", tmp_path / "out", context=8, lane_width=8)
    assert (described["model"]["bos"], described["model"]["eos"]) == (2, [1, 3])
    assert Manifest.read(tmp_path / "out").ends == (1, 3)


def test_the_commands_take_constant_tensors_if_told(saved, tmp_path, capsys):
    rewrite(saved, **CONSTANT["zeros, packed"][0])
    for command in (
        ["gen", "decoder", "--preset", "small", "--set", "context=8", "--set", "lane_width=8"],
        ["gen", "banks", "--layer", "0", "--processes", "1"],
    ):
        out = str(tmp_path / command[1])
        assert main([*command, "--model", str(saved), "-o", out]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # lines of progress may come before
        assert error.startswith("intaglio: error") and f"{K} (all 0)" in error and "--allow-constant" in error
        assert main([*command, "--model", str(saved), "-o", out, "--allow-constant"]) == 0


def test_no_weights_and_pickle_only(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle files are not read"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="config.json must be a readable file"):
        load_checkpoint(saved / "nowhere")


def test_truncated_anywhere_is_refused(saved):
    for name, step in (("model.safetensors", 97), ("config.json", 1)):
        data = (saved / name).read_bytes()
        size = len(data.rstrip())  # without the last newline config.json is whole
        cuts = {*range(min(size, 64)), *range(0, size, step), size - 1}
        for cut in sorted(cuts):
            (saved / name).write_bytes(data[:cut])
            with pytest.raises(CheckpointError):
                load_checkpoint(saved)
        (saved / name).write_bytes(data)
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        load_checkpoint(saved)


def replaced(checkpoint, **parts):
    layer = checkpoint.layers[0]
    changed = Layer(
        matrices={**layer.matrices, **parts.get("matrices", {})}, norms={**layer.norms, **parts.get("norms", {})}
    )
    return dataclasses.replace(checkpoint, layers=(changed, *checkpoint.layers[1:]))


def test_checkpoint_built_by_hand_is_checked():
    good = random_checkpoint(CONFIG)
    q, weights = good.layers[0].matrices["q"], good.layers[0].matrices["k"].weights
    for build, message in (
        (lambda: Ternary(weights=weights.astype(np.int16), scale=1.0), r"weights must be int8 \[out, in\], not int16"),
        (lambda: Ternary(weights=weights * np.int8(2), scale=1.0), r"weights must be in \{-1, 0, 1\}, not -2..2"),
        (lambda: Ternary(weights=weights, scale=0.0), "scale must be a normal float32 above 0 .*, not 0.0"),
        (lambda: Ternary(weights=weights, scale=np.inf), "scale must be a normal float32 above 0 .*, not inf"),
        (lambda: replaced(good, matrices={"k": q}), r"layer 0's k must be \[8, 16\], not \[16, 16\]"),
        (lambda: replaced(good, matrices={"x": q}), "layer 0's matrices must be"),
        (lambda: replaced(good, norms={"input": np.ones(16)}), r"input norm must be float32 \[16\], not float64"),
        (lambda: dataclasses.replace(good, layers=good.layers[:1]), "layers must be num_hidden_layers = 2 long, not 1"),
        (lambda: dataclasses.replace(good, embed=good.embed * np.float32("nan")), "embed must be finite"),
    ):
        with pytest.raises(CheckpointError, match=message):
            build()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_changed_bytes_load_or_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    save_checkpoint(folder, random_checkpoint(CONFIG))
    path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, min(len(content), 6000) - 1))
    content[position : position + 1] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    try:
        load_checkpoint(folder)
    except CheckpointError:
        pass
