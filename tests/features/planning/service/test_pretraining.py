"""Plain texts of any length are learned in blocks, judged by bits per byte, and resumed byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import RecipeError
from luthier.core.events import StepDone
from luthier.features.planning import batch_schedules as schedules
from luthier.features.planning.service import Prepared, make_plan, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import rows_of
from luthier.platform.home.context import Context

TEXTS = {"train.jsonl": (0, 30), "valid.jsonl": (100, 106), "test.jsonl": (200, 205)}


def text_of(number: int) -> str:
    """Most are a sentence, every fifth is longer than a block, and one longer than the model's context."""
    times = 160 if number in (20, 200) else 12 if number % 5 == 0 else 1
    return " ".join(f"{n} and {n + 1} are neighbours." for n in range(number, number + times))


@pytest.fixture
def make_texts(make_recipe: Callable[..., Path]) -> Callable[..., Path]:
    def make(**sections: Any) -> Path:
        training = {
            "global_batch_size": 4, "max_length_tokens": 64, "learning_rate": 0.01, "precision": "float32",
            "num_threads": 1, "max_steps": 6, "checkpoint_every_steps": 2, "validate_every_steps": 3,
        }  # fmt: skip
        training |= sections.pop("training", {})
        chosen = {"objective": {"name": "pretraining"}, "training": training, "evaluation": {}} | sections
        path = make_recipe(**chosen)
        for name, (start, stop) in TEXTS.items():
            write_rows(path.parent / name, [{"text": text_of(n)} for n in range(start, stop)])
        return path

    return make


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def prepared_of(context: Context, recipe: Path) -> Prepared:
    return prepare(context, load_recipe(recipe), base_dir=recipe.parent)


def test_the_whole_way(context: Context, make_texts: Callable[..., Path]) -> None:
    outcome = run(context, make_texts())
    document = json.loads(json.dumps(outcome.as_json()))
    assert document["status"] == "succeeded"
    packed = outcome.plan.data.train.packed
    assert packed is not None
    assert (packed.num_documents, packed.num_cut, packed.block_tokens) == (30, 6, 64)
    assert outcome.plan.data.train.num_examples == packed.num_blocks
    steps = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]
    assert steps[-1].loss < steps[0].loss
    evaluation = outcome.evaluation
    assert evaluation is not None
    assert set(evaluation.systems[0].metrics) == {"perplexity", "bits_per_byte"}
    tuned, base = evaluation.systems[-1], evaluation.systems[0]
    assert tuned.metrics["bits_per_byte"].value < base.metrics["bits_per_byte"].value
    # the text that is longer than the context is evaluated in pieces, all the others whole
    assert evaluation.num_rows > 5
    page = Path(document["report_path"]).read_text(encoding="utf-8")
    assert f"in {packed.num_blocks} blocks of up to 64 tokens" in page
    assert "6 texts cut into several" in page


def test_nothing_is_lost_and_blocks_are_what_a_step_counts(context: Context, make_texts: Callable[..., Path]) -> None:
    prepared = prepared_of(context, make_texts())
    train_split, plan = prepared.train, prepared.plan
    whole = sum(len(prepared.template.encode(text_of(n))[0]) + 1 for n in range(30))
    assert train_split.profile.num_tokens == whole
    assert train_split.profile.num_trained_tokens == whole - len(train_split.tokenised)
    assert plan.training.num_steps_per_epoch == -(-len(train_split.units) // 4)
    assert max(sum(row.num_tokens for row in unit) for unit in train_split.units) <= 64
    seen = [i for step in range(plan.training.num_steps_per_epoch) for b in _step(prepared, step) for i in b]
    assert sorted(seen) == list(range(len(train_split.units)))


def _step(prepared: Prepared, step: int) -> tuple[tuple[int, ...], ...]:
    return schedules.of_training(prepared, shares_prefix=False).step(step)


def test_blocks_give_the_loss_and_the_gradient_of_their_texts_one_by_one(
    context: Context, make_texts: Callable[..., Path]
) -> None:
    prepared = prepared_of(context, make_texts())
    model = TrainableModel.load(prepared.plan)
    units = [unit for unit in prepared.train.units if len(unit) > 1][:3]
    rows = rows_of(units)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    model.module.eval()
    together, _ = model.loss_sum(collate(rows, model.pad_id, "cpu"))
    packed = torch.autograd.grad(together, trained)
    apart = [model.loss_sum(collate([row], model.pad_id, "cpu"))[0] for row in rows]
    alone = torch.autograd.grad(sum(apart), trained)  # type: ignore[arg-type]
    torch.testing.assert_close(together, torch.stack(apart).sum())
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_paused_and_resumed_the_bytes_are_the_same(
    context: Context, make_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.training import loop

    recipe = make_texts(data={"train": "train.jsonl", "validation": "valid.jsonl"})
    whole = run(context, recipe).as_json()
    one_step, left = loop.one_step, [3]

    def killed(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return one_step(*given)

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    run_id = context.runs.list()[0].run_id
    left[0] = 100
    assert resume(context, run_id).as_json()["adapter_sha256"] == whole["adapter_sha256"]


def test_rows_with_answers_are_refused_with_a_hint(context: Context, make_texts: Callable[..., Path]) -> None:
    path = make_texts()
    write_rows(path.parent / "train.jsonl", [chat_row(n) for n in range(8)])
    with pytest.raises(RecipeError, match=r"pretraining with chat rows[\s\S]*name: sft"):
        make_plan(context, load_recipe(path, ["data.validation=", "data.held_out="]), base_dir=path.parent)


def test_what_blocks_make_meaningless_is_refused(context: Context, make_texts: Callable[..., Path]) -> None:
    path = make_texts()
    for change, words in (
        ("training.on_overlong=truncate", "nothing is lost"),
        ("training.max_length_tokens=8", "8 tok"),
    ):
        with pytest.raises(RecipeError, match=words):
            make_plan(context, load_recipe(path, [change]), base_dir=path.parent)


def test_the_size_of_a_block_is_part_of_the_plan_and_fills_a_micro_batch(
    context: Context, make_texts: Callable[..., Path]
) -> None:
    path = make_texts()

    def plan(*changes: str) -> Any:
        return make_plan(context, load_recipe(path, changes), base_dir=path.parent)

    assert plan().hash != plan("training.max_length_tokens=128").hash
    silent = plan("training.max_length_tokens=")
    assert silent.training.max_length_tokens == 512  # the tiny model's context, less than a usual block
    assert silent.sources["training.max_length_tokens"].why.startswith("a block of texts fills a micro-batch")
    assert plan().training.order == "by_length"


def test_plans_of_rows_keep_their_hash(context: Context, make_recipe: Callable[..., Path]) -> None:
    path = make_recipe()
    plan = make_plan(context, load_recipe(path), base_dir=path.parent)
    assert "packed" in plan.data.train.model_dump()
    document = json.loads(plan.model_dump_json())
    del document["data"]["train"]["packed"]
    assert type(plan).model_validate(document).hash == plan.hash
