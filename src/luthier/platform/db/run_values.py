"""The values that runs are searched, sorted and shown by, taken from the JSON of plans, results and evaluations.

A key is `section.key` of the plan by the name that a recipe has for it (`training.learning_rate`), a figure of the
result (`train_loss`), `verdict`, or `metric.NAME` of the tuned model. The functions work on plain documents, so that
those of any version can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, or_, select

from luthier.core.aliases import new_key
from luthier.core.text.names import display_name
from luthier.platform.db.tables import dataset_versions, datasets, files, run_values

Value = float | str
SECTIONS: Final = ("method", "objective", "training")
"""Parts of a plan whose plain values are kept."""
RESULTS: Final = {
    "train_loss": "train_loss",
    "best_validation_loss": "validation_loss",
    "best_step": "best_step",
    "num_tokens": "tokens",
    "num_examples": "examples",
    "num_trainable_parameters": "trainable_parameters",
    "tokens_per_second": "tokens_per_second",
    "seconds": "seconds",
    "seconds_per_step": "seconds_per_step",
    "peak_memory_bytes": "memory_bytes",
}
"""Figures of a result, and the keys under which they are kept."""
BILLED: Final = ("hours", "usd", "energy_kwh")
ROWS: Final = "data.train_rows"
DATASET: Final = "dataset"
NAME: Final = "name"
VERDICT: Final = "verdict"
METRIC: Final = "metric."
_MAX_KEY: Final = 100
_MAX_TEXT: Final = 200


def of_plan(document: Mapping[str, Any]) -> dict[str, Value]:
    """The plain values of a plan: numbers, yes and no as `true` and `false`, and short texts."""
    found: dict[str, Value] = {}
    for section in SECTIONS:
        for key, value in (document.get(section) or {}).items():
            _put(found, new_key(f"{section}.{key}"), value)
    train = (document.get("data") or {}).get("train") or {}
    _put(found, ROWS, train.get("num_rows"))
    return found


def of_result(document: Mapping[str, Any]) -> dict[str, Value]:
    """The figures of a result and of its bill."""
    found: dict[str, Value] = {}
    for name, key in RESULTS.items():
        _put(found, key, document.get(name))
    bill = document.get("bill") or {}
    for name in BILLED:
        value = bill.get(name)
        # Money and energy are estimates with a range.
        _put(found, name, value.get("value") if isinstance(value, Mapping) else value)
    return found


def of_evaluation(document: Mapping[str, Any]) -> dict[str, Value]:
    """The verdict, and the metrics of the system that was evaluated last: the tuned model."""
    found: dict[str, Value] = {}
    verdict = document.get("verdict")
    if verdict:
        _put(found, VERDICT, verdict.get("word"))
    # `or`: documents of earlier versions have null where there is nothing.
    systems = document.get("systems") or []
    for name, metric in (systems[-1].get("metrics") or {}).items() if systems else ():
        _put(found, f"{METRIC}{name}", metric.get("value"))
    return found


def default_name(train_file: str, dataset: str | None, base_model: str, created_at: str) -> str:
    """The name of a run before someone gives it another one.

    Args:
        train_file: The file of its training rows, as a path or URL.
        dataset: The name of the dataset that the file belongs to; None where it belongs to none.
        base_model: The name of the base model.
        created_at: When it was made, in ISO 8601.
    """
    words = dataset or " ".join(PurePath(train_file).stem.replace("_", " ").replace("-", " ").split())
    # A folder of a model may have a name of any length; PostgreSQL refuses what the column has no room for.
    return display_name(words[:1].upper() + words[1:], base_model, datetime.fromisoformat(created_at))[:_MAX_TEXT]


def dataset_of(connection: Connection, project_id: str, sha256: str) -> str | None:
    """The name of the project's newest dataset with a version that holds this file."""
    query = (
        select(datasets.c.name)
        .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.dataset_id)
        .join(files, files.c.file_id == dataset_versions.c.file_id)
        .where(files.c.sha256 == sha256, datasets.c.project_id == project_id)
        .order_by(datasets.c.number.desc())
        .limit(1)
    )
    name: str | None = connection.execute(query).scalar()
    return name


def put_values(connection: Connection, run_id: str, values: Mapping[str, Value]) -> None:
    """Write values of a run in place of those with the same keys. The run must have its row."""
    if not values:
        return
    # Delete and insert, in the caller's transaction: two statements for any number of values, in both databases.
    is_old = (run_values.c.run_id == run_id) & run_values.c.key.in_(list(values))
    connection.execute(delete(run_values).where(is_old))
    connection.execute(insert(run_values), rows_of(run_id, values))


def put_evaluation(connection: Connection, run_id: str, values: Mapping[str, Value]) -> None:
    """Write what `of_evaluation` found in place of all that is from the evaluation before, with other metrics, too."""
    is_old = or_(run_values.c.key == VERDICT, run_values.c.key.startswith(METRIC, autoescape=True))
    connection.execute(delete(run_values).where(run_values.c.run_id == run_id, is_old))
    put_values(connection, run_id, values)


def rows_of(run_id: str, values: Mapping[str, Value]) -> list[dict[str, Any]]:
    """The rows of the table for these values."""
    return [
        {
            "run_id": run_id,
            "key": key,
            "number": None if isinstance(value, str) else value,
            "text": value if isinstance(value, str) else None,
        }
        for key, value in values.items()
    ]


def _put(found: dict[str, Value], key: str, value: Any) -> None:
    """Keep a value that can be searched by; lists, mappings and what is not there are left out."""
    if len(key) > _MAX_KEY:
        return
    # Before numbers, since bool is one: `true` is searched for as a word.
    if isinstance(value, bool):
        found[key] = "true" if value else "false"
    elif isinstance(value, int | float):
        # NaN compares with nothing, and PostgreSQL and SQLite sort it differently.
        if math.isfinite(value):
            found[key] = float(value)
    elif isinstance(value, str) and 0 < len(value) <= _MAX_TEXT:
        found[key] = value
