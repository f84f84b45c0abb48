"""Weights are spread where that is asked for, or where a copy would not fit; what cannot be spread is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError
from luthier.core.events import Event, WarningRaised
from luthier.core.plan import Plan
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training import preparation
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.preparation import is_spread
from luthier.ml.planning import hardware
from luthier.ml.training.distributed import ALONE, World
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]
TRAINING = {"epochs": 1, "global_batch_size": 8, "learning_rate": 0.001, "precision": "float32", "num_threads": 1}


class FirstOfTwo(World):
    """Decides by itself."""

    def broadcast_text(self, text: str) -> str:
        return text


TWO = FirstOfTwo(size=2, local_size=2)


@pytest.fixture
def make_plan(context: Context, make_recipe: MakeRecipe) -> Callable[..., Plan]:
    def make(asked: str, method: str = "lora", optimizer: str = "adamw", targets: str = "all-linear") -> Plan:
        given = {"name": method} | ({} if method == "full" else {"targets": targets})
        recipe = make_recipe(method=given, training=TRAINING | {"sharding": asked, "optimizer": optimizer})
        return prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan

    return make


def test_as_asked(make_plan: Callable[..., Plan]) -> None:
    events: list[Event] = []
    assert is_spread(make_plan("fsdp"), TWO, events.append)
    assert not is_spread(make_plan("ddp"), TWO, events.append)
    assert not is_spread(make_plan("fsdp"), ALONE, events.append)
    assert events == []


def test_what_looks_at_whole_matrices_is_not_spread(make_plan: Callable[..., Plan]) -> None:
    events: list[Event] = []
    with pytest.raises(RecipeError, match=r"fsdp with optimizer adafactor[\s\S]*training\.sharding: ddp"):
        is_spread(make_plan("fsdp", optimizer="adafactor"), TWO, events.append)
    with pytest.raises(RecipeError, match=r"fsdp with an adapter on embed_tokens[\s\S]*training\.sharding: ddp"):
        is_spread(make_plan("fsdp", targets="re:.*(embed_tokens|q_proj)"), TWO, events.append)
    assert not is_spread(make_plan("ddp", optimizer="adafactor"), TWO, events.append)


def test_by_need(make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, events, here = make_plan("auto"), list[Event](), hardware.measure()
    assert not is_spread(plan, TWO, events.append)
    assert events == []
    small = here.model_copy(update={"memory_bytes": 500_000_000})
    monkeypatch.setattr(hardware, "measure", lambda: small)
    assert is_spread(plan, TWO, events.append)
    (warning,) = events
    assert isinstance(warning, WarningRaised)
    assert warning.code == "spread"
    assert "of 250\u00a0MB a device: weights and optimizer are spread over the 2 processes" in warning.message


def test_workers_and_judging_are_not_those_of_processes_that_share_a_run(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen workers of 100 MiB have no room in half of this memory; one process has."""
    recipe = make_recipe(training=TRAINING | {"sharding": "auto", "num_threads": 16})
    plan, events = prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan, list[Event]()
    training = plan.training.model_copy(update={"micro_batch_workers": 16, "min_micro_batches": 16})
    evaluation = plan.evaluation.model_copy(update={"num_workers": 16})
    plan = plan.model_copy(update={"training": training, "evaluation": evaluation})
    here = hardware.measure().model_copy(update={"memory_bytes": 2 * 1_500_000_000})
    monkeypatch.setattr(hardware, "measure", lambda: here)
    assert not is_spread(plan, TWO, events.append)
    assert events == []


def test_what_would_not_fit_and_cannot_be_spread_is_told(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    monkeypatch.setattr(preparation, "_too_large", lambda *_: "too large")
    assert not is_spread(make_plan("auto", "dora"), TWO, events.append)
    assert [(e.code, e.message) for e in events if isinstance(e, WarningRaised)] == [
        ("not_spread", "too large; training.sharding fsdp with method dora is not possible")
    ]


def test_a_method_that_cannot_be_spread_is_refused(make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(RecipeError, match=r"fsdp with method dora[\s\S]*one of full, lora"):
        is_spread(make_plan("fsdp", "dora"), TWO, lambda _: None)


def test_an_optimizer_that_looks_at_whole_matrices_is_refused(context: Context, make_recipe: MakeRecipe) -> None:
    training = TRAINING | {"sharding": "fsdp", "optimizer": "muon"}
    recipe = make_recipe(method={"name": "full"}, training=training)
    plan = prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan
    with pytest.raises(RecipeError, match=r"fsdp with optimizer muon[\s\S]*optimizer: adamw"):
        is_spread(plan, TWO, lambda _: None)


def test_the_hash_of_a_plan_does_not_know_how_weights_lie(make_plan: Callable[..., Plan]) -> None:
    assert make_plan("fsdp").hash == make_plan("auto").hash


def train_share(world: World, prepared: Prepared, folder: Path) -> None:
    train_worker(prepared, silent_hooks(folder), world)


@pytest.mark.parametrize(("method", "outcome"), [("full", "model"), ("lora", "adapter")])
def test_the_outcome_is_written_whole(
    context: Context, make_recipe: MakeRecipe, tmp_path: Path, method: str, outcome: str
) -> None:
    recipe = make_recipe(
        method={"name": method} | ({"dropout": 0.0} if method == "lora" else {}),
        training=TRAINING | {"sharding": "fsdp"},
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    assert [e.error for e in in_world(2, train_share, prepared, tmp_path / "two")] == ["", ""]
    (file,) = [f.name for f in (tmp_path / "one" / outcome).glob("*.safetensors")]
    alone, two = (load_file(tmp_path / name / outcome / file) for name in ("one", "two"))
    assert alone.keys() == two.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)


def test_pretraining_is_spread(context: Context, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Blocks of several pieces, of which a process may get none in a step."""
    folder = make_recipe().parent
    texts = [{"text": f"number {n} follows number {n - 1} " * (1 + n % 4)} for n in range(14)]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps(text) for text in texts))
    recipe = make_recipe(
        data={"train": "texts.jsonl"},
        objective={"name": "pretraining"},
        method={"name": "full"},
        training=TRAINING | {"sharding": "fsdp", "global_batch_size": 2, "max_length_tokens": 64, "epochs": 2},
        evaluation=None,
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert prepared.plan.data.train.packed is not None
    alone = train_worker(prepared, silent_hooks(tmp_path / "one"))
    assert [e.error for e in in_world(2, train_share, prepared, tmp_path / "two")] == ["", ""]
    (file,) = [f.name for f in (tmp_path / "one" / "model").glob("*.safetensors")]
    one, two = (load_file(tmp_path / name / "model" / file) for name in ("one", "two"))
    assert alone.num_steps > 2
    for name, expected in nonempty(one.items()):
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["dpo", "grpo", "classify", "distillation"])
def test_objectives_that_read_weights_elsewhere_are_refused(make_plan: Callable[..., Plan], objective: str) -> None:
    plan = make_plan("fsdp")
    other = plan.model_copy(update={"objective": plan.objective.model_copy(update={"name": objective})})
    with pytest.raises(RecipeError, match=rf"fsdp with objective {objective}[\s\S]*one of sft, pretraining"):
        is_spread(other, TWO, lambda _: None)
