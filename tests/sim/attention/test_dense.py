"""Float attention over a block map against torch's own, and activations against the model that they come from."""

import math

import pytest
import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention.activations import activations
from intaglio.sim.reference.loading import float_decoder


def noise(seed, heads, kv_heads, tokens, head_dim, loud=1.0):
    random_ = torch.Generator().manual_seed(seed)
    return [loud * torch.randn(n, tokens, head_dim, generator=random_) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize(("tokens", "block"), [(20, 32), (300, 64), (513, 128)])
def test_full_map_is_dense(tokens, block):
    q, k, v = noise(tokens, 4, 2, tokens, 32)
    count = -(-tokens // block)
    expected = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True)
    full = torch.ones(4, count, count, dtype=torch.bool).tril()
    assert torch.allclose(attention.dense(q, k, v), expected, atol=2e-6)
    assert torch.allclose(attention.sparse(q, k, v, full, block=block), expected, atol=2e-6)
    assert torch.allclose(attention.kept_mass(q, k, full, block=block), torch.ones(4).double())
    assert torch.allclose(attention.density(full, tokens, block), torch.ones(4).double())
    assert not torch.allclose(attention.dense(q, k, v, gqa_interleave=True), expected, atol=0.1)


def test_sparse_against_a_token_mask():
    q, k, v = noise(8, 2, 2, 200, 32)
    # marks above the diagonal have no effect
    keep = (torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.4) | torch.eye(7).bool()
    token = torch.arange(200)
    mask = keep[:, token // 32][:, :, token // 32] & (token <= token[:, None])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    found = attention.sparse(q, k, v, keep, block=32)
    assert torch.allclose(found, expected, atol=2e-6)
    p = torch.softmax((q @ k.mT / math.sqrt(32)).masked_fill(token > token[:, None], -math.inf).double(), -1)[:, -32:]
    assert torch.allclose(attention.kept_mass(q, k, keep, block=32), (p * mask[:, -32:]).sum((1, 2)) / 32, atol=1e-6)
    assert torch.allclose(attention.density(keep, 200, 32), mask.sum((1, 2)).double() / (200 * 201 / 2))
    changed = keep.clone()
    changed[1, 5, 2] ^= True  # a block more or less
    other = attention.sparse(q, k, v, changed, block=32)
    assert not torch.allclose(other[1, 160:192], expected[1, 160:192], atol=1e-3) and other[0].equal(found[0])


def test_attention_arguments():
    q, k, v = noise(8, 2, 2, 100, 32)
    full = torch.ones(2, 4, 4, dtype=torch.bool)
    for run, message in [
        (lambda: attention.sparse(q, k, v, full[:, :3], block=32), r"the block map must be bool \[2, 4, 4\], not"),
        (lambda: attention.sparse(q, k, v, full.long(), block=32), "the block map must be bool"),
        (
            lambda: attention.sparse(q, k, v, full & ~torch.eye(4).bool(), block=32),
            "the block map must keep every block of the",
        ),
        (lambda: attention.dense(q, k, v[:, 1:]), "v must be of the shape"),
        (lambda: attention.dense(q, k, v / 0), "v must be finite"),
        (lambda: attention.density(full, 200, 32), r"the block map must be bool \[heads, 7, 7\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    config = ModelConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_class="bitlinear",
        rope_theta=10000.0,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("model")
    checkpoint = random_checkpoint(config)
    save_checkpoint(folder, checkpoint)
    return folder, float_decoder(checkpoint)


@pytest.mark.parametrize("layer", [0, 2])
def test_activations_are_the_models(small_model, tmp_path, layer):
    folder, model = small_model
    text = bytes(range(256)) * 2
    q, k, v = activations(folder, text, 150, layer)  # beyond the 64 positions of the model
    assert [x.shape for x in (q, k, v)] == [(4, 150, 16), (2, 150, 16), (2, 150, 16)] and q.dtype == torch.float32
    block, seen = model.layers[layer].self_attn, []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    model(torch.tensor(list(text[:150]))[None])
    handle.remove()
    out = attention.dense(q, k, v).transpose(0, 1).reshape(150, -1)
    assert (block.o_proj(block.attn_sub_norm(out)) - seen[0]).abs().amax(-1).median() < 1e-4 * seen[0].abs().max()
    wrong = attention.dense(q, k.flip(0), v).transpose(0, 1).reshape(150, -1)
    assert (block.o_proj(block.attn_sub_norm(wrong)) - seen[0]).abs().amax(-1).median() > 1e-2 * seen[0].abs().max()
    (tmp_path / "text").write_bytes(text)
    assert activations(folder, tmp_path / "text", 150, layer)[1].equal(k)


def test_activations_arguments(small_model):
    for tokens, layer, message in [
        (5, 3, r"layer must be an integer in 0..2, not 3"),
        (11, 0, r"tokens must be an integer in 1..10"),
        (0, 0, "tokens must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            activations(small_model[0], b"0123456789", tokens, layer)
