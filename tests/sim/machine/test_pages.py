"""The joined machine's exact model: against the float model, causal, a sequence at once or in pieces, selection of blocks."""

import dataclasses
from pathlib import Path

import pytest
import torch

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.host.attention.parameters import divergence_threshold, share
from intaglio.rtl.arithmetic.numerics import ROTARY_ONE, Scalar
from intaglio.sim.attention import dense
from intaglio.sim.attention.accuracy import errors
from intaglio.sim.attention.activations import activations
from intaglio.sim.attention.heads import activation_heads
from intaglio.sim.machine.accuracy import page_results
from intaglio.sim.machine.pages import PageAttention, PageDecoder, Selection, common_exponent
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.reference.scalars import Scalars
from intaglio.sim.train.corpus import Corpus

MODEL = Path(__file__).parents[3] / "models" / "burin"
BITNET = {}
LLAMA = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}


def made(seed=3, **changes):
    fields = {
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    checkpoint = random_checkpoint(ModelConfig(**(fields | changes)), seed=seed)
    return checkpoint, quantise(checkpoint, config_for(checkpoint.config, "small", context=256), pages=True)


def tokens_of(seed, count):
    return torch.randint(0, 50, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changes",
    [
        BITNET,
        {"rms_norm_eps": 0.3},
        {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
        LLAMA,
        LLAMA | {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64},
    ],
)
def test_random_checkpoints_follow_the_float_model(changes):
    checkpoint, model = made(**changes)
    tokens = tokens_of(1, 48)
    with torch.no_grad():
        want = float_decoder(checkpoint)(tokens[None])[0].double()
    integers, unit = PageDecoder(model, block=64).step(tokens)
    assert (want - integers * unit[:, None]).norm() / want.norm() < 0.05
    layer = model.layers[0]
    for name in ("k", "v", "o"):  # a constant that is off by 2 is noticed
        wrong = dataclasses.replace(layer, constants=layer.constants | {name: layer.constants[name].scaled(2)})
        broken = dataclasses.replace(model, layers=(wrong, *model.layers[1:]))
        integers, unit = PageDecoder(broken, block=64).step(tokens)
        assert (want - integers * unit[:, None]).norm() / want.norm() > 0.02


@pytest.mark.parametrize("changes", [BITNET, LLAMA])
def test_at_once_in_groups_or_one_by_one(changes):
    """A sequence's logits do not depend on how its prompt was cut, nor on what comes later: bit for bit."""
    _, model = made(**changes)
    tokens = tokens_of(2, 75)  # past two pages, and in the middle of a tile and of a row group
    whole, unit = PageDecoder(model, block=32).step(tokens)
    for cuts in ([29, *[1] * 9, 37], [40, 1, 1, 16, 17]):
        decoder, found = PageDecoder(model, block=32), []
        for part in tokens.split(cuts):
            found.append(decoder.step(part))
        assert torch.equal(torch.cat([logits for logits, _ in found]), whole)
        assert torch.equal(torch.cat([scale for _, scale in found]), unit)
    for changed in (74, 37):
        other = tokens.clone()
        other[changed:] = (other[changed:] + 1) % 50
        logits, _ = PageDecoder(model, block=32).step(other)
        assert torch.equal(logits[:changed], whole[:changed]) and not torch.equal(logits[changed], whole[changed])


def test_another_sequence_has_pages_of_its_own():
    decoder, tokens = PageDecoder(made()[1], block=32), tokens_of(5, 12)
    want = PageDecoder(decoder.model, block=32).step(tokens)[0]
    other = decoder.another()
    for one in (decoder, other):
        assert torch.equal(one.step(tokens[:5])[0], want[:5])
    for one in (other, decoder):
        assert torch.equal(one.step(tokens[5:])[0], want[5:])


def test_a_loud_value_later_in_the_page_changes_nothing_before_it():
    """The exponent of a result is that of the values that its row has seen; by the tile's, rows before a loud value would differ."""
    _, model = made(num_hidden_layers=1)
    c, picks = model.config, torch.Generator().manual_seed(1)
    qkv = torch.randint(-4000, 4001, (40, c.qkv_rows), generator=picks)
    qkv[21:, -c.kv_heads * c.head_dim :] *= 100
    one = torch.full((40, c.head_dim // 2), ROTARY_ONE)
    scale = Scalars.full(Scalar.of_float(2.0**-24), (40,))
    whole = PageAttention(model, 32)(0, qkv, (one, one - one), (scale, scale, scale))
    single, found = PageAttention(model, 32), []
    for i in range(40):
        part = Scalars(scale.m[i : i + 1], scale.e[i : i + 1])
        found.append(single(0, qkv[i : i + 1], (one[i : i + 1], one[i : i + 1] * 0), (part, part, part)))
    assert torch.equal(torch.cat([rows for rows, _ in found]), whole[0])
    assert torch.equal(torch.cat([unit for _, unit in found]), whole[1])
    assert whole[1][21] > whole[1][20]


def test_selection_of_a_prompt_and_of_what_continues_it():
    _, model = made(num_hidden_layers=1)
    tokens, chosen = tokens_of(4, 230), Selection(gamma16=share(0.5, 230), threshold=divergence_threshold(0.3))
    decoder = PageDecoder(model, block=32)
    decoder.prefill(tokens[:150], chosen)
    ((_, keep),) = decoder.attention.maps
    assert keep.shape == (4, 5, 5) and 0 < keep[:, -1].sum() < 20
    decoder.prefill(tokens[150:181], chosen)  # fewer than a block: dense
    assert len(decoder.attention.maps) == 1
    sparse, _ = decoder.prefill(tokens[181:], chosen)
    _, keep = decoder.attention.maps[1]
    assert keep.shape == (4, 8 - 181 // 32, 8) and keep.diagonal(181 // 32, 1, 2).all() and keep[:, :, 0].all()
    other = PageDecoder(model, block=32)
    other.prefill(tokens[:150], chosen)
    other.step(tokens[150:181])
    rest = torch.cat([other.step(part)[0] for part in tokens[181:].split(7)])
    assert not torch.equal(sparse, rest)  # blocks were left out
    everything = Selection(gamma16=1 << 16, threshold=0)
    whole = PageDecoder(model, block=32)
    assert torch.equal(whole.prefill(tokens, everything)[0], PageDecoder(model, block=32).prefill(tokens)[0])


def test_kept_mass_on_text():
    """Blocks chosen on the machine's own rows keep what is promised of the float model's mass, on the shipped model."""
    text, count, gamma = Corpus().held_out, 600, 0.9
    checkpoint = load_checkpoint(MODEL)
    decoder = PageDecoder(quantise(checkpoint, config_for(checkpoint.config, "desk"), pages=True))
    decoder.prefill(list(text[:count]), Selection(gamma16=share(gamma, count), threshold=divergence_threshold(0.1)))
    less = 0
    for layer, keep in decoder.attention.maps:
        q, k, _ = activations(checkpoint, text, count, layer)
        less += int((dense.kept_mass(q, k, keep, block=128) < gamma - 0.01).sum())  # other rows than the float model's
        assert keep.double().mean() < 0.6  # of 15 in 25: blocks are left out
    assert len(decoder.attention.maps) == 4 and not less


@pytest.mark.parametrize(("kind", "bound"), [("ordinary", 0.02), ("sparse_values", 0.035), ("sink", 0.02)])
def test_errors_of_results(kind, bound):
    q, k, v = activation_heads(kind, tokens=256, head_dim=32)
    assert errors(page_results(q, k, v), dense.dense(q, k[None], v[None]))[0] < bound


def test_heads_get_a_common_exponent():
    mantissas = torch.tensor([[[1000, -1000]], [[32767, -3]], [[5, -5]]], dtype=torch.int16)
    rows, unit = common_exponent(mantissas, torch.tensor([[-3], [2], [-32]], dtype=torch.int8))
    assert rows.tolist() == [[4000 >> 5, -4000 >> 5, 131068, -12, 0, -1]] and unit.tolist() == [0]


def test_what_does_not_fit_is_refused():
    checkpoint, model = made()
    with pytest.raises(ValueError, match="must be quantised for pages"):
        PageAttention(quantise(checkpoint, config_for(checkpoint.config, "small")))
    with pytest.raises(ValueError, match=r"block must be a power of 2 in 16\.\.128, not 8"):
        PageDecoder(model, block=8)
    _, model = made(head_dim=8, hidden_size=32)
    with pytest.raises(ValueError, match="head_dim must be 16, 32, 64 or 128, not 8"):
        PageDecoder(model)
    decoder = PageDecoder(made()[1], block=16)
    with pytest.raises(ValueError, match="must be in 0..49"):
        decoder.prefill([50] * 20, Selection(gamma16=60000, threshold=0))
    assert decoder.attention.selection is None and decoder.position == 0
