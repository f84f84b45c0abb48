"""What tests of datasets share: a worker in this very process, files as a browser sends them, and a small hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from tests.hub_server import Hub, serving

from luthier.core.access import Caller
from luthier.core.import_string import import_string
from luthier.features.datasets import imports
from luthier.features.datasets.imports import Added
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.kinds import attempt_of
from luthier.platform.jobs.records import Job

ME = Caller(name="Ada")


def add(context: Context, sent: Mapping[str, bytes], caller: Caller = ME, **given: Any) -> Added:
    """Add files as the form of the page does."""
    with ExitStack() as stack:
        incoming = []
        for name, content in sent.items():
            one = stack.enter_context(files.incoming_file(context))
            one.write(content)
            one.finish()
            incoming.append((one, name))
        return imports.add(context, caller, incoming, **given)


def work_once(context: Context) -> Job:
    """What a worker and its child do with the next job, in this very process: they take seconds to start."""
    job = context.jobs.claim("here", ("infer", "remote"))
    assert job is not None, "no job waits"
    outcome = import_string(attempt_of(job.kind, job.document))(context, job)
    if outcome.status == "waiting":
        return context.jobs.give_back(job.job_id, job.attempt, rest_seconds=outcome.rest_seconds, is_waiting=True)
    assert outcome.status in ("succeeded", "failed", "paused")
    return context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def events(context: Context, job: Job) -> Sequence[str]:
    """The messages of a job, oldest first."""
    return [event.message for event in reversed(context.job_events.page(job.job_id)[0])]


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def qa(number: int) -> dict[str, Any]:
    return {"question": f"What is {number}?", "answer": f"It is {number}.", "source": f"book {number}"}


@pytest.fixture
def qa_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the dataset org/qa: 40 rows to train on, 2 to test with."""
    files = {"train.jsonl": jsonl(*map(qa, range(40))), "test.jsonl": jsonl(qa(98), qa(99))}
    served = Hub(files, repo="org/qa", kind="dataset", licence="cc-by-4.0")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served
