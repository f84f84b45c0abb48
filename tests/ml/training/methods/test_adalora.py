"""AdaLoRA: equal to PEFT's step by step, exact in its budget, and true to it at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from tests.ml.training.test_loop import run
from tests.vacuous import nonempty
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.events import ValidationDone
from luthier.core.plan import Plan
from luthier.ml.training.checkpoint import CheckpointStore, save_model
from luthier.ml.training.methods.adalora import AdaLora, RankBudget, Triplets
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.optimizer import MasterOptimizer

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
RATE = 1e-2


def wide_loss(logits: torch.Tensor, labels: torch.Tensor, **_: object) -> torch.Tensor:
    """Transformers' own rounds logits to float32 first."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def reference(plan: Plan, ours: TrainableModel, num_steps: int) -> PeftModel:
    """PEFT's AdaLoRA on the same base in float64, with the same start and the same schedule."""
    m = plan.method
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float64)
    base.loss_function = wide_loss
    config = AdaLoraConfig(
        init_r=m.rank,
        target_r=m.target_rank,
        tinit=m.warmup_steps,
        tfinal=num_steps - (m.last_reallocation_step or 0),
        deltaT=m.reallocate_every_steps,
        beta1=m.sensitivity_smoothing,
        beta2=m.uncertainty_smoothing,
        orth_reg_weight=m.orthogonality_weight,
        total_step=num_steps,
        lora_alpha=m.alpha,
        target_modules=list(m.targets),
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(base, config, autocast_adapter_dtype=False)
    starts = dict(ours.module.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".ranknum." in name:
                parameter.fill_(m.rank - 1e-5)  # PEFT divides by ranknum + 1e-5
                parameter.requires_grad_(False)  # it would drift otherwise
            elif "lora_" in name:
                parameter.copy_(starts[name if "lora_E" in name else f"{name}.weight"])
    return theirs


def test_equals_peft_step_by_step(make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample]) -> None:
    num_steps = 14
    plan = make_plan(
        "adalora",
        settings={"warmup_steps": 2, "final_steps": 4, "reallocate_every_steps": 2, "alpha": 12.0},
        num_steps=num_steps,
        learning_rate=RATE,
        clip_gradient_norm=1e9,
    )
    ours = make_model(plan, torch.float64)
    theirs = reference(plan, ours, num_steps)
    optimizer = MasterOptimizer(ours.module, plan.training)
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    method = ours.method
    for step in range(1, num_steps + 1):
        chosen = examples[:6]
        batch = collate(chosen, ours.pad_id, "cpu")
        num_trained = sum(e.num_trained_tokens for e in chosen)
        (ours.loss_sum(batch)[0] / num_trained).backward()
        optimizer.collect()
        method.before_step(optimizer.weight_state(), optimizer.gradient_state())
        optimizer.step(optimizer.gradient_norm(), 1.0, lambda w, g, t=step: method.after_step(t, w, g))  # type: ignore[misc]

        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.rows + 1] = batch.targets
        theirs(input_ids=batch.input_ids, labels=labels).loss.backward()
        adam.step()
        theirs.base_model.update_and_allocate(step)
        adam.zero_grad()

        mine = optimizer.weight_state()
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                key = name if "lora_E" in name else f"{name}.weight"
                torch.testing.assert_close(mine[key], parameter.detach(), atol=1e-9, rtol=1e-7, msg=f"{step} {name}")
    assert sum(method.ranks().values()) == 3 * len(method.ranks())
    pattern = theirs.peft_config["default"].rank_pattern
    assert sorted(sum(kept) for kept in pattern.values()) == sorted(method.ranks().values())


def budget(make_plan: MakePlan, num_steps: int = 100, **settings: float) -> RankBudget:
    made = RankBudget(make_plan("adalora", settings=settings, num_steps=num_steps).method)
    for name in ("one", "two"):
        made.add(name, 6, torch.device("cpu"))
    return made


def test_the_budget_falls_by_a_cubic_curve(make_plan: MakePlan) -> None:
    made = budget(make_plan, warmup_steps=20, final_steps=40)
    # by hand: 12 triplets at first, 6 at the end; half way between 20 and 60 a half cubed of the 6 to lose is left
    assert [made.num_at(t) for t in (1, 20, 40, 60, 61, 100)] == [12, 12, 6 + int(6 / 8), 6, 6, 6]
    numbers = [made.num_at(t) for t in range(1, 101)]
    assert numbers == sorted(numbers, reverse=True)


def test_the_most_important_are_kept_over_all_matrices(make_plan: MakePlan) -> None:
    made = budget(make_plan, num_steps=2, warmup_steps=0, final_steps=1)

    def triplets(scale: float) -> Triplets:
        e = scale * torch.arange(1.0, 7.0)[:, None]
        return Triplets(a=torch.ones(6, 5), b=torch.ones(4, 6), e=e)

    weights = {"one": triplets(1.0), "two": triplets(0.1)}
    made.after_step(1, weights, {name: Triplets(*(torch.ones_like(x) for x in t)) for name, t in weights.items()})
    # All that counts is E: 1 to 6 in the first matrix, 0.1 to 0.6 in the second; six of twelve may stay.
    assert {name: int(kept.sum()) for name, kept in made.kept.items()} == {"one": 6, "two": 0}
    assert weights["two"].e.abs().sum() == 0
    assert torch.equal(weights["one"].e.flatten(), torch.arange(1.0, 7.0))


def test_of_equals_exactly_as_many_as_the_budget_stay(make_plan: MakePlan) -> None:
    made = budget(make_plan, num_steps=2, warmup_steps=0, final_steps=1)
    same = {name: Triplets(torch.ones(6, 5), torch.ones(4, 6), torch.ones(6, 1)) for name in ("one", "two")}
    made.after_step(1, same, same)
    assert sum(int(kept.sum()) for kept in made.kept.values()) == 6


def test_the_final_ranks_meet_the_target_and_the_files_have_them(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan("adalora", num_steps=12, learning_rate=0.1)
    model = make_model(plan)
    run(plan, model, tmp_path / "c", examples)
    ranks = model.method.ranks()
    assert sum(ranks.values()) == 3 * 4, "an average of the target rank over two kinds in two layers"
    assert set(ranks) == {f"model.layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")}
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plan.base_model.path), str(folder))
    held = {
        name.removeprefix("base_model.model."): m.lora_A["default"].out_features
        for name, m in loaded.named_modules()
        if hasattr(m, "lora_A") and len(m.lora_A)
    }
    assert held == {name: rank for name, rank in ranks.items() if rank}
    scales = {m.scaling["default"] for m in loaded.modules() if hasattr(m, "lora_A")}
    assert [round(scale, 6) for scale in scales] == [1.333333]


def test_no_step_before_the_target_is_reached_can_be_the_best(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    # At such a rate every later step is worse than an early one.
    plan = make_plan("adalora", num_steps=10, learning_rate=0.5, validate_every_steps=1, early_stopping_patience=1)
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    last = plan.method.last_reallocation_step or 0
    assert last == 6
    assert all(nonempty(e.step >= last for e in events if isinstance(e, ValidationDone) and e.is_best))
    assert outcome.state.early_stopping.best_step >= last
    assert outcome.state.step > last


def test_importance_is_in_the_checkpoint_until_the_ranks_are_final(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan("adalora", num_steps=10, keep_checkpoints=9)
    run(plan, make_model(plan), tmp_path, examples, with_validation=False)
    store = CheckpointStore(tmp_path, 9)
    early, late = store.load(4).method, store.load(8).method
    # four matrices of three parts each, smoothed and uncertain, and which triplets are kept
    assert (len(early), len(late)) == (4 * 3 * 2 + 4, 4)
    assert all(nonempty(t.dtype == torch.bool for name, t in late.items() if name.startswith("kept.")))


def test_the_penalty_is_the_gradient_of_the_mean_norm(make_plan: MakePlan, make_model: MakeModel) -> None:
    plan = make_plan("adalora")
    model = make_model(plan, torch.float64)
    assert isinstance(model.method, AdaLora)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.module.named_parameters() if p.requires_grad}
    thin = {n: p for n, p in weights.items() if "lora_E" not in n}
    total = sum(
        torch.linalg.matrix_norm((p @ p.t() if "lora_A" in n else p.t() @ p) - torch.eye(6, dtype=p.dtype))
        for n, p in thin.items()
    )
    (0.5 * total / len(thin)).backward()  # type: ignore[union-attr]
    gradients = {n: torch.zeros_like(p) for n, p in weights.items()}
    model.method.before_step({n: p.detach() for n, p in weights.items()}, gradients)
    for name, parameter in thin.items():
        torch.testing.assert_close(gradients[name], parameter.grad)
    assert all(nonempty(not gradients[n].any() for n in weights if "lora_E" in n))
