"""Test cases as rows of a dataset."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.errors import ConflictError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.service import SavedCase, save_case
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

ME = Caller()
QUESTION = (Message(role="user", content="Which wood?"),)


def save(home: Context, reference: str, *, dataset: str = "cases", by: Caller = ME) -> SavedCase:
    return save_case(home, by, QUESTION, reference, dataset=dataset, model="tiny")


def rows(home: Context, saved: SavedCase) -> list[str]:
    text = dataset_versions.path_of(home, ME, saved.version).read_text(encoding="utf-8")
    return [json.loads(line)["messages"][-1]["content"] for line in text.splitlines()]


def brought(home: Context, name: str, filename: str, content: bytes) -> None:
    dataset_versions.create_dataset(home, ME, name, dataset_versions.keep_rows(home, ME, [content], filename))


def test_each_case_is_a_version_more_and_the_log_tells(home: Context) -> None:
    first, second = save(home, "Spruce."), save(home, "Fichte, ›grün‹")
    assert (first.version.number, second.version.number, second.version.parent) == (1, 2, 1)
    assert rows(home, second) == ["Spruce.", "Fichte, ›grün‹"]
    assert rows(home, first) == ["Spruce."], "a version never changes"
    assert (second.version.origin, second.version.details) == ("test case", {"model": "tiny"})


def test_who_saves_at_once_loses_no_row(home: Context) -> None:
    _ = home.database
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: save(home, f"answer {n}"), range(8)))
    [(dataset, newest)] = dataset_versions.list_datasets(home, ME)
    assert newest.number == 8
    assert sorted(rows(home, SavedCase(dataset, newest))) == [f"answer {n}" for n in range(8)]


def test_rows_that_somebody_brought_are_added_to(home: Context) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    brought(home, "cases", "mine.jsonl", json.dumps(row).encode())  # the last line has no end
    assert rows(home, save(home, "Spruce.")) == ["b", "Spruce."]


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("a.csv", b"prompt,completion\na,b\n"),
        ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n'),
        ("a.jsonl", b"no\n"),
    ],
)
def test_rows_of_another_kind_are_left_alone(home: Context, filename: str, content: bytes) -> None:
    brought(home, "cases", filename, content)
    with pytest.raises(ConflictError, match="to which no conversation can be added"):
        save(home, "Spruce.")


def test_what_is_no_case_is_refused_and_nothing_kept(home: Context) -> None:
    with pytest.raises(RequestError, match="without an answer"):
        save(home, " \n")
    with pytest.raises(RequestError, match="the name"):
        save(home, "Spruce.", dataset=" ")
    assert dataset_versions.list_datasets(home, ME) == []
    assert files.list_files(home, ME.project_id)[0] == []


def test_projects_have_cases_of_their_own(home: Context) -> None:
    other = Caller(project_id=create_project(home, "other").project_id)
    save(home, "Spruce.")
    assert save(home, "Maple.", by=other).version.number == 1
