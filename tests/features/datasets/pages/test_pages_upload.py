"""/datasets/new: a file comes in by a form or a script, and nothing is kept of what does not arrive whole."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.features.datasets import imports
from luthier.features.datasets import service as dataset_versions
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings

Browser = Callable[..., TestClient]
ROWS = b'{"text": "a"}\n{"text": "b"}\n'
TRAIN = ("read", "train")
JSON = {"Accept": "application/json"}


def send(one: TestClient, content: bytes = ROWS, filename: str = "rows.jsonl", json: bool = False, **given: str) -> Any:
    data = {"dataset": "", "name": "Rows", "note": "", **given}
    return one.post("/datasets/new", data=data, files={"file": (filename, content)}, headers=JSON if json else {})


def kept(home: Context) -> list[Path]:
    return [path for path in home.settings.artifacts_folder.rglob("*") if path.is_file()]


def test_a_form_brings_a_dataset_and_then_a_version(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    answer = send(one, note="first")
    assert answer.status_code == 303
    page = one.get(answer.headers["location"]).text
    assert "Version 1 is kept" in page
    assert "first" in page
    dataset = dataset_versions.list_datasets(home, Caller())[0][0]
    option = f'<option value="{dataset.dataset_id}" data-of="{dataset.name}" selected>'
    assert option in one.get(f"/datasets/new?dataset={dataset.dataset_id}").text
    send(one, ROWS + b'{"text": "c"}\n', dataset=dataset.dataset_id, name="")
    newest = dataset_versions.get_version(home, Caller(), dataset.dataset_id)
    assert (newest.number, newest.parent, newest.num_rows, newest.author) == (2, 1, 3, "k")


def test_a_script_is_told_where_it_is_or_what_was_wrong(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    answer = send(one, json=True)
    assert answer.status_code == 201
    assert one.get(answer.json()["address"]).status_code == 200
    wrong = send(one, b"MZ", "program.exe", json=True, name="Program")
    assert (wrong.status_code, wrong.json()["came"]) == (422, "'program.exe': not a supported kind of file")
    assert ".pdf, .docx" in wrong.json()["expected"]


@pytest.mark.parametrize(
    ("content", "filename", "given", "status", "words"),
    [
        (b"MZ", "program.exe", {}, 422, "not a supported kind of file"),
        (b"a,a\n1,2\n", "twice.csv", {}, 422, "twice"),
        (b"", "", {}, 400, "no file was chosen"),
        (b"", "rows.jsonl", {}, 422, "is an empty file"),
        (ROWS, "rows.jsonl", {"name": "x" * 101}, 422, "the name"),
        (ROWS, "rows.jsonl", {"name": "Taken"}, 409, "exists already"),
        (ROWS, "rows.jsonl", {"dataset": "data-none"}, 404, "no dataset"),
        (ROWS, "rows.jsonl", {"note": "x" * 1001}, 422, "a note of 1,001 characters"),
        (ROWS, "rows.jsonl", {"odd": "x"}, 400, "Unknown parameter"),
        (ROWS * 9, "rows.jsonl", {}, 413, "LUTHIER_MAX_FILE_BYTES"),
    ],
)
def test_what_is_refused_is_told_and_leaves_nothing(
    home: Context, browser: Browser, content: bytes, filename: str, given: dict[str, str], status: int, words: str
) -> None:
    one = browser(*TRAIN)
    assert send(one, name="Taken").status_code == 303
    before = kept(home)
    home.settings = Settings(home=home.home, max_file_bytes=100)
    answer = send(one, content, filename, **({"name": "CachedResult name"} | given))
    assert answer.status_code == status
    assert words in answer.text
    if status not in (400, 413):
        assert f'value="{given.get("name", "CachedResult name")}"' in answer.text, "what was written stays in the form"
    assert kept(home) == before
    assert len(files.list_files(home, "default")[0]) == 1
    assert len(dataset_versions.list_datasets(home, Caller())) == 1


def test_a_full_disk_is_told_and_leaves_nothing(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file that has no room."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self._file.close()

    made = IncomingFile.__init__

    def begin(self: IncomingFile, folder: Path) -> None:
        made(self, folder)
        self._file = Full(self._file)  # type: ignore[assignment]

    monkeypatch.setattr(IncomingFile, "__init__", begin)
    answer = send(browser(*TRAIN), json=True)
    assert (answer.status_code, answer.json()["type"]) == (507, "StorageFullError")
    assert kept(home) == []


def test_a_body_that_ends_too_early_leaves_nothing(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS
    answer = one.post("/datasets/new", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.status_code == 400
    assert "not complete multipart/form-data" in answer.text
    assert kept(home) == []


def test_uploads_are_larger_than_other_requests_may_be(home: Context, browser: Browser) -> None:
    one, large = browser(*TRAIN), b"".join(b'{"text": "%06d"}\n' % n for n in range(300_000))
    assert len(large) > home.settings.max_request_bytes
    assert send(one, large).status_code == 303
    assert one.post("/datasets/adopt", data={"file": "x" * len(large)}).status_code == 413


def test_a_file_of_the_api_becomes_a_dataset(home: Context, browser: Browser) -> None:
    with files.incoming_file(home) as incoming:
        incoming.write(ROWS)
        file = files.keep_file(home, "default", incoming, filename="api.jsonl", purpose="fine-tune")
    one = browser(*TRAIN)
    assert file.file_id in one.get("/datasets/new").text
    assert one.post("/datasets/adopt", data={"file": file.file_id, "name": ""}).status_code == 422
    answer = one.post("/datasets/adopt", data={"file": file.file_id, "name": "Adopted"})
    assert answer.status_code == 303
    assert "taken from the API" in one.get(answer.headers["location"]).text
    assert file.file_id not in one.get("/datasets/new").text
    assert one.post("/datasets/adopt", data={"file": "file-none", "name": "x"}).status_code == 404


def test_who_may_only_look_brings_nothing(home: Context, browser: Browser) -> None:
    one = browser("read", "infer")
    assert one.get("/datasets/new").status_code == 403
    assert send(one).status_code == 403
    assert send(one, json=True).status_code == 403
    assert one.post("/datasets/adopt", data={"file": "x", "name": "x"}).status_code == 403
    assert send(browser(), json=True).status_code == 401
    del one.headers["Sec-Fetch-Site"]
    assert send(one).status_code == 403
    assert kept(home) == []


def test_the_page_tells_a_script_what_it_takes(browser: Browser) -> None:
    page = browser(*TRAIN).get("/datasets/new").text
    for suffix in (".pdf", ".docx", ".eml", ".jsonl", ".csv", ".zip"):
        assert suffix in page.partition('data-suffixes="')[2].partition('"')[0].split()
    names = page.partition('data-names="')[2].partition('"')[0].split()
    assert names == ["mbox"], "an archive of Apple Mail has no ending"
    assert [imports.kind_of(f"Export/{name}") for name in names] == ["conversations"]
    assert "webkitdirectory" in page
    assert 'enctype="multipart/form-data"' in page


def test_a_name_is_taken_from_the_file_where_none_is_given(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    for _ in range(2):
        assert send(one, name="").status_code == 303
    assert sorted(dataset.name for dataset, _ in dataset_versions.list_datasets(home, Caller())) == ["rows", "rows 2"]


def test_documents_and_folders_lead_to_the_job_that_reads_them(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    sent = [("file", ("a.txt", b"One text.")), ("folder", ("papers/b.txt", b"Another.")), ("folder", ("", b""))]
    answer = one.post("/datasets/new", data={"name": "Papers", "passage_tokens": "64"}, files=sent)
    assert answer.status_code == 303
    (job,) = home.jobs.list()
    assert answer.headers["location"] == f"/datasets/jobs/{job.job_id}"
    order = job.document["import"]
    assert [file["name"] for file in order["files"]] == ["a.txt", "papers/b.txt"]
    assert (order["name"], order["passage_tokens"], order["author"]) == ("Papers", 64, "k")
    assert files.list_files(home, "default")[0][0].expires_at is not None, "what is never read is not kept forever"
    assert one.post("/datasets/new", data={"passage_tokens": "few"}, files=sent).status_code == 422
    for language, typed in (("de", "1.024"), ("en", "1,024")):
        answer = one.post(
            "/datasets/new", data={"passage_tokens": typed}, files=sent, headers={"Accept-Language": language}
        )
        assert answer.status_code == 303, language
    assert [one.document["import"]["passage_tokens"] for one in home.jobs.list()].count(1024) == 2


def test_who_answers_in_mails_is_chosen_on_the_form(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    sent = [("file", ("in.mbox", b"From x Tue Mar  5 08:00:00 2024\nFrom: a@b.example\n\ntext\n"))]
    answer = one.post("/datasets/new", data={"assistants": "@shop.example; Ben Ott,"}, files=sent)
    assert answer.status_code == 303
    (job,) = home.jobs.list()
    assert job.document["import"]["assistants"] == ["@shop.example", "Ben Ott"]
    assert 'name="assistants"' in one.get("/datasets/new").text


def test_rows_whose_columns_are_not_recognised_lead_to_their_choice(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    answer = send(one, b"FRAGE;Antwort\nWer?;Ich.\n", "f.csv", name="F")
    dataset = dataset_versions.list_datasets(home, Caller())[0][0]
    assert answer.headers["location"] == f"/datasets/{dataset.dataset_id}/columns?version=1"


def test_the_same_rows_twice_are_one_version(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    address = send(one, ROWS, name="Twice").headers["location"]
    dataset_id = address.rpartition("/")[2]
    for _ in range(2):
        assert send(one, ROWS + b'{"text": "c"}\n', dataset=dataset_id, name="").headers["location"] == address
    assert [one.number for one in home.datasets.versions(dataset_id)] == [2, 1]
    assert len(home.files.list("default", limit=10)[0]) == 2, "nothing of the second is kept"
