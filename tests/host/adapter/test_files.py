"""Adapters on the host: PEFT's files, what is refused, rounding to ternary digits, and the image."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.gen.checkpoint.tensorfile import Tensor, to_bytes
from intaglio.host.adapter import targets as adapter_targets
from intaglio.host.adapter.files import AdapterError, LowRank, quantise_adapter, quantise_factor, read_adapter
from intaglio.host.adapter.image import adapter_image, image_crc
from intaglio.host.tensors import TensorError, read_tensors, to_float32

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
}
SHAPES = {"q": [16, 16], "k": [8, 16], "v": [8, 16], "gate": [32, 16], "up": [32, 16]}
LAYOUT = {
    "rank": 4,
    "slots": 2,
    "trits": 1,
    "targets": ["q", "v", "gate", "up"],
    "lanes": 2,
    "lane_width": 8,
    "layers": 2,
    "head_dim": 8,
    "operations": [["q", "k", "v"], ["gate", "up"]],
    "shapes": SHAPES,
    "modules": MODULES,
    "base": "ab" * 32,
    "image_words": 0,
    "scales": [dict.fromkeys(MODULES, 0.25), dict.fromkeys(MODULES, 0.125)],
}
TARGETS = ("q", "v")


class Files:
    """PEFT's files of a good adapter; tests change single parts and write them."""

    def __init__(self, seed=0, targets=TARGETS):
        rng = np.random.default_rng(seed)
        self.config = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_dora": False,
            "target_modules": [MODULES[name].rpartition(".")[2] for name in targets],
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "init_lora_weights": True,
        }
        self.metadata, self.tensors = {}, {}
        for layer in range(2):
            for name in targets:
                for letter, shape in (("A", (4, SHAPES[name][1])), ("B", (SHAPES[name][0], 4))):
                    self[layer, name, letter] = Tensor.from_float32(
                        rng.normal(size=shape).astype(np.float32) / 64, "F32"
                    )

    @staticmethod
    def name(layer, name, letter):
        return f"base_model.model.model.layers.{layer}.{MODULES[name]}.lora_{letter}.weight"

    def __setitem__(self, key, tensor):
        self.tensors[self.name(*key)] = tensor

    def __getitem__(self, key):
        return self.tensors[self.name(*key)]

    def write(self, folder):
        (folder / "adapter_config.json").write_text(json.dumps(self.config))
        (folder / "adapter_model.safetensors").write_bytes(to_bytes(self.tensors, self.metadata))
        return folder


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_reads_every_dtype(tmp_path, dtype):
    files = Files()
    for name, tensor in files.tensors.items():
        files.tensors[name] = Tensor.from_float32(tensor.to_float32(), dtype)
    adapter = read_adapter(files.write(tmp_path), LAYOUT)
    assert (adapter.rank, adapter.scaling) == (4, 2.0) and set(adapter.factors) == {
        (0, "q"),
        (0, "v"),
        (1, "q"),
        (1, "v"),
    }
    for (layer, name), pair in adapter.factors.items():
        for letter, values in zip("AB", pair, strict=True):
            assert np.array_equal(values, files[layer, name, letter].to_float32()) and values.dtype == np.float32


def test_names_without_the_inner_model_and_rooted_scaling(tmp_path):
    files = Files()
    files.tensors = {
        name.replace("model.model.model.", "model.model."): tensor for name, tensor in files.tensors.items()
    }
    files.config |= {"use_rslora": True, "target_modules": ["self_attn.q_proj", "v_proj"]}
    assert read_adapter(files.write(tmp_path), LAYOUT).scaling == 4.0


def _set(**changes):
    return lambda files: files.config.update(changes)


def _tensor(change, key=(1, "v", "B")):
    def edit(files):
        files[key] = change(files[key])

    return edit


def _value(value):
    def change(tensor):
        values = tensor.to_float32().copy()
        values[2, 1] = value
        return Tensor("F32", tensor.shape, values.tobytes())

    return _tensor(change)


def _without(*key):
    return lambda files: files.tensors.pop(files.name(*key))


def _extra(name, shape=(4, 16)):
    return lambda files: files.tensors.update({name: Tensor.from_float32(np.zeros(shape, np.float32), "F32")})


REFUSED = {
    "another kind": (_set(peft_type="IA3"), "peft_type must be 'LORA', not 'IA3'"),
    "another rank": (_set(r=8), "rank must be the device's, 4, not 8"),
    "rank true": (_set(r=True), "rank must be the device's, 4, not True"),
    "alpha zero": (_set(lora_alpha=0), "lora_alpha must be a finite number above 0, not 0"),
    "alpha infinite": (_set(lora_alpha=float("inf")), "lora_alpha must be"),
    "no alpha": (_set(lora_alpha=None), "lora_alpha must be"),
    "dora": (_set(use_dora=True), "use_dora must be False, not True: it rescales the base's rows"),
    "bias": (_set(bias="all"), "bias must be 'none'"),
    "transposed": (_set(fan_in_fan_out=True), "fan_in_fan_out must be False"),
    "rank pattern": (_set(rank_pattern={"q_proj": 2}), "rank_pattern must be {}"),
    "alpha pattern": (_set(alpha_pattern={"q_proj": 2}), "alpha_pattern must be {}"),
    "saved modules": (
        _set(modules_to_save=["lm_head"]),
        r"modules_to_save must be \[\], not \['lm_head'\]: the base is read-only",
    ),
    "other layers": (
        _set(layers_to_transform=[0]),
        "tensor .*layers.1.self_attn.q_proj.* must belong to one of 2 layers",
    ),
    "layers a text": (
        _set(layers_to_transform="0"),
        "layers_to_transform must be a layer's number or a list of them, not '0'",
    ),
    "layers and a pattern": (
        _set(layers_to_transform=[0], target_modules=".*"),
        "target_modules must be a list where there are layers_to",
    ),
    "no pattern": (_set(target_modules="(q_proj"), r"must be regular expressions, not '\(q_proj': .*unterminated"),
    "nothing meant": (
        _set(target_modules=["c_attn"]),
        r"must mean at least one matrix .* 2 layers, and \['c_attn'\] means none",
    ),
    "everything excluded": (_set(exclude_modules=".*"), "must mean at least one matrix"),
    "names of two models": (
        _extra("base_model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        "the tensors must be of one model",
    ),
    "rslora a text": (_set(use_rslora="yes"), "use_rslora must be true or false"),
    "all targets": (_set(target_modules="all-linear"), "room for .*not 'k_proj'"),
    "no targets": (_set(target_modules=None), "target_modules must be a list of names or one pattern, not None"),
    "targets numbers": (_set(target_modules=[1]), r"target_modules must be a list of names or one pattern, not \[1\]"),
    "a pattern without room": (_set(target_modules=r".*\.(q|k|v)_proj"), "room for .*not 'k_proj'"),
    "targets not of the hardware": (_set(target_modules=["q_proj", "v_proj", "lm_head"]), "room for .*not 'lm_head'"),
    "targets without room": (
        _set(target_modules=["q_proj", "v_proj", "k_proj"]),
        "room for .q_proj, v_proj, gate_proj, up_proj., not 'k",
    ),
    "a target without tensors": (
        _set(target_modules=["q_proj", "v_proj", "up_proj"]),
        "layer 0 must have .* of mlp.up_proj",
    ),
    "tensors without a target": (
        _set(target_modules=["q_proj"]),
        "must belong to one of 2 layers and to a target module",
    ),
    "half a pair": (_without(1, "v", "B"), "layer 1 must have lora_A and lora_B of self_attn.v_proj, and has A"),
    "a layer too many": (
        _extra("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"),
        "must belong to one of 2 layers",
    ),
    "an embedding": (_extra("base_model.model.model.embed_tokens.lora_embedding_A"), "must be lora_A or lora_B"),
    "not PEFT's names": (_extra("layers.0.self_attn.q_proj.lora_A.weight"), "must be lora_A or lora_B"),
    "another shape": (
        _tensor(lambda t: Tensor.from_float32(np.zeros((4, 8), np.float32), "F32")),
        r"shape \[8, 4\], not \[4, 8\]",
    ),
    "integers": (_tensor(lambda t: Tensor("I8", t.shape, bytes(32))), "must be F32, F16 or BF16, not I8"),
    "doubles": (_tensor(lambda t: Tensor("F64", t.shape, bytes(256))), "must be F32, F16 or BF16, not F64"),
    "NaN": (_value(np.nan), "must be finite"),
    "infinite": (_value(-np.inf), "must be finite"),
    "another base": (
        lambda files: files.metadata.update(base_digest="cd" * 32),
        "beside the device's weights .*abab.* not beside cdcd",
    ),
    "damaged values": (lambda files: files.metadata.update(values_sha256="00" * 32), "it is damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path, kind):
    change, text = REFUSED[kind]
    files = Files()
    change(files)
    with pytest.raises((AdapterError, TensorError), match=text):
        read_adapter(files.write(tmp_path), LAYOUT)


HARMFUL = {
    "init_lora_weights": ("pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "something", 1, 0.0),
    "use_dora": (True, 1),
    "bias": ("all", "lora_only"),
    "alora_invocation_tokens": ([5], []),
    "arrow_config": ({"top_k": 3},),
    "kasa_config": ({"beta": 1e-4},),
    "velora_config": ({},),
    "monteclora_config": ({},),
    "use_bdlora": ({},),
    "use_qalora": (True,),
    "layer_replication": ([[0, 2]],),
    "trainable_token_indices": ([3], {"embed_tokens": [3]}),
    "target_parameters": (["x"],),
    "lora_bias": (True,),
    "megatron_config": ({},),
    "enable_lora": ([True, False],),
    "task_type": ("SEQ_CLS",),
    "a field of tomorrow": (None, False, True),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_not_known_to_be_harmless_is_refused_by_name(tmp_path, name):
    for value in HARMFUL[name]:
        files = Files()
        files.config[name] = value
        with pytest.raises(AdapterError, match=f"{name} must be|unlike {name}"):
            read_adapter(files.write(tmp_path), LAYOUT)


def test_harmless_values(tmp_path):
    for changes in (
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"lora_dropout": 0.1},
        {"init_lora_weights": "MiCA"},
        {"modules_to_save": []},
        {"rank_pattern": None},
        {"task_type": "CAUSAL_LM"},
        {"init_lora_weights": False, "inference_mode": True},
        {"auto_mapping": {"base_model_class": "x"}},
    ):
        files = Files()
        files.config |= changes
        assert len(read_adapter(files.write(tmp_path), LAYOUT).factors) == 4


def test_a_pattern_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_targets, "LIMIT_S", 0.5)
    files = Files()
    files.config["target_modules"] = "(.+)+!"
    with pytest.raises(AdapterError, match=r"must match within 0.5 s, not longer: '\(\.\+\)\+!'"):
        read_adapter(files.write(tmp_path), LAYOUT)


def test_missing_and_pickled_files(tmp_path):
    with pytest.raises(AdapterError, match="adapter_config.json must be a readable JSON file"):
        read_adapter(tmp_path, LAYOUT)
    Files().write(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is a pickle, which is not read"):
        read_adapter(tmp_path, LAYOUT)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(TensorError, match="must be a readable file: No such file"):
        read_adapter(tmp_path, LAYOUT)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(AdapterError, match="peft_type"):
        read_adapter(tmp_path, LAYOUT)


def test_any_damage_of_the_file_is_an_error_or_harmless(tmp_path):
    """Cut anywhere, or a bit changed anywhere in the header: refused, or the same values."""
    file = Files().write(tmp_path) / "adapter_model.safetensors"
    whole, rng = file.read_bytes(), np.random.default_rng(1)
    good = read_adapter(tmp_path, LAYOUT).factors
    size = int.from_bytes(whole[:8], "little") + 8
    refused = 0
    for at in [*range(0, 40), *rng.integers(40, len(whole), 60).tolist()]:
        file.write_bytes(whole[:at])
        with pytest.raises(TensorError, match="whole safetensors file"):
            read_adapter(tmp_path, LAYOUT)
    for at in [*range(0, 40), *rng.integers(40, size, 200).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            found = read_adapter(tmp_path, LAYOUT).factors
        except (AdapterError, TensorError):
            refused += 1
        else:
            assert all(np.array_equal(a, b) for key in good for a, b in zip(good[key], found[key], strict=True))
    assert refused > 150


def _entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = [
    "{",
    "[]",
    '{"a": 1}',
    '{"a": {}, "a": {}}',
    '{"__metadata__": {"x": 1}}',
    "\xff",
    "[" * 100_000,
    *(
        json.dumps({"a": _entry(**changes)})
        for changes in ({"offsets": (0, 8)}, {"dtype": "F99"}, {"shape": (-1,)}, {"offsets": (1, 5)}, {"dtype": "U8"})
    ),
    json.dumps({"a": _entry("U8", (4,)), "b": _entry("U8", (1,), (3, 4))}),
]


@pytest.mark.parametrize("header", HEADERS)
def test_damaged_headers(tmp_path, header):
    text = header.encode("latin-1")
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(TensorError, match="whole safetensors file"):
        read_tensors(tmp_path / "x")


def test_bfloat16_values():
    bits = np.array([0x3F80, 0xC020, 0x0001], "<u2").tobytes()
    assert to_float32("BF16", (3,), bits).tolist() == [1.0, -2.5, 2.0**-133]


@pytest.mark.parametrize("trits", [1, 2, 3, 4, 5])
def test_factors_are_rounded_once(trits):
    limit = (3**trits - 1) // 2
    values = np.random.default_rng(trits).normal(size=(8, 50))
    digits, scale = quantise_factor(values, trits)
    assert abs(digits).max() == limit and digits.dtype == np.int8
    error = ((digits * scale - values) ** 2).mean() ** 0.5 / values.std()
    assert error < {1: 0.52, 2: 0.3, 3: 0.1, 4: 0.03, 5: 0.01}[trits]
    again, same = quantise_factor(np.float32(digits * np.float32(scale)), trits)
    assert np.array_equal(again, digits) and abs(same / scale - 1) < 1e-6


def test_factors_of_zeros():
    digits, scale = quantise_factor(np.zeros((3, 4)), 1)
    assert not digits.any() and scale == 0.0


def test_scales_and_missing_matrices():
    one = np.ones((4, 16), np.float32)
    adapter = LowRank(rank=4, scaling=3.0, factors={(1, "q"): (one * 0.5, np.ones((16, 4), np.float32) * 0.25)})
    found = quantise_adapter(adapter, LAYOUT)
    assert set(found.matrices) == {(layer, name) for layer in range(2) for name in MODULES}
    scale = found.matrices[1, "q"]
    assert scale.m * 2.0**scale.e == 0.5 * 0.25 * 3.0 / 0.125 and scale.m >> 15 == 1
    for key, factors in found.matrices.items():
        assert key == (1, "q") or (factors.m, factors.e) == (0, 0) and not factors.a.any() and not factors.b.any()
    with pytest.raises(AdapterError, match="the scale of layer 1's self_attn.q_proj must be below"):
        quantise_adapter(LowRank(rank=4, scaling=1e9, factors=adapter.factors), LAYOUT)


def test_rows_of_queries_are_interleaved():
    b = np.zeros((16, 4), np.float32)
    b[5, 0] = 1.0  # row 5 of the first head: pair (1, 5) becomes (2, 3)
    factors = {(0, name): (np.ones((4, 16), np.float32), b[: SHAPES[name][0]]) for name in ("q", "v")}
    found = quantise_adapter(LowRank(rank=4, scaling=1.0, factors=factors), LAYOUT).matrices
    assert np.argwhere(found[0, "q"].b).tolist() == [[3, 0]] and np.argwhere(found[0, "v"].b).tolist() == [[5, 0]]


def words_by_hand(adapter, layout):
    """The image's weights, one digit after another, as docs/adapters.md describes them."""
    lanes, width, trits, rank = (layout[name] for name in ("lanes", "lane_width", "trits", "rank"))
    limit = (3**trits - 1) // 2
    memory = [[] for _ in range(lanes)]

    def digit(value, t):
        return (int(value) + limit) // 3 ** (trits - 1 - t) % 3 - 1

    for layer in range(layout["layers"]):
        for names in layout["operations"]:
            matrices = [adapter.matrices[layer, name] for name in names]
            a = [row for matrix in matrices for row in matrix.a]
            for group in range(len(a) // lanes):
                for t in range(trits):
                    for chunk in range(len(a[0]) // width):
                        for lane in range(lanes):
                            memory[lane].append(
                                [digit(v, t) for v in a[group * lanes + lane][chunk * width : (chunk + 1) * width]]
                            )
            b = [row for matrix in matrices for row in matrix.b]
            if names == ["gate", "up"]:
                b = [matrix.b[i] for i in range(len(matrices[0].b)) for matrix in matrices]
            for lane in range(lanes):
                stream = [digit(v, t) for row in b[lane::lanes] for t in range(trits) for v in row]
                stream += [0] * (-len(stream) % (width // rank * rank))
                memory[lane] += [stream[i : i + width] for i in range(0, len(stream), width)]
    out = []
    for address in range(len(memory[0])):
        for lane in range(lanes):
            word = sum(1 << i for i, t in enumerate(memory[lane][address]) if t == 1)
            word |= sum(1 << (width + i) for i, t in enumerate(memory[lane][address]) if t == -1)
            out += [word >> 32 * k & 0xFFFFFFFF for k in range(-(-2 * width // 32))]
    return out


@pytest.mark.parametrize(
    "changes",
    [{}, {"trits": 3}, {"lane_width": 16, "lanes": 4}, {"trits": 2, "lane_width": 16, "operations": [["gate", "up"]]}],
)
def test_image(changes):
    layout = LAYOUT | changes
    rng = np.random.default_rng(4)
    factors = {
        (layer, name): (rng.normal(size=(4, 16)), rng.normal(size=(SHAPES[name][0], 4)) / 50)
        for layer in range(2)
        for name in MODULES
    }
    adapter = quantise_adapter(LowRank(rank=4, scaling=1.0, factors=factors), layout)
    words = adapter_image(adapter, layout, 0x12345678)
    order = [(layer, name) for layer in range(2) for names in layout["operations"] for name in names]
    assert words[0] == 0x12345678 and words.dtype == np.uint32
    assert words[1 : 1 + len(order)].tolist() == [
        adapter.matrices[key].m | (adapter.matrices[key].e & 1023) << 16 for key in order
    ]
    assert words[1 + len(order) :].tolist() == words_by_hand(adapter, layout)
    assert image_crc(np.array([0x34333231, 0x38373635], np.uint32)) == 0x9AE0DAAF  # "12345678"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x"
        file.write_bytes(data)
        with pytest.raises(TensorError):
            read_tensors(file)
