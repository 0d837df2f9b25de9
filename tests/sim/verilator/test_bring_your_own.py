"""From transformers' `save_pretrained` to a chat in simulation, by the commands that a model person types."""

import json

import pytest
import torch

import intaglio.host as host
from intaglio.cli import main
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.sim.reference.exact_decoder import ExactDecoder
from tests.host.test_text import bpe

pytestmark = pytest.mark.verilator

QUANTISATION = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
    "modules_to_not_convert": ["lm_head"],
}
WIDTHS = {"context": 40}
LENGTH = 12


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as `save_pretrained` of a Llama and of its tokenizer leaves it, with the quantisation of its training."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("saved")
    for name, data in bpe().items():
        (folder / name).write_bytes(data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=416,  # padded, as published ones are
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": QUANTISATION}))
    return folder


def greedy(folder, tokens, count):
    """What the exact model says after ``tokens``."""
    checkpoint = load_checkpoint(folder)
    exact, out = ExactDecoder(quantise(checkpoint, config_for(checkpoint.config, "small", **WIDTHS))), []
    for _ in range(count):
        logits, _ = exact.step(tokens)
        tokens = [int(logits[-1].argmax())]
        out += tokens
    return out


def test_from_save_pretrained_to_a_chat(saved, tmp_path, simulation_cache, capsys):
    assert main(["check", str(saved)]) == 0
    assert "its own tokenizer.json" in capsys.readouterr().out
    out = tmp_path / "out"
    assert (
        main(["gen", "decoder", "--model", str(saved), "--preset", "small", "-o", str(out), "--set", "context=40"]) == 0
    )
    target = ["run", "--device", f"sim:{out}", "--cache", str(simulation_cache), "--max-tokens", str(LENGTH)]
    capsys.readouterr()
    assert main([*target, "--chat", "--system", "brief", "--prompt", "größer 🦊?"]) == 0
    said = capsys.readouterr().out
    with host.open(f"sim:{out}", cache=simulation_cache) as device:
        messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "größer 🦊?"}]
        prompt = device.text.chat(messages)
        tokens = list(device.generate_tokens(prompt, LENGTH))
        assert tokens == greedy(saved, prompt, LENGTH)
        assert tokens != greedy(saved, prompt[:-1], LENGTH)
        assert said == device.text.tokenizer.decode(tokens) + "\n"
