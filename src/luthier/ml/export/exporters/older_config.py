"""Entries of config.json by the names that transformers 4 reads, beside those that transformers 5 writes.

transformers 5 writes what a rotary embedding does as `rope_parameters`. Version 4, and engines that were built on it,
read `rope_theta`, `rope_scaling` and the like. Where these are missing they take the default of the architecture
without an error, and compute something else: with a base of 10,000 in place of the 500,000 of Llama 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from luthier.ml.inference.models.architecture import load_config
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.structure import read_json

_OLDER: Final = (
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rotary_dim",
    "rope_local_base_freq", "global_rope_theta", "local_rope_theta", "sliding_window_pattern",
)  # fmt: skip
_PARAMETERS: Final = "rope_parameters"


def write_older_names(folder: Path, base: Path) -> None:
    """Add the older names to the config.json in a folder, where this transformers reads the same with them.

    Args:
        folder: of a model that transformers has saved.
        base: folder of the model that it was made from, whose own entries are taken where it has them.
    """
    file = folder / "config.json"
    before, own = file.read_text(encoding="utf-8"), read_json(base / "config.json")
    with quiet_transformers():
        expected = _rotary(load_config(folder).to_dict())
        made = with_older_names(json.loads(before), own)
        file.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
        if _rotary(load_config(folder).to_dict()) != expected:
            file.write_text(before, encoding="utf-8", newline="\n")


def with_older_names(config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A config with the older names of what it says.

    Args:
        config: as transformers 5 writes it; its parts are completed, too.
        base: the config of the model that it was made from; entries of it that `config` lacks are taken as they are.
    """
    made = dict(config)
    for name, value in config.items():
        if isinstance(value, dict) and name != _PARAMETERS and ("model_type" in value or _PARAMETERS in value):
            made[name] = with_older_names(value, _part(base, name))
    # The language model alone of a model with other parts: the base has its entries one level deeper.
    known = base if base.get("model_type") == config.get("model_type") else _part(base, "text_config")
    if known.get("model_type") == config.get("model_type"):
        made |= {name: known[name] for name in _OLDER if name in known and name not in config}
    for name, value in _of_parameters(config.get(_PARAMETERS) or {}).items():
        made.setdefault(name, value)
    if "dtype" in config:
        made.setdefault("torch_dtype", config["dtype"])
    return made


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _of_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """The older names of `rope_parameters`; those of full attention where kinds of layers have their own."""
    full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention")
    one = full if isinstance(full, dict) else parameters
    if one.get("rope_theta") is None:
        return {}
    found: dict[str, Any] = {"rope_theta": one["rope_theta"]}
    if one is full and isinstance(sliding, dict) and sliding.get("rope_theta") is not None:
        found["rope_local_base_freq"] = sliding["rope_theta"]
    if one.get("partial_rotary_factor") is not None:
        found["partial_rotary_factor"] = one["partial_rotary_factor"]
    if one.get("rope_type", "default") != "default" or "mrope_section" in one:
        found["rope_scaling"] = {name: value for name, value in one.items() if name not in found}
    return found


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of rotary embeddings, by the path of the entry."""
    found = {_PARAMETERS: config[_PARAMETERS]} if _PARAMETERS in config else {}
    for name, value in config.items():
        if isinstance(value, dict) and name != _PARAMETERS:
            found |= {f"{name}.{inner}": entry for inner, entry in _rotary(value).items()}
    return found
