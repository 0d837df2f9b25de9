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


LLAMA3 = {  # of Llama 3.1
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FALCON = {  # the shape of Falcon3-1B-Instruct-1.58bit
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 131072,
    "rope_theta": 1000042,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 11,
    "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None},
}


def test_llama():
    config = ModelConfig.from_json(FALCON)
    assert (config.sub_norms, config.hidden_act, config.tie_word_embeddings) == (False, "silu", False)
    assert sum(rows * columns for rows, columns in config.matrix_shapes.values()) * 18 == 1_132_462_080
    assert config.norm_sizes == {"input": 2048, "post_attention": 2048}
    bare = {k: v for k, v in FALCON.items() if k not in ("hidden_act", "rope_theta", "rms_norm_eps", "head_dim")}
    assert ModelConfig.from_json(bare) == replace(config, rope_theta=10000.0, head_dim=256)
    for scaling in (None, LLAMA3, {"type": "linear", "factor": 4.0}):
        scaled = ModelConfig.from_json(FALCON | {"rope_scaling": scaling})
        assert scaled == ModelConfig.from_json(json.loads(json.dumps(scaled.to_json())))
        five = FALCON | {"rope_parameters": (scaling or {}) | {"rope_theta": 1000042}}
        assert ModelConfig.from_json(five) == scaled
    assert scaled.rope_scaling.ratio(1.0) == 0.25


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
        ({"model_type": "llama"}, r"architectures must be \['LlamaForCausalLM'\], not \['BitNetForCausalLM'\]"),
        ({"model_type": "qwen3"}, "model_type must be 'bitnet' or 'llama', not 'qwen3'"),
        ({"model_type": ...}, "model_type must be 'bitnet' or 'llama', not absent"),
        ({"model_type": ["llama"]}, r"model_type must be 'bitnet' or 'llama', not \['llama'\]"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'relu2' or 'silu', not 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias must be False, not True"),
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
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, not None"),
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
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear' must give factor"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "rope_scaling's factor must be a finite number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "base": 3}}, "of type 'linear' must not give base"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "not 'dynamic' .its frequencies change as the text grows"),
        ({"rope_scaling": {"rope_type": ["x"]}}, r"must be 'default', 'linear' or 'llama3', not \['x'\]"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor must be less than high_freq_factor = 4"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "must not give partial_rotary_factor"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rope_parameters's rope_type must be 'default', 'linear' or 'llama3', not 'yarn'",
        ),
        ({"rope_parameters": 3}, "rope_parameters must be null or an object"),
        ({"quantization_config": "bitnet"}, "quantization_config must be an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method must be 'bitnet', not 'gptq'"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "linear"}}, "linear_class must be"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}}, "quantization_mode must be"),
        ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "floats"}}, "not 'floats'"),
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
