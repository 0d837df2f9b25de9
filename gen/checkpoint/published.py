"""Published models by name: their ``config.json`` as their authors publish it, for estimates and for checkpoints of their exact layout."""

from pathlib import Path

from intaglio import Error
from intaglio.gen.checkpoint.model import ModelConfig

__all__ = ["BITNET_2B4T", "FALCON3_1B", "MODELS", "model_config", "model_of"]

# microsoft/bitnet-b1.58-2B-4T (arXiv 2504.12285): 30 layers of 69,468,160 ternary weights, an embedding of 328,335,360 in bfloat16 that
# is the head too, every weight_scale the multiplier itself.
BITNET_2B4T = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
}

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None},
}
# tiiuae/Falcon3-1B-Instruct-1.58bit: 1,132,462,080 ternary weights, heads of 256.
FALCON3_1B = _LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 131072,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000042,
    "eos_token_id": 11,
}
# HF1BitLLM/Llama3-8B-1.58-100B-tokens: 6,979,321,856 ternary weights.
LLAMA3_8B = _LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128009,
}

MODELS = {"bitnet-2b4t": BITNET_2B4T, "falcon3-1b": FALCON3_1B, "llama3-8b": LLAMA3_8B}


def model_config(name: str) -> ModelConfig:
    """The :class:`ModelConfig` of a published model; raises ``ValueError`` for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"the model must be one of {', '.join(MODELS)}, not {name!r}")
    return ModelConfig.from_json(MODELS[name])


def model_of(text: str) -> ModelConfig:
    """The :class:`ModelConfig` of a published model's name or of a checkpoint folder; raises ``Error`` where it is neither."""
    if text in MODELS:
        return model_config(text)
    if not Path(text).is_dir():
        raise Error(f"the model must be a checkpoint folder or one of {', '.join(MODELS)}, not {text!r}")
    return ModelConfig.from_json(Path(text) / "config.json")
