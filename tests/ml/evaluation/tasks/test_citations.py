"""The kind `citations`, judged as a suite judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError, RequestError
from luthier.core.results.suite import CitationsTask
from luthier.ml.evaluation.grounding import find
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.tasks.citations import Citations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, task_kind
from luthier.testing.fake_engine import FakeEngine

DOCUMENTS = {"a": "W.C.A. § 21-4-12. The employee tells the employer within thirty days. Part AB-123."}


def task(**more: Any) -> CitationsTask:
    return CitationsTask(kind="citations", name="law", data="rows.jsonl", corpus="corpus", **more)


def row(number: int, question: str, answer: str) -> TaskRow:
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return TaskRow(Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=turns)), {})


ROWS = (row(1, "Notice?", "W.C.A. § 21-4-12."), row(2, "And?", "I do not know."))


def names(spec: CitationsTask, **more: Any) -> list[str]:
    resources = Resources(folder=Path(), **{"documents": DOCUMENTS, **more})
    return [metric.name for metric in Citations().metrics(spec, ROWS, resources)]


def test_the_registry_names_it() -> None:
    assert isinstance(task_kind("citations"), Citations)


def test_invented_citations_come_first_and_a_judge_adds_two() -> None:
    plain = [
        "invented_citations",
        "answers_with_invented",
        "misnamed_citations",
        "citations_per_answer",
        "expected_citations",
        "grounded_claims",
    ]
    assert names(task()) == plain
    judged = names(task(entailment=True), judge=FakeEngine({}), judge_name="j")
    assert judged == [*plain, "entailed_claims", "unusable_verdicts"]


def test_without_citations_in_the_rows_none_are_expected() -> None:
    assert "expected_citations" not in names(task(forms=("url",), patterns={"part": r"AB-\d+"}))


def test_the_figures_are_those_of_the_outputs() -> None:
    metrics = Citations().metrics(task(), ROWS, Resources(folder=Path(), documents=DOCUMENTS))
    observed = Observations(outputs=["See W.C.A. § 9-9-9.", ""], references=["W.C.A. § 21-4-12.", "I do not know."])
    found = {metric.name: float(metric.aggregate(metric.statistics(observed).sum(axis=0))) for metric in metrics}
    assert found == {
        "invented_citations": 1.0,
        "answers_with_invented": 0.5,
        "misnamed_citations": 0.0,
        "citations_per_answer": 0.5,
        "expected_citations": 0.0,
        "grounded_claims": 0.0,
    }


def test_what_is_missing_is_told() -> None:
    with pytest.raises(RequestError, match="without documents"):
        names(task(), documents=None)
    with pytest.raises(RequestError, match="needs a judge"):
        names(task(entailment=True))
    with pytest.raises(DataError, match="without any text"):
        names(task(), documents={})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"forms": ()}, "looks for no citations"),
        ({"patterns": {"part": "("}}, "not a regular expression"),
        ({"patterns": {"part": "x?"}}, "fits an empty text"),
        ({"patterns": {"url": "x+"}}, "the name of a form"),
    ],
)
def test_a_wrong_task_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Citations().check(task(**more), ROWS)


def test_rows_that_ask_nothing_are_named() -> None:
    text = TaskRow(Example(id="rows.jsonl:7", text="Plain text."), {})
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        Citations().check(task(), [*ROWS, text])
    assert [(problem.file, problem.line) for problem in caught.value.problems] == [("rows.jsonl", 7)]
    Citations().check(task(), ROWS)


def test_nothing_is_drawn_and_nothing_is_chosen_from() -> None:
    assert Citations().options(task(), ROWS[0]) == ()
    assert Citations().figures(task(), Observations()) is None


def test_cautions_say_what_the_figures_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said = " ".join(Citations().cautions(task(entailment=True, patterns={"part": "AB"})))
    assert "the wrong one for its sentence" in said
    assert "negation" in said
    assert "Citing nothing invents nothing" in said
    assert "usable verdict" in said
    assert "part: any text that fits" in said
    monkeypatch.setattr(find, "find_spec", lambda name: None)
    assert "luthier[law]" in " ".join(Citations().cautions(task()))
    assert "luthier[law]" not in " ".join(Citations().cautions(task(forms=("url",))))
