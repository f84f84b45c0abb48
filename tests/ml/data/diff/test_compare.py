from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.ml.data.diff.compare import DatasetDiff, diff, match
from luthier.ml.data.diff.version import read_version

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(num: int) -> Rows:
    return [{"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}, of course."} for n in range(num)]


def texts(num: int) -> Rows:
    return [{"text": f"Passage {n} speaks of {n * 7}."} for n in range(num)]


def compared(folder: Path, old: Rows, new: Rows, **options: Any) -> DatasetDiff:
    return diff(write(folder / "old.jsonl", old), write(folder / "new.jsonl", new), **options)


def counts(found: DatasetDiff) -> tuple[int, int, int, int]:
    return found.num_same, len(found.changed), len(found.added), len(found.removed)


@pytest.mark.parametrize("make", [pairs, texts])
def test_the_same_rows_in_another_order_are_no_difference(make: Any, tmp_path: Path) -> None:
    old = make(50)
    new = [{name: row[name] for name in reversed(row)} for row in random.Random(1).sample(old, 50)]
    found = compared(tmp_path, old, new)
    assert counts(found) == (50, 0, 0, 0)
    assert not found.is_different
    assert found.examples == ()
    assert not [figure for figure in found.figures if figure.change and figure.name != "size"]


def test_rows_are_told_apart_by_their_prompts(tmp_path: Path) -> None:
    old, new = pairs(10), pairs(10)
    new[3]["completion"] = "It is 4, as you know."
    del new[7]
    new.insert(0, {"prompt": "New?", "completion": "Yes."})
    random.Random(2).shuffle(new)
    found = compared(tmp_path, old, new)
    assert found.key == "the prompt of the row"
    assert counts(found) == (8, 1, 1, 1)
    assert found.removed == ("old.jsonl:8",)
    assert found.changed[0][0] == "old.jsonl:4"
    (changed, added, removed) = found.examples
    assert [(one.field, one.old, one.new) for one in changed.fields] == [
        ("completion", "It is 4, of course.", "It is 4, as you know.")
    ]
    assert [(one.field, one.new) for one in added.fields] == [("prompt", "New?"), ("completion", "Yes.")]
    assert (removed.new, [one.new for one in removed.fields]) == (None, [None, None])


def test_ids_come_before_prompts_and_a_named_field_before_both(tmp_path: Path) -> None:
    old = [{"id": n, "nested": {"name": f"n{n}"}, **row} for n, row in enumerate(pairs(6))]
    new = [{**row, "prompt": row["prompt"] + " Tell me."} for row in old]
    new[5] = {**new[5], "id": 99}
    by_id = compared(tmp_path, old, new)
    assert by_id.key == "the id of the row"
    assert counts(by_id) == (0, 5, 1, 1)
    by_name = compared(tmp_path, old, new, key="nested.name")
    assert by_name.key == "the field nested.name"
    assert counts(by_name) == (0, 6, 0, 0)


def test_without_id_or_prompt_a_change_keeps_its_place_among_unchanged_rows(tmp_path: Path) -> None:
    old, new = texts(20), texts(20)
    new[12]["text"] = "Passage 12 says something else."
    new[:0] = [{"text": "A new start."}, {"text": "And more."}]
    found = compared(tmp_path, old, new)
    assert found.key.startswith("the place among unchanged rows")
    assert counts(found) == (19, 1, 2, 0)
    assert found.changed == (("old.jsonl:13", "new.jsonl:15"),)
    assert found.added == ("new.jsonl:1", "new.jsonl:2")


def test_between_unchanged_rows_those_of_one_prompt_are_pairs_first(tmp_path: Path) -> None:
    """One row without a prompt puts all of them by place; a copy that was removed is not the row behind it."""
    first, second, third = pairs(3)
    nameless = {"completion": "No prompt."}
    masked = {**third, "completion": "It is three."}
    found = compared(tmp_path, [nameless, first, second, second, third], [nameless, first, second, masked])
    assert found.key.startswith("the place among unchanged rows")
    assert found.changed == (("old.jsonl:5", "new.jsonl:4"),)
    assert found.removed == ("old.jsonl:4",)


def test_copies_are_counted_one_by_one(tmp_path: Path) -> None:
    row, other = pairs(2)
    found = compared(tmp_path, [row, row, row, other], [row, other, other])
    assert counts(found) == (2, 0, 1, 2)
    changed = {**row, "completion": "Else."}
    assert counts(compared(tmp_path, [row, row], [changed, row])) == (1, 1, 0, 0)


def test_a_key_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row old.jsonl:1 has no 'name'"):
        compared(tmp_path, pairs(2), pairs(2), key="name")


def test_fields_and_types_that_changed_are_listed(tmp_path: Path) -> None:
    old = [{**row, "score": 1, "gone": True, "tags": ["a"]} for row in pairs(3)]
    new = [{**row, "score": "1", "tags": [{"b": 1}], "come": None} for row in pairs(3)]
    found = compared(tmp_path, old, new)
    assert {change.name: (change.old, change.new) for change in found.columns} == {
        "score": ("integer", "text"),
        "gone": ("boolean", None),
        "tags": ("list of texts", "list of objects (b)"),
        "come": (None, "null"),
    }
    assert counts(found) == (0, 3, 0, 0)


def test_shapes_and_formats_may_differ(tmp_path: Path) -> None:
    new = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in pairs(5)
    ]
    found = compared(tmp_path, pairs(5), new)
    assert found.shapes == ("prompt_completion", "chat")
    assert counts(found) == (0, 5, 0, 0)  # the prompt is the same in either shape
    csv = tmp_path / "rows.csv"
    csv.write_text("prompt,completion\n" + "".join(f'{r["prompt"]},"{r["completion"]}"\n' for r in pairs(5)))
    assert counts(diff(write(tmp_path / "a.jsonl", pairs(5)), csv)) == (5, 0, 0, 0)


def test_figures_show_both_versions_and_the_change(tmp_path: Path) -> None:
    old = [{**row, "label": "a"} for row in pairs(4)]
    new = [{**row, "label": "b" if n else "a"} for n, row in enumerate(pairs(8))]
    found = {figure.name: figure for figure in compared(tmp_path, old, new).figures}
    assert (found["rows"].old, found["rows"].new, found["rows"].change) == (4, 8, 4)
    assert (found["label a"].old, found["label a"].new) == (1.0, 0.125)
    assert found["label b"].change == 0.875
    assert found["length, longest"].old == len("What is 3 plus one?It is 4, of course.a")
    assert found["language en"].new is not None


def test_rows_that_cannot_be_read_are_counted_and_said(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.jsonl", pairs(3)), write(tmp_path / "new.jsonl", pairs(3))
    new.write_text(new.read_text() + "{broken\n")
    found = diff(old, new)
    assert counts(found) == (3, 0, 0, 0)
    assert found.is_different
    assert found.notes == ("1 row of new.jsonl cannot be read: not compared",)


def split(folder: Path, sides: dict[str, Rows]) -> Path:
    folder.mkdir()
    files = {name: write(folder / f"{name}.jsonl", rows) for name, rows in sides.items()}
    document = {"sides": {name: {"file": file.name, "sha256": sha256_file(file)} for name, file in files.items()}}
    (folder / "split.json").write_text(json.dumps(document))
    return folder


def test_rows_that_changed_the_side_of_a_split_are_named_as_leaks(tmp_path: Path) -> None:
    rows = pairs(20)
    old = split(tmp_path / "v1", {"train": rows[:16], "validation": rows[16:18], "held_out": rows[18:]})
    changed = {**rows[1], "completion": "Changed on the way."}
    new = split(
        tmp_path / "v2", {"train": rows[3:16], "validation": rows[16:18], "held_out": [rows[0], changed, *rows[18:]]}
    )
    found = diff(old, new)
    assert counts(found) == (18, 1, 0, 1)
    (move,) = found.moves
    assert (move.old_side, move.new_side, move.is_leak) == ("train", "held_out", True)
    assert move.rows == (("train.jsonl:1", "held_out.jsonl:1"), ("train.jsonl:2", "held_out.jsonl:2"))
    assert found.notes[0].startswith("leak: 2 held_out rows of the new version were in train of the old one")
    figures = {figure.name: figure.change for figure in found.figures}
    assert (figures["rows of train"], figures["rows of held_out"]) == (-3, 2)


def test_copies_prefer_their_own_side(tmp_path: Path) -> None:
    row, *rest = pairs(6)
    old = split(tmp_path / "v1", {"train": [*rest, row], "held_out": [row]})
    new = split(tmp_path / "v2", {"train": [row, *rest], "held_out": [row]})
    found = diff(old, new)
    assert found.moves == ()
    assert not found.is_different


def test_a_side_that_is_not_as_its_description_says_is_noted(tmp_path: Path) -> None:
    old = split(tmp_path / "v1", {"train": pairs(3)})
    new = split(tmp_path / "v2", {"train": pairs(3)})
    write(new / "train.jsonl", pairs(2))
    assert "train.jsonl is not as" in diff(old, new).notes[0]


def test_impossible_comparisons(tmp_path: Path) -> None:
    file = write(tmp_path / "old.jsonl", pairs(2))
    folder = split(tmp_path / "v1", {"train": pairs(2)})
    with pytest.raises(RequestError, match="is a folder and"):
        diff(folder, file)
    (tmp_path / "bare").mkdir()
    with pytest.raises(RequestError, match=r"without split\.json"):
        diff(tmp_path / "bare", folder)
    with pytest.raises(NotFoundError):
        diff(file, tmp_path / "none.jsonl")
    (folder / "split.json").write_text("[]")
    with pytest.raises(DataError, match="is not a description of a split"):
        diff(folder, folder)
    (folder / "split.json").write_text('{"sides": {"train": {"file": "../old.jsonl", "sha256": ""}}}')
    with pytest.raises(NotFoundError, match=r"names old\.jsonl"):
        diff(folder, folder)


@given(
    old=st.lists(st.integers(0, 5), max_size=12),
    new=st.lists(st.integers(0, 5), max_size=12),
    make=st.sampled_from([pairs, texts]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_the_same_changed_or_alone(old: list[int], new: list[int], make: Any, tmp_path: Path) -> None:
    pool = make(6)
    extra = make(7)[6]  # no file may be empty
    versions = [
        read_version(
            write(tmp_path / name, [pool[n] for n in places] + [extra]), SilentProgress(), key=None, mapping=None
        )
        for name, places in (("old.jsonl", old), ("new.jsonl", new))
    ]
    found = match(versions[0].rows, versions[1].rows, has_field=False)
    assert sorted([*found.same["old"], *found.changed["old"], *found.removed]) == list(range(len(old) + 1))
    assert sorted([*found.same["new"], *found.changed["new"], *found.added]) == list(range(len(new) + 1))
    assert found.same.height == 1 + sum(min(old.count(n), new.count(n)) for n in range(6))
    if make is pairs:
        assert found.changed.height == 0
