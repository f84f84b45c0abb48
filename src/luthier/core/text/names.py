"""Human names of things that have an id: what a run is called before someone names it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Final

_SEPARATOR: Final = " \N{MIDDLE DOT} "
_MAX_DATASET_CHARACTERS: Final = 40
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SIZE: Final = re.compile(r"^\d+(\.\d+)?(x\d+(\.\d+)?)?[kmbt]$", re.IGNORECASE)
"""The size of a model in its name: 135M, 0.6B, 8x7B."""
_FAMILIES: Final = (
    "SmolLM", "Qwen", "Llama", "TinyLlama", "Gemma", "Mistral", "Mixtral", "Ministral", "Phi", "Falcon", "Granite",
    "OLMo", "DeepSeek", "GPT", "Pythia", "Mamba", "ModernBERT", "BERT",
)  # fmt: skip
"""Families as their makers write them; names of models are often in small letters."""


def display_name(dataset_name: str, base_model_name: str, created: datetime) -> str:
    """The name of a run: `Client questions · SmolLM2 · 28 Nov`.

    Args:
        dataset_name: What it learns from; empty where that has no name.
        base_model_name: A title, a name of the catalogue, a folder or an address of a hub; empty where unknown.
        created: When it was started, in the time zone to show.
    """
    name = " ".join(dataset_name.split())
    if len(name) > _MAX_DATASET_CHARACTERS:
        name = f"{name[: _MAX_DATASET_CHARACTERS - 1].rstrip()}…"
    # No strftime: the names of months would follow the locale of the process.
    day = f"{created.day} {_MONTHS[created.month - 1]}"
    return _SEPARATOR.join(part for part in (name, family_name(base_model_name), day) if part)


def distinct_names(names: Mapping[str, str]) -> dict[str, str]:
    """The same names by their ids, no two alike: where several ids have one name, the end of the id is added."""
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name} ({key.rpartition('-')[2]})" for key, name in names.items()}


def family_name(base_model_name: str) -> str:
    """The family of a base model: `SmolLM2` for `smollm2-135m-instruct`, `Gemma 3` for `Gemma 3 270M (base model)`."""
    # Folders, organisations and revisions are in front of and behind the name.
    name = base_model_name.strip().rstrip("/").rpartition("/")[2].partition("@")[0].rpartition(":")[2]
    words = re.split(r"[\s_-]+", name)
    until = next((place for place, word in enumerate(words) if place and _SIZE.match(word)), len(words))
    family = " ".join(word for word in words[:until] if word)
    for known in _FAMILIES:
        if family.casefold().startswith(known.casefold()):
            return known + family[len(known) :]
    return family


def shortened(text: str, most: int) -> str:
    """The text where it has at most that many characters, else its beginning with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
