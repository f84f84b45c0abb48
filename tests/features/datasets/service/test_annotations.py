"""Going through the rows of a version, one decision after the other, and the version that is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.annotations import (
    Queue,
    Show,
    decide,
    make_version,
    named_lines,
    open_queue,
    parse_lines,
    take_back,
)
from luthier.platform.home.context import Context

ADA, BEN = Caller(name="Ada"), Caller(name="Ben")


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "completion": f"It is {number}."}


def bring(context: Context, lines: Sequence[str], filename: str = "rows.jsonl") -> str:
    blocks = [(line + "\n").encode() for line in lines]
    file = dataset_versions.keep_rows(context, ADA, blocks, filename)
    return dataset_versions.create_dataset(context, ADA, "rows", file)[0].dataset_id


def content(context: Context, dataset_id: str) -> list[str]:
    version = dataset_versions.get_version(context, ADA, dataset_id)
    return dataset_versions.path_of(context, ADA, version).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def dataset_id(context: Context) -> str:
    """Rows on lines 1, 3, 4, 5 and 6; line 2 is blank, line 5 is not a row."""
    lines = [json.dumps(row(n)) for n in range(1, 7)]
    lines[1], lines[4] = "", "no row"
    return bring(context, lines)


def opened(context: Context, dataset_id: str, show: Show = "undecided", only: tuple[int, ...] = ()) -> Queue:
    return open_queue(context, ADA, dataset_id, None, show=show, only=only)


def walk(queue: Queue) -> list[int]:
    lines, line = [], queue.first()
    while line is not None:
        lines.append(line)
        line = queue.after(line)
    backward, line = [], 10**9 if not lines else lines[-1]
    while line is not None:
        backward.append(line)
        line = queue.before(line)
    assert backward[::-1] == lines or not lines
    return lines


def test_each_filter_shows_its_rows_in_the_order_of_the_file(context: Context, dataset_id: str) -> None:
    queue = opened(context, dataset_id)
    decide(context, ADA, queue, 3, "reject")
    decide(context, ADA, queue, 1, "accept")
    decide(context, ADA, queue, 6, "edit", edited=row(60))
    assert walk(opened(context, dataset_id)) == [4, 5]
    assert walk(opened(context, dataset_id, "all")) == [1, 3, 4, 5, 6]
    assert walk(opened(context, dataset_id, "rejected")) == [3]
    assert walk(opened(context, dataset_id, "edited")) == [6]
    assert walk(opened(context, dataset_id, "accepted")) == [1]
    assert walk(opened(context, dataset_id, "all", only=(6, 3, 2, 99))) == [3, 6], "2 is blank, 99 is not there"
    assert walk(opened(context, dataset_id, only=(3, 4))) == [4]
    assert dict(opened(context, dataset_id).counts) == {
        "accepted": 1, "rejected": 1, "edited": 1, "all": 5, "decided": 3, "undecided": 2,
    }  # fmt: skip
    assert opened(context, dataset_id, only=(3, 4)).counts["decided"] == 1
    with pytest.raises(NotFoundError, match="none of the named rows"):
        opened(context, dataset_id, only=(2, 99))


def test_the_newest_word_counts_and_who_overrules_is_told(context: Context, dataset_id: str) -> None:
    before = opened(context, dataset_id)
    first = decide(context, BEN, before, 1, "reject")
    assert first.overruled is None
    meanwhile = decide(context, ADA, opened(context, dataset_id), 1, "accept", seen=None)
    assert meanwhile.overruled is not None
    assert (meanwhile.overruled.author, meanwhile.overruled.decision) == ("Ben", "reject")
    queue = opened(context, dataset_id)
    assert queue.decisions[1].author == "Ada"
    assert decide(context, BEN, queue, 1, "reject", seen=queue.decisions[1].decided_at).overruled is None
    assert decide(context, BEN, opened(context, dataset_id), 1, "accept").overruled is None, "his own word is no news"


def test_ones_own_newest_decision_is_taken_back(context: Context, dataset_id: str) -> None:
    for caller, line in ((ADA, 4), (ADA, 1), (BEN, 3)):
        decide(context, caller, opened(context, dataset_id), line, "accept")
    taken = [take_back(context, ADA, opened(context, dataset_id)) for _ in range(3)]
    assert [None if one is None else one.row for one in taken] == [1, 4, None]
    assert set(opened(context, dataset_id).decisions) == {3}
    assert take_back(context, ADA, opened(context, dataset_id), 3) is not None
    assert opened(context, dataset_id).by_author == []


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        (row(4), "unchanged"),
        ({"prompt": "p", "completion": " "}, "nothing to learn"),
        ({"prompt": "p"}, "completion"),
        ({"text": "p"}, "absent"),
        ({"prompt": "p", "completion": 3}, "a number"),
        (None, "without a row"),
    ],
)
def test_an_edit_must_be_fit_to_train_on(
    context: Context, dataset_id: str, edited: dict[str, Any] | None, words: str
) -> None:
    queue = opened(context, dataset_id)
    with pytest.raises(RequestError, match=words):
        decide(context, ADA, queue, 4, "edit", edited=edited)
    assert opened(context, dataset_id).decisions == {}


def test_rows_of_no_known_shape_keep_their_fields_and_types(context: Context) -> None:
    dataset_id = bring(context, [json.dumps({"question": f"q{n}", "score": n}) for n in range(3)])
    queue = opened(context, dataset_id)
    for edited, words in (
        ({"question": "q"}, "'score' is missing"),
        ({"question": "q", "scor": 1, "score": 1}, "'scor' is new"),
        ({"question": "q", "score": "1"}, "another type"),
    ):
        with pytest.raises(RequestError, match=words):
            decide(context, ADA, queue, 1, "edit", edited=edited)
    decide(context, ADA, queue, 1, "edit", edited={"question": "better", "score": 0})


def test_a_version_leaves_out_what_was_rejected_and_holds_what_was_edited(context: Context, dataset_id: str) -> None:
    before = content(context, dataset_id)
    queue = opened(context, dataset_id)
    decide(context, BEN, queue, 1, "accept")
    decide(context, ADA, queue, 3, "reject")
    decide(context, ADA, queue, 4, "edit", edited={"prompt": "ü \u2028", "completion": "é"})
    made = make_version(context, ADA, opened(context, dataset_id), note="a look")
    assert (
        content(context, dataset_id)
        == "\n".join(
            [before[0], json.dumps({"prompt": "ü \u2028", "completion": "é"}, ensure_ascii=False), "no row", before[5]]
        ).splitlines()
    )
    assert (made.number, made.parent, made.origin, made.note, made.num_rows) == (2, 1, "annotation", "a look", 4)
    assert made.details == {
        "from_version": 1, "accepted": 1, "rejected": 1, "edited": 1, "undecided": 2, "unreadable": 0,
        "people": {"Ada": 2, "Ben": 1},
    }  # fmt: skip
    assert opened(context, dataset_id).decisions == {}, "the new version is looked at again"
    assert [entry.action for entry in context.audit_log.newest(limit=1, project_id=None)] == ["dataset.version_added"]


def test_a_table_becomes_jsonl_without_what_could_not_be_read(context: Context) -> None:
    lines = ["prompt,completion", "p1,c1", "only one", "p3,c3", "p4,c4"]
    dataset_id = bring(context, lines, "rows.csv")
    queue = opened(context, dataset_id)
    assert queue.counts["all"] == 4
    decide(context, ADA, queue, 3, "reject")
    made = make_version(context, ADA, opened(context, dataset_id))
    assert made.filename == "rows.jsonl"
    assert made.details["unreadable"] == 1
    assert [json.loads(line) for line in content(context, dataset_id)] == [
        {"prompt": "p1", "completion": "c1"},
        {"prompt": "p4", "completion": "c4"},
    ]


def test_no_version_is_made_of_nothing(context: Context, dataset_id: str) -> None:
    decide(context, ADA, opened(context, dataset_id), 1, "accept")
    with pytest.raises(RequestError, match="no row was rejected or edited"):
        make_version(context, ADA, opened(context, dataset_id))
    for line in (1, 3, 4, 5, 6):
        decide(context, ADA, opened(context, dataset_id), line, "reject")
    with pytest.raises(RequestError, match="all rows were rejected"):
        make_version(context, ADA, opened(context, dataset_id))


def test_rows_and_datasets_of_nobody(context: Context, dataset_id: str) -> None:
    queue = opened(context, dataset_id)
    for line in (0, 2, 7, -1):
        with pytest.raises(NotFoundError, match="no row on line"):
            decide(context, ADA, queue, line, "accept")
    with pytest.raises(NotFoundError):
        open_queue(context, Caller(project_id="other"), dataset_id, None)
    with pytest.raises(NotFoundError):
        open_queue(context, ADA, dataset_id, 2)


def test_lists_of_lines_are_read_and_written() -> None:
    assert parse_lines(" 3,1, 7-9,8 ,") == (1, 3, 7, 8, 9)
    assert named_lines((1, 3, 7, 8, 9)) == "1,3,7-9"
    assert parse_lines("") == ()
    assert parse_lines(named_lines(tuple(range(5, 400)))) == tuple(range(5, 400))
    for text in ("x", "1-", "-3", "1-99999999999", "٣", "1;2", "0-20000", "5-3", "1,5-3", ",", " , "):
        with pytest.raises(RequestError, match="rows="):
            parse_lines(text)
