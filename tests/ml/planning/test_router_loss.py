"""The loss of routers in a plan: what it holds in memory, and what is refused."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
import torch
from tests.architectures import SMALL, small
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RecipeError
from luthier.core.plan import MethodPlan
from luthier.core.recipe import MethodRecipe, ObjectiveRecipe
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning import step_counts
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_method import resolve_method
from luthier.ml.planning.resolve_objective import resolve_objective, with_router_loss
from luthier.ml.training.methods.full import Full
from luthier.ml.training.model import TrainableModel, collate


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_what_the_loss_keeps_is_within_what_is_predicted(kind: str, make_workload) -> None:
    work = make_workload(structure_of(small(kind)), "full", rows=4, length=48)
    predicted = step_counts.router_bytes(replace(work, has_router_loss=True))
    assert step_counts.router_bytes(work) == 0
    with_it = step_counts.logits_bytes(replace(work, has_router_loss=True))
    assert with_it == step_counts.logits_bytes(work) + predicted
    plan = MethodPlan(name="full", rank=0, alpha=0.0, dropout=0.0, targets=(), num_trainable_parameters=1)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL[kind]), dtype=torch.float32)
    model = TrainableModel(base, Full(plan), 0, router_coefficient=0.5)
    rows = [TokenisedExample(str(n), array("i", range(3, 51)), b"\0" + b"\1" * 47) for n in range(4)]
    batch, kept = collate(rows, 0, "cpu"), {}
    assert model.router_loss is not None
    with model.router_loss.recording():
        model.loss_sum(batch)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.router_loss.of(batch)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 0 < saved <= predicted <= 20 * saved


@pytest.mark.parametrize("name", ["dpo", "kto", "grpo"])
def test_an_objective_that_does_not_take_it_refuses_it(name: str) -> None:
    shape = {"dpo": "preference", "kto": "unpaired", "grpo": "chat"}[name]
    with pytest.raises(RecipeError, match=r"objective\.router_aux_loss"):
        resolve_objective(ObjectiveRecipe(name=name, router_aux_loss=0.1), shape, Provenance())  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "read"), [(False, "off"), ("off", "off"), ("model", "model"), (0.01, 0.01)])
def test_yaml_reads_off_as_false(given, read) -> None:
    assert ObjectiveRecipe(name="sft", router_aux_loss=given).router_aux_loss == read


@pytest.mark.parametrize("given", [True, 0, -0.1, "on", float("inf")])
def test_what_is_no_coefficient_is_refused(given) -> None:
    with pytest.raises(ValueError, match="router_aux_loss"):
        ObjectiveRecipe(name="sft", router_aux_loss=given)


@pytest.mark.parametrize(
    ("asked", "coefficient", "source"), [(None, None, "default"), ("off", None, "asked"), (0.01, 0.01, "asked")]
)
def test_only_the_objective_says_whether_routers_have_a_loss(asked, coefficient, source) -> None:
    structure, sources = structure_of(small("mixtral")), Provenance()
    method = resolve_method(MethodRecipe(name="lora", rank=2), structure, "cpu", sources)
    recipe = ObjectiveRecipe(name="sft", router_aux_loss=asked)
    objective = resolve_objective(recipe, "chat", sources)
    objective = with_router_loss(objective, recipe, method, structure, "unread", sources)
    assert objective.router_aux_loss == coefficient
    said = sources.found["objective.router_aux_loss"]
    assert (said.source, said.why.startswith("off")) == (source, coefficient is None)
    others = [name for name, found in sources.found.items() if "loss of the router" in found.why]
    assert set(others) <= {"objective.router_aux_loss"}
