"""What the process of an attempt takes from its job, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from luthier.core.errors import MemoryShortError
from luthier.core.system import process_setup
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


class EndedError(BaseException):
    """Stands for the end of the process."""


def test_too_little_memory_counts_as_a_crash_whose_last_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that it is tried again, a few times, when others may have given the memory back; no outcome ends the job."""

    def carry_out(*_: object) -> NoReturn:
        raise MemoryShortError("memory ran out", expected="more", do="wait")

    def end(code: int) -> NoReturn:
        raise EndedError(code)

    for name in ("follow_starter", "wait_briefly", "keep_few_kernels"):
        monkeypatch.setattr(process_setup, name, lambda: None)
    monkeypatch.setattr(child, "_carry_out", carry_out)
    monkeypatch.setattr(os, "_exit", end)
    job = Job(job_id="job-1", kind="train", document={}, run_id="run-1")
    (tmp_path / child.JOB_NAME).write_text(job.model_dump_json(), encoding="utf-8")
    with pytest.raises(EndedError) as ended:
        child.main(tmp_path / "home", tmp_path)
    assert ended.value.args == (1,)
    assert capsys.readouterr().err.splitlines()[-1] == "memory ran out; expected: more; what to do: wait"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [child.JOB_NAME]
