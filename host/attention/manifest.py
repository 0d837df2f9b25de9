"""The manifest of a prefill attention unit."""

import string
from dataclasses import dataclass

from intaglio.host.manifest import FORMAT, FORMAT_VERSION, ManifestError, Register, check_kind

__all__ = ["KIND", "MAP_VERSION", "PrefillManifest"]

KIND, MAP_VERSION = "prefill-attention", 2
REQUIRED_REGISTERS = (
    "magic",
    "version",
    "digest",
    "capabilities",
    "status",
    "control",
    "aware",
    "rows",
    "beats",
    "cycles_lo",
    "cycles_hi",
    "tokens",
    "gamma16",
    "threshold",
    "inverse",
    "dense",
    "tenant",
    "kv_head",
    "hot_threshold",
    "timeout",
    "map_select",
    *(f"{name}_base{half}" for name in ("kv", "q", "last", "pooled_q", "pooled_k") for half in ("", "_high")),
)
STATUS_PHASES = 8  # that the status register can show
SHAPE = ("head_dim", "group", "block", "columns", "context", "window", "lines", "lookahead", "drain")


@dataclass(frozen=True, kw_only=True)
class PrefillManifest:
    """A validated manifest.

    Parameters
    ----------
    top, digest, generator : str
    clock_hz : int
    registers : dict of str to Register
    phases, counters : tuple of str
        Registers ``phase_<name>`` and counters.
    config : dict
        Shape of the unit: head_dim, group, block, columns, context, window, lines, lookahead, drain.
    monitor : dict
        ``phases``, names by number, and ``bits``, place of each event: for time lines of a simulation.

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
    counters: tuple
    config: dict
    monitor: dict

    def __post_init__(self):
        if len(self.digest) != 64 or set(self.digest) - set(string.hexdigits):
            raise ManifestError(f"digest must be 64 hexadecimal digits, not {self.digest!r}")
        if self.clock_hz <= 0:
            raise ManifestError(f"clock_hz must be positive, not {self.clock_hz}")
        for name in SHAPE:
            value = self.config.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ManifestError(f"config.{name} must be a positive integer, not {value!r}")
        names = self.monitor.get("phases")
        for what, found in (("phases", self.phases), ("counters", self.counters), ("monitor.phases", names)):
            if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
                raise ManifestError(f"{what} must be a list of names, not {found!r}")
        if len(names) != STATUS_PHASES:
            raise ManifestError(f"monitor.phases must be {STATUS_PHASES} names, not {len(names)}")
        maps = (f"map_{number}" for number in range(-(-self.config["columns"] // 32)))
        for name in (*REQUIRED_REGISTERS, *maps, *self.counters, *(f"phase_{phase}" for phase in self.phases)):
            if name not in self.registers:
                raise ManifestError(f"registers must include {name!r}")

    @property
    def capabilities(self) -> int:
        """What the capabilities register holds."""
        return self.config["context"] // self.config["block"] | self.config["group"] << 16

    @property
    def digest_word(self) -> int:
        """What the digest register holds."""
        return int(self.digest[:8], 16)

    @classmethod
    def from_dict(cls, raw) -> "PrefillManifest":
        """Validate a manifest read from JSON."""
        for name, expected in (("format", FORMAT), ("format_version", FORMAT_VERSION)):
            if not isinstance(raw, dict) or raw.get(name) != expected:
                raise ManifestError(
                    f"the manifest's {name} must be {expected!r}, not {raw.get(name) if isinstance(raw, dict) else raw!r}"
                )
        check_kind(raw, KIND)
        kinds = {
            "top": str,
            "digest": str,
            "generator": str,
            "clock_hz": int,
            "registers": dict,
            "phases": list,
            "counters": list,
            "config": dict,
            "monitor": dict,
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
        lists = {"phases": tuple(raw["phases"]), "counters": tuple(raw["counters"]), "registers": registers}
        return cls(**{name: raw[name] for name in kinds} | lists)
