"""`luthier train` and `luthier plan`, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"After {n}?"}, {"role": "assistant", "content": f"Comes {n + 1}."}]}
        for n in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base_model: {tiny_model}\ndata: {{train: train.jsonl}}\nmethod: {{name: lora, rank: 2}}\n"
        "training: {max_steps: 2, global_batch_size: 4, learning_rate: 1e-3, precision: float32, num_threads: 1}\n"
    )
    return path


def test_plan_then_train_then_look(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    plan = luthier("plan", recipe, "--set", "training.seed=7", "--json")
    assert plan.code == 0, plan.err
    values = {row["name"]: row for row in plan.document["values"]}
    assert values["training.seed"] | {"why": ""} == {"name": "training.seed", "value": 7, "source": "asked", "why": ""}
    assert "training.seed" in luthier("plan", recipe, "--all").out

    done = luthier("train", recipe, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["status"] == "succeeded"
    assert document["num_steps"] == 2
    assert Path(document["adapter_path"]).exists()
    assert Path(document["report_path"]).exists()
    listed = luthier("runs", "list", "--json").document
    assert [(one["run_id"], one["status"]) for one in listed] == [(document["run_id"], "succeeded")]
    again = luthier("train", "--resume", document["run_id"])
    assert again.code == 2
    assert "has succeeded already" in again.err


def test_the_summary_is_for_people(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("train", recipe)
    assert done.code == 0, done.err
    for words in ("succeeded", "training loss", "tokens/s", "peak memory", "report"):
        assert words in done.out
    assert "\x1b" not in done.out + done.err


def test_a_budget_pauses_says_how_to_go_on_and_ends_well(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    free = luthier("train", recipe, "--json").document
    half = str(free["num_tokens"] * 3 // 4)
    paused = luthier("train", recipe, "--budget-tokens", half, "--budget-hours", "9", "--json")
    assert paused.code == 0
    document = paused.document
    assert (document["status"], document["num_steps"]) == ("paused", 1)
    assert document["stopped_because"].startswith(f"budget of {half} tokens")
    assert (document["budget"]["tokens"], document["budget"]["hours"]) == (int(half), 9.0)
    again = luthier("train", "--resume", document["run_id"], "--json")
    assert again.code == 2
    assert "budget of" in again.document["error"]["came"]
    shown = luthier("runs", "show", document["run_id"])
    assert "spent" in shown.out
    done = luthier("train", "--resume", document["run_id"], "--budget-tokens", "100000")
    assert done.code == 0, done.err
    assert "at most 9 hours, 100,000 tokens" in done.out
    assert "USD" in done.out
    shown = luthier("runs", "show", document["run_id"], "--json").document
    assert shown["result"]["adapter_sha256"] == free["adapter_sha256"]
    assert shown["bill"]["hours"] == shown["result"]["bill"]["hours"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget-hours", "0"], "--budget-hours 0"),
        (["--budget-usd", "-2"], "--budget-usd -2"),
        (["--budget-kwh", "nan"], "--budget-kwh nan"),
        (["--budget-tokens", "0"], "--budget-tokens 0"),
        (["--budget-hours", "1e-12"], "the first step alone"),
        (["--budget-tokens", "3"], "the first step alone"),
        (["--budget-hours", "soon"], "valid number"),
        (["--prices", "nowhere.yaml"], "no price file nowhere.yaml"),
    ],
)
def test_wrong_budgets(luthier, recipe: Path, flags: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("train", recipe, *flags, "--json")
    assert done.code == 2
    error = done.document["error"]
    assert words in error["came"]
    assert error["expected"]
    assert error["do"]
    assert luthier("runs", "list", "--json").document == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "neither a recipe nor --resume"),
        (["r.yaml", "--resume", "run-1"], "both a recipe and --resume"),
        (["--resume", "run-1", "--set", "a=1"], "a run keeps the plan that it started with"),
        (["--resume", "run-1", "--reflection-model", "m"], "--reflection-model with --resume"),
        (["none.yaml"], "no recipe"),
        (["--resume", "run-1"], "no run 'run-1'"),
    ],
)
def test_wrong_requests(luthier, arguments: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("train", *arguments, "--json")
    assert done.code == 2
    assert words in done.document["error"]["came"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        # The recipe has no held-out rows: what was asked for is understood, and cannot be evaluated.
        (["--optimised-prompt", "5000"], "evaluation.optimised_prompt is set"),
        (["--optimised-prompt", "5000", "--reflection-model", "http://h/v1#m: x"], "optimised_prompt is set"),
        (["--set", "evaluation.optimised_prompt=5000"], "evaluation.optimised_prompt is set"),
        (["--reflection-model", "m"], "evaluation.optimised_prompt.budget_tokens"),
        (["--optimised-prompt", "0", "--reflection-model", "m"], "no search"),
    ],
)
def test_a_search_for_a_prompt_is_a_part_of_the_recipe(  # type: ignore[no-untyped-def]
    luthier, recipe: Path, flags: list[str], words: str
) -> None:
    done = luthier("train", recipe, *flags, "--json")
    assert done.code == 2
    assert words in done.document["error"]["came"]


def test_a_wrong_recipe_names_every_place(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("plan", recipe, "--set", "training.epohcs=1", "--set", "method.rank=-1", "--json")
    assert done.code == 2
    assert "nearest known: training.epochs" in done.document["error"]["came"]
    assert "method.rank: has -1" in done.document["error"]["came"]


@pytest.mark.parametrize(
    ("status", "cause", "code"),
    [("paused", "interrupted", 85), ("paused", "budget", 0), ("succeeded", "completed", 0), ("failed", "unknown", 1)],
)
def test_a_queue_can_tell_an_interrupted_run_from_one_that_is_done(status: str, cause: str, code: int) -> None:
    from types import SimpleNamespace
    from typing import Any

    from luthier.features.training.cli import _exit_code

    outcome: Any = SimpleNamespace(record=SimpleNamespace(status=status, stop_cause=cause))
    assert _exit_code(outcome, 85) == code
