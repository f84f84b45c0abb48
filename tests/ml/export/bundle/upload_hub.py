"""A hub on 127.0.0.1 that takes uploads: as much of the API as a push needs, and it can fail on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class UploadHub:
    """files: of the one repository, by name; None before it was made. large: content of large files by SHA-256.

    fail_put_after: answer 403 to uploads of large files after so many. status: refuse the making of repositories.
    damage: flip a bit of this file when it is committed. moved: say that somebody else has committed meanwhile.
    """

    files: dict[str, bytes] | None = None
    large: dict[str, bytes] = field(default_factory=dict)
    is_private: bool | None = None
    commits: list[str] = field(default_factory=list)
    num_puts: int = 0
    fail_put_after: int | None = None
    status: int | None = None
    damage: str | None = None
    moved: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode(), usedforsecurity=False).hexdigest()

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, content in (self.files or {}).items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if is_large(name):
                one["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            siblings.append(one)
        return {"id": "org/made", "sha": self.commit, "siblings": siblings, "tags": [], "private": self.is_private}


def is_large(name: str) -> bool:
    return name.endswith((".gguf", ".bin", ".safetensors"))


@contextmanager
def serving(hub: UploadHub) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, status: int, document: Any = None, **headers: str) -> None:
            content = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/models/org/made/revision/") and hub.files is not None:
                self.answer(200, hub.info())
            else:
                self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            address = f"http://{self.headers['Host']}"
            if path == "/api/repos/create":
                self.create(json.loads(body), address)
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path.startswith("/api/models/org/made/preupload/"):
                asked = json.loads(body)["files"]
                modes = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if is_large(one["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for one in asked
                ]
                self.answer(200, {"files": modes})
            elif path == "/org/made.git/info/lfs/objects/batch":
                self.answer(200, {"objects": [self.wanted(one, address) for one in json.loads(body)["objects"]]})
            elif path == "/verify" or path.startswith("/api/models/org/made/branch/"):
                self.answer(200, {})
            elif path.startswith("/api/models/org/made/commit/"):
                self.commit(body, address)
            else:
                self.answer(404, {"error": path})

        def do_PUT(self) -> None:
            content = self.body()
            if hub.fail_put_after is not None and hub.num_puts >= hub.fail_put_after:
                self.answer(403, {"error": "no more"})
                return
            hub.num_puts += 1
            hub.large[urlsplit(self.path).path.rpartition("/")[2]] = content
            self.answer(200, {})

        def create(self, asked: dict[str, Any], address: str) -> None:
            if hub.status is not None:
                self.answer(hub.status, {"error": "You may not"})
                return
            if hub.files is not None:
                self.answer(409, {"error": "there is one", "url": f"{address}/org/made"})
                return
            hub.files = {".gitattributes": b"*.gguf filter=lfs\n"}
            hub.is_private = asked.get("private", asked.get("visibility") == "private")
            self.answer(200, {"url": f"{address}/org/made", "name": "org/made", "id": "org/made"})

        def wanted(self, one: dict[str, Any], address: str) -> dict[str, Any]:
            if one["oid"] in hub.large:
                return one
            return one | {
                "actions": {"upload": {"href": f"{address}/put/{one['oid']}"}, "verify": {"href": f"{address}/verify"}}
            }

        def commit(self, body: bytes, address: str) -> None:
            lines = [json.loads(line) for line in body.splitlines()]
            header = next(line["value"] for line in lines if line["key"] == "header")
            if hub.moved or header.get("parentCommit") not in (None, hub.commit):
                self.answer(412, {"error": "A commit has happened since"})
                return
            assert hub.files is not None
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
                if line["key"] != "header" and value["path"] == hub.damage:
                    content = hub.files[value["path"]]
                    hub.files[value["path"]] = bytes([content[0] ^ 1]) + content[1:]
            hub.commits.append(header["summary"])
            oid = hub.commit
            self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{address}/org/made/commit/{oid}"})

    return Handler
