"""A version split into datasets that share nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import DataError, FileQuotaError, NotFoundError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.derived_versions import SplitWishes, begin_split, last_split, split_dataset, split_state
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

CALLER = Caller(name="Ada")
WORDS = ["amber", "brick", "cloud", "delta", "ember", "field", "grape", "house", "ivory", "joker"]


def row(number: int) -> dict[str, Any]:
    words = " ".join(WORDS[(number * step) % 10] for step in (1, 3, 7))
    return {"prompt": f"{number} {words}?", "completion": f"{words} {number}", "topic": WORDS[number % 2]}


def bring(context: Context, num_rows: int, name: str = "faq") -> DatasetVersion:
    lines = [(json.dumps(row(n)) + "\n").encode() for n in range(num_rows)]
    file = dataset_versions.keep_rows(context, CALLER, lines, "faq.jsonl")
    return dataset_versions.create_dataset(context, CALLER, name, file)[1]


def rows_of(context: Context, version: DatasetVersion) -> list[dict[str, Any]]:
    text = dataset_versions.path_of(context, CALLER, version).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_three_datasets_hold_every_row_once_with_the_proof(context: Context) -> None:
    version = bring(context, 60)
    made = split_dataset(context, CALLER, version, SplitWishes(0.2, 0.1, seed=3, stratify_by="topic"))
    assert [(dataset.name, one.number, one.origin) for dataset, one in made.sides.values()] == [
        ("faq-train", 1, "split"),
        ("faq-validation", 1, "split"),
        ("faq-held-out", 1, "split"),
    ]
    rows = [row["prompt"] for _, one in made.sides.values() for row in rows_of(context, one)]
    assert sorted(rows) == sorted(row(n)["prompt"] for n in range(60))
    assert made.sides["held_out"][1].num_rows == 6
    assert (made.document["proof"]["exact"], made.document["proof"]["near_duplicate"]) == (0, 0)
    assert made.document["file"] == "faq.jsonl", "no path of the machine"
    details = made.sides["validation"][1].details
    assert details["of"] == {"dataset_id": version.dataset_id, "name": "faq", "version": 1}
    dataset = context.datasets.get(CALLER.project_id, version.dataset_id)
    assert last_split(context, CALLER, dataset) == made

    assert split_state(context, version).state == "unasked"
    assert begin_split(context, CALLER, version, SplitWishes(0.2, 0.0, seed=3)).state == "running"
    wait_for(lambda: split_state(context, version).state == "answered")
    assert split_state(context, version).answer == {"train": 2, "validation": 2}
    last = last_split(context, CALLER, dataset)
    assert last is not None
    assert last.sides["train"][1].parent == 1
    assert set(last.sides) == {"train", "validation"}, "held-out is of the earlier split, and stands in this train"


def test_a_split_that_has_no_room_for_all_of_its_sides_makes_none(context: Context) -> None:
    version = bring(context, 60)
    [used] = context.files.used_bytes().values()
    context.access.set_file_quota(CALLER.project_id, used + used * 3 // 4)  # enough for the training rows
    with pytest.raises(FileQuotaError):
        split_dataset(context, CALLER, version, SplitWishes(0.2, 0.2, near_threshold=None))
    assert [dataset.name for dataset, _ in dataset_versions.list_datasets(context, CALLER)] == ["faq"]
    assert context.files.used_bytes() == {CALLER.project_id: used}


def test_wishes_that_cannot_be_met_make_nothing(context: Context) -> None:
    version = bring(context, 4)
    for wishes, error in (
        (SplitWishes(near_threshold=0.3), RequestError),
        (SplitWishes(0, 0), DataError),
        (SplitWishes(stratify_by="nowhere"), DataError),
    ):
        with pytest.raises(error):
            split_dataset(context, CALLER, version, wishes)
    with pytest.raises(NotFoundError):
        split_dataset(context, Caller(project_id="other"), version, SplitWishes())
    with pytest.raises(RequestError, match="a name of 90 characters"):
        split_dataset(context, CALLER, bring(context, 4, "n" * 90), SplitWishes())
    assert len(dataset_versions.list_datasets(context, CALLER)) == 2
    dataset = context.datasets.get(CALLER.project_id, version.dataset_id)
    assert last_split(context, CALLER, dataset) is None
