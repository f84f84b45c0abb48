"""EVA: A spans the main directions of the inputs, the model is unchanged at the start, and the result is plain LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.ml.training.conftest import FixedSchedule
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.methods.eva import Directions, Eva
from luthier.ml.training.model import TrainableModel, collate

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
IDS = torch.arange(20).reshape(2, 10)
RANK = 4


def spread(num: int, width: int, seed: int) -> Tensor:
    """Vectors whose directions have lengths that fall: few of them say most."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0]
    found: Tensor = torch.randn(num, width, generator=generator) * (0.7 ** torch.arange(width)) @ directions.t()
    return found


def overlap(one: Tensor, other: Tensor) -> float:
    """The smallest cosine of an angle between two spaces, given by orthonormal rows."""
    return float(torch.linalg.svdvals(one @ other.t()).min())


def test_directions_of_micro_batches_are_those_of_all_vectors_together() -> None:
    torch.manual_seed(0)
    parts = [spread(num, 40, seed) for seed, num in enumerate((50, 3, 120, 77))]
    directions = Directions(RANK + 8, 40, torch.device("cpu"))
    for part in parts:
        directions.add(part)
    found = directions.first(RANK)
    torch.testing.assert_close(found @ found.t(), torch.eye(RANK), atol=1e-5, rtol=0)
    _, values, right = torch.linalg.svd(torch.cat(parts), full_matrices=False)
    assert overlap(found, right[:RANK]) > 0.999
    torch.testing.assert_close(directions.scaled.norm(dim=1)[:RANK], values[:RANK], rtol=1e-2, atol=0)


def test_vectors_in_fewer_directions_than_are_asked_give_only_those() -> None:
    torch.manual_seed(0)
    directions = Directions(RANK + 8, 10, torch.device("cpu"))
    assert directions.first(RANK).shape == (0, 10)
    directions.add(torch.randn(30, 2) @ torch.randn(2, 10))
    directions.add(torch.zeros(0, 10))
    assert directions.first(RANK).shape == (2, 10)


def first_weights(model: TrainableModel, examples: list[TokenisedExample], size: int) -> dict[str, Tensor]:
    assert isinstance(model.method, Eva)
    model.module.eval()
    batches = (collate(examples[i : i + size], model.pad_id, "cpu") for i in range(0, len(examples), size))
    return model.method.first_weights(model.module, batches, model.hidden)


@pytest.mark.parametrize("size", [2, 5])
def test_a_keeps_as_much_of_the_inputs_as_their_own_singular_vectors(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], size: int
) -> None:
    plan = make_plan("eva", settings={"targets": "all-linear"})
    model = make_model(plan)
    found = first_weights(model, examples, size)
    assert found.keys() == {name for name in weights(model) if ".lora_A." in name}
    # The inputs by transformers alone, row by row: without padding and without an adapter.
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    seen: dict[str, list[Tensor]] = {}
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0]))
    with torch.no_grad():
        for example in examples:
            base(input_ids=torch.tensor(list(example.input_ids))[None])
    for name, weight in nonempty(found.items()):
        inputs = torch.cat(seen[name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")])
        torch.testing.assert_close(weight @ weight.t(), torch.eye(RANK), atol=1e-5, rtol=0)
        best = float(torch.linalg.svdvals(inputs)[:RANK].square().sum())
        assert float((inputs @ weight.t()).square().sum()) > 0.98 * best, name


def test_the_start_is_the_base_and_the_run_begins_with_the_directions(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan("eva", num_steps=1, learning_rate=1e-9)
    model, other = make_model(plan), make_model(plan)
    run(plan, model, tmp_path / "c", examples, with_validation=False)
    # The rows of the first steps, by the schedule of `run`.
    schedule = FixedSchedule(len(examples), 4, 3)
    batches = [collate([examples[i] for i in batch], model.pad_id, "cpu") for batch in schedule.step(0)]
    assert isinstance(other.method, Eva)
    expected = other.method.first_weights(other.module.eval(), batches, other.hidden)
    for name, weight in nonempty(expected.items()):
        torch.testing.assert_close(weights(model)[name], weight, atol=1e-6, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model.module.eval()(IDS).logits, base(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kill_at", [1, 4])
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, kill_at: int
) -> None:
    plan = make_plan("eva", precision="bfloat16", dropout=0.2, checkpoint_every_steps=2, validate_every_steps=2)
    whole = make_model(plan)
    run(plan, whole, tmp_path / "a", examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=kill_at)
    resumed = make_model(plan)
    run(plan, resumed, tmp_path / "b", examples)
    for name, expected in nonempty(weights(whole).items()):
        assert torch.equal(weights(resumed)[name], expected), name


def test_the_outcome_is_a_plain_adapter_for_peft(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan("eva", learning_rate=0.05)
    model = make_model(plan)
    run(plan, model, tmp_path / "c", examples, with_validation=False)
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (RANK, True)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    with torch.no_grad():
        one, other = model.module.eval()(IDS).logits, loaded.eval()(IDS).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), loaded.disable_adapter():
        assert not torch.allclose(one, loaded(IDS).logits, atol=1e-3)
