"""The trainer's pieces: phases, spread windows, made-up names, and going on from a checkpoint."""

import argparse
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.sim.reference.loading import export, float_decoder, latent_decoder
from intaglio.sim.train import decoder as train
from intaglio.sim.train.decoder import PIECES, Phase, as_tensor, beginning, phase_of, spread_bias, spread_positions
from intaglio.sim.train.export import export_file
from intaglio.sim.train.renaming import Renamer
from tests.sim.reference.test_float_decoder import assert_close, config_of, latent_model, tokens_of

SOURCE = b"def reckon(balance):\n    return balance + interest\n\n" * 40


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("shape", ["tiny", "gqa4", "mqa6"])
def test_latent_weights_of_a_checkpoint_compute_what_it_does(shape):
    config = config_of(shape)
    checkpoint = export(latent_model(config), config)
    model = latent_decoder(checkpoint)
    assert all(parameter.requires_grad for parameter in model.parameters())
    tokens = tokens_of(config)
    with torch.no_grad():
        assert_close(model(tokens), float_decoder(checkpoint)(tokens))
    again = export(model, config)
    np.testing.assert_allclose(again.embed, checkpoint.embed, rtol=1e-6)
    for one, two in zip(again.layers, checkpoint.layers, strict=True):
        for name, matrix in one.matrices.items():
            np.testing.assert_array_equal(matrix.weights, two.matrices[name].weights)
            assert matrix.scale == pytest.approx(two.matrices[name].scale, rel=1e-6)
        for name, gains in one.norms.items():
            np.testing.assert_array_equal(gains, two.norms[name])


def test_a_checkpoint_with_another_base_is_trained_and_exported_with_it(tmp_path):
    save_checkpoint(tmp_path / "in", random_checkpoint(config_of("gqa4")))
    model, config = beginning(tmp_path / "in", theta=50000.0, context=512)
    assert model.config.rope_theta == 50000.0
    torch.save({"model": model.state_dict(), "config": config}, tmp_path / "latent.pt")
    export_file(tmp_path / "latent.pt", tmp_path / "out")
    found = load_checkpoint(tmp_path / "out").config
    assert (found.rope_theta, found.max_position_embeddings, found.hidden_size) == (50000.0, 512, 64)


def test_phases_are_read_and_follow_each_other():
    phases = [Phase.parse("3x16x512"), Phase.parse("2x1x2048@16384")]
    assert phases == [Phase(3, 16, 512, 512), Phase(2, 1, 2048, 16384)]
    assert [phase_of(phases, step) for step in (0, 2, 3, 4)] == [phases[0], phases[0], phases[1], phases[1]]
    with pytest.raises(IndexError):
        phase_of(phases, 5)
    for wrong in ("3x16", "3x16x512@", "ax1x1", "3x16x512@12 "):
        with pytest.raises(argparse.ArgumentTypeError, match="a phase must read"):
            Phase.parse(wrong)
    for wrong in ("3x16x63@300", "3x16x64@60", "3x0x64", "3x1x0"):
        with pytest.raises(
            argparse.ArgumentTypeError, match="must be 1 or more, and a length that is spread a multiple of 4"
        ):
            Phase.parse(wrong)


def test_a_plain_phase_draws_neighbouring_bytes():
    tokens, targets, positions, bias = Phase(1, 4, 32, 32).draw([as_tensor(SOURCE)], [1.0], generator())
    assert bias is None and positions.tolist() == list(range(32)) and tokens.shape == targets.shape == (4, 32)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert all(bytes(row.tolist()) in SOURCE for row in tokens)


def test_a_spread_phase_draws_each_byte_at_its_place():
    source = torch.arange(1000) % 251
    tokens, targets, positions, bias = Phase(1, 4, 32, 500).draw([source], [1.0], generator())
    assert torch.equal((tokens - tokens[:, :1]) % 251, ((positions - positions[0]) % 251).expand(4, -1))
    assert torch.equal(targets, (tokens + 1) % 251) and bias.shape == (32, 32)


def test_spread_positions_are_runs_below_the_span():
    for _ in range(50):
        positions = spread_positions(64, 300, generator())
        assert positions.min() >= 0 and positions.max() < 300
        runs = positions.view(PIECES, -1)
        assert (runs.diff(dim=1) == 1).all() and (runs[1:, 0] > runs[:-1, -1]).all()


def test_spread_keys_stand_for_the_text_before_their_query_run():
    positions = spread_positions(64, 1000, generator())
    share = spread_bias(positions).softmax(-1)  # of flat attention
    for query in range(64):
        run = query // 16
        assert share[query, query + 1 :].sum() == 0
        if run:  # the text before the run, and what the run has so far
            text = positions[16 * run].item()
            assert share[query, : 16 * run].sum().item() == pytest.approx(text / (text + query % 16 + 1), rel=1e-5)


def test_positions_and_a_causal_bias_change_nothing_by_themselves():
    config = config_of("gqa4")
    model, tokens = latent_model(config), tokens_of(config)
    bias = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
    with torch.no_grad():
        assert_close(model(tokens, torch.arange(8), bias), model(tokens))
        moved, far = model(tokens, torch.arange(8) + 40), model(tokens, torch.tensor([0, 1, 2, 3, 60, 61, 62, 63]))
        assert_close(moved, model(tokens))  # only distances count
        assert (far[:, :4] - model(tokens)[:, :4]).abs().max() < 1e-4 < (far - model(tokens))[:, 4:].abs().max()


def test_names_are_made_up_alike_in_the_whole_window():
    rename = Renamer([b"import common " * 300])
    assert b"common" in rename.kept and b"import" in rename.kept and b"reckon" not in rename.kept
    seen = 0
    for seed in range(20):
        window = torch.tensor(list(SOURCE))
        unforeseen = rename(window, torch.arange(len(SOURCE)), torch.Generator().manual_seed(seed))
        text = bytes(window.tolist())
        assert len(text) == len(SOURCE) and text.count(b"return") == 40
        name = text[4:10]
        assert text.count(b"def " + name + b"(") == 40
        assert unforeseen[4:10].all() or name == b"reckon"
        assert unforeseen[0:4].sum() == unforeseen[10:11].sum() == unforeseen[52:].sum() == 0
        seen += unforeseen[4].item()
    assert 3 < seen < 17


def test_names_read_once_are_left():
    window = torch.tensor(list(SOURCE))
    assert not Renamer([b""])(window, torch.arange(24), generator()).any() and bytes(window.tolist()) == SOURCE


def test_a_trainer_file_without_a_configuration_has_the_trainers(tmp_path):
    config = {name: value for name, value in config_of("tiny").to_json().items() if name != "quantization_config"}
    torch.save({"model": latent_model(SimpleNamespace(**config)).state_dict()}, tmp_path / "latent.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        export_file(tmp_path / "latent.pt", tmp_path / "out")


def test_a_run_goes_on_with_its_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        train, "Corpus", lambda: SimpleNamespace(train_library=SOURCE, train_tests=SOURCE, held_out=SOURCE[:200])
    )
    save_checkpoint(tmp_path / "in", random_checkpoint(dataclasses.replace(config_of("tiny"), vocab_size=256)))
    common = ["--out", str(tmp_path), "--eager", "--decay", "2", "--every", "1"]
    train.main(
        [
            *common,
            "--from",
            str(tmp_path / "in"),
            "--theta",
            "20000",
            "--context",
            "300",
            "--schedule",
            "2x2x32@64",
            "--rename",
        ]
    )
    latent = str(tmp_path / "latent.pt")
    train.main([*common, "--resume", latent, "--schedule", "2x2x32@64,1x1x16"])
    assert torch.load(latent, weights_only=True)["step"] == 3
    assert export_file(latent, tmp_path / "out").config.rope_theta == 20000
    with pytest.raises(SystemExit):
        train.main([*common, "--resume", latent, "--theta", "30000"])
    assert "leave out --from, --theta and --context" in capsys.readouterr().err
