"""The map of a version and the difference of two, each by a process of its own and then kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.version_analyses import difference, map_of, rows_of_group
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult
from luthier.testing.servers import wait_for

CALLER = Caller(name="Ada")
TOPICS = ("soup bread cheese tasty kitchen", "engine wheel brake fuel tyre", "python loop class import list")


def rows() -> list[dict[str, str]]:
    draw = random.Random(1)
    return [
        {"prompt": " ".join(draw.choices(TOPICS[n % 3].split(), k=10)), "completion": f"answer {n}"} for n in range(90)
    ]


def bring(context: Context, contents: list[dict[str, str]], dataset_id: str | None = None) -> DatasetVersion:
    blocks = [(json.dumps(row) + "\n").encode() for row in contents]
    file = dataset_versions.keep_rows(context, CALLER, blocks, "rows.jsonl")
    if dataset_id is None:
        return dataset_versions.create_dataset(context, CALLER, "rows", file)[1]
    return dataset_versions.add_version(context, CALLER, dataset_id, file, origin="upload", parent=1)


def answered(ask: Callable[[], CachedResult]) -> dict[str, Any]:
    """What is found in the end; the first look begins it."""
    assert ask().state == "running"
    wait_for(lambda: ask().state != "running")
    found = ask()
    assert found.answer is not None, found.error
    return found.answer


def test_a_map_is_drawn_once_and_knows_its_groups(context: Context) -> None:
    version = bring(context, rows())
    drawn = answered(lambda: map_of(context, CALLER, version))
    assert [point["line"] for point in drawn["points"]] == list(range(1, 91))
    assert drawn["what"] == "prompts"
    for number, group in nonempty(enumerate(drawn["groups"])):
        inside = rows_of_group(drawn, number)
        assert len(inside) == group["num_points"]
        assert len({point["line"] % 3 for point in inside}) == 1, "a group is of one topic"
    with pytest.raises(NotFoundError):
        map_of(context, Caller(project_id="other"), version)


def test_what_cannot_be_read_has_no_map_and_says_so(context: Context) -> None:
    file = dataset_versions.keep_rows(context, CALLER, [b"[{"], "broken.json")
    version = dataset_versions.create_dataset(context, CALLER, "broken", file)[1]
    wait_for(lambda: map_of(context, CALLER, version).state == "failed")
    error = map_of(context, CALLER, version).error
    assert error is not None
    assert "broken.json is not JSON" in error.came
    assert str(context.home) not in str(error)
    assert map_of(context, CALLER, version, again=True).state == "running"
    wait_for(lambda: map_of(context, CALLER, version).state == "failed")


def test_a_difference_counts_by_field_and_marks_words(context: Context) -> None:
    before, after = rows(), rows()
    after[4]["completion"] = "another answer 4"
    del after[10]
    after.append({"prompt": "a new prompt", "completion": "<b>new</b>"})
    old = bring(context, before)
    new = bring(context, after, old.dataset_id)
    found = answered(lambda: difference(context, CALLER, old, new))
    assert (found["num_same"], found["num_changed"], found["num_added"], found["num_removed"]) == (88, 1, 1, 1)
    assert found["by_column"] == {"completion": 1}
    changed, added, removed = found["examples"]
    assert changed["fields"] == [{"name": "completion", "spans": [["+", "another "], ["=", "answer 4"]]}]
    assert (changed["old_line"], changed["new_line"]) == (5, 5)
    assert added["fields"][1] == {"name": "completion", "spans": [["=", "<b>new</b>"]]}
    assert (added["old_line"], added["new_line"], removed["old_line"], removed["new_line"]) == (None, 90, 11, None)
    assert str(context.home) not in str(found)
    with pytest.raises(RequestError, match="against itself"):
        difference(context, CALLER, old, old)
