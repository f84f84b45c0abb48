"""`luthier compare-models`: what it asks for, refuses, says on the way and shows at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.features.workflows.model_comparison import sizes
from luthier.testing.tiny import make_tiny_model


@pytest.fixture
def asked(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "MOST_EPOCHS", 1.0)  # the budget would hold three passes over the rows
    other = make_tiny_model(tmp_path / "other", seed=1)
    for name, numbers in (("train", range(32)), ("test", range(100, 110))):
        rows = [{"question": f"say {n}", "answer": f"word{n % 7}"} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "--models": f"{tiny_model},{other}",
        "--data": str(tmp_path / "train.jsonl"),
        "--held-out": str(tmp_path / "test.jsonl"),
        "--budget-hours": "1",
    }


def words(asked):
    return [word for pair in asked.items() for word in pair]


def test_from_models_to_a_recommendation_and_again_by_its_id(luthier, asked):
    fields = ["--map", "prompt=question", "--map", "completion=answer", "--metric", "exact_match"]
    options = ["--few-shot", "1", "--max-new-tokens", "4", "--no-probe", *fields]
    done = luthier("compare-models", *words(asked), *options, "--json")
    assert done.code == 0
    showdown_id = done.document["showdown_id"]
    assert done.document["spec"]["primary"] == "exact_match"
    assert f"{showdown_id}: 2 contenders" in done.err
    assert "7/7 comparing: done" in done.err
    assert "<!DOCTYPE html>" in Path(done.document["report_path"]).read_text()
    again = luthier("compare-models", "--resume", showdown_id)
    assert done.document["recommendation"]["headline"] in again.out
    assert "not the same for all" in again.out or not done.document["not_equal"]
    assert "report: " in again.out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--models": None}, "no --models"),
        ({"--budget-hours": None}, "no --budget-hours"),
        ({"--models": "no-such-model"}, "no-such-model"),
        ({"--data": "nothing.jsonl"}, "nothing.jsonl"),
        ({"--resume": "showdown-20261126-000000-000000"}, "--resume with --models, --data"),
        (
            dict.fromkeys(("--models", "--data", "--held-out", "--budget-hours"))
            | {"--resume": "showdown-20261126-000000-000000", "--metric": "rouge"},
            "--resume with --metric",
        ),
    ],
)
def test_what_cannot_be_is_refused(luthier, asked, changed, said):
    wanted = {name: value for name, value in (asked | changed).items() if value is not None}
    refused = luthier("compare-models", *words(wanted))
    assert refused.code == 2
    assert said in refused.err


def test_an_id_of_something_else_is_refused(luthier):
    refused = luthier("compare-models", "--resume", "showdown-20261126-000000-000000")
    assert refused.code == 2
    assert "no workflow" in refused.err


def test_one_of_another_project_is_looked_for_there(luthier):
    refused = luthier("compare-models", "--resume", "showdown-20261126-000000-000000", "--project", "nobodys")
    assert refused.code == 2
    assert "nobodys" in refused.err
