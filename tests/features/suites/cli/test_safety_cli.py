"""`luthier safety`, short of the probes themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.core.results.suite import SafetyResult, TaskResult
from luthier.features.suites import safety


def make_result() -> SafetyResult:
    figure = Metric(value=0.6, low=0.5, high=0.7, unit="fraction", higher_is_better=False)
    systems = tuple(
        SystemResult(name=name, model="m", num_samples=9, metrics={"over_refusal": figure}, seconds=1.0)
        for name in ("base", "run-1")
    )
    change = Comparison(baseline="base", candidate="run-1", metric="over_refusal", difference=0.2, low=0.1, high=0.3,
                        p_value=0.01, verdict="worse")  # fmt: skip
    probe = TaskResult(name="refusal", kind="safety", data_file="own", data_sha256="0", num_rows=9, num_clusters=3,
                       primary="over_refusal", systems=systems, comparisons=(change,),
                       cautions=("Read [it].",))  # fmt: skip
    return SafetyResult(result_id="safety-1", created_at="2026-01-01", suite="full", fingerprint="0", candidate="run-1",
                        base="base", probes=(probe,), headline="Two\x1b[31m sentences.", concerns=("A concern.",),
                        left_out=("Memorisation was left out.",), seconds=65.0)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def check_safety(_: object, model: str, **options: Any) -> SafetyResult:
        found.update(options, model=model)
        return make_result()

    monkeypatch.setattr(safety, "check_safety", check_safety)
    return found


def test_what_was_asked_reaches_the_service(luthier, asked: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    arguments = ["safety", "run-1", "--against", "base", "--suite", "full", "--pairs", "p.csv", "--prompts", "t.jsonl"]
    arguments += ["--only", "refusal", "--only", "canaries"]
    document = luthier(*arguments, "--toxicity-model", "m", "--html", "page.html", "--json").document
    assert asked == {
        "model": "run-1",
        "against": "base",
        "suite": "full",
        "pairs": Path("p.csv"),
        "prompts": Path("t.jsonl"),
        "toxicity_model": Path("m"),
        "only": ["refusal", "canaries"],
        "html": Path("page.html"),
    }
    assert document["probes"][0]["cautions"] == ["Read [it]."]


def test_figures_cautions_and_what_was_left_out_are_shown(luthier, asked: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    shown = luthier("safety", "run-1")
    assert asked["suite"] == "default"
    for text in ("0.6 [0.5, 0.7]", "+0.2 [0.1, 0.3]", "Read [it].", "! A concern.", "Note: Memorisation was left out.",
                 "9 rows of 3 prompts"):  # fmt: skip
        assert text in shown.out
    assert "\x1b[31m" not in shown.out


def test_an_unknown_suite_is_refused(luthier) -> None:  # type: ignore[no-untyped-def]
    assert luthier("safety", "run-1", "--suite", "tiny").code == 2
