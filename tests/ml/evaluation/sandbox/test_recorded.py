"""Scores of code as rewards: recorded by code, answer and row; failures by their run alone; limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from luthier.core.errors import RequestError, WorkError
from luthier.core.graders import PythonGraderSpec
from luthier.core.ports import Generation, SilentProgress
from luthier.ml.evaluation.sandbox import recorded
from luthier.ml.evaluation.sandbox.recorded import RecordedGraders, check_source
from luthier.ml.evaluation.sandbox.runners import PythonGrade, isolation

locked_down = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")
SILENT = SilentProgress()


class Store:
    """Keeps generations in memory; the first of a key stays."""

    def __init__(self) -> None:
        self.kept: dict[str, Generation] = {}

    def find(self, keys: Sequence[str]) -> dict[str, Generation]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None:
        assert engine == "python grader python"
        self.kept = {**new, **self.kept}


def code(source: str) -> PythonGraderSpec:
    return PythonGraderSpec(type="python", source=source)


def pairs(*texts: str, item: Mapping[str, Any] | None = None) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    return [({"output_text": text}, item or {"answer": "a"}) for text in texts]


class FakeChild:
    """In place of the locked-down child: counts its answers, and gives what was planned for a text."""

    def __init__(self, planned: dict[str, PythonGrade]) -> None:
        self.planned, self.asked = planned, list[str]()

    def grade(self, answer: Mapping[str, Any], item: Mapping[str, Any]) -> PythonGrade:
        self.asked.append(answer["output_text"])
        return self.planned[answer["output_text"]]

    def close(self) -> None:
        pass


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> FakeChild:
    fake = FakeChild({"good": PythonGrade("graded", 0.1 + 0.2), "slow": PythonGrade("timeout")})
    monkeypatch.setattr(recorded, "PythonGrader", lambda *_, **__: fake)
    return fake


def test_a_score_is_found_again_by_any_run_and_a_failure_by_its_own_alone(child: FakeChild) -> None:
    store, grader = Store(), code("def grade(sample, item): return 1")
    first = RecordedGraders(store, "run-a")(grader, pairs("good", "slow", "good"), SILENT)
    assert [one.score for one in first] == [0.1 + 0.2, 0.0, 0.1 + 0.2]
    assert child.asked == ["good", "slow"]
    child.planned["slow"] = PythonGrade("graded", 0.5)
    # Resumed: the same, whatever the code would give now.
    assert RecordedGraders(store, "run-a")(grader, pairs("good", "slow", "good"), SILENT) == first
    assert child.asked == ["good", "slow"]
    other = RecordedGraders(store, "run-b")(grader, pairs("good", "slow"), SILENT)
    assert [one.score for one in other] == [0.1 + 0.2, 0.5]
    assert child.asked == ["good", "slow", "slow"]
    # What another run has found since does not change the past of the first one.
    assert RecordedGraders(store, "run-a")(grader, pairs("slow"), SILENT) == [PythonGrade("timeout")]


def test_other_code_another_row_and_another_limit_are_graded_again(child: FakeChild) -> None:
    store = Store()
    RecordedGraders(store, "run-a")(code("grade = len"), pairs("good"), SILENT)
    RecordedGraders(store, "run-a")(code("grade = max"), pairs("good"), SILENT)
    RecordedGraders(store, "run-a")(code("grade = len"), pairs("good", item={"answer": "b"}), SILENT)
    RecordedGraders(store, "run-a", seconds=1.0)(code("grade = len"), pairs("good"), SILENT)
    assert child.asked == ["good"] * 4


def test_code_that_does_not_return_ends_the_work_and_is_tried_again_when_it_is_resumed(child: FakeChild) -> None:
    texts = [f"slow{number}" for number in range(recorded.MAX_TIMEOUTS)]
    child.planned |= {text: PythonGrade("timeout") for text in texts}
    store = Store()
    with pytest.raises(WorkError, match="longer than 10 s for each of 5 answers in a row"):
        RecordedGraders(store, "run-a")(code("grade = len"), pairs(*texts), SILENT)
    assert store.kept == {}
    graded = RecordedGraders(store, "run-a")(code("grade = len"), pairs(*texts[:4], "good", texts[4]), SILENT)
    assert [one.word for one in graded] == [*["timeout"] * 4, "graded", "timeout"]


def test_fields_that_json_lacks_become_texts(child: FakeChild) -> None:
    item = {"when": datetime(2026, 1, 2, tzinfo=UTC), "ratio": float("nan")}
    (grade,) = RecordedGraders(Store(), "run-a")(code("grade = len"), pairs("good", item=item), SILENT)
    assert grade.word == "graded"
    assert child.asked == ["good"]


@locked_down
def test_code_is_run_locked_down_with_the_answer_and_the_row() -> None:
    source = (
        "def grade(sample, item):\n"
        "    if sample['output_text'] == 'file':\n"
        "        return len(open('/etc/passwd').read())\n"
        "    return len(sample['output_text']) / item['most']\n"
    )
    graders = RecordedGraders(None, "run-a")
    try:
        good, file = graders(code(source), pairs("four", "file", item={"most": 8}), SILENT)
    finally:
        graders.close()
    assert good == PythonGrade("graded", 0.5)
    assert (file.word, file.score) == ("error", 0.0)
    assert "PermissionError" in file.message


@locked_down
def test_an_answer_that_takes_too_long_counts_nothing_and_the_next_one_is_graded() -> None:
    source = "def grade(sample, item):\n    while sample['output_text'] == 'slow': pass\n    return 1\n"
    graders = RecordedGraders(Store(), "run-a", seconds=1.0)
    try:
        slow, good = graders(code(source), pairs("slow", "good"), SILENT)
    finally:
        graders.close()
    assert (slow.word, slow.score) == ("timeout", 0.0)
    assert good == PythonGrade("graded", 1.0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(", "is no Python"),
        ("x = 1", "defines no function grade"),
        ("(" * 100_000, "is no Python"),
        ("def grade(sample, item):\n return '\0'", "is no Python"),
    ],
)
def test_a_source_that_cannot_grade_is_refused_before_it_is_run(source: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_source(code(source))


@pytest.mark.parametrize(
    "source",
    ["def grade(s, i): return 1", "grade = lambda s, i: 1", "from m import rate as grade", "class grade: pass"],
)
def test_a_source_may_define_its_function_in_any_way(source: str) -> None:
    check_source(code(source))
