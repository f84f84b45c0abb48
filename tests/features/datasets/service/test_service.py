"""Datasets of a project: brought, looked at, replaced, removed, and never half kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import polars as pl
import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError, WorkError
from luthier.features.datasets import rows as dataset_index
from luthier.features.datasets import rows as dataset_rows
from luthier.features.datasets import service as dataset_versions
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.auth.service import create_project
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult
from luthier.testing.servers import wait_for

ADA = Caller(name="ada")
ROWS = [{"prompt": f"p{n}", "completion": "c"} for n in range(3)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def bring(context: Context, content: bytes = JSONL, filename: str = "rows.jsonl") -> StoredFile:
    with files.incoming_file(context) as incoming:
        incoming.write(content)
        return dataset_versions.bring_file(context, ADA, incoming, filename)


def workbook(folder: Path, *sheets: str) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name in sheets:
        sheet = book.create_sheet(name)
        sheet.append(["Question", "Answer"])
        sheet.append(["Which?", "This."])
    book.save(folder / "made.xlsx")
    return (folder / "made.xlsx").read_bytes()


def test_what_spreadsheets_save_is_brought_and_it_is_said_how_it_was_read(context: Context, tmp_path: Path) -> None:
    semicolons = "Question;Answer;Nr\nWhat costs 3,50 €?;Café;1\n".encode("cp1252")
    for number, (content, filename, said) in enumerate(
        [
            (semicolons, "rows.csv", "read as semicolons, Windows-1252"),
            (semicolons.replace(b";", b"\t"), "rows.tsv", "read as tabs, Windows-1252"),
            (workbook(tmp_path, "Answers"), "rows.xlsx", "read as the sheet 'Answers'"),
        ]
    ):
        file = bring(context, content, filename)
        dataset_versions.create_dataset(context, ADA, f"set {number}", file)
        wait_for(lambda file=file: _looked(context, file) is not None)
        looked = _looked(context, file)
        assert looked is not None
        assert looked["shape"] == "prompt_completion"
        assert "prompt = Question, completion = Answer" in looked["reason"]
        assert looked["reason"].endswith(said)


def _looked(context: Context, file: StoredFile) -> dict[str, Any] | None:
    found = dataset_rows.look(context, ADA.project_id, file)
    assert found.error is None
    return found.answer


def test_a_workbook_with_two_sheets_is_refused_when_it_is_brought(context: Context, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.xlsx has rows on 2 sheets: 'A', 'B'"):
        bring(context, workbook(tmp_path, "A", "B"), "rows.xlsx")
    assert num_files(context) == 0


def num_files(context: Context) -> int:
    return len(files.list_files(context, ADA.project_id)[0])


def test_a_dataset_is_brought_and_looked_at(context: Context) -> None:
    dataset, first = dataset_versions.create_dataset(context, ADA, " Questions ", bring(context), note=" first try ")
    assert (dataset.name, first.num_rows, first.author, first.note) == ("Questions", 3, "ada", "first try")
    second = dataset_versions.add_version(
        context, ADA, dataset.dataset_id, bring(context), origin="repair", parent=1, details={"removed": 2}
    )
    assert (second.number, second.parent, second.details) == (2, 1, {"removed": 2})
    assert dataset_versions.show_dataset(context, ADA, dataset.dataset_id) == (dataset, [second, first])
    assert dataset_versions.get_version(context, ADA, dataset.dataset_id) == second
    assert dataset_versions.get_version(context, ADA, dataset.dataset_id, 1) == first
    assert dataset_versions.path_of(context, ADA, first).read_bytes() == JSONL
    actions = [entry.action for entry in newest_entries(context, limit=2)]
    assert actions == ["dataset.version_added", "dataset.created"]
    with pytest.raises(NotFoundError, match="no version 3"):
        dataset_versions.get_version(context, ADA, dataset.dataset_id, 3)
    with pytest.raises(NotFoundError, match="no version 9"):
        dataset_versions.add_version(context, ADA, dataset.dataset_id, bring(context), origin="split", parent=9)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\u202eb"])
def test_a_name_is_one_that_can_be_read(context: Context, name: str) -> None:
    with pytest.raises(RequestError, match="the name"):
        dataset_versions.create_dataset(context, ADA, name, bring(context))
    with pytest.raises(RequestError, match="a note of 1,001 characters"):
        dataset_versions.create_dataset(context, ADA, "fine", bring(context), note="x" * 1001)


def test_other_projects_see_nothing_of_it(context: Context) -> None:
    dataset, _ = dataset_versions.create_dataset(context, ADA, "Questions", bring(context))
    other = Caller(name="bob", project_id=create_project(context, "other").project_id)
    assert dataset_versions.list_datasets(context, other) == []
    for ask in (dataset_versions.show_dataset, dataset_versions.get_version, dataset_versions.remove_dataset):
        with pytest.raises(NotFoundError):
            ask(context, other, dataset.dataset_id)
    with pytest.raises(NotFoundError):
        dataset_versions.create_dataset(context, other, "Mine", bring(context))


@pytest.mark.parametrize(
    ("filename", "content", "words"),
    [
        ("paper.PDF", b"%PDF-1.7", "is a document"),
        ("a.docx", b"PK\3\4", "is a document"),
        ("data", JSONL, "does not have the extension"),
        ("rows.exe", JSONL, "does not have the extension"),
        ("rows.jsonl", b"", "'rows.jsonl' is an empty file"),
        ("rows.jsonl", b"ab\0cd" * 9, "rows.jsonl is binary"),
        ("rows.parquet", JSONL, "does not begin with PAR1"),
        ("rows.jsonl.gz", JSONL, "does not hold gzip"),
        ("rows.csv", b'{"a": 1}', "begins like JSON"),
    ],
)
def test_nothing_is_kept_of_what_holds_no_rows(context: Context, filename: str, content: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        bring(context, content, filename)
    assert num_files(context) == 0
    assert not [path for path in context.settings.artifacts_folder.rglob("*") if path.is_file()]


def test_the_api_s_files_become_datasets_and_outlive_them(context: Context, tmp_path: Path) -> None:
    with files.incoming_file(context) as incoming:
        incoming.write(JSONL)
        file = files.keep_file(
            context,
            "default",
            incoming,
            filename="api.jsonl",
            purpose="fine-tune",
            expires_after_seconds=3600,
        )
    version = dataset_versions.adopt_file(context, ADA, "Adopted", file.file_id)
    assert files.get_file(context, "default", file.file_id).expires_at is None
    with pytest.raises(ConflictError, match="dataset 'Adopted'"):
        files.delete_file(context, "default", file.file_id)
    dataset_versions.remove_dataset(context, ADA, version.dataset_id)
    assert files.delete_file(context, "default", file.file_id).filename == "api.jsonl"
    with pytest.raises(NotFoundError):
        dataset_versions.adopt_file(context, ADA, "Again", file.file_id)


def test_a_removal_takes_files_along_but_for_those_of_others(context: Context) -> None:
    own, shared = bring(context), bring(context)
    dataset, _ = dataset_versions.create_dataset(context, ADA, "One", own)
    dataset_versions.add_version(context, ADA, dataset.dataset_id, shared, origin="upload", parent=1)
    other, _ = dataset_versions.create_dataset(context, ADA, "Two", shared)
    dataset_versions.remove_dataset(context, ADA, dataset.dataset_id)
    assert [file.file_id for file in files.list_files(context, "default")[0]] == [shared.file_id]
    dataset_versions.remove_dataset(context, ADA, other.dataset_id)
    assert num_files(context) == 0


def test_rows_that_were_made_are_kept_as_a_file(context: Context) -> None:
    file = dataset_versions.keep_rows(context, ADA, [b'{"text": "a"}\n', b'{"text": "b"}\n'], "made.jsonl")
    version = dataset_versions.create_dataset(context, ADA, "Made", file)[1]
    assert (version.num_rows, version.filename) == (2, "made.jsonl")


def parquet(path: Path) -> bytes:
    pl.DataFrame(ROWS).write_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["gz", "parquet", "large"])
def test_packed_and_large_files_are_counted_by_a_process_of_their_own(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    made: dict[str, Callable[[], tuple[str, bytes]]] = {
        "gz": lambda: ("rows.jsonl.gz", gzip.compress(JSONL)),
        "parquet": lambda: ("rows.parquet", parquet(tmp_path / "rows.parquet")),
        "large": lambda: ("rows.jsonl", JSONL),
    }
    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 10)
    filename, content = made[kind]()
    version = dataset_versions.create_dataset(context, ADA, "Questions", bring(context, content, filename))[1]
    assert version.num_rows is None, "nobody waits for it"
    wait_for(lambda: dataset_rows.look_of(context, ADA, version).state == "answered")
    counted = dataset_versions.get_version(context, ADA, version.dataset_id)
    assert counted.num_rows == 3
    assert dataset_rows.known_shape(context, version) == "prompt_completion"
    again = dataset_versions.create_dataset(context, ADA, "Again", bring(context, content, filename))[1]
    assert again.num_rows == 3, "the same content is looked at once"
    page = dataset_rows.rows_page(context, ADA, version, start=1, num=1)
    assert ([row["line"] for row in page["rows"]], page["has_more"]) == ([2], True)


def test_what_is_wrong_with_a_file_is_found_and_kept(context: Context) -> None:
    content = b'{"a": 1}\n{broken\n\xff\xfe\n'
    version = dataset_versions.create_dataset(context, ADA, "Bad", bring(context, content))[1]
    looked = dataset_rows.look_of(context, ADA, version).answer
    assert looked is not None
    assert (version.num_rows, looked["num_unreadable"], looked["shape"]) == (3, 2, None)
    assert [problem["line"] for problem in looked["problems"]] == [2, 3]
    csv = dataset_versions.create_dataset(context, ADA, "Twice", bring(context, b"a,a\n1,2\n", "x.csv"))[1]
    found: CachedResult = dataset_rows.look_of(context, ADA, csv)
    assert (csv.num_rows, found.state, type(found.error)) == (None, "failed", DataError)
    with pytest.raises(DataError):
        dataset_rows.rows_page(context, ADA, csv)


def test_cells_show_values_as_they_are_and_conversations_as_turns() -> None:
    text = dataset_rows.cell_of("x" * 30_000)
    assert (text["kind"], len(text["text"]), text["num_characters"]) == ("text", 20_000, 30_000)
    assert dataset_rows.cell_of({"a": [1, None]})["text"] == '{"a": [1, null]}'
    turns = [{"role": "user", "content": "hi"}, {"from": "gpt", "value": "ho"}]
    assert dataset_rows.cell_of(turns)["turns"] == [["user", "hi"], ["gpt", "ho"]]
    assert dataset_rows.cell_of([*turns, {"role": "tool", "content": "x", "name": "f"}])["kind"] == "json"
    assert dataset_rows.cell_of([])["kind"] == "json"


def test_rows_of_lines_that_are_named(context: Context) -> None:
    content = b"".join(b'{"text": "%d"}\n' % n for n in range(1, 11))
    blank = content.replace(b'{"text": "2"}', b"")
    gaps = dataset_versions.create_dataset(context, ADA, "Gaps", bring(context, blank))[1]
    page = dataset_rows.rows_page(context, ADA, gaps, start=1, num=2)
    assert ([row["line"] for row in page["rows"]], page["has_more"], gaps.num_rows) == ([3, 4], True, 9)
    csv = b"text\n" + b"".join(b"%d\n" % n for n in range(1, 11))
    other = dataset_versions.create_dataset(context, ADA, "CSV", bring(context, csv, "x.csv"))[1]
    page = dataset_rows.rows_page(context, ADA, other, start=1, num=1, lines=[2, 4, 6])
    assert ([row["cells"]["text"]["text"] for row in page["rows"]], page["has_more"]) == (["4"], True)
    version = dataset_versions.create_dataset(context, ADA, "Ten", bring(context, content))[1]
    page = dataset_rows.rows_page(context, ADA, version, start=2, num=2, lines=[1, 4, 5, 9, 10])
    assert ([row["line"] for row in page["rows"]], page["has_more"]) == ([5, 9], True)
    assert dataset_rows.rows_page(context, ADA, version, start=5, lines=[1, 4])["rows"] == []


def test_a_look_that_the_machine_refused_is_made_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> dict[str, object]:
        raise WorkError("too many", expected="fewer", do="ask again")

    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 10)
    with monkeypatch.context() as patched:
        patched.setattr(dataset_rows, "answer_about", busy)
        version = dataset_versions.create_dataset(context, ADA, "Questions", bring(context))[1]
        wait_for(lambda: dataset_rows.look_of(context, ADA, version).state == "failed")
    assert dataset_rows.look_of(context, ADA, version).state == "failed", "not at once"
    monkeypatch.setattr(dataset_rows, "RETRY_SECONDS", 0.0)
    wait_for(lambda: dataset_rows.look_of(context, ADA, version).state == "answered")
