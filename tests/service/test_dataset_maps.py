"""The map of a version and the difference of two, each by a process of its own and then kept."""

from __future__ import annotations

import json
import random

import pytest

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.core.errors import NotFoundError, RequestError
from luthier.service import dataset_maps, dataset_versions
from luthier.service.context import Context
from luthier.service.dataset_diffs import difference, known_difference
from luthier.service.dataset_maps import draw_map, known_map, rows_of_group

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


def test_a_map_is_drawn_once_and_knows_its_groups(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bring(context, rows())
    assert known_map(context, CALLER, version) is None
    drawn = draw_map(context, CALLER, version)
    assert [point["line"] for point in drawn["points"]] == list(range(1, 91))
    assert drawn["what"] == "prompts"
    for number, group in enumerate(drawn["groups"]):
        inside = rows_of_group(drawn, number)
        assert len(inside) == group["num_points"]
        assert len({point["line"] % 3 for point in inside}) == 1, "a group is of one topic"
    monkeypatch.setattr(dataset_maps, "answer_to", lambda *_: pytest.fail("it was drawn already"))
    assert draw_map(context, CALLER, version) == known_map(context, CALLER, version) == drawn
    with pytest.raises(NotFoundError):
        draw_map(context, Caller(project_id="other"), version)


def test_a_difference_counts_by_field_and_marks_words(context: Context) -> None:
    before, after = rows(), rows()
    after[4]["completion"] = "another answer 4"
    del after[10]
    after.append({"prompt": "a new prompt", "completion": "<b>new</b>"})
    old = bring(context, before)
    new = bring(context, after, old.dataset_id)
    assert known_difference(context, CALLER, old, new) is None
    found = difference(context, CALLER, old, new)
    assert (found["num_same"], found["num_changed"], found["num_added"], found["num_removed"]) == (88, 1, 1, 1)
    assert found["by_column"] == {"completion": 1}
    changed, added, removed = found["examples"]
    assert changed["fields"] == [{"name": "completion", "spans": [["+", "another "], ["=", "answer 4"]]}]
    assert (changed["old_line"], changed["new_line"]) == (5, 5)
    assert (added["old_line"], added["new_line"], removed["old_line"], removed["new_line"]) == (None, 90, 11, None)
    assert known_difference(context, CALLER, old, new) == found
    assert known_difference(context, CALLER, old, new, "completion") is None
    with pytest.raises(RequestError, match="against itself"):
        difference(context, CALLER, old, old)
