"""Rows from the hub, an address or an object store become a version that says where they come from."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.features.datasets.conftest import ME, events, jsonl, qa, work_once
from tests.hub_server import COMMIT, Hub
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import sha256_bytes
from luthier.core.system import download
from luthier.core.system.process_setup import start_daemon
from luthier.features.datasets import data_jobs, remote_import_job, remote_imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.imports import RemoteOrder, work_folder
from luthier.features.datasets.remote_imports import address_of, check_allowed, source_of, start_again, start_import
from luthier.features.datasets.rows import rows_page
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.jobs.records import Job

Serve = Callable[[dict[str, bytes]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Of files by path: the address of a server on this machine that has them."""
    servers = []

    def make(contents: dict[str, bytes]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                content = contents.get(self.path.partition("?")[0])
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                if content is not None:
                    self.send_header("ETag", f'"{sha256_bytes(content)[:8]}"')
                self.end_headers()
                self.wfile.write(content or b"")

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = start_daemon(partial(server.serve_forever, 0.02), "files")
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield make
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def ordered(address: str, **given: Any) -> RemoteOrder:
    return RemoteOrder(address=address_of(address), **given)


def imported(context: Context, address: str, dataset_id: str = "", **given: Any) -> Job:
    """An import, carried out."""
    start_import(context, ME, ordered(address, **given), dataset_id=dataset_id)
    return work_once(context)


def version_of(context: Context, job: Job) -> DatasetVersion:
    assert job.status == "succeeded", job.error
    made = job.document["found"]["datasets"][0]
    return dataset_versions.get_version(context, ME, made["dataset_id"], made["version"])


def content_of(context: Context, version: DatasetVersion) -> bytes:
    return dataset_versions.path_of(context, ME, version).read_bytes()


def test_a_dataset_of_the_hub_becomes_a_version_that_says_where_it_comes_from(context: Context, qa_hub: Hub) -> None:
    job = imported(context, "org/qa")
    version = version_of(context, job)
    assert content_of(context, version) == qa_hub.files["train.jsonl"], "one file that is taken whole stays as it is"
    assert (version.origin, version.author, version.num_rows, version.filename) == ("import", "Ada", 40, "train.jsonl")
    origin = source_of(version)
    assert origin is not None
    assert (origin["address"], origin["revision"], origin["licence"]) == ("hub:org/qa", COMMIT, "cc-by-4.0")
    assert origin["pinned"] == f"hub:org/qa@{COMMIT}"
    assert (origin["num_source_rows"], origin["num_bytes"]) == (40, len(qa_hub.files["train.jsonl"]))
    assert origin["files"][0]["sha256"] == sha256_bytes(qa_hub.files["train.jsonl"])
    assert origin["page"].endswith("/datasets/org/qa")
    assert context.datasets.get("default", version.dataset_id).name == "qa"
    assert [file.filename for file in files.list_files(context, "default")[0]] == ["train.jsonl"]
    assert not work_folder(context, job).exists(), "nothing of the download is left"
    assert any(f"Downloading: {origin['num_bytes']:,} of" in message for message in events(context, job))
    shown = data_jobs.show_job(context, ME, job.job_id)
    assert (shown.title, shown.progress.made) == ("Import hub:org/qa", 40)
    assert (shown.progress.done, shown.progress.total) == (origin["num_bytes"], origin["num_bytes"])


def test_an_import_once_again_makes_a_version_only_of_what_has_changed(context: Context, qa_hub: Hub) -> None:
    first = version_of(context, imported(context, "org/qa"))
    start_again(context, ME, first)
    same = work_once(context)
    assert (same.document["found"]["is_unchanged"], version_of(context, same).number) == (True, 1)
    assert not any("Downloading" in message for message in events(context, same)), "the commit says it"
    # Another commit with the same rows, as after an edit of the card.
    qa_hub.commit = "e" * 40
    start_again(context, ME, first)
    assert work_once(context).document["found"]["is_unchanged"]
    qa_hub.files["train.jsonl"], qa_hub.commit = jsonl(*map(qa, range(41))), "f" * 40
    start_again(context, ME, first)
    second = version_of(context, work_once(context))
    assert (second.number, second.parent, second.num_rows) == (2, 1, 41)
    assert (source_of(second) or {})["revision"] == "f" * 40
    assert [one.number for one in context.datasets.versions(first.dataset_id)] == [2, 1]


def test_a_part_is_contained_in_a_larger_part_and_keeps_the_order(context: Context, qa_hub: Hub) -> None:
    texts = []
    for given in ({"max_rows": 10}, {"fraction": 0.5}, {"max_rows": 1000}):
        version = version_of(context, imported(context, "org/qa[train]", **given))
        texts.append(content_of(context, version).splitlines())
    rows = qa_hub.files["train.jsonl"].splitlines()
    assert [len(text) for text in texts] == [10, 20, 40]
    assert set(texts[0]) < set(texts[1])
    for text in texts:
        assert [row for row in rows if row in text] == text
    assert texts[0] != rows[:10], "drawn by a hash, and not the first rows"


def test_a_column_that_json_cannot_hold_is_left_out_and_no_row_is(context: Context, qa_hub: Hub) -> None:
    out = io.BytesIO()
    columns = {"question": ["a?", "b?"], "answer": ["a", "b"], "image": [b"\xff", b"\xfe"], "score": [math.nan, 1.0]}
    pq.write_table(pa.table(columns), out)
    qa_hub.files = {"train.parquet": out.getvalue()}
    for given in ({}, {"max_rows": 2}):
        job = imported(context, "org/qa", kept_columns=("question", "answer"), **given)
        lines = content_of(context, version_of(context, job)).splitlines()
        assert lines == [b'{"question": "a?", "answer": "a"}', b'{"question": "b?", "answer": "b"}']


def test_columns_that_are_not_chosen_are_left_out(context: Context, qa_hub: Hub) -> None:
    mapping = {"prompt": "question", "completion": "answer"}
    version = version_of(
        context, imported(context, "org/qa[test]", kept_columns=("question", "answer"), columns=mapping)
    )
    page = rows_page(context, ME, version)
    assert [list(row["cells"]) for row in page["rows"]] == [["question", "answer"]] * 2
    assert version.columns == mapping
    job = imported(context, "org/qa", kept_columns=("question", "reply"))
    assert (job.status, (job.error or {})["came"]) == ("failed", "train.jsonl has no column 'reply'")
    assert "'question', 'answer', 'source'" in (job.error or {})["expected"]
    job = imported(context, "org/qa", columns={"prompt": "ask"})
    assert (job.error or {})["came"] == "no column 'ask' in hub:org/qa"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"data/train-00001-of-00002.csv": b"question,reply\na,b\n"}, "has the columns 'question', 'reply'"),
        ({"data/train-00001-of-00002.csv": b"answer,question\nb,a\n"}, ""),
    ],
)
def test_shards_become_one_file_and_one_with_other_columns_is_named(
    context: Context, qa_hub: Hub, second: dict[str, bytes], words: str
) -> None:
    qa_hub.files = {"data/train-00000-of-00002.csv": b"question,answer\n1,2\n", **second}
    job = imported(context, "org/qa")
    if words:
        assert words in (job.error or {})["came"]
        assert "the same columns in all files" in (job.error or {})["expected"]
        return
    version = version_of(context, job)
    assert (version.filename, version.num_rows) == ("qa.jsonl", 2)
    assert content_of(context, version) == b'{"question": "1", "answer": "2"}\n{"answer": "b", "question": "a"}\n'


def test_a_column_that_changes_its_kind_between_files_is_named(context: Context, qa_hub: Hub) -> None:
    qa_hub.files = {
        "data/train-00000-of-00002.jsonl": jsonl({"text": "a", "label": "x"}, {"text": "b", "label": "y"}),
        "data/train-00001-of-00002.jsonl": jsonl({"text": "c", "label": 1}),
    }
    job = imported(context, "org/qa")
    assert (job.error or {})["came"] == (
        "column 'label' holds texts in train-00000-of-00002.jsonl and numbers in train-00001-of-00002.jsonl"
    )


def test_what_the_hub_refuses_says_what_to_do(context: Context, qa_hub: Hub) -> None:
    job = imported(context, "org/qa[dev]")
    assert job.status == "failed"
    assert (job.error or {})["came"] == "dataset org/qa has no split 'dev'"
    assert (job.error or {})["expected"] == "one of: test, train"
    qa_hub.gated_for = set()
    assert "is gated" in (imported(context, "org/qa").error or {})["came"]
    qa_hub.gated_for, qa_hub.files = None, {"qa.py": b"raise SystemExit", "raw/a.bin": b""}
    assert "loaded by its own code, qa.py" in (imported(context, "org/qa").error or {})["came"]
    assert dataset_versions.list_datasets(context, ME) == []


def test_rows_that_cannot_be_read_are_counted(context: Context, qa_hub: Hub) -> None:
    qa_hub.files = {"train.jsonl": b'{"text": "a"}\n{"text": \n{"text": "b"}\n'}
    origin = source_of(version_of(context, imported(context, "org/qa", max_rows=5))) or {}
    assert origin["num_source_rows"] == 2
    assert origin["files"][0]["note"].startswith("1 row cannot be read, the first: line 2")
    qa_hub.files, qa_hub.commit = {"train.jsonl": b"nothing\n"}, "e" * 40
    assert "has no row that can be read" in (imported(context, "org/qa").error or {})["came"]


def test_a_download_that_breaks_off_is_continued_with_the_job(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    qa_hub.cut_after, qa_hub.num_cuts, qa_hub.ignores_ranges = {"train.jsonl": 500}, -1, True
    job = imported(context, "org/qa")
    assert job.status == "failed"
    assert "500 of" in (job.error or {})["came"]
    qa_hub.cut_after, qa_hub.ignores_ranges = {}, False
    data_jobs.go_on(context, ME, job.job_id)
    assert version_of(context, work_once(context)).num_rows == 40
    assert qa_hub.requests[-1][1] == "bytes=500-"


def test_rows_that_the_project_has_no_room_for_are_refused_before_they_are_downloaded(
    context: Context, qa_hub: Hub
) -> None:
    size = len(qa_hub.files["train.jsonl"])
    context.access.set_file_quota("default", size - 1)
    job = imported(context, "org/qa")
    assert (job.status, "for the files of the project default" in (job.error or {})["came"]) == ("failed", True)
    assert _num_downloads(qa_hub) == 0
    context.access.set_file_quota("default", size)
    data_jobs.go_on(context, ME, job.job_id)
    first = version_of(context, work_once(context))
    assert (content_of(context, first), _num_downloads(qa_hub)) == (qa_hub.files["train.jsonl"], 1)
    # Another commit with the same rows needs no room: one byte more lets the import begin.
    context.access.set_file_quota("default", size + 1)
    qa_hub.commit = "e" * 40
    start_again(context, ME, first)
    assert work_once(context).document["found"]["is_unchanged"]


def test_rows_whose_size_shows_when_they_are_written_are_not_downloaded_again_once_there_is_room(
    context: Context, qa_hub: Hub
) -> None:
    context.access.set_file_quota("default", 100)
    job = imported(context, "org/qa", kept_columns=("question", "answer"))
    assert (job.status, "for the files of the project default" in (job.error or {})["came"]) == ("failed", True)
    assert _num_downloads(qa_hub) == 1
    context.access.set_file_quota("default", None)
    data_jobs.go_on(context, ME, job.job_id)
    assert version_of(context, work_once(context)).num_rows == 40
    assert _num_downloads(qa_hub) == 1


def _num_downloads(hub: Hub) -> int:
    return sum(path.endswith("train.jsonl") for path, _ in hub.requests)


def test_what_a_failed_import_has_downloaded_stays_for_a_week(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    qa_hub.cut_after, qa_hub.num_cuts, qa_hub.ignores_ranges = {"train.jsonl": 500}, -1, True
    old, new = imported(context, "org/qa"), imported(context, "org/qa")
    assert [job.status for job in (old, new)] == ["failed", "failed"]
    for path in nonempty(list(work_folder(context, old).rglob("*"))):
        os.utime(path, (0, 0))
    qa_hub.cut_after, qa_hub.ignores_ranges = {}, False
    version_of(context, imported(context, "org/qa"))
    assert (work_folder(context, old).exists(), work_folder(context, new).exists()) == (False, True)


def test_a_stopped_attempt_keeps_what_has_arrived_and_a_cancelled_one_nothing(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    real = remote_import_job.fetch_found

    def stopped(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        raise SystemExit(143)

    monkeypatch.setattr(remote_import_job, "fetch_found", stopped)
    start_import(context, ME, ordered("org/qa"))
    job = context.jobs.claim("dies", ("remote",))
    assert job is not None
    assert remote_import_job.carry_out(context, job, *_order(job)).status == "paused"
    assert [path.read_bytes() for path in nonempty(list(work_folder(context, job).rglob("train.jsonl")))] == [
        qa_hub.files["train.jsonl"]
    ]
    num_requests = sum(path.endswith("train.jsonl") for path, _ in qa_hub.requests)
    monkeypatch.setattr(remote_import_job, "fetch_found", real)
    context.jobs.give_back(job.job_id, job.attempt)
    assert version_of(context, work_once(context)).num_rows == 40
    assert sum(path.endswith("train.jsonl") for path, _ in qa_hub.requests) == num_requests, "nothing comes twice"
    monkeypatch.setattr(remote_import_job, "fetch_found", stopped)
    start_import(context, ME, ordered("org/qa"))
    job = context.jobs.claim("dies", ("remote",))
    assert job is not None
    data_jobs.cancel(context, ME, job.job_id)
    assert remote_import_job.carry_out(context, job, *_order(job)).status == "paused"
    assert not work_folder(context, job).exists()


def test_an_attempt_that_dies_before_its_last_word_makes_nothing_twice(context: Context, qa_hub: Hub) -> None:
    start_import(context, ME, ordered("org/qa"))
    job = context.jobs.claim("dies", ("remote",))
    assert job is not None
    first = remote_import_job.carry_out(context, job, *_order(job))
    context.jobs.give_back(job.job_id, job.attempt)
    again = work_once(context)
    assert again.document["found"] == first.found
    assert len(dataset_versions.list_datasets(context, ME)) == 1


def _order(job: Job) -> tuple[Any, Any]:
    from luthier.features.datasets.imports import order_of

    order = order_of(job)
    return order, order.source


def test_an_address_of_this_machine_is_refused_unless_the_operator_opens_it(context: Context, serve: Serve) -> None:
    site = serve({"/rows.csv": b"text,label\ngood,yes\n"})
    with pytest.raises(RequestError, match=r"does not import from http://127\.0\.0\.1"):
        start_import(context, ME, ordered(f"{site}/rows.csv"))
    context.settings = context.settings.model_copy(update={"imports_may_reach_private": True})
    job = imported(context, f"{site}/rows.csv?signature=secret")
    version = version_of(context, job)
    origin = source_of(version) or {}
    assert (origin["address"], origin["has_query"], version.num_rows) == (f"{site}/rows.csv", True, 1)
    assert origin["revision"].startswith('ETag "')
    assert "secret" not in str(version.details) + str(context.jobs.get(job.job_id).document)
    start_import(context, ME, ordered(f"{site}/rows.csv?signature=secret"))
    waiting = context.jobs.list()[0]
    assert "secret" in str(waiting.document), "its attempts need the whole address"
    kept = context.settings.jobs_folder / waiting.job_id / "attempt-0001" / "job.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(waiting.model_dump_json())
    data_jobs.cancel(context, ME, waiting.job_id)
    assert "secret" not in str(context.jobs.get(waiting.job_id).document)
    assert not kept.exists()
    assert "secret" not in data_jobs.show_job(context, ME, job.job_id).title
    with pytest.raises(ConflictError, match="had a query"):
        start_again(context, ME, version)


def test_a_query_that_names_other_rows_makes_a_version_though_the_revision_is_equal(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"part=a": jsonl(qa(1)), "part=b": jsonl(qa(2))}

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"ETag": '"release-5"'}, content=contents[request.url.query.decode()])

    monkeypatch.setattr(
        "luthier.platform.http.vetted_transport.VettedTransport", lambda **_: httpx2.MockTransport(answer)
    )
    first = version_of(context, imported(context, "https://rows.example/rows.jsonl?part=a"))
    second = version_of(context, imported(context, "https://rows.example/rows.jsonl?part=b", first.dataset_id))
    assert (second.number, content_of(context, second)) == (2, contents["part=b"])
    same = imported(context, "https://rows.example/rows.jsonl?part=b", first.dataset_id)
    assert same.document["found"]["is_unchanged"], "equal rows make no version"


def test_a_name_that_leads_to_this_machine_is_refused_when_it_is_looked_up(context: Context) -> None:
    job = imported(context, "https://localhost:9/rows.jsonl")
    assert job.status == "failed"
    assert (job.error or {})["came"] == "localhost leads to an address that is not on the public internet"
    assert "LUTHIER_IMPORTS_MAY_REACH_PRIVATE" in (job.error or {})["do"]
    private = imported(context, "https://169.254.169.254/latest/meta-data")
    assert "169.254.169.254 leads to an address" in (private.error or {})["came"]


@pytest.mark.parametrize("host", ["999.1.1.1", "\N{SNOWMAN}.example"])
def test_a_host_that_cannot_be_one_is_named(context: Context, host: str) -> None:
    job = imported(context, f"https://{host}/rows.jsonl?signature=secret")
    assert job.status == "failed"
    assert f"https://{host}/rows.jsonl is not an address" in (job.error or {})["came"]
    assert "secret" not in str(job.error)


def test_more_bytes_than_a_file_may_have_are_not_downloaded(context: Context, serve: Serve) -> None:
    site = serve({"/rows.jsonl": jsonl(*map(qa, range(40)))})
    context.settings = context.settings.model_copy(update={"imports_may_reach_private": True, "max_file_bytes": 1000})
    job = imported(context, f"{site}/rows.jsonl")
    assert (job.error or {})["expected"] == "at most 1,000 bytes for one download"
    assert not any("Downloading" in message for message in events(context, job))


def test_rows_that_grow_beyond_the_limit_leave_nothing_on_the_disk(context: Context, qa_hub: Hub) -> None:
    qa_hub.files = {"train.csv": b"question,answer\n" + b"a,b\n" * 100}
    limit = 2 * len(qa_hub.files["train.csv"])
    context.settings = context.settings.model_copy(update={"max_file_bytes": limit})
    job = imported(context, "org/qa", fraction=1.0)
    assert (job.error or {})["came"] == f"the rows have more than {limit:,} bytes as JSONL"
    assert not work_folder(context, job).exists()


def test_a_file_whose_name_says_no_format_is_not_downloaded(context: Context, serve: Serve) -> None:
    site = serve({"/export": jsonl(qa(1))})
    context.settings = context.settings.model_copy(update={"imports_may_reach_private": True})
    job = imported(context, f"{site}/export?format=jsonl")
    assert (job.error or {})["came"] == "export has an extension that names no known format"
    assert not any("Downloading" in message for message in events(context, job))


def test_an_object_store_is_read_where_the_operator_has_named_the_place(
    context: Context, empty_bucket: Callable[[str, str], Any]
) -> None:
    client = empty_bucket("luthier-imports", "test-secret-key-0123456789")
    for name, row in (("team/a.jsonl", qa(1)), ("team/b.jsonl", qa(2)), ("other/c.jsonl", qa(3))):
        client.put_object(Bucket="luthier-imports", Key=name, Body=jsonl(row))
    with pytest.raises(RequestError, match="does not import from s3://luthier-imports"):
        start_import(context, ME, ordered("s3://luthier-imports/team/a.jsonl"))
    context.settings = context.settings.model_copy(update={"import_sources": "s3://luthier-imports/team"})
    job = imported(context, "s3://luthier-imports/team/*.jsonl")
    version = version_of(context, job)
    assert content_of(context, version) == jsonl(qa(1), qa(2))
    assert (source_of(version) or {})["page"] == ""
    assert imported(context, "s3://luthier-imports/team/*.jsonl", version.dataset_id).document["found"]["is_unchanged"]
    with pytest.raises(RequestError, match=r"operator allows: s3://luthier-imports/team"):
        start_import(context, ME, ordered("s3://luthier-imports/other/c.jsonl"))
    missing = imported(context, "s3://luthier-imports/team/none.jsonl")
    assert "there is no file" in (missing.error or {})["came"]


@pytest.mark.parametrize(
    ("sources", "address", "is_allowed"),
    [
        ("hub https", "hub:org/qa", True),
        ("https", "hub:org/qa", False),
        ("hub:org", "hub:org/qa/main[test]", True),
        ("hub:org", "hub:organisation/qa", False),
        ("hub:org/qa", "hub:org/qa@v1", True),
        ("hub:org/qa", "hub:org/qa-2", False),
        ("hub https", "https://example.org/a.csv", True),
        ("https://example.org/data/", "https://example.org/data/a.csv", True),
        ("https://example.org/data", "https://example.org/database/a.csv", False),
        ("https://example.org/data", "https://example.org/data/../a.csv", False),
        ("https://example.org/data", "https://example.org/data/%2e%2e/a.csv", False),
        ("https://example.org/api/public", "https://example.org/api/public/..?rows=private", False),
        ("https://example.org/api/public", "https://example.org/api/public/..#x", False),
        ("https://example.org/data", "https://example.org/data/..a.csv?x=..", True),
        ("https://example.org", "https://example.org.evil.example/a.csv", False),
        ("s3://bucket", "s3://bucket/a.jsonl", True),
        ("s3://bucket", "s3://bucket-2/a.jsonl", False),
        ("s3://bucket", "s3://bucket/a.jsonl::file:///etc/passwd", False),
        ("none", "hub:org/qa", False),
        ("hub https", "gs://bucket/a.jsonl", False),
        ("hub https", "az://rows/a.jsonl", False),
        ("az://rows", "az://rows/a.jsonl", True),
        ("abfss://rows", "abfss://rows@account.dfs.core.windows.net/a.jsonl", False),
    ],
)
def test_the_operator_says_where_rows_may_come_from(sources: str, address: str, is_allowed: bool) -> None:
    settings = Settings(import_sources=sources)
    if is_allowed:
        check_allowed(settings, address)
        return
    with pytest.raises(RequestError, match="does not import from") as refused:
        check_allowed(settings, address)
    assert "LUTHIER_IMPORT_SOURCES" in refused.value.do


@pytest.mark.parametrize("value", ["ftp://host", "hub: x", "s3://", "https://user@host", "all"])
def test_a_wrong_word_among_the_sources_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not hub, hub:ORGANISATION"):
        Settings(import_sources=value)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (("openai/gsm8k",), "hub:openai/gsm8k"),
        ((" openai/gsm8k ", "main", "test"), "hub:openai/gsm8k/main[test]"),
        (("hub:openai/gsm8k@v1/main[train]", "", "test"), "hub:openai/gsm8k@v1/main[test]"),
        (("https://huggingface.co/datasets/openai/gsm8k",), "hub:openai/gsm8k"),
        (("https://huggingface.co/datasets/openai/gsm8k/viewer/main/train",), "hub:openai/gsm8k/main[train]"),
        (("https://huggingface.co/datasets/a/b/resolve/main/x.csv",), "https://huggingface.co/datasets/a/b/resolve/main/x.csv"),
        (("https://huggingface.co//[/datasets/x.csv",), "https://huggingface.co//[/datasets/x.csv"),
        (("s3://bucket/rows/*.parquet",), "s3://bucket/rows/*.parquet"),
    ],
)  # fmt: skip
def test_an_address_is_taken_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], address: str
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert address_of(*given) == address


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("",), "no address"),
        (("file:///etc/passwd",), "is not an address of rows"),
        (("/etc/passwd",), "is not an address of rows"),
        (("http+unix://x/y",), "is not an address of rows"),
        (("https://example.org/a.csv\nHost: x",), "is not an address of rows"),
        (("https://example.org/a.csv", "main"), "configuration 'main' of https://example.org/a.csv"),
        (("org/qa", "a/b"), "names no dataset of the hub"),
    ],
)
def test_what_is_no_address_is_refused(given: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        address_of(*given)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://user:pw@example.org/a.csv", "holds a user name or a password"),
        ("http://example.org/a.csv", "not encrypted"),
        ("https://example.org", "names no file"),
    ],
)
def test_an_address_that_no_recipe_may_have_is_refused(context: Context, address: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        start_import(context, ME, RemoteOrder(address=address))


def test_a_dataset_of_another_project_gets_no_version(context: Context, qa_hub: Hub) -> None:
    version = version_of(context, imported(context, "org/qa"))
    other = Caller(project_id="proj-other")
    with pytest.raises(NotFoundError):
        start_import(context, other, ordered("org/qa"), dataset_id=version.dataset_id)
    with pytest.raises(NotFoundError):
        start_again(context, other, version)
    with pytest.raises(ConflictError, match="'qa' exists already"):
        start_import(context, ME, ordered("org/qa"), name="qa")
    with pytest.raises(RequestError, match="a number of rows or a share"):
        start_import(context, ME, ordered("org/qa", max_rows=1, fraction=0.5))
    assert remote_imports.short_source(version) == f"hub:org/qa @ {COMMIT[:12]}"
