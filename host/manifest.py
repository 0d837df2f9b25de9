"""The manifest: what a generated device is, in JSON, and the only thing that the host shares with the generator."""

import json
import string
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MAGIC",
    "MAP_VERSION",
    "Manifest",
    "ManifestError",
    "Register",
    "check_kind",
    "read_json",
]

FORMAT, FORMAT_VERSION = "intaglio-manifest", 1
MAGIC, MAP_VERSION = 0x494E5447, 1  # "INTG"; version of the register map and of the protocol
KINDS = {
    "decoder": "a decoder, which `intaglio run` and intaglio.host.open take",
    "prefill-attention": "a prefill attention unit, which `intaglio attention` and intaglio.host.open_attention take",
}
REQUIRED_REGISTERS = (
    "magic",
    "version",
    "digest",
    "capabilities",
    "status",
    "position",
    "control",
    "cycles_lo",
    "cycles_hi",
    "stall_in",
    "stall_out",
    "tokens",
)
REQUIRED_ADAPTER = {
    "rank": int,
    "slots": int,
    "trits": int,
    "targets": list,
    "lanes": int,
    "lane_width": int,
    "layers": int,
    "head_dim": int,
    "operations": list,
    "shapes": dict,
    "modules": dict,
    "base": str,
    "scales": list,
    "image_words": int,
}
ADAPTER_REGISTERS = ("adapter_slots", "adapter_status", "adapter_begin", "adapter_data", "adapter_commit")
REQUIRED_MODEL = ("vocab_size", "context", "top_k", "bos", "eos", "tokenizer")


class ManifestError(Error, ValueError):
    """A manifest that is missing, damaged or of another format."""


@dataclass(frozen=True, kw_only=True)
class Register:
    """A 32-bit register: byte ``offset``, ``access`` ("ro", "rw" or "w1c") and a description."""

    offset: int
    access: str
    description: str = ""

    def __post_init__(self):
        if not isinstance(self.offset, int) or self.offset < 0 or self.offset % 4:
            raise ManifestError(f"a register's offset must be a multiple of 4 from 0, not {self.offset!r}")
        if self.access not in ("ro", "rw", "w1c"):
            raise ManifestError(f"a register's access must be 'ro', 'rw' or 'w1c', not {self.access!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A validated manifest.

    Parameters
    ----------
    top, digest, generator : str
        Name of the Verilog top, SHA-256 in hex of what was generated, version of the generator.
    clock_hz : int
        The clock at which simulated times are stated.
    registers : dict of str to Register
    phases : tuple of str
        Names of phase counters; each has the register ``phase_<name>``.
    model : dict
        ``vocab_size``, ``context`` (positions), ``top_k`` (most logits in one result), ``bos`` (a token or None), ``eos`` (a token, a
        list of tokens, any of which ends a text, or None), ``tokenizer`` ("bytes", "tokenizers" for files beside the design, or "none" for
        tokens alone) and what else the generator states.
    adapter : dict or None
        What an adapter must be to be loaded; None for a device without adapters.

    Raises
    ------
    ManifestError
    """

    top: str
    digest: str
    generator: str
    clock_hz: int
    registers: dict
    phases: tuple
    model: dict
    adapter: dict | None = None

    def __post_init__(self):
        if len(self.digest) != 64 or set(self.digest) - set(string.hexdigits):
            raise ManifestError(f"digest must be 64 hexadecimal digits, not {self.digest!r}")
        if self.clock_hz <= 0:
            raise ManifestError(f"clock_hz must be positive, not {self.clock_hz}")
        for name in (*REQUIRED_REGISTERS, *(f"phase_{phase}" for phase in self.phases)):
            if name not in self.registers:
                raise ManifestError(f"registers must include {name!r}")
        for name in REQUIRED_MODEL:
            if name not in self.model:
                raise ManifestError(f"model must state {name!r}")
        for name in ("vocab_size", "context", "top_k"):
            if type(self.model[name]) is not int or self.model[name] < 0:
                raise ManifestError(f"model.{name} must be a non-negative integer, not {self.model[name]!r}")
        if not 1 < self.model["vocab_size"] <= 0xFFFFF or not 1 < self.model["context"] <= 0xFFFF:
            raise ManifestError(
                "model.vocab_size must be in 2..1048575 and context must be in 2..65535, "
                f"not {self.model['vocab_size']} and {self.model['context']}"
            )
        for name, tokens in (("bos", () if self.model["bos"] is None else (self.model["bos"],)), ("eos", self.ends)):
            for token in tokens:
                if type(token) is not int or not 0 <= token < self.model["vocab_size"]:
                    raise ManifestError(
                        f"model.{name} must be a token in 0..{self.model['vocab_size'] - 1}, not {token!r}"
                    )
        if self.model["tokenizer"] not in ("bytes", "tokenizers", "none"):
            raise ManifestError(
                f"model.tokenizer must be 'bytes', 'tokenizers' or 'none', not {self.model['tokenizer']!r}"
            )
        if self.model["tokenizer"] == "bytes" and self.model["vocab_size"] > 256:
            raise ManifestError(
                f"model.vocab_size must be at most 256 for the byte tokenizer, not {self.model['vocab_size']}"
            )

        if self.adapter is not None:
            for name, kind in REQUIRED_ADAPTER.items():
                if not isinstance(self.adapter.get(name), kind):
                    raise ManifestError(
                        f"a manifest's adapter.{name} must be of type {kind.__name__}, not {self.adapter.get(name)!r}"
                    )
            for name in ADAPTER_REGISTERS:
                if name not in self.registers:
                    raise ManifestError(f"registers must include {name!r} where there are adapters")

    @property
    def ends(self) -> tuple:
        """The tokens that end a text."""
        eos = self.model["eos"]
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def digest_word(self) -> int:
        """What the digest register holds: the first eight hexadecimal digits as a number."""
        return int(self.digest[:8], 16)

    @classmethod
    def from_dict(cls, raw) -> "Manifest":
        """Validate a manifest read from JSON."""
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise ManifestError(f"a manifest's format must be {FORMAT!r}, not {found!r}")
        if raw.get("format_version") != FORMAT_VERSION:
            raise ManifestError(
                f"a manifest's format_version must be {FORMAT_VERSION}, not {raw.get('format_version')!r}: "
                "generate the device again with this version of intaglio"
            )
        check_kind(raw, "decoder")
        kinds = {
            "top": str,
            "digest": str,
            "generator": str,
            "clock_hz": int,
            "registers": dict,
            "phases": list,
            "model": dict,
        }
        for name, kind in kinds.items():
            if not isinstance(raw.get(name), kind):
                raise ManifestError(f"a manifest's {name} must be of type {kind.__name__}, not {raw.get(name)!r}")
        registers = {}
        for name, fields in raw["registers"].items():
            if not isinstance(fields, dict) or not {"offset", "access"} <= fields.keys():
                raise ManifestError(f"register {name!r} must state offset and access, not {fields!r}")
            registers[name] = Register(
                offset=fields["offset"], access=fields["access"], description=fields.get("description", "")
            )
        if not isinstance(raw.get("adapter", {}), dict):
            raise ManifestError(f"a manifest's adapter must be of type dict, not {raw['adapter']!r}")
        return cls(
            **{name: raw[name] for name in kinds}
            | {"registers": registers, "phases": tuple(raw["phases"]), "adapter": raw.get("adapter")}
        )

    @classmethod
    def read(cls, path) -> "Manifest":
        """Read and validate the manifest at ``path``, a file or the generated folder that holds ``manifest.json``."""
        return cls.from_dict(read_json(path))


def check_kind(raw, wanted):
    """Refuse a manifest of another kind of device than ``wanted``, and say what takes it.

    Raises
    ------
    ManifestError
    """
    found = raw.get("kind", "decoder")
    if found != wanted:
        raise ManifestError(
            f"the device must be {KINDS[wanted]}, but it is "
            + (KINDS[found] if isinstance(found, str) and found in KINDS else f"of the kind {found!r}")
        )


def read_json(path) -> dict:
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
