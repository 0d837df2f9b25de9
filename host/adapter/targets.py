"""Which modules of a model an adapter is for, by PEFT's own rules: names, ends of names, regular expressions, layers.

A pattern out of a foreign file may take for ever. Patterns are matched by this file as a program of its own, with a time limit; so it
imports nothing of the project.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["matched_modules"]

LIMIT_S = 10.0


def matched_modules(config: Mapping[str, Any], modules: list[str], linear: list[str]) -> list[str]:
    """The modules that a LoRA configuration means.

    Parameters
    ----------
    config : dict
        ``target_modules`` (list, regular expression, or ``all-linear``), ``exclude_modules`` (likewise), ``layers_to_transform`` (list or
        number) and ``layers_pattern`` (list or one) of PEFT's ``adapter_config.json``.
    modules : list of str
        Full names, as ``model.layers.0.self_attn.q_proj``.
    linear : list of str
        Those of them that ``all-linear`` means.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        A setting is of another type, contradicts another, is no regular expression, or takes longer than ten seconds to match.
    """
    targets, excluded, layers, pattern = (
        config.get(name) for name in ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    )
    for name, value in (("target_modules", targets), ("exclude_modules", excluded), ("layers_pattern", pattern)):
        texts = isinstance(value, str) or isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not texts and (value is not None or name == "target_modules"):
            raise ValueError(f"{name} must be a list of names or one pattern, not {value!r}")
    if not all(
        type(layer) is int for layer in (layers if isinstance(layers, list) else [] if layers is None else [layers])
    ):
        raise ValueError(f"layers_to_transform must be a layer's number or a list of them, not {layers!r}")
    if isinstance(targets, str) and (layers is not None or pattern is not None):
        raise ValueError(
            "target_modules must be a list where there are layers_to_transform or layers_pattern, not a pattern"
        )
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = linear
    job = {
        "targets": targets,
        "excluded": excluded,
        "layers": [layers] if type(layers) is int else layers or None,
        "patterns": [pattern] if isinstance(pattern, str) else pattern or [],
        "modules": modules,
    }
    if not isinstance(targets, str) and not isinstance(excluded, str) and not job["patterns"]:
        return _matched(job)
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input=json.dumps(job), capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the patterns of the adapter's modules must match within {LIMIT_S:g} s, not longer: {_patterns(job)}"
        ) from None
    if done.returncode:
        raise ValueError(
            f"the patterns of the adapter's modules must be regular expressions, not {_patterns(job)}: "
            f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        )
    return json.loads(done.stdout)


def _patterns(job):
    return ", ".join(repr(one) for one in (job["targets"], job["excluded"], *job["patterns"]) if isinstance(one, str))


def _matched(job):
    return [module for module in job["modules"] if _is_target(job, module)]


def _is_target(job, module):
    excluded, targets = job["excluded"], job["targets"]
    if excluded and (re.fullmatch(excluded, module) if isinstance(excluded, str) else _ends_with_one(module, excluded)):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    if module in targets:  # a full name is meant whatever the layers
        return True
    if not _ends_with_one(module, targets):
        return False
    if job["layers"] is None:
        return True
    expressions = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in job["patterns"]] or [
        r".*?\.[^.]*\.(?P<idx>\d+)\."
    ]
    found = next(filter(None, (re.match(expression, module) for expression in expressions)), None)
    return found is not None and int(found["idx"]) in job["layers"]


def _ends_with_one(module, names):
    return any(module == name or module.endswith(f".{name}") for name in names)


if __name__ == "__main__":
    json.dump(_matched(json.load(sys.stdin)), sys.stdout)
