"""An app over a home with a tiny base model, and clients of two projects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.api.app import create_app
from luthier.core.access import Scope
from luthier.core.job import Lane
from luthier.core.ports import SilentProgress
from luthier.jobs.worker import Pace
from luthier.service import jobs
from luthier.service.access import create_key
from luthier.service.context import Context
from luthier.service.tuning_job import carry_out

QUICK = Pace(look=0.05, ping=0.2, beat=0.5)


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Iterator[Context]:
    """An open home that has pulled the tiny model: the API knows it as `tiny`."""
    from luthier.models import sources

    with Context.open(tmp_path / "home") as opened:
        sources.pull(str(tiny_model), opened.home, SilentProgress())
        yield opened


@pytest.fixture
def client_of(home: Context) -> Iterator[Callable[..., TestClient]]:
    """Makes a client with a key of a project, by default of `default` and with all scopes."""
    opened: list[TestClient] = []

    def make(project: str = "default", scopes: tuple[Scope, ...] = ("admin",)) -> TestClient:
        if project not in {known.name for known in home.access.projects()}:
            home.access.add_project(f"proj-{project}", project)
        _, key = create_key(home, "test", scopes=scopes, project=project)
        client = TestClient(create_app(home), headers={"Authorization": f"Bearer {key}"})
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


def chat_row(number: int) -> dict[str, Any]:
    question, answer = f"What comes after {number}?", f"After {number} comes {number + 1}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def upload(client: TestClient, rows: list[Any], name: str = "rows.jsonl") -> str:
    """The id of a new file with these rows; a text is taken as a line of its own."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    content = "".join(f"{line}\n" for line in lines).encode()
    answer = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def work(context: Context, stop: Callable[[], str | None]) -> None:
    """Be a worker with real children, until a stop is asked for."""
    jobs.work(context, "w", stop_requested=stop, tell=lambda _: None, pace=QUICK)


def work_here(context: Context) -> None:
    """What a worker and its children do, in this very process: they take seconds to start."""
    while _one_here(context, ("validate", "train")):
        pass


def look_at_one(context: Context) -> None:
    """Validate the files of the next job."""
    assert _one_here(context, ("validate",))


def _one_here(context: Context, lanes: tuple[Lane, ...]) -> bool:
    job = context.jobs.claim("here", lanes)
    if job is None:
        return False
    outcome = carry_out(context, job)
    if outcome.status == "validated":
        context.jobs.advance(job.job_id, job.attempt, outcome.found)
    else:
        context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)
    return True


def ok(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def all_events(client: TestClient, job_id: str) -> list[dict[str, Any]]:
    return list(reversed(ok(client.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=1000"))["data"]))
