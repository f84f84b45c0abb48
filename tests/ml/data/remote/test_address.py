"""A file behind an address: once, continued, with versions by ETag, and with errors that hold no signature."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from luthier.core.errors import DataSourceError, NotFoundError
from luthier.core.ids import sha256_bytes
from luthier.core.ports import SilentProgress
from luthier.core.system import download
from luthier.core.system.process_setup import start_daemon
from luthier.ml.data.remote.address import look_up_address
from luthier.ml.data.remote.cache import FetchedSource, FileFetcher, fetch, list_files

ROWS = b"".join(b'{"text": "row %d"}\n' % n for n in range(50))


class Site:
    """A server of one file, and how it behaves."""

    def __init__(self) -> None:
        self.content, self.etag, self.url = ROWS, '"one"', ""
        self.status, self.cut_after, self.num_cuts, self.states_size = 200, 0, 0, True
        self.location, self.grows = "", b""
        self.requests: list[tuple[str | None, str | None]] = []


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    state = Site()
    monkeypatch.setattr(download.time, "sleep", lambda _: None)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            state.requests.append((asked, condition))
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and condition == state.etag else 0
            body = state.content[start:] if state.status == 200 else b""
            body += state.grows if len(state.requests) > 1 else b""
            self.send_response(206 if start else state.status)
            if state.states_size:
                self.send_header("Content-Length", str(len(body)))
            if state.location:
                self.send_header("Location", state.location)
            if state.etag:
                self.send_header("ETag", state.etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Connection", "close")
            self.end_headers()
            if state.num_cuts and len(state.requests) > 1:
                state.num_cuts -= 1
                body = body[: state.cut_after]
            self.wfile.write(body)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = start_daemon(partial(server.serve_forever, 0.02), "site")
    state.url = f"http://127.0.0.1:{server.server_address[1]}/rows/train.jsonl?signature=secret"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(tmp_path: Path, site: Site, *, refresh: bool = False) -> FetchedSource:
    return fetch(site.url, tmp_path / "data", SilentProgress(), refresh=refresh)


def test_a_file_comes_once_and_is_known_by_its_etag(site: Site, tmp_path: Path) -> None:
    found = fetched(tmp_path, site)
    (file,) = found.files
    assert (file.path.read_bytes(), file.sha256, file.name) == (ROWS, sha256_bytes(ROWS), "train.jsonl")
    assert found.revision == 'ETag "one"'
    num_requests = len(site.requests)
    assert fetched(tmp_path, site).was_there
    assert len(site.requests) == num_requests
    stored = "".join(path.read_text() for path in (tmp_path / "data" / "sources").iterdir())
    assert "secret" not in stored


def test_a_connection_that_breaks_off_is_continued(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.num_cuts = 100, 2
    assert fetched(tmp_path, site).files[0].path.read_bytes() == ROWS
    assert site.requests[1:] == [(None, None), ("bytes=100-", '"one"'), ("bytes=200-", '"one"')]


def test_a_file_that_changes_in_between_is_not_glued_together(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.num_cuts = 100, 100
    site.etag = ""  # nothing to continue by: each attempt begins again and gets no further
    with pytest.raises(DataSourceError, match=r"train\.jsonl"):
        fetched(tmp_path, site)
    site.num_cuts, site.content, site.etag = 0, ROWS[::-1], '"two"'
    assert fetched(tmp_path, site).files[0].path.read_bytes() == ROWS[::-1]


def test_a_file_without_a_stated_size_or_etag_is_known_by_its_digest(site: Site, tmp_path: Path) -> None:
    site.states_size, site.etag = False, ""
    found = fetched(tmp_path, site)
    assert found.files[0].path.read_bytes() == ROWS
    assert found.revision == f"sha256 {sha256_bytes(ROWS)}"


def test_a_newer_file_is_taken_when_asked_for(site: Site, tmp_path: Path) -> None:
    fetched(tmp_path, site)
    site.content, site.etag = b'{"text": "new"}\n', '"two"'
    assert fetched(tmp_path, site).revision == 'ETag "one"'
    found = fetched(tmp_path, site, refresh=True)
    assert (found.revision, found.files[0].path.read_bytes()) == ('ETag "two"', site.content)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, NotFoundError, "there is no file at"),
        (403, DataSourceError, "may not be read by this machine"),
        (500, DataSourceError, "could not be fetched from 127.0.0.1: 500"),
    ],
)
def test_refusals_say_what_to_do_and_keep_the_signature(
    site: Site, tmp_path: Path, status: int, kind: type[Exception], words: str
) -> None:
    site.status = status
    with pytest.raises(kind, match=words) as refused:
        fetched(tmp_path, site)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "location", ["http://192.0.2.1/train.jsonl", "http://rows.example/train.jsonl?signature=secret"]
)
def test_a_redirect_to_an_unencrypted_host_is_not_followed(site: Site, tmp_path: Path, location: str) -> None:
    site.status, site.location = 302, location
    with pytest.raises(DataSourceError, match="which is not encrypted") as refused:
        fetched(tmp_path, site)
    assert "secret" not in str(refused.value)


class Endless(httpx2.SyncByteStream):
    """A body that must not be read."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("the body of a redirect was read")


def test_the_body_of_a_redirect_is_not_read() -> None:
    paths = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.path)
        if request.url.path == "/rows.jsonl":
            return httpx2.Response(302, headers={"Location": "/moved.jsonl"}, stream=Endless())
        return httpx2.Response(200, content=ROWS)

    found = look_up_address("https://rows.example/rows.jsonl", lambda: httpx2.MockTransport(answer))
    with found.files[0].open_at(0) as (start, chunks):
        assert (start, b"".join(chunks)) == (0, ROWS)
    assert paths == ["/rows.jsonl", "/moved.jsonl"] * 2


def test_redirects_without_an_end_are_an_error() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"Location": str(request.url)}, stream=Endless())

    with pytest.raises(DataSourceError, match=r"could not be fetched from rows\.example: TooManyRedirects"):
        look_up_address("https://rows.example/rows.jsonl", lambda: httpx2.MockTransport(answer))


def test_a_server_that_sends_more_than_it_stated_fills_no_disk(site: Site, tmp_path: Path) -> None:
    site.grows = b"x" * 10_000
    with pytest.raises(DataSourceError, match="sends more than the"):
        fetched(tmp_path, site)
    assert len(site.requests) == 2
    assert [path.stat().st_size for path in tmp_path.glob("data/incoming/*/*")] == [0]
    site.grows = b""
    assert fetched(tmp_path, site).files[0].path.read_bytes() == ROWS


def test_a_listed_file_that_changes_in_the_middle_of_a_run_is_refused(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    listing = list_files(site.url, folder, SilentProgress())
    assert (listing.revision, listing.names, listing.sizes) == ('ETag "one"', ("train.jsonl",), (len(ROWS),))
    fetcher = FileFetcher(listing, folder, SilentProgress())
    assert fetcher.fetch(0).path.read_bytes() == ROWS
    shutil.rmtree(folder / "files")
    site.content, site.etag = ROWS[::-1], '"two"'
    with pytest.raises(DataSourceError, match=r'is now at ETag "two"') as caught:
        fetcher.fetch(0)
    assert "secret" not in str(caught.value.as_json())
    stored = "".join(path.read_text() for path in (folder / "listings").rglob("*.json"))
    assert "secret" not in stored


def test_a_file_that_nothing_but_its_content_identifies_is_downloaded_before(site: Site, tmp_path: Path) -> None:
    site.etag = ""
    folder = tmp_path / "data"
    listing = list_files(site.url, folder, SilentProgress())
    assert listing.revision == f"sha256 {sha256_bytes(ROWS)}"
    fetcher = FileFetcher(listing, folder, SilentProgress())
    assert fetcher.fetch(0).path.read_bytes() == ROWS
    shutil.rmtree(folder / "files")
    site.content = ROWS[::-1]
    with pytest.raises(DataSourceError, match="a source has changed while its rows were streamed"):
        fetcher.fetch(0)


def test_a_server_that_is_busy_for_a_moment_does_not_end_a_stream(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = FileFetcher(
        list_files(site.url, tmp_path / "data", SilentProgress()), tmp_path / "data", SilentProgress()
    )
    site.status, pauses = 503, list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        site.status = 200 if len(pauses) == 3 else 503

    monkeypatch.setattr(download.time, "sleep", pause)
    assert fetcher.fetch(0).path.read_bytes() == ROWS
    assert pauses == [2, 4, 8]
    shutil.rmtree(tmp_path / "data" / "files")
    site.status, pauses[:] = 503, [0.0] * 3
    with pytest.raises(DataSourceError, match="could not be fetched"):
        fetcher.fetch(0)
    assert pauses[3:] == [2, 4, 8, 16]


def test_a_source_that_has_changed_between_two_runs_is_listed_as_it_is_now(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def listed() -> str:
        return list_files(site.url, folder, SilentProgress()).revision

    def come() -> bytes:
        listing = list_files(site.url, folder, SilentProgress())
        return FileFetcher(listing, folder, SilentProgress()).fetch(0).path.read_bytes()

    assert (listed(), come()) == ('ETag "one"', ROWS)
    site.content, site.etag, num_requests = ROWS[::-1], '"two"', len(site.requests)
    assert (listed(), len(site.requests)) == ('ETag "one"', num_requests), "what is there needs no network"
    shutil.rmtree(folder / "files")  # as the limit of the cache does it
    assert (listed(), come()) == ('ETag "two"', ROWS[::-1])
    fetched(tmp_path, site, refresh=True)
    site.content, site.etag = ROWS, '"three"'
    shutil.rmtree(folder / "files")
    assert (listed(), come()) == ('ETag "three"', ROWS)
    shutil.rmtree(folder / "files")
    site.status = 503
    assert listed() == 'ETag "three"', "without an answer it is what was listed last"
