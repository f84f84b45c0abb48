"""The loss of the first step can be held against transformers' own, by anybody, from what the two commands print."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.service import write_rows
from transformers import AutoModelForCausalLM

from luthier.core.events import StepDone
from luthier.core.recipe import BudgetRecipe
from luthier.features.datasets import previews as datasets
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def by_transformers(model_folder: Path, rows: Sequence[dict[str, Any]]) -> float:
    """Mean cross-entropy of the learned tokens, row by row, by transformers' own forward and loss."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    nats, num_learned = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        labels = torch.where(torch.tensor([row["learned"]]) == 1, ids, -100)
        count = sum(row["learned"])
        with torch.no_grad():
            nats += model(input_ids=ids, labels=labels).loss.item() * count
        num_learned += count
    return nats / num_learned


SECTIONS = [
    {},
    {"method": {"name": "full"}},
    {"objective": {"name": "sft", "label_smoothing": 0.1}},
    {"objective": {"name": "sft", "loss_weighting": "dft"}},
    {"data": {"train": "train.jsonl", "replay": {"file": "valid.jsonl", "fraction": 0.25}}},
]


@pytest.mark.parametrize("changed", SECTIONS, ids=["lora", "full", "label_smoothing", "dft", "replay"])
def test_the_first_loss_is_that_of_transformers(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, changed: dict[str, Any]
) -> None:
    sections = {
        "data": {"train": "train.jsonl"},
        "training": {"max_steps": 2, "global_batch_size": 8, "precision": "float32", "learning_rate": 0.01},
    } | changed
    recipe = make_recipe(**sections)
    outcome = run(context, recipe)
    document = outcome.as_json()
    first = document["first_step"]
    assert document["first_step_loss"] == first["loss"]
    assert first["weighting"] == "token"
    assert (first["unit"], first["precision"], first["noise"]) == ("nats a learned token", "float32", [])
    shown = datasets.preview(context, recipe.parent / "train.jsonl", str(tiny_model), num_rows=None).as_json()["rows"]
    rows = [row for row in shown if row["id"] in first["example_ids"]]
    assert len(rows) == len(first["example_ids"]) == (6 if "replay" in str(changed) else 8)
    assert sum(sum(row["learned"]) for row in rows) == first["num_trained_tokens"]
    assert first["loss"] == pytest.approx(by_transformers(tiny_model, rows), rel=1e-6)


FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_it_is_so_where_a_row_is_cut_into_one_sequence_an_answer(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path, weighting: str
) -> None:
    folder = tmp_path / "forgetful"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(FORGETFUL)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": FORGETFUL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    recipe = make_recipe(
        base_model=str(folder),
        data={"train": "thoughts.jsonl"},
        objective={"name": "sft", "loss_weighting": weighting},
        training={"max_steps": 1, "global_batch_size": 4, "precision": "float32"},
    )
    file = write_rows(recipe.parent / "thoughts.jsonl", [two_thoughts(n) for n in range(12)])
    first = run(context, recipe).as_json()["first_step"]
    shown = datasets.preview(context, file, str(folder), num_rows=None).as_json()["rows"]
    rows = [row for row in shown if row["id"] in first["example_ids"]]
    assert len(rows) == 2 * len(first["example_ids"]) == 8
    assert sum(sum(row["learned"]) for row in rows) == first["num_trained_tokens"]
    by_row = [[row for row in rows if row["id"] == name] for name in first["example_ids"]]
    wanted = {
        "token": by_transformers(folder, rows),
        "sample": sum(by_transformers(folder, cut) for cut in by_row) / len(by_row),
    }
    assert first["weighting"] == weighting
    assert wanted["token"] != pytest.approx(wanted["sample"], rel=1e-5)
    assert first["loss"] == pytest.approx(wanted[weighting], rel=1e-6)


def two_thoughts(number: int) -> dict[str, Any]:
    def turn(said: str) -> dict[str, str]:
        return {"role": "assistant", "reasoning_content": f"{said} follows", "content": said}

    asked = {"role": "user", "content": f"What comes after {number}?"}
    more = {"role": "user", "content": "And then?"}
    return {"messages": [asked, turn(str(number + 1)), more, turn(f"{number + 2}, of course")]}


def test_the_record_keeps_it_and_a_run_that_goes_on_has_the_same(context: Context, make_recipe: MakeRecipe) -> None:
    sections: dict[str, Any] = {"training": {"max_steps": 3, "precision": "float32"}, "data": {"train": "train.jsonl"}}
    outcome = run(context, make_recipe(**sections))
    run_id, found = outcome.record.run_id, outcome.record.result
    assert found is not None
    assert found.first_step is not None
    kept = context.runs.get(run_id).result
    assert kept == found
    step = next(e for e in context.runs.events(run_id) if isinstance(e, StepDone))
    assert (step.step, step.loss) == (1, found.first_step.loss)
    assert step.num_trained_tokens == found.first_step.num_trained_tokens
    cap = BudgetRecipe(tokens=3 * step.num_tokens // 2)
    file = make_recipe(**sections)
    paused = train(context, load_recipe(file).model_copy(update={"budget": cap}), base_dir=file.parent)
    assert paused.record.status == "paused"
    assert paused.as_json()["first_step"] == outcome.as_json()["first_step"]
    ended = resume(context, paused.record.run_id, budget=BudgetRecipe(tokens=10**9)).as_json()
    assert ended["status"] == "succeeded"
    assert ended["first_step"] == outcome.as_json()["first_step"]
    assert ended["adapter_sha256"] == found.adapter_sha256


def test_noise_is_named(context: Context, make_recipe: MakeRecipe) -> None:
    settings = {"max_steps": 1, "precision": "float32", "neftune_alpha": 5.0}
    first = run(context, make_recipe(training=settings, data={"train": "train.jsonl"})).as_json()["first_step"]
    assert first["noise"] == ["training.neftune_alpha"]


_AS_FAR_AS_THE_FIRST_STEP = """
import gc, json, sys
from pathlib import Path
from luthier.core.events import StepDone
from luthier.core.system.process_setup import collect_rarely
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.platform.home.context import Context

def stop(event):
    if isinstance(event, StepDone):
        raise KeyboardInterrupt

thresholds = gc.get_threshold()
collect_rarely()  # as the command line does
recipe = Path(sys.argv[2])
with Context.open(Path(sys.argv[1])) as context:
    try:
        train(context, load_recipe(recipe), base_dir=recipe.parent, listener=stop)
    except KeyboardInterrupt:
        loaded = sorted(sys.modules)
        from transformers.loss import loss_for_object_detection as losses
        pairs = losses.linear_sum_assignment([[4, 1], [2, 0]])
        print(json.dumps([loaded, [side.tolist() for side in pairs], gc.get_threshold() == thresholds]))
"""


def test_a_training_loads_nothing_before_its_first_step_that_it_needs_only_later_or_never(
    tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    command = [sys.executable, "-c", _AS_FAR_AS_THE_FIRST_STEP, str(tmp_path / "home"), str(make_recipe())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules, pairs, is_collected_as_usual = json.loads(done.stdout)
    assert is_collected_as_usual
    loaded = set(modules)
    assert {"torch", "peft", "transformers.models.llama.modeling_llama"} <= loaded
    unneeded = {
        "matplotlib", "nltk", "optuna", "pandas", "polars", "pyarrow", "sacrebleu", "scipy", "sklearn",
        "transformers.trainer", "transformers.trainer_pt_utils", "fastapi", "playwright", "boto3",
        "torch._dynamo.eval_frame", "torch.distributed.fsdp",
    }  # fmt: skip
    assert loaded & unneeded == set()
    # What transformers takes from SciPy is there all the same: 1 + 2 costs less than 4 + 0.
    assert pairs == [[0, 1], [1, 0]]
