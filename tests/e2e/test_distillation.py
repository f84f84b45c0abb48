"""A real student learns from a real teacher, by its logits and by its answers; and the real model reads plain texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.events import StepDone
from luthier.core.records.base_model import LocalModel
from luthier.platform.home.context import Context

pytestmark = pytest.mark.e2e

NAME = "smollm2-135m-instruct"
Luthier = Callable[..., Any]
WOODS = ("spruce", "maple", "ebony", "cedar", "willow", "rosewood", "pine", "ash")


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _pairs(places: range) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Which wood is part {n} of the lute?", "completion": f"Part {n} is {WOODS[n % len(WOODS)]}."}
        for n in places
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _write(tmp_path / "train.jsonl", _pairs(range(24)))
    _write(tmp_path / "test.jsonl", _pairs(range(100, 104)))
    return tmp_path


def _recipe(folder: Path, **sections: Any) -> Path:
    recipe = {
        "base_model": NAME,
        "data": {"train": "train.jsonl"},
        "method": {"name": "lora", "rank": 8, "dropout": 0.0},
        "training": {"max_steps": 4, "global_batch_size": 8, "learning_rate": 1e-3},
    } | sections
    path = folder / f"{sections.get('objective', {}).get('name', 'sft')}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _steps(run_home: Path, run_id: str) -> list[StepDone]:
    with Context.open(run_home) as context:
        return [event for event in context.runs.events(run_id) if isinstance(event, StepDone)]


@pytest.mark.drill
def test_a_student_comes_nearer_to_its_teacher(
    luthier: Luthier, model: LocalModel, run_home: Path, folder: Path
) -> None:
    taught = luthier("train", _recipe(folder))
    objective = {"name": "distillation", "teacher": taught["run_id"], "alpha": 1.0}
    data = {"train": "train.jsonl", "held_out": "test.jsonl"}
    evaluation = {"metrics": ["perplexity"], "few_shot": 0}
    learned = luthier("train", _recipe(folder, objective=objective, data=data, evaluation=evaluation))
    divergence = [event.measures["divergence"] for event in _steps(run_home, learned["run_id"])]
    assert divergence[-1] < 0.7 * divergence[0]
    assert (run_home / "runs" / learned["run_id"] / "teacher" / "part-00000.safetensors").is_file()
    with Context.open(run_home) as context:
        evaluation_id = context.runs.get(learned["run_id"]).evaluation_id
        systems = {s.name: s for s in context.evaluations.get(str(evaluation_id)).systems}
    assert list(systems) == ["base", f"teacher {taught['run_id']}", "tuned"]
    assert systems["tuned"].metrics["perplexity"].value < systems["base"].metrics["perplexity"].value


def test_a_model_answers_and_its_answers_are_rows(luthier_here: Luthier, model: LocalModel, folder: Path) -> None:
    _write(folder / "prompts.jsonl", [{"prompt": f"Say only the word {wood}."} for wood in WOODS[:3]])
    output = folder / "answers.jsonl"
    told = luthier_here(
        "data", "answer", folder / "prompts.jsonl", "--teacher", NAME, "-o", output, "--max-new-tokens", 48
    )
    assert told["num_answers"] + told["num_refused"] == 3
    assert told["num_answers"] >= 1
    shown = luthier_here("data", "preview", output, "--model", NAME)
    assert shown["num_rows"] == told["num_answers"]


@pytest.mark.drill
def test_plain_texts_are_learned_in_blocks(luthier: Luthier, model: LocalModel, run_home: Path, folder: Path) -> None:
    texts = [{"text": " ".join(p["completion"] for p in _pairs(range(n, n + 1 + 9 * (n % 4))))} for n in range(40)]
    _write(folder / "texts.jsonl", texts)
    shown = luthier("data", "preview", folder / "texts.jsonl", "--model", NAME, "--block-tokens", 96)
    assert shown["packed"]["num_cut"] > 0
    training = {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-3, "max_length_tokens": 96}
    data = {"train": "texts.jsonl"}
    done = luthier("train", _recipe(folder, objective={"name": "pretraining"}, data=data, training=training))
    losses = [event.loss for event in _steps(run_home, done["run_id"])]
    assert losses[-1] < losses[0]
