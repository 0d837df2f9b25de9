"""Model configuration: both spellings of transformers, defaults, and refusal of what cannot be built."""

import json
from dataclasses import replace

import pytest

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig

BIG = {  # the shape of the published 2-billion-parameter model
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "use_cache": True,
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
}


def test_published_model():
    config = ModelConfig.from_json(BIG)
    assert (config.head_dim, config.linear_class, config.max_position_embeddings) == (128, "autobitlinear", 4096)
    assert sum(rows * columns for rows, columns in config.matrix_shapes.values()) == 69_468_160
    assert sum(config.norm_sizes.values()) == 14_592


def test_round_trip(tmp_path):
    config = ModelConfig.from_json(BIG)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert ModelConfig.from_json(tmp_path / "config.json") == config


def test_rope_of_transformers_4_and_5():
    for change in (
        {"rope_theta": 1e4},
        {"rope_theta": 1, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        {"rope_theta": 1e4, "rope_scaling": None, "rope_parameters": None},
    ):
        assert ModelConfig.from_json({**BIG, **change}).rope_theta == 1e4
    absent = {key: value for key, value in BIG.items() if key != "rope_theta"}
    assert ModelConfig.from_json(absent).rope_theta == 500000.0


def test_defaults():
    assert ModelConfig.from_json({**BIG, "num_key_value_heads": None}).num_key_value_heads == 20
    assert ModelConfig.from_json({**BIG, "eos_token_id": [7]}).eos_token_id == 7
    assert ModelConfig.from_json({**BIG, "bos_token_id": [3]}).bos_token_id == 3
    several = ModelConfig.from_json({**BIG, "eos_token_id": [128001, 128009]})
    assert several.eos_token_id == (128001, 128009) and several == ModelConfig.from_json(
        json.loads(json.dumps(several.to_json()))
    )
    assert ModelConfig.from_json({**BIG, "bos_token_id": None}).bos_token_id is None
    assert ModelConfig.from_json({**BIG, "quantization_config": {"quant_method": "bitnet"}}).linear_class == "bitlinear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, r"architectures must be \['BitNetForCausalLM'\]"),
        ({"model_type": "llama"}, "model_type must be 'bitnet', not 'llama'"),
        ({"model_type": ...}, "model_type must be 'bitnet', not absent"),
        ({"hidden_act": "silu"}, "hidden_act must be 'relu2', not 'silu'"),
        ({"attention_bias": True}, "attention_bias must be False, not True"),
        ({"hidden_size": ...}, "config must give hidden_size"),
        ({"head_dim": 64}, r"hidden_size must be num_attention_heads \* head_dim = 20 \* 64 = 1280, not 2560"),
        ({"num_attention_heads": 24}, "hidden_size must be a multiple of num_attention_heads = 24, not 2560"),
        ({"num_attention_heads": "20"}, "hidden_size must be a multiple of num_attention_heads = '20'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads = 20, not be 3"),
        ({"num_attention_heads": 512, "num_key_value_heads": 4}, "head_dim must be even"),
        ({"intermediate_size": 6914}, "intermediate_size must be a multiple of 4 .*, not 6914"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"vocab_size": True}, "vocab_size must be a positive integer, not True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be true"),
        ({"tie_word_embeddings": ...}, "tie_word_embeddings must be true"),
        ({"bos_token_id": 128256}, "bos_token_id must be null or one token id in 0..128255"),
        ({"bos_token_id": [1, 2]}, r"bos_token_id must be null or one token id in .*not \(1, 2\)"),
        (
            {"eos_token_id": [1, 128256]},
            r"eos_token_id must be null or one token id, or several, in 0..128255, not \(1, 128256\)",
        ),
        ({"eos_token_id": []}, "eos_token_id must be null or one token id"),
        ({"eos_token_id": [True]}, "eos_token_id must be null or one"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a finite number above 0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a finite number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling must be plain rotary embedding"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_parameters must be plain rotary embedding",
        ),
        ({"rope_parameters": 3}, "rope_parameters must be null or an object"),
        ({"quantization_config": ...}, "quantization_config must be present"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method must be 'bitnet', not 'gptq'"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "linear"}}, "linear_class must be"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}}, "quantization_mode must be"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}, "needs linear_class"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm must be False"),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["q"]}},
            "modules_to_not_convert must be",
        ),
    ],
)
def test_refused(change, message):
    data = {key: value for key, value in {**BIG, **change}.items() if value is not ...}
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_json(data)


def test_file_errors(tmp_path):
    path = tmp_path / "config.json"
    for content, message in ((b"{", "must be JSON"), (b"\xff", "must be JSON"), (b"[]", "must hold a JSON object")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            ModelConfig.from_json(path)


def test_validated_when_built_by_hand():
    with pytest.raises(CheckpointError, match="head_dim"):
        replace(ModelConfig.from_json(BIG), head_dim=100)
