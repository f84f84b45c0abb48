"""The loss of routers is transformers' own, however the rows of a micro-batch lie, in value and gradients."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import SMALL
from tests.ml.training.conftest import FixedSchedule
from tests.vacuous import nonempty
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.events import ROUTER_LOSS, Event, StepDone
from luthier.core.plan import MethodPlan, ObjectivePlan, Plan
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.attention_proof import use_attention
from luthier.ml.training.checkpoint import CheckpointStore, LoopState
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.loop import train
from luthier.ml.training.methods.full import Full
from luthier.ml.training.methods.lora import Lora
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.objectives.sft import Sft
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.step import _losses, one_step

GIVES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "qwen3_next", "granitemoehybrid", "phimoe", "jetmoe")
NONE = ("deepseek_v3", "glm4_moe", "llama4_text", "nemotron_h")
FULL = MethodPlan(name="full", rank=0, alpha=0.0, dropout=0.0, targets=(), num_trainable_parameters=1)
LENGTHS = (21, 13, 8, 17)
PREFIX_LENGTHS = (6, 5)


def base(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL[kind])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():  # routers of the usual start send all experts alike
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape) * 0.15)
    return model


def rows() -> list[TokenisedExample]:
    """Four rows, of which the first two and the last two begin alike."""
    ids = torch.randint(3, 96, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(2))
    ids[1, : PREFIX_LENGTHS[0]], ids[3, : PREFIX_LENGTHS[1]] = ids[0, : PREFIX_LENGTHS[0]], ids[2, : PREFIX_LENGTHS[1]]
    return [
        TokenisedExample(str(number), array("i", row[:size]), b"\0" * 7 + b"\1" * (size - 7))
        for number, (row, size) in enumerate(zip(ids.tolist(), LENGTHS, strict=True))
    ]


def by_transformers(kind: str, *, examples: list[TokenisedExample]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the routers as transformers has them: rows padded on the right, under a mask."""
    model = base(kind)
    use_attention(language_model(model), "eager")
    batch = collate(examples, 0, "cpu")
    mask = torch.zeros_like(batch.input_ids)
    for number, row in enumerate(examples):
        mask[number, : row.num_tokens] = 1
    given: dict[str, Any] = {"attention_mask": mask, "output_router_logits": True, "use_cache": False}
    loss = model(input_ids=batch.input_ids, **given).aux_loss
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ours(model: TrainableModel, batch: MicroBatch) -> Tensor:
    assert model.router_loss is not None
    with model.router_loss.recording():
        model.loss_sum(batch)
    return model.router_loss.of(batch)


def gradients(model: TrainableModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def check_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    norm = torch.stack([one.norm() for one in wanted.values()]).norm()
    compared = 0
    for name, one in wanted.items():
        other = found.get(name)
        if other is None:
            assert float(one.norm()) <= 1e-6 * float(norm), name
            continue
        assert float((other - one).norm()) <= 1e-5 * float(norm), name
        compared += 1
    assert compared > 4


@pytest.mark.parametrize("kind", GIVES)
def test_value_and_gradients_are_those_of_transformers_however_rows_lie(kind: str) -> None:
    examples = rows()
    wanted, of_transformers = by_transformers(kind, examples=examples)
    model = TrainableModel(base(kind), Full(FULL), 0, router_coefficient=0.5)
    model.module.eval()
    tried = 0
    for prefix_lengths in ((), (0,), PREFIX_LENGTHS):
        if prefix_lengths and not model.can_share_prefix():
            continue
        model.module.zero_grad(set_to_none=True)
        loss = ours(model, collate(examples, 0, "cpu", prefix_lengths=prefix_lengths))
        loss.backward()  # type: ignore[no-untyped-call]
        assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6)
        check_gradients(gradients(model), of_transformers)
        tried += 1
    assert tried == (3 if model.path.attention == "fast" and model.can_share_prefix() else 1)


def test_padding_does_not_count() -> None:
    examples = rows()
    model = TrainableModel(base("mixtral"), Full(FULL), 0, router_coefficient=0.5)
    model.module.eval()
    batch = collate(examples, 0, "cpu")
    wider = MicroBatch(
        torch.cat([batch.input_ids, torch.full((4, 9), 7)], 1),
        batch.rows,
        batch.targets,
        batch.learned,
        batch.num_tokens,
        lengths=batch.lengths,
    )
    assert float(ours(model, wider).detach()) == pytest.approx(float(ours(model, batch).detach()), rel=1e-6)


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    batch, found = collate(rows(), 0, "cpu"), []
    for again in (False, True):
        model = TrainableModel(base("qwen3_moe"), Full(FULL), 0, router_coefficient=0.5, gradient_checkpointing=again)
        model.module.train()
        ours(model, batch).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(model))
    check_gradients(found[1], found[0])


def test_a_micro_batch_adds_its_loss_as_a_measure_by_its_weight_and_leaves_the_loss_itself_alone() -> None:
    examples = rows()
    units, batch = [(row,) for row in examples], collate(examples, 0, "cpu")
    objective = Sft(ObjectivePlan(name="sft"))
    plain = TrainableModel(base("mixtral"), Full(FULL), 0)
    model = TrainableModel(base("mixtral"), Full(FULL), 0, router_coefficient=0.5)
    plain.module.eval()
    model.module.eval()
    without, found = _losses(objective, plain, units, batch), _losses(objective, model, units, batch)
    assert torch.equal(found.total, without.total)
    assert ROUTER_LOSS not in without.measures
    mean = float(found.measures[ROUTER_LOSS].detach()) / objective.weight(units)
    assert mean == pytest.approx(by_transformers("mixtral", examples=examples)[0], rel=1e-6)
    assert found.measures[ROUTER_LOSS].requires_grad
    again = _losses(objective, model, units, batch)  # what was recorded before is gone
    assert torch.equal(again.measures[ROUTER_LOSS], found.measures[ROUTER_LOSS])


def test_frozen_routers_still_shape_the_adapters_before_them() -> None:
    plan = MethodPlan(
        name="lora", rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"), num_trainable_parameters=1
    )
    model = TrainableModel(base("mixtral"), Lora(plan), 0, router_coefficient=0.5)
    model.module.eval()
    ours(model, collate(rows(), 0, "cpu")).backward()  # type: ignore[no-untyped-call]
    found = gradients(model)
    assert any(float(one.norm()) > 0 for name, one in found.items() if "lora_B" in name)
    assert not [name for name in found if "gate.weight" in name]


@pytest.fixture
def mixture_plan(make_plan: Callable[..., Plan], tmp_path: Path) -> Callable[..., Plan]:
    """A plan of six steps, several micro-batches each, on a tiny mixture of experts with a coefficient."""
    folder = tmp_path / "mixture"
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", **SMALL["mixtral"] | {"vocab_size": 300})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(str(folder))

    def make(coefficient: float | None = 0.5, **training: Any) -> Plan:
        plan = make_plan("full", **training)
        return plan.model_copy(
            update={
                "base_model": plan.base_model.model_copy(update={"path": str(folder)}),
                "objective": ObjectivePlan(name="sft", router_aux_loss=coefficient),
            }
        )

    return make


def test_a_step_minimises_both_and_tells_them_apart(
    mixture_plan: Callable[..., Plan], examples: list[TokenisedExample]
) -> None:
    def stepped(plan: Plan) -> tuple[StepDone, dict[str, Tensor]]:
        model, objective, units = TrainableModel.load(plan), Sft(plan.objective), [(row,) for row in examples[:4]]
        optimizer = MasterOptimizer(model.module, plan.training, model.method.rate_factor)
        state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
        _, event = one_step(plan, model, objective, optimizer, units, FixedSchedule(4, 4, 3), state)
        return event, {name: p.detach().clone() for name, p in model.module.named_parameters()}

    # what transformers makes of each micro-batch, counted by its learned tokens
    plan = mixture_plan()
    plain = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float32).eval()
    losses, weights = [], []
    for numbers in ((0, 1, 2), (3,)):
        chosen = [examples[n] for n in numbers]
        batch = collate(chosen, 0, "cpu")
        mask = (torch.arange(batch.input_ids.shape[1])[None] < torch.tensor(batch.lengths)[:, None]).long()
        with torch.no_grad():
            given: dict[str, Any] = {"attention_mask": mask, "output_router_logits": True, "use_cache": False}
            losses.append(float(plain(input_ids=batch.input_ids, **given).aux_loss))
        weights.append(batch.num_trained_tokens)
    wanted = sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)
    event, trained = stepped(plan)
    without, untrained = stepped(mixture_plan(None))
    assert event.measures[ROUTER_LOSS] == pytest.approx(wanted, rel=1e-6)
    assert event.loss == without.loss
    assert ROUTER_LOSS not in without.measures
    assert any(not torch.equal(trained[name], untrained[name]) for name in trained if "gate" in name)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("kill_at", [3, 5])
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    mixture_plan: Callable[..., Plan], examples: list[TokenisedExample], tmp_path: Path, kill_at: int
) -> None:
    plan = mixture_plan()

    def run(folder: Path, kill: int | None = None) -> tuple[dict[str, Tensor], list[StepDone]]:
        model = TrainableModel.load(plan)
        seen: list[StepDone] = []

        def emit(event: Event) -> None:
            if isinstance(event, StepDone):
                seen.append(event)
                if event.step == kill:
                    raise _KilledError

        train(
            plan,
            model,
            load_objective(plan.objective),
            [(row,) for row in examples],
            [([(row,) for row in examples[:3]], ())],
            FixedSchedule(len(examples), 4, 3),
            CheckpointStore(folder, plan.training.keep_checkpoints),
            emit=emit,
            stop_requested=lambda: None,
            progress=SilentProgress(),
        )
        return {name: p.detach().clone() for name, p in model.module.named_parameters()}, seen

    whole, events = run(tmp_path / "a")
    with pytest.raises(_KilledError):
        run(tmp_path / "b", kill_at)
    resumed, later = run(tmp_path / "b")
    assert 0 < len(later) < len(events)
    for name, tensor in nonempty(whole.items()):
        assert torch.equal(resumed[name], tensor), name
    tail = events[-len(later) :]
    assert [e.measures[ROUTER_LOSS] for e in later] == [e.measures[ROUTER_LOSS] for e in tail]


@pytest.mark.parametrize("kind", NONE)
def test_a_model_whose_forward_gives_no_such_loss_is_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="router_aux_loss") as caught:
        TrainableModel(base(kind), Full(FULL), 0, router_coefficient=0.5)
    assert "off" in caught.value.do


def test_a_pass_that_was_not_recorded_is_a_fault() -> None:
    model = TrainableModel(base("mixtral"), Full(FULL), 0, router_coefficient=0.5)
    assert model.router_loss is not None
    with pytest.raises(RuntimeError, match="0 passes"):
        model.router_loss.of(collate(rows(), 0, "cpu"))
