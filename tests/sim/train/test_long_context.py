from pathlib import Path

import pytest
import torch

from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.corpus import Corpus
from intaglio.sim.train.decoder import bits_per_byte
from intaglio.sim.train.long_context import Recall, bits_of_last, ends_of, name_text, recall
from tests.sim.reference.test_float_decoder import config_of, latent_model

MODELS = Path(__file__).parents[3] / "models"


def copier(tokens):
    """Predicts what followed the last place where the four bytes before stood; a space where they stood nowhere."""
    row = tokens[0].tolist()
    logits = torch.zeros(1, len(row), 256)
    seen = {}
    for i in range(len(row)):
        key = tuple(row[i - 3 : i + 1])
        logits[0, i, seen.get(key, 32)] = 9.0
        if i + 1 < len(row):
            seen[key] = row[i + 1]
    return logits


def uniform(tokens):
    return torch.zeros(1, tokens.shape[1], 256)


TEXT = "".join(f"line {i:04} of a text without any made-up name\n" for i in range(60)).encode()


def test_bits_of_uniform_predictions():
    assert bits_of_last(uniform, TEXT, 500, last=100, before=300) == pytest.approx(8)


def test_bits_are_of_the_last_bytes_only_and_after_what_stands_before_them():
    seen = []

    def model(tokens):
        seen.append(tokens)
        logits = uniform(tokens)
        logits[0, -3:, 65] = 50.0
        return logits

    text = b"xyz" * 20 + b"AAA" + b"tail"
    assert bits_of_last(model, text, 63, last=3, before=7) == pytest.approx(0, abs=1e-6)
    assert seen[0].tolist() == [[0, *text[53:62]]]


def test_bits_equal_those_of_a_whole_window():
    model = latent_model(config_of("mqa6"))
    text = TEXT[:48]
    assert bits_of_last(model, text, 48, last=48, before=0) == pytest.approx(bits_per_byte(model, text, 48), rel=1e-6)


@pytest.mark.parametrize(("end", "last", "before"), [(10, 5, 6), (9, 0, 0), (len(TEXT) + 1, 5, 5)])
def test_bits_need_the_text(end, last, before):
    with pytest.raises(ValueError, match="must be at most"):
        bits_of_last(uniform, TEXT, end, last=last, before=before)


def test_ends_reach_from_the_first_possible_to_the_last():
    assert ends_of(TEXT, 3, 1000) == [1000, (1000 + len(TEXT)) // 2, len(TEXT)] and ends_of(TEXT, 1, 1000) == [1000]
    with pytest.raises(ValueError, match="must have 99999 bytes or more"):
        ends_of(TEXT, 3, 99999)


def test_names_are_made_up_and_far_back():
    whole, spans = name_text(TEXT, distance=2000, names=8, seed=2)
    names = [whole[start - 4 : end] for start, end in spans]
    assert len({name[:4] for name in names}) == 8 and all(len(name) == 10 for name in names)
    for name, (start, _) in zip(names, spans, strict=True):
        first = whole.index(name)
        assert whole.count(name) == 2 and whole[first - 4 : first] == b"def " and start - first >= 2000
    assert TEXT[-2000:] in whole and name_text(TEXT, distance=2000, names=8, seed=2) == (whole, spans)
    assert (
        names != [line[4:14] for line in whole.splitlines() if line.startswith(b"def ")][:8]
    )  # not called in the order of definition
    with pytest.raises(ValueError, match="must have 9000 bytes or more"):
        name_text(TEXT, distance=9000, names=8, seed=2)


def test_what_copies_is_right_until_the_definitions_are_cut():
    whole, spans = name_text(TEXT, distance=2000, names=8, seed=2)
    assert recall(copier, whole, spans) == Recall(8, 8, 48, 48)
    cut = recall(copier, whole, spans, cut=1000)
    assert cut == Recall(8, 0, 48, 0)
    assert cut + cut == Recall(16, 0, 96, 0)
    with pytest.raises(ValueError, match="cut must be from"):
        recall(copier, whole, spans, cut=100)


def test_the_long_model_reads_on_where_its_predecessor_falls_apart():
    folder = MODELS / "burin-16k"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1 << 20
    checkpoint, text = load_checkpoint(folder), Corpus().held_out
    assert checkpoint.config.max_position_embeddings == 16384
    long, short = float_decoder(checkpoint), float_decoder(load_checkpoint(MODELS / "burin"))
    far, near = (bits_of_last(long, text, 20000, last=512, before=before) for before in (8192, 2048))
    assert far < 1.03 * near
    assert bits_of_last(short, text, 20000, last=512, before=8192) > 1.2 * far
