"""The published BitNet b1.58 2B4T: its exact layout is read, at full size, and what does not fit it is refused before weights are read."""

import json
import tracemalloc

import numpy as np
import pytest

from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.model import CheckpointError
from intaglio.gen.checkpoint.published import BITNET_2B4T, model_config
from intaglio.gen.checkpoint.reader import CheckpointReader, load_checkpoint
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.checkpoint.tensorfile import Tensor

# Written out here, not computed: what the published file holds.
LAYER = {
    "input_layernorm.weight": ("BF16", [2560]),
    "post_attention_layernorm.weight": ("BF16", [2560]),
    "self_attn.attn_sub_norm.weight": ("BF16", [2560]),
    "mlp.ffn_sub_norm.weight": ("BF16", [6912]),
    "self_attn.q_proj.weight": ("U8", [640, 2560]),
    "self_attn.q_proj.weight_scale": ("BF16", [1]),
    "self_attn.k_proj.weight": ("U8", [160, 2560]),
    "self_attn.k_proj.weight_scale": ("BF16", [1]),
    "self_attn.v_proj.weight": ("U8", [160, 2560]),
    "self_attn.v_proj.weight_scale": ("BF16", [1]),
    "self_attn.o_proj.weight": ("U8", [640, 2560]),
    "self_attn.o_proj.weight_scale": ("BF16", [1]),
    "mlp.gate_proj.weight": ("U8", [1728, 2560]),
    "mlp.gate_proj.weight_scale": ("BF16", [1]),
    "mlp.up_proj.weight": ("U8", [1728, 2560]),
    "mlp.up_proj.weight_scale": ("BF16", [1]),
    "mlp.down_proj.weight": ("U8", [640, 6912]),
    "mlp.down_proj.weight_scale": ("BF16", [1]),
}
MIB = 1 << 20


def layout(layers=30, vocab=128256):
    named = {"model.embed_tokens.weight": ("BF16", [vocab, 2560]), "model.norm.weight": ("BF16", [2560])}
    return named | {f"model.layers.{i}.{name}": entry for i in range(layers) for name, entry in LAYER.items()}


def size(entry):
    return int(np.prod(entry[1])) * {"BF16": 2, "I16": 2, "U8": 1}[entry[0]]


def sparse(folder, tensors, values):
    """A file of the full size in which only ``values`` take room: everything else reads as zeros."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BITNET_2B4T))
    head = tensorfile.header((name, *entry, size(entry)) for name, entry in tensors.items())
    with open(folder / "model.safetensors", "wb") as file:
        file.write(head)
        offset = len(head)
        for name, entry in tensors.items():
            if name in values:
                file.seek(offset)
                file.write(values[name])
            offset += size(entry)
        file.truncate(offset)
    return folder


def bf16(*values):
    return Tensor.from_float32(np.array(values, np.float32), "BF16").data


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All 30 layers and 128,256 tokens: 1.18 GB of which almost nothing is on the disk."""
    values = {name: bf16(1.5) for name in layout() if name.endswith("_scale")}
    values |= {
        "model.layers.29.mlp.down_proj.weight": bytes([0b10_01_00_10]),
        "model.embed_tokens.weight": bf16(0, 0.25),
    }
    return sparse(tmp_path_factory.mktemp("full"), layout(), values)


def test_full_size_is_opened_and_read_in_bounded_memory(full):
    assert sum(size(entry) for entry in layout().values()) == 1_178_562_980  # bytes after the header
    tracemalloc.start()
    reader = CheckpointReader(full)
    opened = tracemalloc.get_traced_memory()[1]
    layer = reader.layer(29)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 8 * MIB and read < 160 * MIB  # a layer has 66 MiB of trits; the model 1.9 GiB
    assert (
        reader.config == model_config("bitnet-2b4t")
        and len(reader.scales) == 210
        and set(reader.scales.values()) == {1.5}
    )
    down = layer.matrices["down"].weights
    assert down.shape == (2560, 6912) and [down[k * 640, 0] for k in range(4)] == [
        1,
        -1,
        0,
        1,
    ]  # first rows of the quarters
    assert sum(matrix.weights.size for matrix in layer.matrices.values()) == 69_468_160
    assert {name: gains.size for name, gains in layer.norms.items()} == {
        "input": 2560,
        "attn_sub": 2560,
        "post_attention": 2560,
        "ffn_sub": 6912,
    }
    assert reader.table("embedding", 0, 1)[0, :3].tolist() == [0, 0.25, 0]
    assert not reader.table("embedding", 128255).any()


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        (
            "model.layers.7.mlp.up_proj.weight",
            ("U8", [1727, 2560]),
            r"layers.7.mlp.up_proj.weight must have shape \[1728, 2560\]",
        ),
        (
            "model.layers.7.mlp.up_proj.weight_scale",
            ("BF16", [2]),
            r"up_proj.weight_scale must have shape \[1\], not \[2\]",
        ),
        (
            "model.embed_tokens.weight",
            ("BF16", [128255, 2560]),
            r"embed_tokens.weight must have shape \[128256, 2560\]",
        ),
        ("model.norm.weight", ("I16", [2560]), "norm.weight must be F32, BF16 or F16, not I16"),
        ("lm_head.weight", ("BF16", [128255, 2560]), r"lm_head.weight must have shape \[128256, 2560\]"),
        ("lm_head.bias", ("BF16", [128256]), "not lm_head.bias"),
        (
            "model.layers.30.input_layernorm.weight",
            ("BF16", [2560]),
            r"not model.layers.30.input_layernorm.weight \(1 unexpected\)",
        ),
    ],
)
def test_another_layout_is_refused_by_the_header(tmp_path, name, entry, message):
    tensors = layout() | {name: entry}
    folder = sparse(tmp_path, tensors, {n: bf16(1.5) for n in tensors if n.endswith("_scale")})
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    ("linear_class", "stored", "refused"),
    [
        ("autobitlinear", 0.02, False),
        ("autobitlinear", 1.5, False),
        ("bitlinear", 50.0, False),
        ("bitlinear", 0.75, False),
        ("autobitlinear", 50.0, True),  # 1 / mean |W| where mean |W| is meant
        ("bitlinear", 0.02, True),  # mean |W| where 1 / mean |W| is meant
    ],
)
def test_scales_stored_the_other_way_round(tmp_path, linear_class, stored, refused):
    folder = sparse(tmp_path, layout(), {name: bf16(stored) for name in layout() if name.endswith("_scale")})
    config = BITNET_2B4T | {"quantization_config": {"quant_method": "bitnet", "linear_class": linear_class}}
    (folder / "config.json").write_text(json.dumps(config))
    if refused:
        with pytest.raises(
            CheckpointError, match=f"must be meant as linear_class '{linear_class}' says, .*more than (49|50)"
        ):
            CheckpointReader(folder)
    else:
        kept = np.frombuffer(bf16(stored), "<u2").astype(np.uint32) << 16
        value = float(kept.view(np.float32)[0])
        assert CheckpointReader(folder).scales["model.layers.0.self_attn.q_proj"] == pytest.approx(
            value if linear_class == "autobitlinear" else 1 / value
        )


def test_truncated_or_changed_under_way(tmp_path):
    folder = sparse(tmp_path, layout(), {name: bf16(1.5) for name in layout() if name.endswith("_scale")})
    path = folder / "model.safetensors"
    reader = CheckpointReader(folder)
    whole = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(whole - 3)
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        CheckpointReader(folder)
    last = "model.layers.29.mlp.down_proj.weight"  # the scale after it was read on opening
    with pytest.raises(CheckpointError, match=f"must stay whole while it is read, and tensor {last} ends early"):
        reader.layer(29)


def test_one_layer_of_full_size_and_its_values(tmp_path):
    """One full layer with a small vocabulary, drawn, written and read back; the packed bytes are decoded here once more."""
    config = BITNET_2B4T | {"num_hidden_layers": 1, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 1}
    write_random_checkpoint(tmp_path, config, seed=3, zeros=0.4)
    tensors = tensorfile.from_bytes((tmp_path / "model.safetensors").read_bytes())
    assert {name: (t.dtype, list(t.shape)) for name, t in tensors.items()} == layout(1, 512)
    layer = CheckpointReader(tmp_path).layer(0)
    for name, stem in (("k", "self_attn.k_proj"), ("gate", "mlp.gate_proj"), ("down", "mlp.down_proj")):
        packed = tensors[f"model.layers.0.{stem}.weight"].to_uint8()
        quarter = packed.shape[0]
        for k in range(4):
            digit = packed // 4**k % 4
            np.testing.assert_array_equal(
                layer.matrices[name].weights[k * quarter : (k + 1) * quarter], digit.astype(np.int8) - 1
            )
        share = np.count_nonzero(layer.matrices[name].weights == 0) / layer.matrices[name].weights.size
        assert share == pytest.approx(0.4, abs=0.002)
        assert layer.matrices[name].scale == 2.0 ** -round(np.log2(packed.shape[1]) / 2)


def test_small_checkpoint_of_the_layout_loads_and_repeats(tmp_path):
    config = BITNET_2B4T | {
        "num_hidden_layers": 2,
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    for folder in ("a", "b"):
        write_random_checkpoint(tmp_path / folder, config, seed=5)
    write_random_checkpoint(tmp_path / "c", config, seed=6)
    data = {folder: (tmp_path / folder / "model.safetensors").read_bytes() for folder in "abc"}
    assert data["a"] == data["b"] != data["c"]
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.config.linear_class == "autobitlinear" and loaded.embed.shape == (24, 16)
    assert not (np.frombuffer(loaded.embed.tobytes(), "<u4") & 0xFFFF).any()  # bfloat16 values
