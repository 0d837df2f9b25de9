"""Float model: equal to transformers' ``BitNetForCausalLM`` and ``LlamaForCausalLM`` on saved checkpoints, and to itself across export
and loading.

Activations are rounded to INT8, so that near a tie a difference of one float rounding becomes one INT8 step, which every later
token of the row sees. Rows are therefore short and many: most tokens must agree to float accuracy, all to a few such steps.
"""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import Layer, Ternary, load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.rtl.arithmetic.numerics import RotaryScaling
from intaglio.sim.reference.float_decoder import FloatDecoder
from intaglio.sim.reference.loading import export, float_decoder
from intaglio.sim.train import export as export_module

SHAPES = {  # heads, key/value heads, head_dim, intermediate, layers, vocabulary
    "tiny": (2, 2, 8, 40, 1, 32),
    "gqa4": (4, 1, 16, 96, 2, 100),
    "gqa2": (4, 2, 32, 256, 3, 256),
    "wide": (4, 4, 64, 512, 2, 300),
    "mqa6": (6, 1, 32, 512, 4, 256),
}


def config_of(name, linear_class="bitlinear", **changes):
    heads, kv, head_dim, intermediate, layers, vocab = SHAPES[name]
    fields = dict(
        vocab_size=vocab,
        hidden_size=heads * head_dim,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head_dim,
        linear_class=linear_class,
        rope_theta=10000.0,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    return ModelConfig(**(fields | changes))


def tokens_of(config, time=8, batch=24, seed=0):
    return torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected):
    """Per token, the largest difference relative to the logits' standard deviation."""
    error = (found - expected).abs().amax(-1) / expected.std()
    share = (error < 2e-5).float().mean()
    assert share > 0.8, f"only {share:.3f} of the tokens agree"
    assert error.max() < 0.25, f"worst token differs by {error.max():.3g} standard deviations"


@pytest.fixture
def hf_logits():
    """A function of a folder and tokens, that runs transformers' own model eagerly and offline."""

    def run(folder, tokens):
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            kind = getattr(transformers, json.loads((folder / "config.json").read_bytes())["architectures"][0])
            model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            return model.eval()(tokens, use_cache=False).logits

    return run


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers(tmp_path, hf_logits, shape, linear_class):
    config = config_of(shape, linear_class)
    save_checkpoint(tmp_path, random_checkpoint(config, seed=len(shape)))
    tokens = tokens_of(config)
    assert_close(float_decoder(load_checkpoint(tmp_path))(tokens), hf_logits(tmp_path, tokens))


LLAMA3 = RotaryScaling(kind="llama3", factor=8.0, original_max_position_embeddings=32)
FAMILIES = {  # linear class, how matrices are stored, changes of the configuration
    "llama": ("bitlinear", "packed", {}),
    "llama3 untied": ("autobitlinear", "packed", {"tie_word_embeddings": False, "rope_scaling": LLAMA3}),
    "llama linear": ("autobitlinear", "floats", {"rope_scaling": RotaryScaling(kind="linear", factor=4.0)}),
    "llama online": ("autobitlinear", "latent", {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}),
    "llama relu2": ("bitlinear", "packed", {"hidden_act": "relu2", "rope_theta": 1000042.0}),
    "bitnet silu": ("autobitlinear", "packed", {"model_type": "bitnet"}),
    "bitnet untied": (
        "bitlinear",
        "packed",
        {"model_type": "bitnet", "hidden_act": "relu2", "tie_word_embeddings": False},
    ),
    "bitnet online": ("autobitlinear", "latent", {"model_type": "bitnet", "hidden_act": "relu2"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_transformers(tmp_path, hf_logits, family):
    linear_class, storage, changes = FAMILIES[family]
    config = config_of("gqa2", linear_class, **({"model_type": "llama", "hidden_act": "silu"} | changes))
    save_checkpoint(tmp_path, random_checkpoint(config, seed=4), storage=storage)
    tokens = tokens_of(config, time=24, batch=8)
    assert_close(float_decoder(load_checkpoint(tmp_path))(tokens), hf_logits(tmp_path, tokens))


@pytest.mark.parametrize("shape", ["tiny", "gqa4"])
def test_equals_transformers_to_the_last_position(tmp_path, hf_logits, shape):
    config = config_of(shape)
    save_checkpoint(tmp_path, random_checkpoint(config))
    tokens = tokens_of(config, time=config.max_position_embeddings, batch=1)
    assert_close(float_decoder(load_checkpoint(tmp_path))(tokens), hf_logits(tmp_path, tokens))


@pytest.mark.parametrize("changes", [{"rope_theta": 10100.0}, {"rms_norm_eps": 1e-3}, {"flip": True}, {"scale": True}])
def test_comparison_notices_a_small_fault(tmp_path, hf_logits, changes):
    config = config_of("gqa4")
    checkpoint = random_checkpoint(config)
    save_checkpoint(tmp_path, checkpoint)
    tokens = tokens_of(config)
    layer = checkpoint.layers[0]
    down = layer.matrices["down"]
    if "flip" in changes:
        weights = down.weights.copy()
        weights[3, 5] = -1 if weights[3, 5] == 1 else 1
        down = Ternary(weights=weights, scale=down.scale)
    elif "scale" in changes:
        down = Ternary(weights=down.weights, scale=down.scale * 1.01)
    else:
        config = dataclasses.replace(config, **changes)
    wrong = dataclasses.replace(
        checkpoint,
        config=config,
        layers=(Layer(matrices={**layer.matrices, "down": down}, norms=layer.norms), *checkpoint.layers[1:]),
    )
    with pytest.raises(AssertionError, match="tokens agree|worst token"):
        assert_close(float_decoder(wrong)(tokens), hf_logits(tmp_path, tokens))


def latent_model(config, seed=0):
    torch.manual_seed(seed)
    model = FloatDecoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            elif "embed" in name:
                parameter.normal_(std=0.08)
    return model


@pytest.mark.parametrize("shape", ["tiny", "gqa4", "mqa6"])
def test_export_keeps_the_function(tmp_path, hf_logits, shape):
    config = config_of(shape)
    model = latent_model(config)
    checkpoint = export(model, config)
    save_checkpoint(tmp_path, checkpoint)
    loaded = load_checkpoint(tmp_path)
    for one, two in zip(checkpoint.layers, loaded.layers, strict=True):
        assert {name: matrix.scale for name, matrix in one.matrices.items()} == {
            name: matrix.scale for name, matrix in two.matrices.items()
        }
    tokens = tokens_of(config)
    with torch.no_grad():
        expected = model(tokens)
    logits = float_decoder(loaded)(tokens)
    assert_close(logits, expected)
    assert_close(logits, hf_logits(tmp_path, tokens))
    grid = loaded.embed / (np.abs(loaded.embed).max() / 127)
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-4)


def test_loaded_model_has_no_gradients_and_is_not_exported():
    model = float_decoder(random_checkpoint(config_of("tiny")))
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TypeError, match="must be a latent FloatDecoder"):
        export(model, config_of("tiny"))


def test_export_refuses_what_is_not_finite_or_does_not_fit():
    model = latent_model(config_of("tiny"))
    with pytest.raises(CheckpointError, match="must be"):
        export(model, config_of("gqa4"))
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[1, 2] = float("nan")
    with pytest.raises(CheckpointError, match="layers.0.mlp.up_proj.weight must be finite"):
        export(model, config_of("tiny"))


def test_export_of_a_trainer_file(tmp_path):
    config = {**config_of("gqa4").to_json()}
    del config["quantization_config"]
    model = latent_model(SimpleNamespace(**config))
    torch.save({"model": model.state_dict(), "optimisers": [], "step": 3}, tmp_path / "latent.pt")
    exported = export_module.export_file(tmp_path / "latent.pt", tmp_path / "out", config=config)
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config == exported.config == config_of("gqa4")
    np.testing.assert_array_equal(loaded.embed, exported.embed)


def test_trainer_configuration_is_supported():
    config = ModelConfig.from_json({"quantization_config": {"quant_method": "bitnet"}, **export_module.CONFIG})
    assert config.vocab_size == 256 and config.tie_word_embeddings
