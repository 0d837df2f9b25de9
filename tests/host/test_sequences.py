"""Conversations: turns that cost their own tokens alone, several open at a time, and what happens when there is no room."""

import pytest

import intaglio.host as host
from tests.host.test_many import opened


def fed(commands):
    return sum(not word >> 29 & 1 for word in commands)


def test_a_turn_goes_on_and_costs_its_own_tokens_alone():
    """Each turn is what one prompt of all that was said would give."""
    with opened(batch=4, sequences=2) as device, opened(batch=4, sequences=1) as other:
        said = []
        with device.sequence() as talk:
            for turn, (tokens, options) in enumerate(
                [([1, 2, 3, 4, 5, 6], {}), ([7], {}), ([8, 9, 1], {"temperature": 1.0, "seed": 3})]
            ):
                device.transport.commands.clear()
                answer = list(talk.generate_tokens(tokens, 5, **options))
                assert answer == list(other.generate_tokens(said + tokens, 5, **options)) and len(answer) == 5
                assert fed(device.transport.commands) == len(tokens) + 4 + (turn > 0)  # with what was pending
                assert device.last["prompt_tokens"] == len(tokens) + (turn > 0)
                assert device.last["tokens_decode"] == 4
                said += tokens + answer
                assert talk.tokens == said
            talk.reset()
            assert talk.tokens == [] and list(talk.generate_tokens([5], 3)) == list(other.generate_tokens([5], 3))


def test_a_turn_that_ends_early():
    """By an end token, which is no part of it; by a generator that is left; by the context, which then is full."""
    with opened(sequences=2, eos=[3, 9, 11, 20]) as device, opened(sequences=1, eos=[3, 9, 11, 20]) as other:
        said, ends = [], 0
        with device.sequence() as talk:
            for turn in range(12):
                answer = list(talk.generate_tokens([turn], 3))
                assert answer == list(other.generate_tokens([*said, turn], 3))
                ends += device.last["finish"] == "eos"
                said += [turn, *answer]
                assert talk.tokens == said
            assert ends
            talk.reset()
            left = talk.generate_tokens([1, 2], 9)
            said = [1, 2, next(left), next(left)]
            left.close()
            assert talk.tokens == said and list(talk.generate_tokens([4], 9)) == list(
                other.generate_tokens([*said, 4], 9)
            )
    with opened(context=12) as device:
        talk = device.sequence()
        assert len(list(talk.generate_tokens([1] * 10, 9))) == 3 and device.last["finish"] == "context"
        with pytest.raises(ValueError, match="context of 12 tokens must not be full"):
            talk.generate_tokens([1], 1)
        talk.reset()
        list(talk.generate_tokens([1] * 6, 2))
        with pytest.raises(
            ValueError, match="at most 4 tokens, the device's context less the 8 that the sequence holds"
        ):
            talk.generate_tokens([1] * 5, 1)
        assert len(list(talk.generate_tokens([1] * 3, 9))) == 2 and device.last["finish"] == "context"


def test_several_take_turns():
    with opened(sequences=3) as device, opened(sequences=1) as other:
        with device.sequence() as one, device.sequence() as two:
            pairs = list(zip(one.generate_tokens([1], 6), two.generate_tokens([2], 6), strict=True))
            alone = [list(other.generate_tokens([token], 6)) for token in (1, 2)]
            assert [list(column) for column in zip(*pairs, strict=True)] == alone
            # generations beside them, alone and many, leave them as they are
            assert list(device.generate_tokens([3], 6)) == list(other.generate_tokens([3], 6))
            assert sum(1 for _ in device.generate_tokens_many([[4], [5]], 3)) == 6
            device.evaluate([6, 7])
            for talk, token, answer in ((one, 1, alone[0]), (two, 2, alone[1])):
                expected = list(other.generate_tokens([token, *answer, 9], 4))
                assert list(talk.generate_tokens([9], 4)) == expected


def test_no_sequence_is_free():
    with opened(sequences=2) as device:
        first, second = device.sequence(), device.sequence()
        message = "conversations have all 2 that the device holds: close one"
        for call in (
            device.sequence,
            lambda: list(device.generate_tokens([1], 1)),
            lambda: list(device.generate_tokens_many([[1], [2]], 1)),
            lambda: device.evaluate([1]),
        ):
            with pytest.raises(host.SequenceError, match=message):
                call()
        second.close()
        second.close()
        assert len(list(device.generate_tokens([1], 1))) == 1
        with device.sequence(), pytest.raises(host.SequenceError, match=message):
            device.sequence()
        first.close()
        for call in (first.reset, lambda: first.generate_tokens([1], 1)):
            with pytest.raises(host.SequenceError, match="the conversation is closed"):
                call()
        assert len(device.pool.take(9)) == 2


def test_turns_that_cannot_go_on():
    with opened(sequences=2) as device, opened(sequences=1) as other:
        talk = device.sequence()
        left, asked = talk.generate_tokens([1], 9), talk.generate_tokens([2], 9)
        said = [1, next(left)]
        with pytest.raises(host.SequenceError, match="before the conversation goes on otherwise"):
            next(asked)
        later = talk.generate_tokens([3], 4)
        assert list(later) == list(other.generate_tokens([*said, 3], 4))
        with pytest.raises(host.SequenceError, match="a turn must end before the next one"):
            next(left)
        assert len(list(talk.generate_tokens([3], 4))) == 4  # which has not lost the sequence
        left = talk.generate_tokens([1], 9)
        next(left)
        talk.close()
        with pytest.raises(host.SequenceError, match="is closed"):
            next(left)


def test_what_a_device_forgets():
    """A reset of the device, and a turn that fails: the conversation says so until it is begun anew."""
    with opened(sequences=2) as device:
        talk = device.sequence()
        list(talk.generate_tokens([1], 2))
        device.reset()
        with pytest.raises(host.SequenceError, match="the device was reset"):
            talk.generate_tokens([1], 2)
        talk.reset()
        expected = list(talk.generate_tokens([1], 2))
        run, device.transport.device.run = device.transport.device.run, lambda words: []
        with pytest.raises(host.DeviceTimeout):
            list(talk.generate_tokens([1], 2))
        device.transport.device.run = run
        with pytest.raises(
            host.SequenceError, match=r"a turn of the sequence has failed \(no word moved for.*\(reset\)"
        ):
            talk.generate_tokens([1], 2)
        device.reset()
        talk.reset()
        assert list(talk.generate_tokens([1], 2)) == expected
        talk.close()
        assert list(device.generate_tokens([1], 2)) == expected


def test_text():
    with opened(sequences=2, tokenizer="bytes", vocab=128, bos=0) as device:
        with device.sequence() as talk:
            first = "".join(talk.generate("abc", 5))
            assert talk.tokens == [0, *b"abc", *first.encode()]
            second = "".join(talk.generate(b"d", 5, stop="\x00"))
            assert talk.tokens == [0, *b"abc", *first.encode(), *b"d", *second.encode()]
            third = "".join(talk.generate([1, 2], 5))
            said = "abc" + first + "d" + second + "\x01\x02"
        assert third == "".join(device.generate(said, 5))
        with device.sequence() as talk:
            answer = "".join(device.generate("abc", 5))
            assert "".join(talk.generate("abc", 5, stop=answer[2])) == answer[:2]
            assert talk.tokens == [0, *b"abc", *answer[:3].encode()]  # with the token that has the stop


def test_chat():
    """A conversation is given whole, and what the sequence holds of it is not fed again."""
    with opened(sequences=1, tokenizer="bytes", vocab=128) as device, opened(vocab=128, tokenizer="bytes") as other:
        device.text.chat = other.text.chat = lambda said: (
            [
                token
                for message in said
                for token in (1 if message["role"] == "user" else 2, *message["content"].encode())
            ]
            + [2]
        )
        said = [{"role": "user", "content": "ab"}]
        with device.sequence() as talk:
            for turn in range(3):
                device.transport.commands.clear()
                answer = "".join(talk.chat(said, 4))
                assert answer == "".join(other.chat(said, 4))
                fresh = turn == 2
                expected = len(device.text.chat(said)) if fresh else 4 if turn == 0 else 1 + 1 + 2 + 1
                assert fed(device.transport.commands) == expected + 3
                said += [{"role": "assistant", "content": answer}, {"role": "user", "content": "cd"}]
                if turn == 1:
                    said[0] = {"role": "user", "content": "x"}  # another conversation: the sequence begins anew


def test_a_device_of_one_sequence(device):
    """One without a batch has one too, and is sent no words that it does not know."""
    with device.sequence() as talk:
        assert "".join(talk.generate("abc", 3)) == "def" and "".join(talk.generate("x", 2)) == "yz"
        with pytest.raises(host.SequenceError, match="all 1 that"):
            device.evaluate([1])
    assert not any(word >> 29 & 1 for word in device.transport.commands)
    found = {index: "" for index in range(3)}
    for index, piece in device.generate_many(["abc", "x", "m"], 4):
        found[index] += piece
    assert list(found.values()) == ["defg", "yz{|", "nopq"] and not any(w >> 29 & 1 for w in device.transport.commands)
    assert [word >> 16 & 0xFF for word in device.transport.commands[-2:]] == [0, 2]  # a prompt's last token, a burst
