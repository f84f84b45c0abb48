"""The YAML at the top of a card, as the Hugging Face hub reads it (its dataset card specification)."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from luthier.ml.data.card.request import CardRequest
from luthier.ml.data.rows.columns import ValueType

_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
)
_DTYPES: Final = {"text": "string", "integer": "int64", "number": "float64", "boolean": "bool", "null": "null"}


def front_matter(request: CardRequest) -> dict[str, Any]:
    """The metadata; keys of which nothing is known are left out."""
    made: dict[str, Any] = {}
    if request.languages_known:
        made["language"] = list(request.languages_known)
    if request.licence_known:
        made |= _licence(request.licence_known)
    tasks = _tasks(request)
    if tasks:
        made["task_categories"] = tasks
    made["size_categories"] = [size_category(sum(file.num_rows for file in request.files))]
    made["pretty_name"] = request.name
    made["tags"] = ["luthier", "croissant", *(["synthetic"] if request.origins.num_synthetic else [])]
    files = [{"split": file.split, "path": file.path.name} for file in request.files]
    made["configs"] = [{"config_name": "default", "data_files": files}]
    made["dataset_info"] = _dataset_info(request)
    return made


def front_matter_text(request: CardRequest) -> str:
    """The metadata between its two lines of dashes."""
    text = yaml.safe_dump(front_matter(request), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


def size_category(num_rows: int) -> str:
    """The hub's class of size."""
    return next((name for limit, name in _SIZES if num_rows < limit), "n>1T" if num_rows >= 10**12 else "10B<n<100B")


def features(columns: dict[str, ValueType]) -> list[dict[str, Any]] | None:
    """The fields in the hub's notation; None where one of them is of more than one type, which it has no word for."""
    made = [_feature(column) for column in columns.values()]
    if any(one is None for one in made):
        return None
    return [{"name": name, **(one or {})} for name, one in zip(columns, made, strict=True)]


def _feature(column: ValueType) -> dict[str, Any] | None:
    if column.is_cut:
        return None
    kind = column.type
    if kind in _DTYPES:
        return {"dtype": _DTYPES[kind]}
    if kind == "list":
        if column.items is None:
            return {"list": "null"}
        if column.items.type in _DTYPES:
            return {"list": _DTYPES[column.items.type]}
        if column.items.type == "object" and column.items.members:
            inner = features(column.items.members)
            return None if inner is None else {"list": inner}
        return None
    if kind == "object" and column.members:
        inner = features(column.members)
        return None if inner is None else {"struct": inner}
    return None


def _licence(licence: str) -> dict[str, str]:
    """The hub's ids are SPDX's in lower case; what has no such form it calls other, by a name of its own."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        return {"license": licence.lower()}
    return {"license": "other", "license_name": licence}


def _tasks(request: CardRequest) -> list[str]:
    if request.audit.shape is None:
        return []
    return ["text-generation", *(["text-classification"] if request.audit.profile.get("num_labels") else [])]


def _dataset_info(request: CardRequest) -> dict[str, Any]:
    made: dict[str, Any] = {}
    found = [features(file.columns) for file in request.files]
    if found[0] is not None and all(one == found[0] for one in found):
        made["features"] = found[0]
    made["splits"] = [
        {"name": file.split, "num_bytes": file.num_bytes, "num_examples": file.num_rows} for file in request.files
    ]
    num_bytes = sum(file.num_bytes for file in request.files)
    return {**made, "download_size": num_bytes, "dataset_size": num_bytes}
