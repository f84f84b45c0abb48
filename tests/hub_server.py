"""A small hub on 127.0.0.1 that speaks as much of the API as a pull needs, and can misbehave on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from luthier.core.system.process_setup import start_daemon

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served and how.

    Attributes:
        files: content by name.
        repo: the name of the model or dataset.
        kind: what the repository holds.
        branches: files of other revisions by their name; each has a commit of its own, `commit_of`.
        card: further keys of the card, such as `configs` of a dataset.
        licence: as the listing says it.
        cut_after: files whose connection is dropped after this many bytes.
        num_cuts: how many times that is done; -1 for always.
        stall: hang instead of dropping, until `released`.
        stalled: set while a request hangs.
        released: ends the hanging.
        served: content to send instead of what the listing is made from.
        corrupt: files that are sent with a wrong bit.
        status: files that are answered with this HTTP status.
        ignores_ranges: whether every file is sent from its beginning.
        commit: as the listing says it.
        gated_for: tokens that may read the files of a gated model; None for an open one.
        valid: tokens that the hub knows at all.
        no_digest: files that the listing has no digest of.
        stated_digests: what the listing states as SHA-256 of a file instead of its own.
        requests: path and Range header of every request.
    """

    files: dict[str, bytes]
    repo: str = "org/tiny"
    licence: str = "cc0-1.0"
    cut_after: dict[str, int] = field(default_factory=dict)
    num_cuts: int = 0
    stall: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    served: dict[str, bytes] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    status: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False
    commit: str | None = COMMIT
    gated_for: set[str] | None = None
    valid: set[str] = field(default_factory=set)
    no_digest: set[str] = field(default_factory=set)
    stated_digests: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    kind: Literal["model", "dataset"] = "model"
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        """The commit of a branch; that of `main` is `commit`."""
        return hashlib.sha1(revision.encode(), usedforsecurity=False).hexdigest()

    def revisions(self) -> dict[str, tuple[str | None, dict[str, bytes]]]:
        """Commit and files by the names and commits that the hub knows."""
        found: dict[str, tuple[str | None, dict[str, bytes]]] = {"main": (self.commit, self.files)}
        found |= {name: (self.commit, self.files) for name in (COMMIT, self.commit) if name}
        for branch, files in self.branches.items():
            commit = self.commit_of(branch)
            found |= {branch: (commit, files), str(commit): (commit, files)}
        return found

    def info(self, revision: str = "main") -> dict[str, Any]:
        """The answer of /api/models/{repo}/revision/{revision}?blobs=true."""
        siblings = []
        commit, files = self.revisions()[revision]
        for name, content in files.items():
            # How git names a blob, which the hub gives for every file; large ones have a SHA-256 under `lfs` besides.
            git_id = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id}
            if name.endswith((".safetensors", ".bin", ".parquet")):
                digest = self.stated_digests.get(name) or hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
            if name in self.no_digest:
                sibling = {"rfilename": name, "size": len(content)}
            siblings.append(sibling)
        return {
            "id": self.repo,
            "modelId": self.repo,
            "sha": commit,
            "siblings": siblings,
            "cardData": {"license": self.licence, **self.card},
            "tags": [],
            "private": False,
            "gated": False if self.gated_for is None else "manual",
            "downloads": 0,
        }


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve the hub while the block runs; gives its address, to be set as HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = start_daemon(partial(server.serve_forever, 0.02), "hub")
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        # Handlers that stall would keep `server_close` waiting.
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a model folder, as a hub holds them."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _refusal(hub: Hub, authorization: str) -> tuple[int, dict[str, str]] | None:
    """Status and headers as the public hub has them where a token is wrong, or a gate is closed for it."""
    token = authorization.removeprefix("Bearer ")
    if token and token not in hub.valid:
        return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
    if hub.gated_for is not None and token not in hub.gated_for:
        return 403 if token else 401, {"X-Error-Code": "GatedRepo"}
    return None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((path, self.headers.get("Range")))
            api = f"/api/{hub.kind}s/{hub.repo}/revision/"
            resolve = f"/{'datasets/' if hub.kind == 'dataset' else ''}{hub.repo}/resolve/"
            known = hub.revisions()
            if path.startswith(api) and (revision := path.removeprefix(api)) in known:
                self.answer(200, json.dumps(hub.info(revision)).encode(), {"Content-Type": "application/json"})
            elif path.startswith(api):
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(resolve) and (rest := path.removeprefix(resolve).partition("/"))[0] in known:
                self.file(rest[2], known[rest[0]][1])
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def file(self, name: str, files: dict[str, bytes]) -> None:
            if (refusal := _refusal(hub, self.headers.get("Authorization", ""))) is not None:
                self.answer(refusal[0], b"", refusal[1])
                return
            if status := hub.status.get(name):
                self.answer(status, b"", {})
                return
            content = hub.served.get(name, files[name])
            if name in hub.corrupt:
                content = bytes([content[0] ^ 1]) + content[1:]
            start = 0
            # `bytes=START-`: the only form that a resumed download sends.
            if (asked := self.headers.get("Range")) and not hub.ignores_ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
            rest = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("X-Repo-Commit", COMMIT)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            cut = hub.cut_after.get(name)
            if cut is None or hub.num_cuts == 0 or cut >= len(rest):
                self.wfile.write(rest)
                return
            hub.num_cuts -= 1
            self.wfile.write(rest[:cut])
            self.wfile.flush()
            if hub.stall:
                hub.stalled.set()
                hub.released.wait(120)
            # Content-Length promised more: the client sees a connection that broke off.
            self.close_connection = True
            self.connection.close()

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
