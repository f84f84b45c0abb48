"""The rows of a quickstart are datasets of its project: each content once, whatever is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fixtures.service import write_rows

from luthier.core.access import Caller
from luthier.features.datasets import service as datasets
from luthier.features.workflows.quickstart.rows import store_rows
from luthier.platform.home.context import Context

ME = Caller()
SIDES = ("train", "validation", "held_out")
NAMES = {f"Python documentation-{ending}" for ending in ("train", "validation", "held-out")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for side in SIDES:
        write_rows(tmp_path / f"{side}.jsonl", [{"prompt": f"{side} {place}", "completion": "x"} for place in range(9)])
    return tmp_path


def versions(context: Context) -> dict[str, int]:
    """The number of versions by the name of the dataset."""
    return {one.name: len(context.datasets.versions(one.dataset_id)) for one, _ in datasets.list_datasets(context, ME)}


def test_each_side_is_a_dataset_and_nothing_is_stored_twice(context: Context, folder: Path) -> None:
    for _ in range(2):
        store_rows(context, ME, folder, SIDES)
        assert versions(context) == dict.fromkeys(NAMES, 1)
    one = next(version for dataset, version in datasets.list_datasets(context, ME) if dataset.name.endswith("held-out"))
    assert (one.num_rows, one.details["side"]) == (9, "held_out")
    assert datasets.path_of(context, ME, one).read_bytes() == (folder / "held_out.jsonl").read_bytes()


def test_other_rows_are_the_next_version(context: Context, folder: Path) -> None:
    store_rows(context, ME, folder, SIDES)
    write_rows(folder / "train.jsonl", [{"prompt": "other", "completion": "x"}] * 3)
    store_rows(context, ME, folder, SIDES)
    assert versions(context) == dict.fromkeys(NAMES, 1) | {"Python documentation-train": 2}


def test_rows_of_somebody_else_keep_their_name(context: Context, folder: Path) -> None:
    file = datasets.keep_rows(context, ME, [b'{"prompt": "mine", "completion": "x"}\n'], "mine.jsonl")
    datasets.create_dataset(context, ME, "Python documentation-train", file)
    store_rows(context, ME, folder, SIDES)
    assert versions(context) == dict.fromkeys({*NAMES, "Python documentation-train 2"}, 1)
    store_rows(context, ME, folder, SIDES)
    assert versions(context)["Python documentation-train 2"] == 1


def test_a_stop_between_two_sides_is_made_good(context: Context, folder: Path) -> None:
    store_rows(context, ME, folder, SIDES[:1])
    store_rows(context, ME, folder, SIDES)
    assert versions(context) == dict.fromkeys(NAMES, 1)
