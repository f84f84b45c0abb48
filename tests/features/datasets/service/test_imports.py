"""Files of any kind: rows at once, documents by a job, and each file that could not be used by its name and reason."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pypdf import PdfWriter
from tests.features.datasets.conftest import ME, add, events, work_once
from tests.ml.data.documents.test_archives import with_declared_size, zipped
from tests.ml.data.readers.conftest import docx_entries, pdf_bytes
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError
from luthier.features.datasets import data_jobs, imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import look_of, rows_page
from luthier.features.training import jobs
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

TEXT = "The front of instrument {} is spruce, and its back is maple."
PAIRS = "question;answer\nWhat is the front?;Spruce.\nWhat is the back?;Maple.\n"


def locked(content: bytes) -> bytes:
    writer = PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt("pw", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def workbook(rows: list[list[object]], merged: str = "") -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    if merged:
        book.active.merge_cells(merged)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def mail(body: str) -> bytes:
    return f"From: a@b.example\nSubject: Instruments\nContent-Type: text/plain\n\n{body}\n".encode()


DOCUMENTS: Final = Path(__file__).parents[3] / "fixtures" / "documents"
OLDER: Final = ("contract.doc", "contract.odt", "contract.rtf", "merged.ods", "merged.xls", "slides.odp")
GOOD: dict[str, bytes] = {
    "papers/1.pdf": pdf_bytes([[TEXT.format(1)]]),
    "papers/2.pdf": pdf_bytes([[TEXT.format(2)], [TEXT.format(22)]]),
    "papers/3.txt": TEXT.format(3).encode(),
    "papers/4.md": f"# Wood\n\n{TEXT.format(4)}".encode(),
    "papers/5.docx": zipped(docx_entries([("", TEXT.format(5))])),
    "papers/6.eml": mail(TEXT.format(6)),
    "papers/7.html": f"<html><body><article><p>{TEXT.format(7)}</p></article></body></html>".encode(),
    "papers/8.zip": zipped({"in/8.txt": TEXT.format(8), "more.csv": PAIRS}),
    "papers/9.xlsx": workbook([["Title of all", ""], ["kind", "number"], ["violin", 9]], merged="A1:B1"),
    **{f"papers/{name}": (DOCUMENTS / name).read_bytes() for name in OLDER},
}
BAD: dict[str, bytes] = {
    "papers/locked.pdf": locked(pdf_bytes([["Secret."]])),
    "papers/scan.pdf": pdf_bytes([[], []]),
    "papers/empty.txt": b"",
    "papers/program.exe": b"MZ\x90",
    "papers/old.ppt": b"\xd0\xcf\x11\xe0",
    "papers/twice.csv": b"name,name\n1,2\n",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Context, Job]]:
    """A folder with fifteen good files and six that cannot be used, after its import."""
    with Context.open(tmp_path_factory.mktemp("imports") / "home") as context:
        added = add(context, GOOD | BAD, name="Instruments")
        assert added.version is None
        yield context, work_once(context)


def found(job: Job) -> dict[str, Any]:
    noted: dict[str, Any] = job.document["found"]
    return noted


def files_of(job: Job) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found(job)["files"]}


def test_a_file_with_a_password_among_good_ones_is_named_and_the_others_are_read(done: tuple[Context, Job]) -> None:
    _, job = done
    assert (job.status, job.error) == ("succeeded", None)
    by_name = files_of(job)
    converted = [name for name, one in by_name.items() if one["status"] == "converted"]
    assert converted == [
        "papers/1.pdf",
        "papers/2.pdf",
        "papers/3.txt",
        "papers/4.md",
        "papers/5.docx",
        "papers/6.eml",
        "papers/7.html",
        "papers/8.zip/in/8.txt",
        "papers/9.xlsx",
        *(f"papers/{name}" for name in OLDER),
    ]
    assert by_name["papers/locked.pdf"]["status"] == "failed"
    assert "protected by a password; remove it: qpdf" in by_name["papers/locked.pdf"]["reason"]


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("papers/scan.pdf", "failed", "2 pages, no text: scanned; run OCR"),
        ("papers/empty.txt", "failed", "it is empty (0 bytes)"),
        ("papers/old.ppt", "failed", "convert it first: save it as .pptx"),
        ("papers/program.exe", "skipped", ".exe: not a supported kind of file"),
        ("papers/twice.csv", "failed", "twice.csv has the column 'name' twice"),
    ],
)
def test_every_file_that_is_not_used_has_its_reason(
    done: tuple[Context, Job], name: str, status: str, words: str
) -> None:
    one = files_of(done[1])[name]
    assert one["status"] == status
    assert words in one["reason"]


def test_files_that_are_not_used_come_first_and_are_counted(done: tuple[Context, Job]) -> None:
    noted = found(done[1])
    assert (noted["num_files"], noted["num_left_out"]) == (22, 6)
    assert [one["status"] for one in noted["files"][:6]] == ["failed"] * 5 + ["skipped"]


def test_documents_become_one_dataset_of_passages_with_their_source(done: tuple[Context, Job]) -> None:
    context, job = done
    passages = found(job)["datasets"][0]
    assert (passages["name"], passages["kind"], passages["num_rows"]) == ("Instruments", "passages", 21)
    version = dataset_versions.get_version(context, ME, passages["dataset_id"])
    assert (version.origin, version.author, version.details["documents"]["num_documents"]) == ("documents", "Ada", 15)
    rows = [row["cells"] for row in rows_page(context, ME, version)["rows"]]
    sources = [json.loads(row["provenance"]["text"]) for row in nonempty(rows)]
    assert (sources[1]["file"], sources[1]["page"]) == ("papers/2.pdf", 1)
    assert TEXT.format(22) in rows[1]["text"]["text"], "a passage goes over pages"


def test_a_table_with_known_columns_becomes_a_dataset_of_rows_of_its_own(done: tuple[Context, Job]) -> None:
    context, job = done
    rows = found(job)["datasets"][1]
    assert (rows["name"], rows["kind"], rows["num_rows"]) == ("Instruments rows", "rows", 2)
    assert files_of(job)["papers/8.zip/more.csv"]["status"] == "rows"
    version = dataset_versions.get_version(context, ME, rows["dataset_id"])
    look = look_of(context, ME, version).answer
    assert look is not None
    assert look["shape"] == "prompt_completion"


def test_a_workbook_with_merged_cells_beside_documents_is_read_as_text_and_says_so(done: tuple[Context, Job]) -> None:
    notes = files_of(done[1])["papers/9.xlsx"]["warnings"]
    assert any("read as a document, since it is not a table" in note and "merged cells" in note for note in notes)


def test_progress_counts_files_and_passages_and_warns_of_single_files(done: tuple[Context, Job]) -> None:
    context, job = done
    shown = data_jobs.show_job(context, ME, job.job_id)
    assert (shown.progress.done, shown.progress.total, shown.progress.made) == (19, 19, 21)
    assert any("Reading documents: 19 of 19 files, 21 passages" in message for message in events(context, job))
    assert any("papers/locked.pdf: it is protected by a password" in one.message for one in shown.warnings)


def test_nothing_of_the_upload_is_left_once_it_is_read(done: tuple[Context, Job]) -> None:
    context, job = done
    kept = files.list_files(context, "default")[0]
    assert sorted(one.filename for one in kept) == ["more.csv", "passages.jsonl"]
    assert not (context.settings.jobs_folder / job.job_id / "import").exists()


def test_another_project_does_not_see_the_job(done: tuple[Context, Job]) -> None:
    context, job = done
    with pytest.raises(NotFoundError):
        data_jobs.show_job(context, Caller(project_id="proj-other"), job.job_id)


def test_one_file_of_rows_is_a_version_at_once(context: Context) -> None:
    made = add(context, {"pairs.csv": PAIRS.encode("cp1252")}).version
    assert made is not None
    assert (made.origin, made.num_rows, made.columns) == ("upload", 2, {})
    assert context.datasets.get("default", made.dataset_id).name == "pairs"
    assert context.jobs.list() == []


def test_a_name_that_nobody_chose_gets_a_number_and_a_chosen_one_is_refused(context: Context) -> None:
    for _ in range(2):
        add(context, {"pairs.csv": PAIRS.encode()})
    assert sorted(one.name for one, _ in dataset_versions.list_datasets(context, ME)) == ["pairs", "pairs 2"]
    with pytest.raises(ConflictError, match="'pairs' exists already"):
        add(context, {"other.csv": PAIRS.encode()}, name="pairs")


def parquet(columns: dict[str, list[object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def test_files_of_the_same_columns_that_json_cannot_hold_stay_as_they_are(context: Context) -> None:
    one, two = (parquet({"question": [f"What is {n}?"], "answer": [f"{n}."], "image": [b"\xff"]}) for n in (1, 2))
    add(context, {"a.parquet": one, "b.parquet": two}, name="All")
    job = work_once(context)
    assert (job.status, job.error) == ("succeeded", None)
    made = found(job)["datasets"]
    versions = [dataset_versions.get_version(context, ME, each["dataset_id"]) for each in made]
    contents = [dataset_versions.path_of(context, ME, each).read_bytes() for each in versions]
    assert list(zip([each["name"] for each in made], contents, strict=True)) == [("All", one), ("All rows", two)]
    (note,) = files_of(job)["b.parquet"]["warnings"]
    assert "a separate dataset: row 1 of a.parquet cannot be written as JSON" in note


def test_files_with_the_same_columns_become_one_dataset(context: Context) -> None:
    other = "answer,question\nMaple.,What is the back?\n"
    labels = "text,label\ngood,yes\nbad,no\n"
    add(context, {"a.csv": PAIRS.encode(), "b.csv": other.encode(), "c.csv": labels.encode()}, name="All")
    job = work_once(context)
    made = found(job)["datasets"]
    assert [(one["name"], one["kind"], one["num_rows"]) for one in made] == [
        ("All", "rows", 3),
        ("All rows", "rows", 2),
    ]
    page = rows_page(context, ME, dataset_versions.get_version(context, ME, made[0]["dataset_id"]))
    assert [row["cells"]["answer"]["text"] for row in page["rows"]] == ["Spruce.", "Maple.", "Maple."]


@pytest.mark.parametrize(
    ("sent", "error", "words"),
    [
        ({}, RequestError, "no file was chosen"),
        ({"a.exe": b"MZ"}, RequestError, "not a supported kind of file"),
        ({"a.ppt": b"x"}, RequestError, "has a type that Luthier cannot read"),
        ({"a.pptm": b"x"}, RequestError, "save it as .pptx"),
        ({"a.csv": b"name,name\n1,2\n"}, DataError, "the column 'name' twice"),
        ({"a.xlsx": workbook([["q", "a"], ["x", "y"]], merged="A1:B1")}, DataError, "merged cells"),
        ({"a.csv": b""}, RequestError, "is an empty file"),
        ({"a.zip": b"no archive"}, DataError, "is not a ZIP file"),
        ({"a.zip": zipped({"z.txt": b"\0" * (11 << 20)})}, DataError, "decompression bomb"),
        (
            {"a.zip": with_declared_size(zipped({f"{n}": "x" for n in range(3)}), 4_000_000_000)},
            DataError,
            "unpacks to",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    context: Context, sent: dict[str, bytes], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        add(context, sent)
    assert files.list_files(context, "default")[0] == []
    assert context.jobs.list() == []
    assert dataset_versions.list_datasets(context, ME) == []


def test_rows_out_of_an_archive_count_for_the_quota_in_the_place_of_the_archive(context: Context) -> None:
    rows = "text,label\n" + "The front is spruce and the back is maple.,wood\n" * 2_000
    archive = zipped({"rows.csv": rows})
    assert len(archive) < 5_000
    context.access.set_file_quota("default", len(rows) - 1)
    add(context, {"packed.zip": archive}, name="Packed")
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert "for the files of the project default" in job.error["came"]
    assert dataset_versions.list_datasets(context, ME) == []
    assert [one.filename for one in files.list_files(context, "default")[0]] == ["packed.zip"]
    # Room for the rows alone is enough: the archive goes when they are there.
    context.access.set_file_quota("default", len(rows))
    context.jobs.resume(job.job_id)
    assert work_once(context).status == "succeeded"
    assert context.files.used_bytes()["default"] == len(rows)


def test_where_no_file_can_be_used_the_job_fails_and_names_each(context: Context) -> None:
    add(context, {"scan.pdf": pdf_bytes([[]]), "twice.csv": b"a,a\n1,2\n"})
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["came"] == "none of the 2 files could be used"
    assert {name: one["status"] for name, one in files_of(job).items()} == {"scan.pdf": "failed", "twice.csv": "failed"}
    assert len(files.list_files(context, "default")[0]) == 2, "the files stay, so that it can be continued"


def test_a_repeated_attempt_makes_nothing_twice(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.features.datasets import import_job

    add(context, {"a.txt": TEXT.encode(), "b.csv": PAIRS.encode()}, name="Once")
    job = context.jobs.claim("dies", ("infer",))
    assert job is not None
    monkeypatch.setattr(import_job, "forget_files", lambda context, job: None)
    assert import_job.carry_out(context, job).status == "succeeded"  # and dies before its last word
    context.jobs.give_back(job.job_id, job.attempt)
    again = work_once(context)
    assert [one["name"] for one in found(again)["datasets"]] == ["Once", "Once rows"]
    assert len(dataset_versions.list_datasets(context, ME)) == 2


def test_an_attempt_that_dies_once_the_files_are_deleted_does_not_fail_the_job(context: Context) -> None:
    from luthier.features.datasets import import_job

    add(context, {"a.txt": TEXT.encode(), "b.csv": PAIRS.encode()}, name="Late")
    job = context.jobs.claim("dies", ("infer",))
    assert job is not None
    first = import_job.carry_out(context, job)
    kept = files.list_files(context, "default")[0]
    assert sorted(one.filename for one in kept) == ["b.csv", "passages.jsonl"]  # what was added is gone
    context.jobs.give_back(job.job_id, job.attempt)
    again = work_once(context)
    assert again.status == "succeeded"
    assert found(again) == first.found
    assert [one["name"] for one in found(again)["datasets"]] == ["Late", "Late rows"]


def test_a_new_version_of_passages_and_its_note(context: Context) -> None:
    add(context, {"a.txt": TEXT.format(1).encode(), "b.txt": b"More."}, name="Texts")
    first = found(work_once(context))["datasets"][0]
    add(context, {"c.txt": TEXT.format(2).encode(), "d.txt": b"Less."}, dataset_id=first["dataset_id"], note="newer")
    made = found(work_once(context))["datasets"][0]
    assert (made["dataset_id"], made["version"]) == (first["dataset_id"], 2)
    assert dataset_versions.get_version(context, ME, first["dataset_id"]).note == "newer"


def test_cancelling_a_waiting_import_deletes_its_files(context: Context) -> None:
    job = add(context, {"a.txt": b"one", "b.txt": b"two"}).job
    assert job is not None
    data_jobs.cancel(context, ME, job.job_id)
    assert files.list_files(context, "default")[0] == []
    assert context.jobs.get(job.job_id).status == "cancelled"
    with pytest.raises(ConflictError):
        data_jobs.go_on(context, ME, job.job_id)


def test_an_import_that_the_command_cancels_leaves_nothing(context: Context) -> None:
    """`luthier jobs cancel` knows no kind of job, and no attempt is running that could do it."""
    job = add(context, {"a.txt": b"one", "b.txt": b"two"}).job
    assert job is not None
    work = imports.work_folder(context, job)
    work.mkdir(parents=True)  # as an attempt leaves it that was stopped
    (work / "passages.jsonl").write_text("{}\n", encoding="utf-8")
    assert len(files.list_files(context, "default")[0]) == 2
    assert jobs.ask(context, job.job_id, "cancel").status == "cancelled"
    assert files.list_files(context, "default")[0] == []
    assert not work.exists()


def test_a_failed_import_keeps_nothing_that_another_attempt_makes_again(context: Context) -> None:
    add(context, {"a.zip": zipped({"in/1.bin": "x" * 1000}), "b.txt": b""})
    job = work_once(context)
    assert job.status == "failed"
    work = imports.work_folder(context, job)
    assert [name for name in ("documents", "tables") if (work / name).exists()] == []
    # Its files are gone after a week, so that it cannot be resumed: then its work goes, too.
    work.mkdir(parents=True, exist_ok=True)
    place = work / "passages.jsonl"
    place.write_text("{}\n", encoding="utf-8")
    add(context, {"c.txt": TEXT.format(1).encode(), "d.txt": b"More."}, name="Texts")
    work_once(context)
    assert place.exists()
    for one in nonempty(list(work.rglob("*"))):
        os.utime(one, (0, 0))
    add(context, {"e.txt": TEXT.format(2).encode(), "f.txt": b"Less."}, name="Others")
    work_once(context)
    assert not work.exists()


def test_names_of_files_lead_nowhere(context: Context, tmp_path: Path) -> None:
    sent = ["../../up.txt", "a\\b\\c.txt", "a/b", "x", "x/y.txt", f"{'ü' * 300}.txt"]
    add(context, {name: TEXT.encode() for name in sent}, name="Named")
    job = work_once(context)
    assert sorted(files_of(job)) == ["a/b (2)", "a/b/c.txt", "up.txt", "x", "x_y.txt", f"{'ü' * 98}.txt"]
    assert not list(tmp_path.glob("up.txt"))
