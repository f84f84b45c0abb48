"""What the process of an attempt takes from its job."""

from __future__ import annotations

import pytest

from luthier.platform.home.context import Context
from luthier.platform.jobs import child
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome


def test_an_attempt_finds_and_keeps_the_generations_of_its_project(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def carry_out(context: Context, _job: Job) -> Outcome:
        seen.append(context.cache_project_id)
        return Outcome(status="succeeded")

    monkeypatch.setattr(child, "import_string", lambda _: carry_out)
    child._carry_out(context, Job(job_id="job-1", kind="export", document={}, run_id="", project_id="proj-b"))
    assert seen == ["proj-b"]
