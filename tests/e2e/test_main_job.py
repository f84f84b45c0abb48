"""The main job with the real base model, as a person does it: rows, preview, train, judge, and a kill in the middle."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.conftest import Start
from tests.fixtures.held import HELD
from tests.vacuous import nonempty

from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import LocalModel
from luthier.ml.data.documents.python_docs import build_python_docs
from luthier.ml.data.rows.write_rows import write_rows
from luthier.platform.home.context import Context

pytestmark = pytest.mark.e2e

NAME = "smollm2-135m-instruct"
NUM_STEPS = 4
SKIPPED = 10
"""The shortest rows say nearly nothing, such as "Self % other."."""
SIZES = {"train": 16, "validation": 6, "held_out": 2}
PROMISED = {
    "run_id", "status", "base_model", "method", "num_steps", "num_trained_tokens", "num_trainable_parameters",
    "trainable_fraction", "tokens_per_second", "examples_per_second", "seconds_per_step", "train_loss",
    "best_validation_loss", "peak_memory_bytes", "adapter_path", "adapter_sha256", "report_path", "stopped_because",
}  # fmt: skip

Luthier = Callable[..., Any]


@dataclass(frozen=True)
class Job:
    """A small real job."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    made = Job(tmp_path_factory.mktemp("job"))
    docs = build_python_docs(progress=SilentProgress(), max_rows=400)
    # Short ones: four steps are then a matter of seconds.
    rows = sorted(docs.rows, key=lambda row: sum(len(one["content"]) for one in row["messages"]))
    rows = rows[SKIPPED : SKIPPED + sum(SIZES.values())]
    for split, size in SIZES.items():
        taken = rows[:: len(rows) // size][:size]
        rows = [row for row in rows if row not in taken]
        assert write_rows(taken, made.folder / f"{split}.jsonl") == size
    recipe = {
        "base_model": NAME,
        "data": {split: f"{split}.jsonl" for split in SIZES},
        "method": {"name": "lora", "rank": 8},
        "training": {
            "epochs": 1,
            "global_batch_size": SIZES["train"] // NUM_STEPS,
            "learning_rate": 1e-3,
            "validate_every_steps": NUM_STEPS,
            "checkpoint_every_steps": 2,
        },
        # One prompt with an example: what else may be held against the model is chosen by what it costs.
        "evaluation": {
            "few_shot": 1,
            "few_shot_draws": 1,
            "few_shot_nearest": False,
            "instruction": False,
            "max_new_tokens": 4,
        },
    }
    made.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def trained(luthier: Luthier, job: Job, model: LocalModel) -> dict[str, Any]:
    document: dict[str, Any] = luthier("train", job.recipe)
    return document


def test_preview_marks_the_answer_and_the_end_of_its_turn(luthier_here: Luthier, job: Job, model: LocalModel) -> None:
    shown = luthier_here("data", "preview", job.folder / "train.jsonl", "--model", NAME, "--num-rows", 5)
    assert (shown["num_rows"], shown["template"], len(shown["rows"])) == (SIZES["train"], "chat", 5)
    for row, written in zip(shown["rows"], job.rows("train"), strict=False):
        question, answer = (message["content"] for message in written["messages"])
        learned = "".join(token["text"] for token in row["tokens"] if token["learned"])
        assert learned == f"{answer}<|im_end|>\n"
        whole = "".join(token["text"] for token in row["tokens"])
        assert whole.endswith(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{learned}")


def test_train_keeps_its_promises(luthier_here: Luthier, trained: dict[str, Any], job: Job) -> None:
    assert trained.keys() >= PROMISED
    assert (trained["status"], trained["num_steps"], trained["base_model"]) == ("succeeded", NUM_STEPS, NAME)
    adapter = Path(trained["adapter_path"])
    assert trained["adapter_sha256"] == sha256_file(adapter / "adapter_model.safetensors")
    assert (adapter / "adapter_config.json").is_file()
    assert 0 < trained["trainable_fraction"] < 0.05
    assert trained["verdict"]["word"] in {"better", "worse", "not distinguishable"}
    page = Path(trained["report_path"]).read_text(encoding="utf-8")
    assert trained["verdict"]["headline"].split()[0] in page
    assert "<svg" in page
    newest = luthier_here("runs", "list")[0]
    assert (newest["run_id"], newest["status"]) == (trained["run_id"], "succeeded")


def test_training_helps_on_rows_that_it_has_not_seen(luthier_here: Luthier, trained: dict[str, Any], job: Job) -> None:
    """The loop's validation loss and the judge's perplexity of the same rows are one figure, reached by two ways."""
    judged = luthier_here(
        "eval", trained["run_id"], "--data", job.folder / "validation.jsonl", "--against", NAME,
        "--max-new-tokens", 4,
    )  # fmt: skip
    base, tuned = (system for system in judged["systems"] if system["kind"] == "model")
    assert (base["name"], tuned["name"]) == (NAME, trained["run_id"])
    assert base["num_samples"] == tuned["num_samples"] == SIZES["validation"]
    assert set(base["metrics"]) >= {"perplexity", "exact_match", "bleu", "rouge_l"}
    for metric in nonempty([*base["metrics"].values(), *tuned["metrics"].values()]):
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert trained["best_validation_loss"] < math.log(base["metrics"]["perplexity"]["value"])
    loss_of_the_judge = math.log(tuned["metrics"]["perplexity"]["value"])
    assert loss_of_the_judge == pytest.approx(trained["best_validation_loss"], rel=0.02)
    found = {one["metric"]: one for one in judged["comparisons"] if one["baseline"] == NAME}
    assert (found["perplexity"]["baseline"], found["perplexity"]["candidate"]) == (NAME, trained["run_id"])
    assert found["perplexity"]["difference"] < 0  # six rows are too few for more


def test_kill_9_and_resume_give_the_undisturbed_bytes(
    start: Start,
    luthier: Luthier,
    trained: dict[str, Any],
    job: Job,
    run_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Context.open(run_home) as context, monkeypatch.context() as held:
        held.setenv(HELD, json.dumps([str(NUM_STEPS - 1)]))
        # What one process measured as faster another may not, on a busy machine: the two are to train the same.
        precision = context.runs.plan(trained["run_id"]).training.precision
        process = start("train", job.recipe, "--set", f"training.precision={precision}")
        try:
            run_id = _wait_for_step(context, process, NUM_STEPS - 1, other_than=trained["run_id"])
        finally:
            process.kill()
            process.communicate()
        assert context.runs.get(run_id).status == "running"
    resumed = luthier("train", "--resume", run_id)
    assert (resumed["run_id"], resumed["status"]) == (run_id, "succeeded")
    assert resumed["plan_hash"] == trained["plan_hash"]
    assert resumed["adapter_sha256"] == trained["adapter_sha256"]
    assert resumed["train_loss"] == trained["train_loss"]
    assert resumed["verdict"]["details"] == trained["verdict"]["details"]


def _wait_for_step(context: Context, process: Any, step: int, *, other_than: str) -> str:
    """Until the newest run has done this step; returns its id."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        newest = context.runs.list(limit=1)[0]
        if newest.run_id != other_than and newest.step >= step:
            return newest.run_id
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in time")
