"""Queries, keys and values that a model really produces on a text, for measuring attention on something other than noise."""

from pathlib import Path

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from intaglio.gen.checkpoint.reader import Checkpoint, load_checkpoint
from intaglio.sim.reference.loading import float_decoder

__all__ = ["BYTES", "activations", "check_bytes"]

BYTES = 256


class _ReachedError(Exception):
    """The layer's attention has been called; nothing behind it is needed."""


class _Tap(TorchFunctionMode):
    """Keeps what the n-th call of attention is given, and ends the pass there."""

    def __init__(self, layer):
        super().__init__()
        self.left, self.found = layer, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            if not self.left:
                self.found = args[:3]
                raise _ReachedError
            self.left -= 1
        return func(*args, **(kwargs or {}))


def check_bytes(config):
    """Refuse a model (:class:`~intaglio.gen.checkpoint.model.ModelConfig`) whose tokens are not bytes: ValueError."""
    if config.vocab_size != BYTES:
        raise ValueError(f"the model's tokens must be bytes, a vocabulary of {BYTES}, not one of {config.vocab_size}")


@torch.no_grad()
def activations(model, text, tokens, layer):
    """Run a byte-level model on the first tokens of a text, up to the attention of a layer.

    Parameters
    ----------
    model : path of a checkpoint folder, or a Checkpoint
        With a vocabulary of 256: a token is a byte.
    text : bytes or path
        A zero byte, which begins a prompt, is not added.
    tokens : int
        May exceed the context that the model was trained for: rotary embedding extends.
    layer : int

    Returns
    -------
    q [H, N, D], k [Hkv, N, D], v [Hkv, N, D] : float32, after rotary embedding, before attention; q is not scaled.

    Raises
    ------
    ValueError
        The text is shorter than ``tokens``, or the model has no such layer or no byte vocabulary.
    """
    checkpoint = model if isinstance(model, Checkpoint) else load_checkpoint(model)
    config = checkpoint.config
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < config.num_hidden_layers:
        raise ValueError(f"layer must be an integer in 0..{config.num_hidden_layers - 1}, not {layer!r}")
    check_bytes(config)
    text = bytes(text) if isinstance(text, bytes | bytearray | memoryview) else Path(text).read_bytes()
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= len(text):
        raise ValueError(f"tokens must be an integer in 1..{len(text)}, the bytes of the text, not {tokens!r}")
    tap = _Tap(layer)
    decoder = float_decoder(checkpoint)
    try:
        with tap:
            decoder(torch.tensor(list(text[:tokens]))[None])
    except _ReachedError:
        pass
    q, k, v = (x[0].float() for x in tap.found)
    group = config.num_attention_heads // config.num_key_value_heads  # the model repeats KV heads for its query heads
    return q.clone(), k[::group].clone(), v[::group].clone()
