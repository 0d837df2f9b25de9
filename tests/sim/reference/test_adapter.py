"""Adapters in torch: PEFT's own layers and files beside ours, the training form, the trainer, and the shipped adapter."""

import dataclasses
import itertools
import json
import math
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import MATRIX_TENSORS, base_digest, load_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.collateral import adapter_layout
from intaglio.gen.presets.decoder import config_for
from intaglio.host.adapter.config import FIELDS, AdapterError, check_config
from intaglio.host.adapter.files import quantise_adapter, quantise_factor, read_adapter
from intaglio.host.adapter.targets import matched_modules
from intaglio.sim.reference import adapter as float_adapter
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.reference.float_decoder import FloatDecoder
from intaglio.sim.reference.loading import export, float_decoder
from intaglio.sim.train.adapter import headers, initial_factors, save_adapter, train

MODELS = Path(__file__).parents[3] / "models"
CONFIG = {
    "model_type": "bitnet",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "bitnet"},
}
WIDTHS = {"context": 32, "lanes": 2, "lane_width": 16, "vector_width": 4, "attention_heads": 1, "rank": 4}


class _Config(dict):
    """A configuration as PEFT wants it, a dict, and as the model does."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft")


class _Tuned:
    """A latent BitNet with PEFT's layers beside its own, saved by PEFT; ``reads`` is what the host makes of the files."""

    def __init__(self, peft, folder, dtype=torch.float32, strength=0.3, **settings):
        torch.manual_seed(3)
        model = FloatDecoder(_Config({name: value for name, value in CONFIG.items() if name != "quantization_config"}))
        self.checkpoint, self.folder = export(model, CONFIG), folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, **settings))
        factors = [parameter for name, parameter in self.model.named_parameters() if "lora_" in name]
        for parameter in factors:
            parameter.data = (strength * parameter.data).to(dtype)
        self.model.save_pretrained(folder)
        for parameter in factors:
            parameter.data = parameter.data.float()

    def reads(self):
        return read_adapter(
            self.folder,
            adapter_layout(self.checkpoint, config_for(self.checkpoint.config, "small", **WIDTHS))["adapter"],
        )

    def check(self):
        """Our float model with the file computes as PEFT does, which is not as the base does."""
        low = self.reads()
        ours = float_adapter.adapt(float_decoder(self.checkpoint), low.factors, low.scaling)
        tokens = torch.randint(61, (1, 20))
        with torch.no_grad():
            expected, found, base = self.model(tokens), ours(tokens), float_decoder(self.checkpoint)(tokens)
        assert (found - expected).abs().max() < 2e-3 * expected.abs().max() < (base - expected).abs().max()
        return low


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_peft_wrote(tmp_path, peft, dtype):
    tuned = _Tuned(
        peft, tmp_path, dtype, target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"], init_lora_weights=False
    )
    low = tuned.check()
    assert low.scaling == 3.0 and {name for _, name in low.factors} == {"q", "o", "gate", "down"}


TARGETS = {  # PEFT's settings, and the matrices that they mean
    "a pattern": (
        {"target_modules": r".*layers\.(0|1)\.self_attn\.[kv]_proj"},
        {(0, "k"), (0, "v"), (1, "k"), (1, "v")},
    ),
    "full names": ({"target_modules": ["layers.1.mlp.up_proj", "layers.0.self_attn.o_proj"]}, {(1, "up"), (0, "o")}),
    "one layer": (
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {(1, "q"), (1, "down")},
    ),
    "all linear layers": (
        {"target_modules": "all-linear"},
        {(layer, name) for layer in (0, 1) for name in MATRIX_TENSORS},
    ),
    "all but some": (
        {"target_modules": r".*\.\w_proj", "exclude_modules": ["0.self_attn.v_proj", "k_proj"]},
        {(0, "q"), (0, "o"), (1, "q"), (1, "v"), (1, "o")},
    ),
    "names that are nowhere": ({"target_modules": ["q_proj", "query_key_value"]}, {(0, "q"), (1, "q")}),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_some_matrices_only(tmp_path, peft, kind):
    settings, meant = TARGETS[kind]
    assert set(_Tuned(peft, tmp_path, init_lora_weights=False, **settings).check().factors) == meant


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "mica", "eva"])
def test_starts_that_leave_the_base(tmp_path, peft, start):
    """Trained: whatever the start, PEFT's file and the untouched base are the tuned model."""
    tuned = _Tuned(peft, tmp_path, target_modules=["q_proj", "up_proj"], init_lora_weights=start)
    for name, parameter in tuned.model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.model.save_pretrained(tmp_path)
    tuned.check()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_starts_that_change_the_base(tmp_path, peft, start):
    tuned = _Tuned(peft, tmp_path, target_modules=["q_proj", "up_proj"], init_lora_weights=start)
    with pytest.raises(
        AdapterError, match="init_lora_weights must be True, .*: other starts change the base's matrices"
    ):
        tuned.reads()


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"alora_invocation_tokens": [3, 4]}, {"rank_pattern": {"q_proj": 2}}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_peft_computes_otherwise(tmp_path, peft, settings):
    with pytest.raises(AdapterError, match=f"{next(iter(settings))} must be"):
        _Tuned(peft, tmp_path, target_modules=["q_proj"], init_lora_weights=True, **settings).reads()


def test_every_field_of_peft_is_known(peft):
    """A field that a new PEFT brings is refused until somebody has judged it; the defaults are plain LoRA."""
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert names <= set(FIELDS), f"to be judged in host/adapter/config.py: {names - set(FIELDS)}"
    check_config(json.loads(json.dumps(peft.LoraConfig(target_modules="x").to_dict())))
    variants = {field.name for field in dataclasses.fields(peft.LoraConfig) if field.metadata.get("is_lora_variant")}
    for name in variants:  # PEFT's own word for other arithmetic
        with pytest.raises(AdapterError, match=f"{name} must be"):
            check_config({"peft_type": "LORA", name: True})


@pytest.mark.parametrize("prefix", ["", "model."])
def test_modules_are_those_that_peft_means(peft, prefix):
    from peft.tuners.tuners_utils import check_target_module_exists

    modules = [f"{prefix}layers.{layer}.{module}" for layer in range(12) for module in MATRIX_TENSORS.values()] + [
        "lm_head"
    ]
    kinds = {
        "target_modules": [
            ["q_proj"],
            ["1.mlp.up_proj", "self_attn.k_proj"],
            ["layers.3.mlp.up_proj"],
            ["model.layers.3.mlp.up_proj", "o_proj"],
            ["proj"],
            [],
            r".*\.(1|11)\..*[qk]_proj",
            r"(model\.)?layers\.\d\.mlp.*",
            "q_proj",
        ],
        "exclude_modules": [None, [], ["k_proj", "3.mlp.up_proj"], r".*mlp.*"],
        "layers_to_transform": [None, [], [1, 11], 3],
        "layers_pattern": [None, "layers", ["h", "layers"], "h"],
    }
    cases = list(itertools.product(*kinds.values()))
    for case in random.Random(1).sample(cases, 80):
        settings = dict(zip(kinds, case, strict=True))
        try:
            config = peft.LoraConfig(**settings)
        except ValueError:  # layers and a pattern, or a layers_pattern without layers
            continue
        expected = [module for module in modules if check_target_module_exists(config, module)]
        assert matched_modules(settings, modules, modules[:-1]) == expected, settings


def test_roundings_are_those_of_the_host():
    torch.manual_seed(1)
    for trits in (1, 2, 5):
        weight = torch.randn(6, 40, requires_grad=True)
        rounded = float_adapter.quantise_factor(weight, trits)
        digits, scale = quantise_factor(weight.detach().numpy(), trits)
        assert torch.allclose(rounded, torch.as_tensor(digits * scale, dtype=torch.float32), rtol=1e-5)
        rounded.sum().backward()
        assert torch.equal(weight.grad, torch.ones_like(weight))


def test_the_vector_between_is_rounded_as_in_the_exact_model():
    u = torch.tensor([[100.0, -3.0, 0.4], [1000.0, -1016.0, 4.0], [127.6, 1.0, -127.6]])
    assert float_adapter.quantise_intermediate(u).tolist() == [
        [100.0, -3.0, 0.0],
        [1000.0, -1016.0, 0.0],
        [127.0, 1.0, -127.0],
    ]


@pytest.mark.parametrize("trits", [1, 3])
def test_exact_model_follows_the_training_form(trits):
    """Small errors per token: activations and their scales are rounded differently, factors and sums are the same."""
    checkpoint = random_checkpoint(ModelConfig.from_json(CONFIG), 2)
    config = config_for(checkpoint.config, "small", **WIDTHS, adapter_trits=trits)
    layout = adapter_layout(checkpoint, config)["adapter"]
    generator = torch.Generator().manual_seed(5)
    factors = {
        key: (a, 0.5 * torch.randn(b.shape, generator=generator) * layout["scales"][key[0]][key[1]])
        for key, (a, b) in initial_factors(checkpoint.config, layout["shapes"], 4, 1).items()
    }
    low = SimpleNamespace(
        rank=4, scaling=1.0, factors={key: tuple(part.numpy() for part in pair) for key, pair in factors.items()}
    )
    exact = ExactDecoder(quantise(checkpoint, config), quantise_adapter(low, layout))
    tuned = float_adapter.adapt(float_decoder(checkpoint), factors, 1.0, trits)
    tokens = torch.randint(61, (24,), generator=generator)
    logits, unit = exact.step(tokens)
    with torch.no_grad():
        expected, base = tuned(tokens[None])[0].double(), float_decoder(checkpoint)(tokens[None])[0].double()
    found = logits * unit[:, None]
    error, effect = (found - expected).norm() / expected.norm(), (base - expected).norm() / expected.norm()
    assert error < 0.1 < 0.3 < effect


def test_headers_are_split_by_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no C\\+\\+ headers below"):
        headers(tmp_path)
    train_text, held_out = headers()
    files = held_out.split(b"\0")[1:]
    assert len(files) > 10 and len(train_text) > 40 * len(held_out)
    assert not any(b"\0" + file + b"\0" in train_text for file in files if len(file) > 200)


def test_training_lowers_the_loss_and_the_file_comes_back(tmp_path):
    checkpoint = random_checkpoint(ModelConfig.from_json(CONFIG), 2)
    text = bytes(range(1, 40)) * 50
    rows = []
    factors = train(
        float_decoder(checkpoint),
        initial_factors(checkpoint.config, ("q", "down", "up"), 4, 1),
        text,
        scaling=2.0,
        trits=1,
        steps=60,
        batch=4,
        length=24,
        lr=0.02,
        seed=1,
        tell=rows.append,
    )
    assert rows[-1]["step"] == 60 and rows[-1]["train_bpb"] < 0.8 * rows[0]["train_bpb"]
    save_adapter(tmp_path, factors, base="somewhere", digest=base_digest(checkpoint), alpha=8, rank=4)
    layout = adapter_layout(checkpoint, config_for(checkpoint.config, "small", **WIDTHS))["adapter"]
    low = read_adapter(tmp_path, layout)
    for key, pair in low.factors.items():
        for values, trained in zip(pair, factors[key], strict=True):
            digits, scale = quantise_factor(values, 1)
            assert set(digits.flat) <= {-1, 0, 1} and torch.allclose(
                torch.as_tensor(digits * scale).float(), trained, rtol=2e-3
            )


def test_shipped_adapter():
    """It is of the shipped model, and lowers the bits of held-out C++ in the exact model as in torch."""
    checkpoint = load_checkpoint(MODELS / "burin")
    config = config_for(checkpoint.config, "desk", rank=8)
    layout = adapter_layout(checkpoint, config)["adapter"]
    low = read_adapter(MODELS / "burin-adapter-cpp", layout)
    described = json.loads((MODELS / "burin-adapter-cpp" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "models/burin" and len(low.factors) == 28
    text = headers()[1][:1024]
    target = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
    model = quantise(checkpoint, config)

    def bits(logits):
        return F.cross_entropy(logits.double(), target).item() / math.log(2)

    exact = {}
    for name, adapter in (("base", None), ("adapted", quantise_adapter(low, layout))):
        logits, unit = ExactDecoder(model, adapter).step(tokens)
        exact[name] = bits(logits * unit[:, None])
    with torch.no_grad():
        tuned = bits(float_adapter.adapt(float_decoder(checkpoint), low.factors, low.scaling)(tokens[None])[0])
    assert abs(exact["adapted"] - tuned) <= 0.01 and exact["adapted"] < exact["base"] - 0.4
