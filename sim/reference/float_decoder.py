"""Float model: the published ternary decoders, BitNet b1.58's and Llama's, in plain torch, trainable by straight-through estimation.

Shapes are ``[batch, time, features]``. Parameter names are those of Hugging Face's ``BitNetForCausalLM`` and ``LlamaForCausalLM``.
Sources: arXiv 2402.17764 (ternary weights by absmean, activations by absmax per token) and transformers' ``modular_bitnet.py`` (block
structure, sub-norms, gated squared ReLU, tied head) and ``modeling_llama.py`` (no sub-norms, gated SiLU).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["BitLinear", "FloatDecoder", "RMSNorm", "quantise_activations", "quantise_weights", "rotary"]


def quantise_activations(x: torch.Tensor) -> torch.Tensor:
    """Round each token to INT8 by its largest magnitude and scale back; gradients pass straight through."""
    scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    quantised = (x * scale).round().clamp(-128, 127) / scale
    return x + (quantised - x).detach()


def quantise_weights(weight: torch.Tensor) -> torch.Tensor:
    """Round a matrix to {-1, 0, 1} times its mean magnitude; gradients pass straight through."""
    mean = weight.abs().mean().clamp(min=1e-5)
    quantised = (weight / mean).round().clamp(-1, 1) * mean
    return weight + (quantised - weight).detach()


def quantise_embedding(weight: torch.Tensor) -> torch.Tensor:
    """Round an embedding to INT8 with one scale for the matrix; gradients pass straight through."""
    scale = weight.abs().amax().clamp(min=1e-5) / 127.0
    quantised = (weight / scale).round() * scale
    return weight + (quantised - weight).detach()


class BitLinear(nn.Linear):
    """``y = x W^T`` over INT8 activations and ternary weights; ``weight`` is latent while training, exact after loading."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(quantise_activations(x), quantise_weights(self.weight))


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + d/2) of ``x [batch, heads, time, d]`` by ``cos, sin [time, d/2]``."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


_ACTIVATIONS = {"relu2": lambda x: F.relu(x).square(), "silu": F.silu}


def _sub_norm(config, size):
    return RMSNorm(size, config.rms_norm_eps) if config.model_type == "bitnet" else nn.Identity()


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        c = self.config = config
        self.q_proj = BitLinear(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = BitLinear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = BitLinear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = BitLinear(c.num_attention_heads * c.head_dim, c.hidden_size)
        self.attn_sub_norm = _sub_norm(c, c.hidden_size)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, time, _ = x.shape
        d = self.config.head_dim
        q = rotary(self.q_proj(x).view(batch, time, -1, d).transpose(1, 2), cos, sin)
        k = rotary(self.k_proj(x).view(batch, time, -1, d).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(batch, time, -1, d).transpose(1, 2)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(
            q.to(v.dtype),
            k.to(v.dtype),
            v,
            is_causal=bias is None,
            attn_mask=None if bias is None else bias.to(v.dtype),
        )
        return self.o_proj(self.attn_sub_norm(y.transpose(1, 2).reshape(batch, time, -1)))


class Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = BitLinear(config.intermediate_size, config.hidden_size)
        self.ffn_sub_norm = _sub_norm(config, config.intermediate_size)
        self.act = _ACTIVATIONS[getattr(config, "hidden_act", "relu2")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.ffn_sub_norm(self.act(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class FloatDecoder(nn.Module):
    """The whole decoder.

    Parameters
    ----------
    config : object with the fields of :class:`~intaglio.gen.checkpoint.model.ModelConfig`.

    Returns (forward)
    -----------------
    Logits ``[batch, time, vocab_size]``, float32, for tokens ``[batch, time]``, int64. ``positions [time]``, increasing, are those of
    the tokens, by default 0, 1, 2 and so on. ``bias [time, time]`` is added to every head's scores (rows are queries) and must be -inf
    above the diagonal; by default it is 0 elsewhere.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def table(self) -> torch.Tensor:
        """The matrix ``[vocab_size, hidden_size]`` that embeds tokens and, transposed, is the head where it has none of its own."""
        return quantise_embedding(self.embed_tokens.weight)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        c = self.config
        frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, device=tokens.device) / c.head_dim)
        if (scaling := getattr(c, "rope_scaling", None)) is not None:
            frequency = frequency * torch.tensor([scaling.ratio(f) for f in frequency.tolist()], device=tokens.device)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        angle = positions[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        table = self.table()
        x = F.embedding(tokens, table)
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return F.linear(self.norm(x), table if c.tie_word_embeddings else self.lm_head.weight).float()
