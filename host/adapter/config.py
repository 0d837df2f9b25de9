"""PEFT's ``adapter_config.json``: which settings leave an adapter plain LoRA, ``base(x) + scaling * B @ (A @ x)`` for every token alike.

The table has every field of PEFT 0.21's ``LoraConfig`` and of its earlier versions. A field is accepted at values known to be harmless;
any other value and any other field is refused by name: what it does would be left out without a word.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intaglio import Error

__all__ = ["FIELDS", "AdapterError", "check_config", "read_config", "scaling"]


class AdapterError(Error, ValueError):
    """An adapter that is damaged, or does not fit the device."""


_ANY, _READ = object(), object()  # harmless at any value; read and judged where it is used
_OFF, _NONE = (None, False), (None,)

FIELDS: dict[str, tuple[Any, str]] = {  # name: (accepted values, why no others)
    # read
    "peft_type": (_READ, "the kind of adapter"),
    "r": (_READ, "the rank"),
    "lora_alpha": (_READ, "the scale"),
    "use_rslora": (_READ, "the scale"),
    "target_modules": (_READ, "the matrices"),
    "exclude_modules": (_READ, "the matrices"),
    "layers_to_transform": (_READ, "the layers"),
    "layers_pattern": (_READ, "the layers"),
    # of another arithmetic
    "init_lora_weights": (
        (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
        "other starts change the base's matrices, which are read-only",
    ),  # pissa, olora, corda, loftq, lora_ga
    "bias": ((None, "none"), "the hardware's matrices have no bias"),
    "lora_bias": (_OFF, "the hardware's matrices have no bias"),
    "fan_in_fan_out": (_OFF, "matrices are stored [out, in]"),
    "use_dora": (_OFF, "it rescales the base's rows"),
    "use_qalora": (_OFF, "it pools the inputs"),
    "use_bdlora": (_NONE, "its factors are block-diagonal"),
    "kasa_config": (_NONE, "it changes the base and puts a diagonal between the factors"),
    "velora_config": (_NONE, "it keeps further tensors in the file"),
    "monteclora_config": (_NONE, "it adds random samples"),
    "arrow_config": (_NONE, "it chooses among adapters token by token"),
    "alora_invocation_tokens": (_NONE, "the adapter would be on only behind these tokens of a prompt"),
    "rank_pattern": ((None, {}), "every matrix has the device's rank"),
    "alpha_pattern": ((None, {}), "an adapter has one lora_alpha"),
    "modules_to_save": ((None, []), "the base is read-only"),
    "trainable_token_indices": ((None, [], {}), "the embedding is read-only"),
    "target_parameters": ((None, []), "the hardware adapts matrices of linear layers"),
    "layer_replication": ((None, []), "the hardware has each layer once"),
    "megatron_config": (_NONE, "its layers are split among devices"),
    "enable_lora": (_NONE, "it adapts parts of a matrix"),  # PEFT 0.2
    "task_type": ((None, "CAUSAL_LM", "FEATURE_EXTRACTION"), "other tasks have a head of their own"),
    # of the training, of one start, or notes
    "lora_dropout": (_ANY, "for training only"),
    "loftq_config": (_ANY, "of the start 'loftq'"),
    "eva_config": (_ANY, "of the start 'eva'"),
    "corda_config": (_ANY, "of the start 'corda'"),
    "lora_ga_config": (_ANY, "of the start 'lora_ga'"),
    "qalora_group_size": (_ANY, "of use_qalora"),
    "megatron_core": (_ANY, "of megatron_config"),
    "ensure_weight_tying": (_ANY, "of adapters on the embedding, which are refused"),
    "merge_weights": (_ANY, "when PEFT 0.2 merges"),
    "runtime_config": (_ANY, "where PEFT computes"),
    "inference_mode": (_ANY, "whether PEFT trains"),
    "auto_mapping": (_ANY, "a note"),
    "base_model_name_or_path": (_ANY, "a note"),
    "revision": (_ANY, "a note"),
    "peft_version": (_ANY, "a note"),
}


def read_config(path: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``; returns a dict that :func:`check_config` has accepted."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as fault:
        raise AdapterError(f"{path} must be a readable JSON file: {fault}") from fault
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(
            f"peft_type must be 'LORA', not {config.get('peft_type') if isinstance(config, dict) else config!r} ({path})"
        )
    check_config(config)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Raise :class:`AdapterError` for a field that is unknown, or not at a value known to be harmless."""
    unknown = sorted(set(config) - set(FIELDS))
    if unknown:
        raise AdapterError(
            f"every field of adapter_config.json must be one whose effect is known, unlike {', '.join(unknown[:8])} "
            f"({len(unknown)}): remove what does not change the adapter's arithmetic"
        )
    for name, value in config.items():
        accepted, reason = FIELDS[name]
        if accepted is _ANY or accepted is _READ:
            continue
        folded = value.lower() if name == "init_lora_weights" and isinstance(value, str) else value  # as PEFT reads it
        if not any(type(folded) is type(one) and folded == one for one in accepted):
            shown = ", ".join(repr(one) for one in accepted if one is not None) or "null"
            raise AdapterError(f"{name} must be {shown}, not {value!r}: {reason}")


def scaling(config: Mapping[str, Any], rank: int) -> float:
    """The factor before ``B @ (A @ x)``, of a device whose adapters have this rank."""
    found, alpha, rooted = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if type(found) is not int or found != rank:
        raise AdapterError(f"the adapter's rank must be the device's, {rank}, not {found!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(f"lora_alpha must be a finite number above 0, not {alpha!r}")
    if type(rooted) is not bool:
        raise AdapterError(f"use_rslora must be true or false, not {rooted!r}")
    return alpha / (math.sqrt(rank) if rooted else rank)
