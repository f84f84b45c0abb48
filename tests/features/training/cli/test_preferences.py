"""Preference files on the command line: looked at, audited, split, trained, and refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def pairs(num: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What comes after {n}?", "chosen": f"It is {n + 1}.", "rejected": f"Call +1 555 01{n:02} to know."}
        for n in range(num)
    ]


def singles(num: int = 12) -> list[dict[str, Any]]:
    return [{"prompt": f"After {n}?", "completion": f"It is {n + n % 2}.", "label": n % 2 == 1} for n in range(num)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    write(tmp_path / "pairs.jsonl", pairs())
    write(tmp_path / "singles.jsonl", singles())
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base_model: {tiny_model}\ndata: {{train: pairs.jsonl}}\nmethod: {{name: lora, rank: 2}}\n"
        "objective: {name: dpo}\n"
        "training: {max_steps: 2, global_batch_size: 4, precision: float32, num_threads: 1}\n"
    )
    return path


def test_the_plan_says_what_is_used_and_why(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    values = {row["name"]: row for row in luthier("plan", recipe, "--json").document["values"]}
    assert values["objective.beta"]["value"] == 0.1
    assert (values["training.learning_rate"]["value"], values["method.dropout"]["value"]) == (1.3e-4, 0.0)
    assert "noise" in values["method.dropout"]["why"]
    assert "reference" in luthier("plan", recipe).out
    kept = luthier("plan", recipe, "--set", "method.dropout=0.05", "--json").document["values"]
    assert {row["name"]: row["value"] for row in kept}["method.dropout"] == 0.05


def test_it_trains(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("train", recipe)
    assert done.code == 0, done.err
    assert "nats a learned token" not in done.out
    shown = luthier("runs", "show", luthier("runs", "list", "--json").document[0]["run_id"])
    assert shown.code == 0, shown.err


def test_it_trains_with_another_loss_and_says_so(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    """A loss of APO begins at 1 exactly: both sides of each pair are as likely as under the reference."""
    done = luthier("train", recipe, "--set", "objective.loss_type=apo_zero", "--json")
    assert done.code == 0, done.err
    run = luthier("runs", "list", "--json").document[0]["run_id"]
    shown = luthier("runs", "show", run, "--json").document
    assert shown["plan"]["objective"]["loss_type"] == "apo_zero"
    assert shown["result"]["first_step"]["loss"] == pytest.approx(1.0, abs=1e-6)
    assert shown["result"]["train_loss"] < 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("objective.loss_type=hinge", "objective.label_smoothing=0.1"), ("loss_type hinge with", "robust, exo_pair")),
        (("objective.loss_type=ppo",), ("objective.loss_type", "sigmoid")),
        (("objective.name=sft",), ("objective sft with preference rows", "completion=chosen")),
        (("data.train=singles.jsonl",), ("objective dpo with unpaired rows", "shape preference")),
        (("objective.name=sft", "data.train=singles.jsonl"), ("unpaired rows", "bad answers would be learned")),
        (("objective.gamma=1",), ("objective.gamma", "beta, label_smoothing")),
        (("objective.beta=0",), ("objective.beta", "greater than 0")),
        (("objective.name=dpp",), ("objective.name", "dpo")),
        (("evaluation.metrics=[rouge]", "objective.nll_over=none"), ("objective.nll_over",)),
        (("data.held_out=singles.jsonl",), ("a single answer marked as", "name a file of pairs")),
    ],
)
def test_wrong_requests_exit_with_2(  # type: ignore[no-untyped-def]
    luthier, recipe: Path, settings: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = luthier("train", recipe, *[part for setting in settings for part in ("--set", setting)])
    assert done.code == 2
    for word in words:
        assert word in done.err.replace("\n", " ")
    assert luthier("runs", "list", "--json").document == []


def test_rows_with_equal_sides_are_named_one_by_one(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    rows = pairs()
    for number in (2, 7):
        rows[number]["rejected"] = rows[number]["chosen"] + " "
    write(recipe.parent / "pairs.jsonl", rows)
    done = luthier("train", recipe)
    assert done.code == 2
    assert "2 of 12 rows of pairs.jsonl are wrong" in done.err
    for line in (3, 8):
        assert f"pairs.jsonl:{line} field 'rejected'" in done.err
    assert "says the same as chosen" in done.err


def test_metrics_of_pairs_on_other_rows_are_refused(  # type: ignore[no-untyped-def]
    luthier, recipe: Path, tiny_model: Path
) -> None:
    plain = write(recipe.parent / "plain.jsonl", [{"prompt": "Hi", "completion": "Ho."}])
    done = luthier("eval", tiny_model, "--data", plain, "--metrics", "preference_accuracy")
    assert done.code == 2
    assert "has no rejected side" in done.err


def test_a_preview_shows_both_sides(luthier, recipe: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    shown = luthier("data", "preview", recipe.parent / "pairs.jsonl", "--model", tiny_model, "--num-rows", "2")
    assert shown.code == 0, shown.err
    assert "preference: every row has chosen and rejected" in shown.out
    for words in ("pairs.jsonl:1, chosen:", "pairs.jsonl:1, rejected:", "pairs.jsonl:2, rejected:", "10 more rows"):
        assert words in shown.out


def test_an_audit_looks_at_both_sides(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    """The telephone numbers stand in the rejected answers alone. Wrong rows are findings, not the end."""
    found = luthier("data", "audit", recipe.parent / "pairs.jsonl", "--json")
    assert found.code == 0, found.err
    checks = {finding["check"] for finding in found.document["findings"]}
    assert found.document["shape"] == "preference"
    assert "personal_data" in checks
    bad = write(recipe.parent / "bad.jsonl", [*pairs(3), pairs(1)[0] | {"rejected": pairs(1)[0]["chosen"]}])
    found = luthier("data", "audit", bad, "--json")
    assert any("says the same as chosen" in json.dumps(finding) for finding in found.document["findings"])
    assert luthier("data", "audit", recipe.parent / "singles.jsonl", "--json").document["shape"] == "unpaired"


def test_a_split_keeps_rows_whole(  # type: ignore[no-untyped-def]
    luthier, recipe: Path, tmp_path: Path
) -> None:
    rows = pairs(40) + [row | {"chosen": row["chosen"] + " Yes."} for row in pairs(40)]
    file = write(recipe.parent / "many.jsonl", rows)
    done = luthier("data", "split", file, "-o", tmp_path / "out", "--held-out", "0.2", "--json")
    assert done.code == 0, done.err
    sides = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "held_out")
    }
    assert sorted(json.dumps(row) for found in sides.values() for row in found) == sorted(map(json.dumps, rows))
