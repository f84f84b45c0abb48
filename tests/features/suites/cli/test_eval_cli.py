"""`luthier eval`, short of the judging itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.core.evaluation_plan import GoodEnoughRecipe
from luthier.core.results.suite import GateOutcome, RuleOutcome, SuiteResult, TaskResult, TasksVerdict
from luthier.features.evaluations import service as evaluations
from luthier.features.evaluations.prompted import AskedPrompts
from luthier.features.models.store import TunedModel
from luthier.features.suites import service as suites
from luthier.features.suites.cli import parse_metrics
from luthier.platform.auth.service import create_project
from luthier.platform.cli.command import parse_good_enough
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result

SERVED = "http://server/v1#model"


def test_what_was_asked_reaches_the_service(luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked: dict[str, Any] = {}

    def evaluate(_: object, systems: list[str], **options: Any) -> Any:
        asked.update(options, systems=systems)
        return make_evaluation()

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    arguments = ["eval", "run-1", "--data", "t.jsonl", "--against", "a", "--against", "b", "--few-shot", "4"]
    arguments += [
        "--few-shot-from",
        "train.jsonl",
        "--metrics",
        "bleu,rouge",
        "--max-new-tokens",
        "9",
        "--max-thinking-tokens",
        "0",
    ]
    arguments += ["--max-samples", "7", "--allow-leakage", "--map", "prompt=question", "--good-enough", "bleu=40"]
    arguments += ["--few-shot-draws", "2", "--no-few-shot-nearest", "--instruction", "--optimised-prompt", "5000"]
    arguments += ["--reflection-model", "a-model"]
    document = luthier(*arguments, "--json").document
    assert asked == {
        "systems": ["run-1", "a", "b"],
        "data": Path("t.jsonl"),
        "few_shot": 4,
        "few_shot_from": Path("train.jsonl"),
        "prompts": AskedPrompts(
            draws=2, nearest=False, instruction=True, search_tokens=5000, reflection_model="a-model"
        ),
        "metrics": ["bleu", "rouge"],
        "mapping": {"prompt": "question"},
        "max_new_tokens": 9,
        "max_thinking_tokens": 0,
        "max_samples": 7,
        "allow_leakage": True,
        "good_enough": GoodEnoughRecipe(metric="bleu", value=40),
    }
    assert [system["name"] for system in document["systems"]] == ["base", "tuned"]
    assert document["comparisons"][0]["verdict"] == "not distinguishable"
    text = luthier(*arguments).out
    for words in ("exact_match", "0.5 [0.25, 0.75]", "about 400 rows would settle", "Cannot tell.", "Note: few rows"):
        assert words in text


def test_metrics_are_named_by_commas() -> None:
    assert parse_metrics(" rouge, bleu ,") == ["bleu", "rouge"]
    for text in ("", " , "):
        with pytest.raises(RequestError, match="names none"):
            parse_metrics(text)
    with pytest.raises(RequestError, match=r"unknown rogue; nearest known: rouge"):
        parse_metrics("bleu,rogue")


@pytest.mark.parametrize(
    "text", ["", "much", "=0.9", "bleu=", "bleu=much", "nan", "bleu=inf", "0.9=bleu", "agreement="]
)
def test_a_bar_without_a_number_is_refused(luthier, text: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("eval", "run-1", "base", "--data", "t.jsonl", "--good-enough", text, "--json")
    assert done.code == 2
    assert f"--good-enough {text!r}" in done.err


def test_a_bar_may_be_the_agreement_of_two_people() -> None:
    assert parse_good_enough("agreement=second_label") == GoodEnoughRecipe(agreement="second_label")
    assert parse_good_enough("label_accuracy=0.9") == GoodEnoughRecipe(metric="label_accuracy", value=0.9)
    assert parse_good_enough(None) is None


def test_a_bar_may_follow_from_what_errors_and_people_cost(luthier) -> None:  # type: ignore[no-untyped-def]
    by_costs = GoodEnoughRecipe(metric="exact_match", value=0.9)
    assert parse_good_enough("error=20,answer=2") == parse_good_enough("error=5, answer=0.5") == by_costs
    for text in ("error=2,answer=20", "error=2,answer=2", "error=0,answer=0", "error=20,answer=many"):
        done = luthier("eval", "run-1", "base", "--data", "t.jsonl", "--good-enough", text, "--json")
        assert (done.code, f"--good-enough {text!r}" in done.err) == (2, True), text


def test_a_bar_is_about_rows_and_not_about_suites(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("eval", "run-1", "--suite", "s.yaml", "--good-enough", "0.9")
    assert done.code == 2
    assert "--good-enough without --data" in done.err


def make_suite_result() -> SuiteResult:
    evaluation = make_evaluation()
    task = TaskResult(
        name="answers", kind="generate", data_file="rows.jsonl", data_sha256="0", num_rows=20, primary="exact_match",
        systems=evaluation.systems, comparisons=evaluation.comparisons, cautions=("Few \x1b[31mrows.",),
    )  # fmt: skip
    return SuiteResult(
        result_id="suite-1", created_at="2026-11-26", suite="demo", fingerprint="f" * 64, candidate="tuned",
        systems=("base", "tuned"), tasks=(task,), seconds=3.0,
        verdict=TasksVerdict(word="better", headline="It is better.", caveats=("Few tasks.",)),
    )  # fmt: skip


@pytest.fixture
def asked_of_suites(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def run_suite(_: object, systems: list[str], **options: Any) -> SuiteResult:
        asked.update(options, systems=systems)
        return make_suite_result()

    monkeypatch.setattr(suites, "run_suite", run_suite)
    return asked


def test_a_suite_is_run_and_shown(luthier, asked_of_suites: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    arguments = [
        "eval",
        "run-1",
        "base",
        "--suite",
        "s.yaml",
        "--judge",
        "http://j/v1#m",
        "--seeds",
        "3",
        "--allow-code",
    ]
    document = luthier(*arguments, "--allow-leakage", "--json").document
    assert asked_of_suites == {
        "systems": ["run-1", "base"],
        "suite": Path("s.yaml"),
        "judge": "http://j/v1#m",
        "seeds": 3,
        "allow_code": True,
        "allow_leakage": True,
    }
    assert document["tasks"][0]["primary"] == "exact_match"
    done = luthier(*arguments)
    assert done.code == 0
    for words in (
        "suite demo",
        "answers",
        "20 rows of rows.jsonl",
        "Verdict: better",
        "It is better.",
        "Note: Few tasks.",
    ):
        assert words in done.out
    assert "\x1b[31m" not in done.out


def test_a_failing_gate_is_told_by_the_exit_code(  # type: ignore[no-untyped-def]
    luthier, asked_of_suites: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.release_gates import service as gates

    outcome = GateOutcome(
        passed=False, gate_sha256="0", outcomes=(RuleOutcome(rule="r", passed=False, sentence="answers is too low."),)
    )
    monkeypatch.setattr(gates, "read_gate", lambda path: None)
    monkeypatch.setattr(gates, "check_gate", lambda *_, **given: outcome)
    page = tmp_path / "new" / "page.html"
    done = luthier("eval", SERVED, "--suite", "s.yaml", "--gate", "gate.yaml", "--html", page)
    assert done.code == 1
    assert "gate failed: 1 of 1 rules not met" in done.out
    assert "answers is too low." in done.out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    document = luthier("eval", SERVED, "--suite", "s.yaml", "--gate", "gate.yaml", "--json").document
    assert document["gate"]["passed"] is False


@pytest.mark.parametrize("way", ["--data", "--suite"])
@pytest.mark.parametrize("step", [None, 3])
def test_a_gate_looks_for_calibrations_in_the_project_of_a_tuned_model_or_checkpoint(  # type: ignore[no-untyped-def]
    luthier, home: Path, asked_of_suites: dict[str, Any], monkeypatch: pytest.MonkeyPatch, way: str, step: int | None
) -> None:
    from luthier.features.release_gates import service as gates

    with Context.open(home) as context:
        other = create_project(context, "other").project_id
        name = f"ft:tiny:{other}:mine:abc" + ("" if step is None else f":ckpt-step-{step}")
        context.runs.create(make_record(status="succeeded", result=make_result()), make_plan(), other)
        context.tuned_models.add(
            TunedModel(model_id=name, project_id=other, job_id="", run_id=RUN_ID, base_model="tiny",
                       adapter_path="adapter", step=step)
        )  # fmt: skip
    looked_in: list[str] = []

    def check_gate(_: Context, project_id: str, *__: object, **___: object) -> GateOutcome:
        looked_in.append(project_id)
        return GateOutcome(passed=True, gate_sha256="0", outcomes=())

    monkeypatch.setattr(evaluations, "evaluate", lambda *_, **__: make_evaluation())
    monkeypatch.setattr(gates, "read_gate", lambda _: None)
    monkeypatch.setattr(gates, "check_gate", check_gate)
    assert luthier("eval", name, way, "file", "--gate", "gate.yaml").code == 0
    assert looked_in == [other]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "neither --data nor --suite"),
        (["--data", "d", "--suite", "s"], "both --data and --suite"),
        (["--data", "d", "--seeds", "2"], "--seeds without --suite"),
        (["--data", "d", "--judge", "m", "--html", "x"], "--judge, --html without --suite"),
        (["--suite", "s", "--metrics", "bleu"], "--metrics without --data"),
        (["--suite", "s", "--few-shot", "2"], "--few-shot without --data"),
        (["--suite", "s", "--gate", "gone.yaml"], "gone.yaml"),
    ],
)
def test_options_of_the_other_way_are_refused(luthier, options: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("eval", "run-1", *options)
    assert done.code == 2
    assert words in done.err
