"""An app over a home in which there is a little of everything, for tests that ask it at random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """An app and what is in its home.

    Attributes:
        app: the FastAPI app.
        headers: with an admin's key.
        known: ids that are there, by the name of the path parameter.
    """

    app: Any
    headers: dict[str, str]
    known: dict[str, list[str]]


@contextmanager
def small_world(folder: Path) -> Iterator[SmallWorld]:
    """Make a home in the folder with a base model, a file and jobs without a worker, and the app that serves it."""
    from starlette.testclient import TestClient

    from luthier.features.models.service import pull_model
    from luthier.platform.auth.service import create_key
    from luthier.platform.home.context import Context
    from luthier.server.api import create_app
    from luthier.testing.tiny import make_tiny_model

    model = make_tiny_model(folder / "tiny")
    with Context.open(folder / "home") as context:
        pull_model(context, str(model))
        headers = {"Authorization": f"Bearer {create_key(context, 'fuzz', scopes=('admin',))[1]}"}
        app = create_app(context)
        with TestClient(app, headers=headers) as client:
            row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
            content = (json.dumps(row) + "\n").encode() * 12
            file = _ok(client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "fine-tune"}))
            asked = {"model": "tiny", "training_file": file["id"]}
            # Without a worker they stay queued: all that the API does with jobs can be asked of them.
            jobs = [_ok(client.post("/v1/fine_tuning/jobs", json=asked))["id"] for _ in range(3)]
            size = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "application/jsonl"}
            upload = _ok(client.post("/v1/uploads", json=size))
            _ok(client.post("/api/v1/deployments", json={"name": "named", "target": "tiny"}))
            known = {
                "file_id": [file["id"]],
                "fine_tuning_job_id": jobs,
                "job_id": jobs,
                "upload_id": [upload["id"]],
                "model": ["tiny"],
                "name": ["named"],
            }
        yield SmallWorld(app, headers, known)


def _ok(response: Any) -> Any:
    if response.status_code >= 300:
        raise RuntimeError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
    return response.json()
