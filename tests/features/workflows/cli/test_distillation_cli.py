"""`luthier distill`, short of the work itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.workflows.pipeline import Student, StudentRun, StudentVerdict
from luthier.features.workflows.distillation import workflow as students
from luthier.testing.records import make_evaluation


def make_student(**changes: Any) -> Student:
    run = StudentRun(
        run_id="run-1",
        method="full",
        num_steps=3,
        num_examples=24,
        num_tokens=100,
        num_trained_tokens=50,
        weights_sha256="0" * 64,
        seconds=2.0,
    )
    given: dict[str, Any] = {
        "student_id": "student-1",
        "status": "done",
        "kind": "sequence",
        "teacher": "run-0",
        "student_model": "layers:2@run-0",
        "layers": "2",
        "student_parameters": 1_000_000,
        "teacher_parameters": 2_000_000,
        "data_file": "rows.jsonl",
        "num_rows": 32,
        "num_refused": 1,
        "held_out_file": "held_out.jsonl",
        "num_held_out": 8,
        "taught": run,
        "alone": run,
        "evaluation": make_evaluation(),
        "verdict": StudentVerdict(word="not settled", headline="Cannot say.", reasons=("a",), caveats=("few rows",)),
    }
    return Student(**(given | changes))


def test_what_was_asked_reaches_the_service(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked: list[students.DistilRequest] = []
    callers: list[Caller] = []

    def distil(_: object, request: students.DistilRequest, *, caller: Caller) -> Student:
        asked.append(request)
        callers.append(caller)
        return make_student()

    monkeypatch.setattr(students, "distil", distil)
    arguments = ["distill", "run-0", "--student", "layers:2", "--data", "rows.jsonl", "--kind", "logit"]
    arguments += ["--recipe", "r.yaml", "--set", "training.epochs=3", "--map", "prompt=question"]
    arguments += ["--max-new-tokens", "9", "--batch"]
    document = luthier(*arguments, "--held-out", "test.jsonl", "--json").document
    assert document["verdict"]["word"] == "not settled"
    text = luthier(*arguments).out
    wanted = ("Cannot say.", "Note: few rows", "1.0 million parameters, 50% of the teacher's", "32 learned, 1 left out")
    for words in wanted:
        assert words in text
    both = {
        "teacher": "run-0",
        "student": "layers:2",
        "data": Path("rows.jsonl"),
        "kind": "logit",
        "recipe": Path("r.yaml"),
        "overrides": ("training.epochs=3",),
        "mapping": {"prompt": "question"},
        "max_new_tokens": 9,
        "uses_batch_api": True,
    }
    assert asked == [students.DistilRequest(**both, held_out=held) for held in (Path("test.jsonl"), 0.2)]
    assert callers == [Caller(), Caller()]
    assert "nobodys" in luthier(*arguments, "--project", "nobodys").err


def test_one_that_was_stopped_says_how_it_goes_on(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    stopped = make_student(status="paused", evaluation=None, verdict=None, alone=None, go_on="the same again")
    monkeypatch.setattr(students, "distil", lambda *_, **_options: stopped)
    text = luthier("distill", "run-0", "--student", "tiny", "--data", "rows.jsonl").out
    assert "To resume: the same again" in text
    assert "paused" in text
