"""Groups of several tokens and sequences on the decoder's core: every answer is that of the sequence alone.

Shapes, long words of commands and cycles: tests/sim/verilator/test_batch.py, which is much faster.
"""

import random
from dataclasses import replace

import pytest

from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command, group, sequence
from intaglio.rtl.control.sequencer import Sequencer
from intaglio.sim.reference.device import ReferenceDevice
from tests.rtl.top.core_bench import MODEL, answers, fill

LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
WIDTHS = {"lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 2, "top_k": 3}


def model_of(batch, sequences, *, context=6, family=None, **widths):
    described = replace(MODEL, **family or {})
    config = config_for(described, "small", context=context, batch=batch, sequences=sequences, **{**WIDTHS, **widths})
    return quantise(random_checkpoint(described, 3), config)


def random_commands(seed, batch, sequences, groups):
    """Groups of all sizes and lone tokens of all sequences, with runs, beginnings, and tokens too many."""
    picks, words, begun = random.Random(seed), [], set()
    for _ in range(groups):
        count = picks.randrange(batch + 1)
        if count:
            words.append(group(count, picks.choice((0, 0, 1, 2))))
        for place in range(max(1, count)):
            if count > 1 and place and picks.random() < 0.2:
                words.append(group(picks.randrange(1, batch + 1), 1))  # does nothing
            number = picks.randrange(sequences)
            first = number not in begun or picks.random() < 0.15
            begun.add(number)
            words.append(sequence(number))
            run = 0 if count or picks.random() < 0.7 else picks.randrange(1, 3)
            want = picks.random() < 0.6
            words.append(command(picks.randrange(11), first=first, want=want, top=picks.randrange(5), run=run))
    return words


@pytest.mark.parametrize(
    ("batch", "sequences", "family", "widths"), [(3, 2, None, {}), (2, 3, LLAMA, {"attention_heads": 1})]
)
def test_every_sequence_gets_what_it_gets_alone(batch, sequences, family, widths, monkeypatch):
    model = model_of(batch, sequences, family=family, **widths)
    fill(monkeypatch, model)
    commands = random_commands(batch, batch, sequences, 4)
    want = ReferenceDevice(model).run(commands)
    found, _ = answers(model, commands, len(want), stall=lambda cycle, _: cycle % 3 == 0, most=60_000)
    assert found == want


def test_a_slot_that_takes_the_next_ones_place_is_seen(monkeypatch):
    """The bench notices one wrong line: keys and values of a slot stored at the position of the slot after it."""
    model = model_of(2, 1)
    fill(monkeypatch, model)
    commands = [group(2), command(1, first=True), command(2, want=True), command(3, want=True)]
    want = ReferenceDevice(model).run(commands)
    assert answers(model, commands, 2)[0] == want
    plain = Sequencer._starts

    def wrong(self, m, s):
        plain(self, m, s)
        m.d.comb += self.positions[0].eq(s.group.positions[1])

    monkeypatch.setattr(Sequencer, "_starts", wrong)
    assert answers(model, commands, 2)[0] != want
