"""The manifest: what a generated device is, in JSON, and the only thing that the host shares with the generator."""

import json
import string
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from intaglio import Error
from intaglio.host.protocol import Owed, OwedRun, token_bits

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MAGIC",
    "DeviceManifest",
    "Manifest",
    "ManifestError",
    "PrefillManifest",
    "Register",
    "manifest_of",
    "read_json",
]

FORMAT, FORMAT_VERSION = "intaglio-manifest", 1
MAGIC = 0x494E5447  # "INTG"
JSON: dict[Any, type] = {tuple: list, str: str, int: int}  # what a field of a manifest is in JSON, else a dict
STATUS_PHASES = 8  # that the status register of a prefill unit can show


class ManifestError(Error, ValueError):
    """A manifest that is missing, damaged or of another format."""


def _need(holds, text):
    if not holds:
        raise ManifestError(text)


def _need_type(value, kind, name):
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    _need(right, f"a manifest's {name} must be of type {kind.__name__}, not {value!r}")


def _need_names(found, what):
    _need(
        isinstance(found, list | tuple) and all(isinstance(name, str) for name in found),
        f"{what} must be a list of names, not {found!r}",
    )


@dataclass(frozen=True, kw_only=True)
class Register:
    """A 32-bit register: byte ``offset``, ``access`` ("ro", "rw" or "w1c") and a description."""

    offset: int
    access: str
    description: str = ""

    def __post_init__(self) -> None:
        _need(
            isinstance(self.offset, int) and self.offset >= 0 and not self.offset % 4,
            f"a register's offset must be a multiple of 4 from 0, not {self.offset!r}",
        )
        _need(
            self.access in ("ro", "rw", "w1c"), f"a register's access must be 'ro', 'rw' or 'w1c', not {self.access!r}"
        )


@dataclass(frozen=True, kw_only=True)
class DeviceManifest:
    """What the manifests of all kinds of device have.

    Parameters
    ----------
    top, digest, generator : str
        Name of the Verilog top, SHA-256 in hex of what was generated, version of the generator.
    clock_hz : int
        The clock at which simulated times are stated.
    registers : dict of str to Register
    phases : tuple of str
        Names of phase counters; each has the register ``phase_<name>``.

    Raises
    ------
    ManifestError
    """

    KIND: ClassVar[str]
    MAP_VERSION: ClassVar[int] = 1  # of the register map and of the protocol
    WHAT: ClassVar[str]  # what takes such a device
    REGISTERS: ClassVar[tuple] = (
        "magic",
        "version",
        "digest",
        "capabilities",
        "status",
        "control",
        "cycles_lo",
        "cycles_hi",
    )

    top: str
    digest: str
    generator: str
    clock_hz: int
    registers: dict
    phases: tuple

    def __post_init__(self) -> None:
        _need(
            len(self.digest) == 64 and not set(self.digest) - set(string.hexdigits),
            f"digest must be 64 hexadecimal digits, not {self.digest!r}",
        )
        _need(self.clock_hz > 0, f"clock_hz must be positive, not {self.clock_hz}")
        _need_names(self.phases, "phases")
        self._need_registers(*self.REGISTERS, *(f"phase_{phase}" for phase in self.phases))

    def _need_registers(self, *names, where=""):
        for name in names:
            _need(name in self.registers, f"registers must include {name!r}{where}")

    def owed(self) -> Owed | OwedRun:
        """What tells which results the device still owes."""
        raise NotImplementedError

    @property
    def digest_word(self) -> int:
        """What the digest register holds: the first eight hexadecimal digits as a number."""
        return int(self.digest[:8], 16)

    @property
    def identity(self) -> dict[str, int]:
        """What registers of the device hold, by name: a device in which they differ is another one."""
        return {"magic": MAGIC, "version": self.MAP_VERSION, "digest": self.digest_word}

    @classmethod
    def from_dict(cls, raw: dict) -> "DeviceManifest":
        """Validate a manifest read from JSON, which must be of this kind."""
        kind = _kind_of(raw)
        _need(kind is cls, f"the device must be {cls.WHAT}, but it is {kind.WHAT}")
        values: dict[str, Any] = {}
        for field in fields(cls):
            optional = field.default is not MISSING
            if optional and field.name not in raw:
                continue
            _need_type(raw.get(field.name), JSON.get(field.type, dict), field.name)
            values[field.name] = tuple(raw[field.name]) if field.type is tuple else raw[field.name]
        values["registers"] = {name: _register(name, found) for name, found in raw["registers"].items()}
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> "DeviceManifest":
        """Read and validate the manifest at ``path``, a file or the generated folder that holds ``manifest.json``."""
        return cls.from_dict(read_json(path))


def _register(name, found):
    _need(
        isinstance(found, dict) and {"offset", "access"} <= found.keys(),
        f"register {name!r} must state offset and access, not {found!r}",
    )
    return Register(offset=found["offset"], access=found["access"], description=found.get("description", ""))


@dataclass(frozen=True, kw_only=True)
class Manifest(DeviceManifest):
    """The manifest of a decoder.

    Parameters
    ----------
    model : dict
        ``vocab_size``, ``context`` (positions), ``top_k`` (most logits in one result), ``bos`` (a token or None), ``eos`` (a token, a
        list of tokens, any of which ends a text, or None), ``tokenizer`` ("bytes", "tokenizers" for files beside the design, or "none" for
        tokens alone) and what else the generator states; ``batch`` (tokens side by side) and ``sequences`` where they are not 1.
    adapter : dict or None
        What an adapter must be to be loaded; None for a device without adapters.
    files, content : dict
        Paths by kind of file, and SHA-256 by path, as the generator states them.
    """

    KIND = "decoder"
    WHAT = "a decoder, which `intaglio run` and intaglio.host.open take"
    REGISTERS = (*DeviceManifest.REGISTERS, "position", "stall_in", "stall_out", "tokens")
    MODEL = ("vocab_size", "context", "top_k", "bos", "eos", "tokenizer")
    ADAPTER = {
        **dict.fromkeys(("rank", "slots", "trits", "lanes", "lane_width", "layers", "head_dim", "image_words"), int),
        **dict.fromkeys(("targets", "operations", "scales"), list),
        **{"shapes": dict, "modules": dict, "base": str},
    }
    ADAPTER_REGISTERS = ("adapter_slots", "adapter_status", "adapter_begin", "adapter_data", "adapter_commit")

    model: dict
    adapter: dict | None = None
    files: dict | None = None
    content: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.model
        for name in self.MODEL:
            _need(name in model, f"model must state {name!r}")
        for name in ("vocab_size", "context", "top_k"):
            right = type(model[name]) is int and model[name] >= 0
            _need(right, f"model.{name} must be a non-negative integer, not {model[name]!r}")
        vocabulary, context = model["vocab_size"], model["context"]
        _need(
            1 < vocabulary <= 0xFFFFF and 1 < context <= 0xFFFF,
            f"model.vocab_size must be in 2..1048575 and context must be in 2..65535, not {vocabulary} and {context}",
        )
        for name, most in (("batch", 32), ("sequences", 256)):
            right = type(model.get(name, 1)) is int and 1 <= model.get(name, 1) <= most
            _need(right, f"model.{name} must be an integer in 1..{most}, not {model.get(name)!r}")
        for name, tokens in (("bos", () if model["bos"] is None else (model["bos"],)), ("eos", self.ends)):
            for token in tokens:
                right = type(token) is int and 0 <= token < vocabulary
                _need(right, f"model.{name} must be a token in 0..{vocabulary - 1}, not {token!r}")
        tokenizer = model["tokenizer"]
        _need(
            tokenizer in ("bytes", "tokenizers", "none"),
            f"model.tokenizer must be 'bytes', 'tokenizers' or 'none', not {tokenizer!r}",
        )
        _need(
            tokenizer != "bytes" or vocabulary <= 256,
            f"model.vocab_size must be at most 256 for the byte tokenizer, not {vocabulary}",
        )
        if tokenizer == "tokenizers":
            names = {Path(str(path)).name for path in (self.files or {}).get("tokenizer", ())}
            _need("tokenizer.json" in names, f"files.tokenizer must include a tokenizer.json, not {sorted(names)}")
        if self.adapter is not None:
            for name, kind in self.ADAPTER.items():
                _need_type(self.adapter.get(name), kind, f"adapter.{name}")
            self._need_registers(*self.ADAPTER_REGISTERS, where=" where there are adapters")

    @property
    def ends(self) -> tuple:
        """The tokens that end a text."""
        eos = self.model["eos"]
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def tokenizer(self) -> dict[str, str]:
        """SHA-256 by name of the tokenizer's files; none for a model without."""
        content = self.content or {}
        return {Path(path).name: content.get(path, "") for path in (self.files or {}).get("tokenizer", ())}

    @property
    def token_bits(self) -> int:
        """Bits of a token in commands and results."""
        return token_bits(self.model["vocab_size"])

    @property
    def batch(self) -> int:
        """Tokens that the device computes side by side, at most."""
        return self.model.get("batch", 1)

    @property
    def sequences(self) -> int:
        """Sequences that the device holds at a time."""
        return self.model.get("sequences", 1)

    def owed(self) -> Owed:
        return Owed(self.token_bits, self.batch, self.sequences)


@dataclass(frozen=True, kw_only=True)
class PrefillManifest(DeviceManifest):
    """The manifest of a prefill attention unit.

    Parameters
    ----------
    counters : tuple of str
        Names of registers.
    config : dict
        Shape of the unit: head_dim, group, block, columns, context, window, lines, lookahead, drain.
    monitor : dict
        ``phases``, names by number, and ``bits``, place of each event: for time lines of a simulation.
    memory_bus : dict
        ``data_width`` and ``address_width`` in bits.
    """

    KIND = "prefill-attention"
    MAP_VERSION = 3
    WHAT = "a prefill attention unit, which `intaglio attention` and intaglio.host.open_attention take"
    REGISTERS = (
        *DeviceManifest.REGISTERS,
        *("aware", "rows", "beats", "tokens", "gamma16", "threshold", "inverse", "dense", "tenant", "kv_head"),
        *("hot_threshold", "timeout", "map_select"),
        *(f"{name}_base{half}" for name in ("kv", "q", "last", "pooled_q", "pooled_k") for half in ("", "_high")),
    )
    SHAPE = ("head_dim", "group", "block", "columns", "context", "window", "lines", "lookahead", "drain")

    counters: tuple
    config: dict
    monitor: dict
    memory_bus: dict

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [("config", self.config, name) for name in self.SHAPE]
        for group, found, name in (
            *sizes,
            *(("memory_bus", self.memory_bus, x) for x in ("data_width", "address_width")),
        ):
            value = found.get(name)
            right = isinstance(value, int) and not isinstance(value, bool) and value > 0
            _need(right, f"{group}.{name} must be a positive integer, not {value!r}")
        names: Any = self.monitor.get("phases")
        _need_names(self.counters, "counters")
        _need_names(names, "monitor.phases")
        _need(len(names) == STATUS_PHASES, f"monitor.phases must be {STATUS_PHASES} names, not {len(names)}")
        maps = (f"map_{number}" for number in range(-(-self.config["columns"] // 32)))
        self._need_registers(*maps, *self.counters)

    @property
    def identity(self) -> dict[str, int]:
        shape = self.config["context"] // self.config["block"] | self.config["group"] << 16
        return super().identity | {"capabilities": shape}

    def owed(self) -> OwedRun:
        offsets = {name: self.registers[name].offset for name in ("control", "tokens")}
        return OwedRun(**offsets, group=self.config["group"], block=self.config["block"])


KINDS = {found.KIND: found for found in (Manifest, PrefillManifest)}


def _kind_of(raw: Any) -> type[DeviceManifest]:
    """The class of a manifest read from JSON, whose format is that of this version."""
    for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
        found = raw.get(name) if isinstance(raw, dict) else type(raw).__name__
        _need(
            isinstance(raw, dict) and found == expected,
            f"a manifest's {name} must be {expected!r}, not {found!r}: generate the device again with this version of intaglio",
        )
    kind = raw.get("kind", Manifest.KIND)
    _need(isinstance(kind, str) and kind in KINDS, f"a device's kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind]


def manifest_of(raw: dict) -> DeviceManifest:
    """Validate a manifest read from JSON, of whichever kind it is.

    Raises
    ------
    ManifestError
    """
    return _kind_of(raw).from_dict(raw)


def read_json(path: str | Path) -> dict:
    """Read a manifest's JSON without judging it; ``path`` is the file or its folder."""
    path = Path(path)
    try:
        path = path / "manifest.json" if path.is_dir() else path
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"no manifest at {path}: the target must be a folder written by the generator") from None
    except OSError as fault:
        raise ManifestError(f"the manifest {path} cannot be read: {fault.strerror or fault}") from fault
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as fault:
        raise ManifestError(f"{path} is not a manifest ({fault}): generate it again") from fault
