"""Model configuration: the dimensions of a ternary decoder, BitNet's or Llama's, read from and written as Hugging Face's ``config.json``.

Whatever the generator cannot build is refused here, by name, before any weight is read.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from intaglio import Error
from intaglio.rtl.arithmetic.numerics import RotaryScaling

__all__ = ["CheckpointError", "ModelConfig"]

ACTIVATIONS = ("relu2", "silu")


@dataclass(frozen=True)
class _Family:
    """What transformers takes for granted of a ``model_type``."""

    architecture: str
    hidden_act: str
    sub_norms: bool
    rms_norm_eps: float
    rope_theta: float


_FAMILIES = {
    "bitnet": _Family("BitNetForCausalLM", "relu2", True, 1e-5, 500000.0),
    "llama": _Family("LlamaForCausalLM", "silu", False, 1e-6, 10000.0),
}
_FLOATS = {"linear_class": "autobitlinear", "quantization_mode": "floats"}  # what stands for no quantization_config
_DIMENSIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


class CheckpointError(Error, ValueError):
    """A checkpoint or its configuration is damaged, or is not one that can be turned into hardware."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Dimensions and constants of one decoder; field names are Hugging Face's.

    Parameters
    ----------
    model_type : str
        ``bitnet`` (``BitNetForCausalLM``: norms before the output and the down projection) or ``llama`` (``LlamaForCausalLM``: none there).
    hidden_act : str
        ``relu2`` or ``silu``.
    vocab_size, hidden_size, intermediate_size, num_hidden_layers, max_position_embeddings : int
    num_attention_heads, num_key_value_heads, head_dim : int
        ``hidden_size == num_attention_heads * head_dim``; key/value heads divide the attention heads; ``head_dim`` is even.
        Every matrix has a multiple of 4 rows, as the packed format needs.
    rms_norm_eps, rope_theta : float
    rope_scaling : RotaryScaling or None
    tie_word_embeddings : bool
        Whether the head is the embedding; otherwise it has a memory of its own.
    bos_token_id : int or None
    eos_token_id : int, tuple of int, or None
        Any of several ends a text.
    linear_class : str
        How a stored ``weight_scale`` s is meant: ``bitlinear`` divides by it, ``autobitlinear`` multiplies by it.
    quantization_mode : str
        ``offline`` (weights are stored ternary), ``online`` (weights are stored latent; ``autobitlinear`` only), or ``floats`` (there is no
        ``quantization_config``: each matrix must be ternary times one scale as it is).

    Raises
    ------
    CheckpointError
        A value is out of range, or is one that the generator does not support.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | tuple | None = None
    linear_class: str = "bitlinear"
    quantization_mode: str = "offline"
    model_type: str = "bitnet"
    hidden_act: str = "relu2"
    rope_scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        for text in self._problems():
            raise CheckpointError(text)

    def _problems(self) -> Iterator[str]:
        """What stands in the way, one after the other; dimensions that are none hide what follows from them."""
        whole = True
        for name in _DIMENSIONS:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                whole = False
                yield f"{name} must be a positive integer, not {value!r}"
        if not whole:
            return
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                yield f"{name} must be a finite number above 0, not {value!r}"
        for name, many in (("bos_token_id", ""), ("eos_token_id", ", or several,")):
            value = getattr(self, name)
            tokens = value if many and type(value) is tuple and value else (value,)
            if value is not None and not all(type(token) is int and 0 <= token < self.vocab_size for token in tokens):
                yield (f"{name} must be null or one token id{many} in 0..{self.vocab_size - 1}, not {value!r}")
        if self.num_attention_heads * self.head_dim != self.hidden_size:
            yield (
                f"hidden_size must be num_attention_heads * head_dim = {self.num_attention_heads} * "
                f"{self.head_dim} = {self.num_attention_heads * self.head_dim}, not {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_key_value_heads must divide num_attention_heads = {self.num_attention_heads}, "
                f"not be {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            yield f"head_dim must be even (rotary embedding turns pairs), not {self.head_dim}"
        for name, rows in (
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_key_value_heads * head_dim", self.key_value_size),
        ):
            if rows % 4:
                yield f"{name} must be a multiple of 4 (four rows share a packed byte), not {rows}"
        if type(self.tie_word_embeddings) is not bool:
            yield f"tie_word_embeddings must be true or false, not {self.tie_word_embeddings!r}"
        for name, known in (("model_type", tuple(_FAMILIES)), ("hidden_act", ACTIVATIONS)):
            if getattr(self, name) not in known:
                yield f"{name} must be {' or '.join(map(repr, known))}, not {getattr(self, name)!r}"
        if self.linear_class not in ("bitlinear", "autobitlinear"):
            yield f"linear_class must be 'bitlinear' or 'autobitlinear', not {self.linear_class!r}"
        if self.quantization_mode not in ("offline", "online", "floats"):
            yield f"quantization_mode must be 'offline' or 'online', not {self.quantization_mode!r}"
        if self.quantization_mode == "online" and self.linear_class != "autobitlinear":
            yield "quantization_mode 'online' needs linear_class 'autobitlinear', not 'bitlinear'"

    @property
    def key_value_size(self) -> int:
        """Rows of the key and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    @property
    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """``{name: (out, in)}`` of one layer's seven ternary matrices, in the order of their use."""
        h, m, kv = self.hidden_size, self.intermediate_size, self.key_value_size
        return {"q": (h, h), "k": (kv, h), "v": (kv, h), "o": (h, h), "gate": (m, h), "up": (m, h), "down": (h, m)}

    @property
    def sub_norms(self) -> bool:
        """Whether the output and the down projection have norms before them."""
        return _FAMILIES[self.model_type].sub_norms

    @property
    def norm_sizes(self) -> dict[str, int]:
        """``{name: features}`` of one layer's norms, in the order of their use."""
        h = self.hidden_size
        if not self.sub_norms:
            return {"input": h, "post_attention": h}
        return {"input": h, "attn_sub": h, "post_attention": h, "ffn_sub": self.intermediate_size}

    @classmethod
    def from_json(cls, source: Path | str | dict[str, Any]) -> Self:
        """Read Hugging Face's ``config.json``.

        Parameters
        ----------
        source : path or dict
            The file, or its decoded content.

        Raises
        ------
        CheckpointError
            The file is missing or is no JSON object, or describes a model that cannot be built.
        """
        fields, found = _fields(source if isinstance(source, dict) else _read_object(Path(source)))
        for text in found:
            raise CheckpointError(text)
        return cls(**fields)

    @classmethod
    def problems(cls, source: Path | str | dict[str, Any]) -> list[str]:
        """All that :meth:`from_json` would refuse, not only the first; none for a model that can be built.

        Raises
        ------
        CheckpointError
            The file is missing or is no JSON object.
        """
        fields, found = _fields(source if isinstance(source, dict) else _read_object(Path(source)))
        if fields:
            one = object.__new__(cls)
            for field in dataclasses.fields(cls):
                default = None if field.default is dataclasses.MISSING else field.default
                object.__setattr__(one, field.name, fields.get(field.name, default))
            told = {f"{name} must be a positive integer, not None" for name in _DIMENSIONS}  # it is in `found` why
            found += [text for text in one._problems() if text not in told]
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of an equivalent ``config.json``, as a dict of plain values."""
        fields = asdict(self)
        quantization = {
            "quant_method": "bitnet",
            "linear_class": fields.pop("linear_class"),
            "quantization_mode": fields.pop("quantization_mode"),
            "modules_to_not_convert": None,
        }
        floats = quantization["quantization_mode"] == _FLOATS["quantization_mode"]
        model_type, act, scaling = (fields.pop(name) for name in ("model_type", "hidden_act", "rope_scaling"))
        if scaling is not None:
            kind = scaling["kind"]
            fields["rope_scaling"] = {"rope_type": kind} | {name: scaling[name] for name in _ROPE_KEYS[kind]}
        return {
            "architectures": [_FAMILIES[model_type].architecture],
            "model_type": model_type,
            "hidden_act": act,
            "attention_bias": False,
            "dtype": "float32",
            **fields,
            **({} if floats else {"quantization_config": quantization}),
        }


def _read_object(path):
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} must be a readable file: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} must be JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def _fields(data):
    """Fields of a :class:`ModelConfig`, as far as they can be told, and what stands in the way of the others."""
    found: list[str] = []

    def attempt(judge, *arguments):
        try:
            return judge(*arguments)
        except CheckpointError as error:
            found.append(str(error))

    if data.get("model_type") not in tuple(_FAMILIES):
        what = repr(data["model_type"]) if "model_type" in data else "absent"
        return {}, [f"model_type must be {' or '.join(map(repr, _FAMILIES))}, not {what}"]
    family = _FAMILIES[data["model_type"]]
    attempt(_require, data, "architectures", [family.architecture])
    for key in ("attention_bias", "mlp_bias"):
        attempt(_require, data, key, False)
    quantization = data.get("quantization_config")
    if quantization is None:  # floats, of which the reader wants that they are ternary
        quantization = _FLOATS
    elif not isinstance(quantization, dict):
        found.append(
            "quantization_config must be an object with quant_method 'bitnet', or absent where the weights are floats that are ternary "
            f"times a scale, not {quantization!r}"
        )
        quantization = {}
    else:
        attempt(_require, quantization, "quant_method", "bitnet", False)
        if quantization.get("quantization_mode") == _FLOATS["quantization_mode"]:
            found.append("quantization_mode must be 'offline' or 'online', not 'floats'")
    if quantization.get("use_rms_norm", False) is not False:
        found.append(
            "use_rms_norm must be False (queries, keys and values share one quantised input, and would each have a norm of their own), "
            f"not {quantization['use_rms_norm']!r}"
        )
    kept = quantization.get("modules_to_not_convert")
    if kept not in (None, [], ["lm_head"]):
        found.append(
            f"modules_to_not_convert must be null or ['lm_head'] (every other matrix is ternary), not {kept!r}"
        )
    fields = {name: data[name] for name in _DIMENSIONS[:5] if name in data}
    if missing := [name for name in _DIMENSIONS[:5] if name not in data]:
        found.append(f"config must give {', '.join(missing)}")
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    fields["num_key_value_heads"] = (
        data["num_key_value_heads"] if data.get("num_key_value_heads") is not None else heads
    )
    fields["head_dim"] = data.get("head_dim")
    if fields["head_dim"] is None and not missing:
        if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
            found.append(f"hidden_size must be a multiple of num_attention_heads = {heads!r}, not {hidden!r}")
            fields.pop("head_dim")
        else:
            fields["head_dim"] = hidden // heads
    defaults = {"rms_norm_eps": family.rms_norm_eps, "hidden_act": family.hidden_act, "max_position_embeddings": 2048}
    for name, default in defaults.items():
        fields[name] = data.get(name, default)
    for name in ("bos_token_id", "eos_token_id"):
        value = data.get(name)
        fields[name] = value if not isinstance(value, list) else value[0] if len(value) == 1 else tuple(value)
    fields["rope_theta"], fields["rope_scaling"] = attempt(
        _rope, data, family.rope_theta, fields["max_position_embeddings"]
    ) or (family.rope_theta, None)
    return fields | {
        "model_type": data["model_type"],
        "tie_word_embeddings": data.get("tie_word_embeddings", False),
        "linear_class": quantization.get("linear_class", "bitlinear"),
        "quantization_mode": quantization.get("quantization_mode", "offline"),
    }, found


def _require(data, key, required, optional=True):
    if key not in data and not optional:
        raise CheckpointError(f"{key} must be {required!r}, not absent")
    if data.get(key, required) != required:
        raise CheckpointError(f"{key} must be {required!r}, not {data[key]!r}")


_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ROPE_REASONS = {
    "dynamic": "its frequencies change as the text grows, and keys in the cache are turned once",
    "yarn": "it scales the attention besides",
    "longrope": "its frequencies change with the length of the text",
}


def _rope(data, theta, positions):
    """The rotary base and its scaling, as transformers 4 (``rope_theta``, ``rope_scaling``) or 5 (``rope_parameters``) gives them."""
    theta, scaling = data.get("rope_theta", theta), None
    for key in ("rope_scaling", "rope_parameters"):
        rope = data.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(f"{key} must be null or an object, not {rope!r}")
        rope = dict(rope)
        theta = rope.pop("rope_theta", theta)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if not isinstance(kind, str) or kind not in _ROPE_KEYS:
            reason = f" ({_ROPE_REASONS[kind]})" if str(kind) in _ROPE_REASONS else ""
            raise CheckpointError(f"{key}'s rope_type must be 'default', 'linear' or 'llama3', not {kind!r}{reason}")
        values = {
            k: v for k, v in rope.items() if k not in ("rope_type", "type") and (k, v) != ("partial_rotary_factor", 1)
        }
        if extra := sorted(set(values) - set(_ROPE_KEYS[kind])):
            raise CheckpointError(f"{key} of type {kind!r} must not give {', '.join(extra)}")
        if kind == "llama3":
            values.setdefault("original_max_position_embeddings", positions)
        if missing := [name for name in _ROPE_KEYS[kind] if name not in values]:
            raise CheckpointError(f"{key} of type {kind!r} must give {', '.join(missing)}")
        for name, value in values.items():
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise CheckpointError(f"{key}'s {name} must be a finite number above 0, not {value!r}")
        if kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
            raise CheckpointError(
                f"{key}'s low_freq_factor must be less than high_freq_factor = {values['high_freq_factor']}, "
                f"not {values['low_freq_factor']}"
            )
        if kind != "default":
            scaling = RotaryScaling(kind=kind, **values)
    return theta, scaling
