"""Text to tokens and back: by bytes, and by tokenizers as transformers does it."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.host.text import ByteText, TextError, TokenizerText

CORPUS = ["the quick brown fox", "jumps over the lazy dog", "def f(x):\n    return x + 1\n", "größer, 東京, 🦊🦊"] * 20
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}<|end|>\n"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def bpe(**config):
    """Files of a byte-level BPE tokenizer with a beginning token, as a Llama has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    begin = {"__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "normalized": False, "rstrip": False}
    begin |= {"single_word": False, "special": True}
    config = {"bos_token": begin, "eos_token": "<|end|>", "chat_template": TEMPLATE} | config
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def sentencepiece():
    """Files of a unigram tokenizer with byte fallback, as SentencePiece models come."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["byte_fallback"] = True
    state["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return {"tokenizer.json": tokenizer.to_str().encode()}


def streamed(text, tokens):
    decoder = text.decoder()
    pieces = [decoder.push(token) for token in tokens]
    return [*pieces, decoder.finish()]


@pytest.fixture(scope="module", params=[bpe, sentencepiece])
def text(request):
    return TokenizerText(request.param())


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("abc xyz.\nüß東🦊"), min_size=1, max_size=40))
def test_pieces_join_to_the_whole(text, prompt):
    tokens = text.encode(prompt)
    assert "".join(streamed(text, tokens)) == text.tokenizer.decode(tokens, skip_special_tokens=True)


def test_no_piece_has_half_a_character(text):
    tokens = text.encode("🦊 東京")
    pieces = streamed(text, tokens)
    assert not any("\ufffd" in piece for piece in pieces) and "🦊" in "".join(pieces)
    cut = streamed(
        text, [t for t in tokens if t not in (text.encode("x")[:1])][:2]
    )  # an answer that ends in mid-character
    assert isinstance("".join(cut), str)


def test_as_transformers_does_it(tmp_path):
    from transformers import AutoTokenizer

    files = bpe()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), TokenizerText(files)
    for prompt in ("hello", "def f(x):", "größer 🦊", " leading", "<|user|>special"):
        assert ours.encode(prompt) == theirs(prompt)["input_ids"]
        assert ours.encode(prompt.encode()) == ours.encode(prompt)
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "größer?\n"}]
    assert ours.rendered(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.chat(messages)[0] == ours.tokenizer.token_to_id("<|begin|>")


def test_templates():
    messages = [{"role": "user", "content": "x"}]
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes {{ messages[0].content }}"}]
    assert TokenizerText(bpe(chat_template=several)).rendered(messages) == "yes x"
    assert TokenizerText(bpe() | {"chat_template.jinja": b"file"}).rendered(messages) == "file"
    for template, message in (
        (None, "must have a model with a chat template"),
        ("{% if %}", "the chat template fails"),
        ("{{ nothing.at.all }}", "the chat template fails"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails"),
    ):
        with pytest.raises(TextError, match=message):
            TokenizerText(bpe(chat_template=template)).chat(messages)
    with pytest.raises(TextError, match="refuses the conversation: no tools here"):
        TokenizerText(bpe()).chat([{"role": "tool", "content": "x"}])


def test_bad_input():
    text = TokenizerText(bpe())
    with pytest.raises(TextError, match="must be UTF-8"):
        text.encode(b"\xff\xfe")
    with pytest.raises(TextError, match="at least one token"):
        TokenizerText(_without_beginning()).encode("")
    with pytest.raises(TextError, match=r"tokenizer.json must be a tokenizer that the library"):
        TokenizerText({"tokenizer.json": b'{"model": 3}'})
    with pytest.raises(TextError, match="not one whose tokens are bytes"):
        ByteText().chat([])
    with pytest.raises(TextError, match="at least one byte"):
        ByteText(7).encode("")


def _without_beginning():
    state = json.loads(bpe()["tokenizer.json"])
    state["post_processor"] = None
    return {"tokenizer.json": json.dumps(state).encode()}


@given(st.binary(min_size=1, max_size=30))
def test_bytes(data):
    text = ByteText(256)
    assert text.encode(data) == [256, *data]
    assert "".join(streamed(text, data)) == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "missing, call", [("tokenizers", "TokenizerText(files)"), ("jinja2", "TokenizerText(files).chat([])")]
)
def test_without_the_library_the_extra_is_named(missing, call, tmp_path):
    for name, data in bpe().items():
        (tmp_path / name).write_bytes(data)
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\nfrom intaglio.host.text import TokenizerText\n"
        f"files = {{p.name: p.read_bytes() for p in Path({str(tmp_path)!r}).iterdir()}}\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert f"must have the library {missing}: pip install 'intaglio[text]'" in done.stderr
