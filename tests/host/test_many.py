"""Several prompts at once: every one gets what it gets alone, whatever comes beside it; and what goes into the groups."""

import random

import pytest

import intaglio.host as host
from intaglio.host.device import Device
from intaglio.host.protocol import selection
from tests.double.sequences import GROUP_CYCLES, TOKEN_CYCLES, HistoryTransport


def opened(batch=4, sequences=4, **options):
    return Device(HistoryTransport(batch=batch, sequences=sequences, **options), timeout=0.05)


def groups(commands):
    """Numbers of tokens in each group, and the runs of those that have one."""
    sizes, runs, left = [], [], 0
    for word in commands:
        if word >> 24 & 0x3F == 0x22:
            left, run = (word & 63) + 1, word >> 6 & 0x3FFFF
            sizes.append(left)
            runs += [run] if run else []
        elif not word >> 29 & 1:
            sizes += [] if left else [1]
            left = max(0, left - 1)
    return sizes, runs


def together(device, prompts, most, **options):
    found = [[] for _ in prompts]
    for index, token in device.generate_tokens_many(prompts, most, **options):
        found[index].append(token)
    return found


SHAPES = [(1, 1), (1, 3), (4, 1), (4, 4), (8, 3), (3, 8), (2, 2)]


@pytest.mark.parametrize("batch, sequences", SHAPES)
def test_every_request_gets_what_it_gets_alone(batch, sequences):
    """Random numbers of prompts of random lengths, greedy and drawn, that end by length, end token or context."""
    for seed in range(12):
        pick = random.Random(100 * batch + 10 * sequences + seed)
        shape = dict(
            batch=batch, sequences=sequences, context=pick.choice([12, 48]), eos=pick.choice([None, 7, [3, 9]])
        )
        with opened(**shape) as device, opened(**shape | {"batch": 1, "sequences": 1}) as alone:
            count = pick.randint(1, 9)
            prompts = [[pick.randrange(40) for _ in range(pick.randint(1, 12))] for _ in range(count)]
            most = [pick.choice([1, 2, 5, 20]) for _ in prompts]
            options = {"temperature": pick.choice([0.0, 0.0, 1.5]), "burst": pick.choice([1, 3, 8]), "top_k": 5}
            seeds = [pick.randrange(5) for _ in prompts]
            if pick.random() < 0.3:
                options["temperature"] = [pick.choice([0.0, 2.0]) for _ in prompts]
            found = together(device, prompts, most, seed=seeds, **options)
            rows, finishes = device.last["requests"], []
            for index, prompt in enumerate(prompts):
                own = {**options, "seed": seeds[index]}
                if isinstance(own["temperature"], list):
                    own["temperature"] = own["temperature"][index]
                assert list(alone.generate_tokens(prompt, most[index], **own)) == found[index]
                finishes.append(alone.last["finish"])
            assert [row["finish"] for row in rows] == finishes and device.last["finish"] == "done"
            assert [row["generated_tokens"] for row in rows] == [len(tokens) for tokens in found]
            assert device.last["generated_tokens"] == sum(len(tokens) for tokens in found)
            # the device computed what it was asked for, and the counters of its groups agree
            transport = device.transport
            assert device.last["tokens"] == transport.model.tokens
            cycles = transport.device.rounds * GROUP_CYCLES + transport.model.tokens * TOKEN_CYCLES
            assert device.last["cycles"] == cycles
            sizes, runs = groups(transport.commands)
            assert max(sizes) <= batch and (batch > 1 or not runs)
            # and every sequence is free again
            assert len(device.pool.take(99)) == sequences


@pytest.mark.parametrize("batch, sequences", SHAPES)
def test_texts_and_stops(batch, sequences):
    pick = random.Random(5)
    shape = dict(batch=batch, sequences=sequences, tokenizer="bytes", vocab=128)
    prompts = ["".join(pick.choices("abc", k=pick.randint(1, 9))) for _ in range(7)]
    with opened(**shape) as device, opened(**shape | {"batch": 1, "sequences": 1}) as alone:
        for stop in (None, [chr(n) for n in range(0, 128, 9)], "\x05"):
            found = [""] * 7
            for index, piece in device.generate_many(prompts, 25, stop=stop, burst=4):
                assert piece
                found[index] += piece
            ends = [row["finish"] for row in device.last["requests"]]
            for prompt, text, end in zip(prompts, found, ends, strict=True):
                assert "".join(alone.generate(prompt, 25, stop=stop, burst=4)) == text
                assert alone.last["finish"] == end
            assert stop is None or isinstance(stop, str) or ends.count("stop") > 3
        for count in range(1, 6):  # a stop in the last token that there may be
            stop = "".join(alone.generate(prompts[0], count))[-1]
            found = "".join(piece for _, piece in device.generate_many(prompts[:1], count, stop=stop))
            assert found == "".join(alone.generate(prompts[0], count, stop=stop))
            assert device.last["requests"][0]["finish"] == alone.last["finish"] == "stop"


def test_slots_are_filled():
    """First come: the first prompt gets the whole group until it is whole; then its text goes on beside the second's."""
    with opened(batch=4, sequences=2) as device:
        assert len(together(device, [[1] * 8, [2] * 6, [3]], 3)[2]) == 3
        commands = device.transport.commands
        assert groups(commands) == ([4, 4, 4, 4, 2, 2, 1], [])
        wanted = [word & 0xFFFF for word in commands if word >> 30 & 1]
        assert wanted[0] == 1  # of the first prompt, in the second group
        first = [word & 0xFFFF for word in commands if word >> 31 & 1]
        assert first == [1, 2, 3]  # in their order, the third when a sequence is free


def test_bursts_when_no_one_waits():
    with opened(batch=4, sequences=4) as device:
        together(device, [[1], [2], [3]], 17)
        assert groups(device.transport.commands) == ([3, 3, 3], [7, 7])
        device.transport.commands.clear()
        together(device, [[1], [2], [3], [4], [5]], 9)  # one waits: a group at a time until it has come and is read
        assert groups(device.transport.commands) == (
            [4] * 9 + [1, 1],
            [],
        )  # the last one's burst is that of a token alone
        device.transport.commands.clear()
        together(device, [[1], [2]], 9, temperature=1.0)
        assert groups(device.transport.commands)[1] == []


def test_prompts_are_not_starved():
    """More sequences than slots: those that generate take turns, and one slot is kept for the prompt that is read."""
    with opened(batch=2, sequences=4, context=200) as device:
        order = [index for index, _ in device.generate_tokens_many([[1], [2], [3], [4] * 9], 30)]
        assert order.index(3) < 30
        assert (
            max(order[60:].count(index) for index in range(3)) - min(order[60:].count(index) for index in range(3)) < 20
        )


def test_pieces_come_as_they_are_generated():
    with opened() as device:
        tokens = device.generate_tokens_many([[1], [2]], 5)
        assert [next(tokens)[0] for _ in range(4)] == [0, 1, 0, 1]
        assert device.last["generated_tokens"] == 4 and device.last["finish"] is None
        tokens.close()
        assert device.last["finish"] == "closed" and device.last["tokens_per_second"] is None
        assert len(device.pool.take(9)) == 4


def test_figures():
    with opened(batch=4, sequences=4) as device:
        together(device, [[1] * 5, [2] * 3], 4)
        last, clock = device.last, device.manifest.clock_hz
        # groups: 4 of the first prompt; its last and the second's three; then a run of three groups of two
        cycles = 5 * GROUP_CYCLES + (4 + 4 + 6) * TOKEN_CYCLES
        assert (last["prompt_tokens"], last["generated_tokens"], last["tokens"], last["cycles"]) == (8, 8, 14, cycles)
        assert last["tokens_per_second"] == 8 * clock / cycles and last["wall_tokens_per_second"] > 0
        first = (2 * GROUP_CYCLES + 8 * TOKEN_CYCLES) / clock
        assert [row["first_token_seconds"] for row in last["requests"]] == [first, first]
        assert together(device, [], 4) == [] and device.last["tokens_per_second"] is None


def test_progress_counts_prompt_tokens():
    told = []
    with opened(batch=4, sequences=2) as device:
        together(device, [[1] * 5, [2] * 3, [3] * 4], 4, progress=told.append)
    assert told == sorted(told) and told[-1] == 12


@pytest.mark.parametrize(
    "prompts, most, options, message",
    [
        ([[1], [2] * 49], 1, {}, "prompt 1: a prompt must have at most 48 tokens, the device's context, not 49"),
        ([[1], []], 1, {}, "prompt 1: a prompt must have at least one token"),
        ([[1], [40]], 1, {}, "prompt 1: tokens must be in 0..39, not 40"),
        ([[1]], 0, {}, "prompt 0: max_tokens must be at least 1"),
        ([[1], [2]], [1], {}, "max_tokens must be one value or a list of one for each of 2 prompts, not of 1"),
        ([[1], [2]], 1, {"seed": [1, 2, 3]}, "seed must be one value or a list"),
        ([[1], [2]], 1, {"top_k": [8, 9]}, "prompt 1: top_k must be in 1..8"),
        ([[1], [2]], 1, {"burst": 0}, "burst must be in 1..256"),
        ("abc", 1, {}, "prompts must be a list of prompts, not one text"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_is_sent(prompts, most, options, message):
    with opened() as device:
        with pytest.raises(ValueError, match=message):
            device.generate_tokens_many(prompts, most, **options)
        with pytest.raises(TypeError, match="takes no argument 'heat'"):
            device.generate_tokens_many([[1]], 1, heat=3)
        assert not device.transport.commands


def test_one_that_fails_leaves_the_others(monkeypatch):
    """Its sequence is filled behind the host's back: the device refuses it, and the rest is served."""
    shape = dict(batch=4, sequences=3)
    with opened(**shape) as device, opened(**shape) as other:
        expected = together(other, [[1], [3], [4]], 9)
        decoders = device.transport.device.decoders
        found = [[], [], [], []]
        with pytest.raises(host.RequestError, match=r"1 of 4 prompts failed, the first of them prompt 1: .*is full"):
            for index, token in device.generate_tokens_many([[1], [2], [3], [4]], 9, burst=1):
                found[index].append(token)
                if index == 1 and len(found[1]) == 2:
                    decoders[1].history = [0] * 48
        assert [found[0], found[2], found[3]] == expected and len(found[1]) == 2
        assert [row["finish"] for row in device.last["requests"]] == ["length", "error", "length", "length"]
        assert "is full" in device.last["requests"][1]["error"] and device.last["tokens_per_second"] is None
        # a fault of one request's candidates
        from intaglio.host.sampling import Sampler

        draw = Sampler.draw
        monkeypatch.setattr(
            Sampler, "draw", lambda self, *a: draw(self, *a) if self.top_k < 8 else (_ for _ in ()).throw(KeyError("x"))
        )
        with pytest.raises(host.RequestError, match="prompt 1: 'x'"):
            together(device, [[1], [2]], 9, temperature=1.0, top_k=[2, 8])
        assert [row["generated_tokens"] for row in device.last["requests"]] == [9, 0]


def test_a_device_that_fails_ends_them_all(monkeypatch):
    with opened() as device:
        tokens = device.generate_tokens_many([[1], [2]], 9)
        next(tokens)
        device.transport.packets.clear()
        device.transport.device.run = lambda words: []
        with pytest.raises(host.DeviceTimeout):
            list(tokens)
        assert device.last["finish"] == "error" and len(device.pool.take(9)) == 4


def test_every_prompt_begins_with_its_adapter(monkeypatch):
    with opened(batch=4, sequences=2) as device:
        monkeypatch.setattr(device, "selection", lambda adapter: [selection(adapter)])
        together(device, [[1] * 5, [2] * 2, [3]], 3, adapter=1)
        commands = device.transport.commands
        assert [commands[at - 1] for at, word in enumerate(commands) if word >> 31] == [selection(1)] * 3
        assert commands.count(selection(1)) == 3


def test_prompts_in_groups():
    """`generate` and `evaluate` alone feed a prompt in groups, and give what a device without a batch gives."""
    with opened(batch=4, sequences=2) as device, opened(batch=1, sequences=1) as plain:
        prompt = [5, 1, 9, 9, 2, 0, 3, 8, 8, 1]
        told = []
        assert list(device.generate_tokens(prompt, 9, progress=told.append)) == list(plain.generate_tokens(prompt, 9))
        assert groups(device.transport.commands) == ([4, 4, 2, 1], []) and told == [10]
        assert device.last["cycles_prefill"] == 3 * GROUP_CYCLES + 10 * TOKEN_CYCLES
        assert plain.last["cycles_prefill"] == 10 * (GROUP_CYCLES + TOKEN_CYCLES)
        for every in (False, True):
            for chunk in (3, 64):
                rows = device.evaluate(prompt, top=2, every=every, chunk=chunk)
                expected = plain.evaluate(prompt, top=2, every=every)
                assert [(r.token, r.position, r.logits.tolist()) for r in rows] == [
                    (r.token, r.position, r.logits.tolist()) for r in expected
                ]


def test_generations_side_by_side():
    """Generators that take turns, each in a sequence of its own, bursts and all; the oldest gives way where there is none."""
    with opened(batch=4, sequences=2) as device, opened() as other:
        prompts = [[1, 2], [3], [4]]
        expected = [list(other.generate_tokens(prompt, 20)) for prompt in prompts]
        pairs = zip(device.generate_tokens(prompts[0], 20), device.generate_tokens(prompts[1], 20), strict=True)
        assert [list(column) for column in zip(*pairs, strict=True)] == expected[:2]
        running = [device.generate_tokens(prompt, 20) for prompt in prompts]
        for tokens, own in zip(running, expected, strict=True):
            assert next(tokens) == own[0]
        assert list(running[2]) == expected[2][1:] and list(running[1]) == expected[1][1:]
        with pytest.raises(host.SequenceError, match="was given to a later one"):
            next(running[0])
        tokens = device.generate_tokens([1], 20)
        next(tokens)
        device.reset()
        with pytest.raises(host.SequenceError, match="the device was reset"):
            next(tokens)
        assert len(device.pool.take(9)) == 2


def test_progress_through_groups():
    """Words that are no tokens, and tokens that are no prompt's, are not counted."""

    class Slow(HistoryTransport):
        """Takes a word at each look."""

        def send(self, words, last, timeout):
            self.pending = len(words)
            for at in range(len(words)):
                self.watch and self.watch()
                self.pending -= 1
                super().send(words[at : at + 1], last[at : at + 1], timeout)
            return len(words)

    with Device(Slow(batch=3, sequences=2)) as device:
        told = []
        list(device.generate_tokens([1] * 7, 4, progress=told.append))
        assert sorted(set(told)) == list(range(8)) and told == sorted(told)
        told = []
        together(device, [[1] * 4, [2] * 5, [3] * 2], 3, progress=told.append)
        assert sorted(set(told)) == list(range(12)) and told == sorted(told)


class Someone:
    """What somebody does with the device, a token at a time, and what it must give."""

    def __init__(self, pick, device, alone):
        self.found, self.expected, self.talk = [], [], None
        kind = pick.choice(["one", "many", "talk"])
        options = {"temperature": pick.choice([0.0, 1.0]), "seed": pick.randrange(9)}
        prompts = [[pick.randrange(40) for _ in range(pick.randint(1, 6))] for _ in range(2)]
        if kind == "one":
            self.tokens = device.generate_tokens(prompts[0], 9, **options)
            self.expected = list(alone.generate_tokens(prompts[0], 9, **options))
        elif kind == "many":
            self.tokens = device.generate_tokens_many(prompts, 7, **options)
            self.expected = [list(alone.generate_tokens(prompt, 7, **options)) for prompt in prompts]
        else:
            self.talk, said = device.sequence(), []
            for prompt in prompts:
                self.expected.append(list(alone.generate_tokens([*said, *prompt], 5, **options)))
                said += prompt + self.expected[-1]
            self.tokens = (token for prompt in prompts for token in self.talk.generate_tokens(prompt, 5, **options))
            self.expected = sum(self.expected, [])
        self.kind = kind

    def step(self):
        """Whether there was another token."""
        for token in self.tokens:
            self.found.append(token)
            return True
        if self.kind == "many":
            self.found = [[token for at, token in self.found if at == index] for index in range(2)]
        assert self.found == self.expected
        if self.talk is not None:
            self.talk.close()
        return False


@pytest.mark.parametrize("batch, sequences", [(4, 4), (1, 3), (2, 6)])
def test_everybody_at_once(batch, sequences):
    """Generations, several at once and conversations that take turns at random: each has its sequences and loses nothing of a burst."""
    for seed in range(8):
        pick = random.Random(seed)
        with opened(batch, sequences) as device, opened(1, 1) as alone:
            active, finished = [], 0
            while finished < 8:
                if device.pool.count - sum(2 if someone.kind == "many" else 1 for someone in active) >= 2:
                    active.append(Someone(pick, device, alone))
                someone = pick.choice(active)
                if not someone.step():
                    active.remove(someone)
                    finished += 1
