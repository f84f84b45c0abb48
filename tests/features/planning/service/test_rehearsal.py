"""A plan has taken one tiny step before it is given out: what cannot be trained is refused with the reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fixtures.service import chat_row, write_rows
from tests.ml.training.architectures import ARCHITECTURES

from luthier.core.errors import DataError, LuthierError, ModelSourceError, RequestError
from luthier.core.events import StepDone
from luthier.core.forward_path import ForwardPath
from luthier.core.graders import Reward
from luthier.core.plan import ObjectivePlan, Plan
from luthier.features.planning import rehearsal as plan_rehearsal
from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.inference.models.architecture import config_of, empty_model
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import hardware, speed
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.hardware import measure
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.objective_protocol import Tools
from luthier.ml.training.objectives.rules import RULES as OBJECTIVES
from luthier.ml.training.objectives.rules import load_objective
from luthier.platform.home.context import Context

VOCABULARY = 640
"""Above all tokens of the tiny model's tokenizer."""


@pytest.fixture
def base_folder(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """A folder of an architecture with random weights and the tokenizer of the tiny model."""

    def make(name: str, **changes: Any) -> Path:
        kind, entries = ARCHITECTURES[name]
        entries = {key: dict(value) if isinstance(value, dict) else value for key, value in entries.items()}
        entries.get("text_config", entries).update({"vocab_size": VOCABULARY} | changes)
        if "vocab_size_per_layer_input" in entries:
            entries["vocab_size_per_layer_input"] = VOCABULARY
        folder = tmp_path / name.replace(" ", "-")
        torch.manual_seed(0)
        model = empty_model(config_of({"model_type": kind, **entries}), device="cpu", dtype=torch.float32)
        model.save_pretrained(str(folder))
        for file in tiny_model.iterdir():
            if "tokenizer" in file.name or file.suffix == ".jinja":
                shutil.copyfile(file, folder / file.name)
        return folder

    return make


@pytest.fixture
def plan_of(context: Context, make_recipe: Callable[..., Path]) -> Callable[..., Plan]:
    def make(folder: Path, **sections: Any) -> Plan:
        recipe = make_recipe(base_model=str(folder), **sections)
        for name, first, num in (("train", 0, 16), ("valid", 100, 2), ("test", 200, 2)):
            write_rows(recipe.parent / f"{name}.jsonl", [chat_row(n) for n in range(first, first + num)])
        return make_plan(context, load_recipe(recipe), base_dir=recipe.parent)

    return make


SHORT = {
    "data": {"train": "train.jsonl"},
    "training": {"max_steps": 3, "global_batch_size": 8, "precision": "float32", "num_threads": 1},
}
METHODS: list[dict[str, Any]] = [{"name": "lora", "rank": 2}, {"name": "full"}]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("qwen3", None),
        ("gemma2, caps", ("model", "product")),
        ("gemma3 as published", None),
        ("gemma4 text, shared keys", None),
        ("cohere", None),
        ("phi", ("fast", "head")),
        ("deepseek v3", ("model", "product")),
        ("gpt2", ("model", "product")),
        ("llama4 text, chunks", ("model", "product")),
    ],
)
def test_a_plan_says_by_which_path_its_loss_is_computed(
    base_folder: Callable[..., Path],
    plan_of: Callable[..., Plan],
    name: str,
    path: tuple[str, str] | None,
    method: dict[str, Any],
) -> None:
    found = plan_of(base_folder(name), method=method).training.forward
    assert (None if found is None else (found.attention, found.logits)) == path
    assert found is None or found.reasons


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
@pytest.mark.parametrize(("name", "asked"), [("mixtral", 0.01), ("qwen3 moe", "model"), ("gpt oss", 0.02)])
def test_a_plan_says_what_the_loss_of_routers_is_multiplied_by_and_what_it_trains(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], name: str, asked: Any, method: dict[str, Any]
) -> None:
    plan = plan_of(base_folder(name), method=method, objective={"name": "sft", "router_aux_loss": asked})
    assert plan.objective.router_aux_loss == (0.001 if asked == "model" else asked)
    said = plan.sources["objective.router_aux_loss"]
    assert said.source == "asked"
    assert ("routers train" in said.why) == (method["name"] == "full")
    assert ("routers are frozen" in said.why) == (method["name"] == "lora")
    silent = plan_of(base_folder(name), method=method)
    off = plan_of(base_folder(name), method=method, objective={"name": "sft", "router_aux_loss": "off"})
    assert silent.objective.router_aux_loss is None
    assert silent.sources["objective.router_aux_loss"].source == "default"
    assert silent.sources["objective.router_aux_loss"].why.startswith("off")
    assert silent.hash == off.hash != plan.hash


@pytest.mark.parametrize(
    ("name", "method", "asked", "why"),
    [
        ("qwen3", {"name": "lora", "rank": 2}, 0.01, "no experts"),
        ("deepseek v3", {"name": "lora", "rank": 2}, 0.01, "gives none"),
        ("deepseek v3", {"name": "lora", "rank": 2}, "model", "router_aux_loss_coef"),
        ("mixtral", {"name": "prompt_tuning", "num_virtual_tokens": 3}, 0.01, "trained prompt"),
    ],
)
def test_a_loss_of_routers_that_cannot_be_computed_is_refused_before_the_plan(
    base_folder: Callable[..., Path],
    plan_of: Callable[..., Plan],
    name: str,
    method: dict[str, Any],
    asked: Any,
    why: str,
) -> None:
    with pytest.raises(LuthierError, match=why) as caught:
        plan_of(base_folder(name), method=method, objective={"name": "sft", "router_aux_loss": asked})
    assert "off" in caught.value.do


def test_a_run_logs_the_loss_of_routers_beside_its_own(
    context: Context, base_folder: Callable[..., Path], make_recipe: Callable[..., Path]
) -> None:
    asked = {"objective": {"name": "sft", "router_aux_loss": 0.05}, "method": {"name": "lora", "rank": 2}}
    recipe = make_recipe(base_model=str(base_folder("mixtral")), **asked, **SHORT)
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    result = outcome.record.result
    assert outcome.record.status == "succeeded"
    assert result is not None
    assert result.first_step is not None
    steps = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]
    assert steps
    assert all(step.measures["router_loss"] > 0 for step in steps)
    assert result.first_step.router_loss == steps[0].measures["router_loss"]
    assert result.first_step.loss == steps[0].loss


def test_plan_and_run_say_which_path_is_taken_and_the_run_ends(
    context: Context, base_folder: Callable[..., Path], make_recipe: Callable[..., Path]
) -> None:
    recipe = make_recipe(base_model=str(base_folder("phi")), method={"name": "lora", "rank": 2}, **SHORT)
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    assert outcome.record.status == "succeeded"
    said = [row for row in outcome.plan.values() if row["name"] == "training.forward"]
    assert len(said) == 1
    assert "its own head in chunks" in said[0]["why"]
    assert "bias" in said[0]["why"]
    assert any("its own head in chunks" in warning for warning in outcome.warnings)


def test_the_answer_is_kept_in_the_home_and_no_step_is_taken_twice(
    context: Context,
    base_folder: Callable[..., Path],
    plan_of: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = base_folder("phi")
    monkeypatch.setattr(plan_rehearsal, "_known", {})  # else it may be known, and not be written to this home
    first = plan_of(folder)
    assert first.training.forward is not None
    assert first.training.forward.logits == "head"
    monkeypatch.setattr(plan_rehearsal, "_known", {})

    def refuse(*_: object) -> ForwardPath:
        raise AssertionError("rehearsed again")

    monkeypatch.setattr(plan_rehearsal, "rehearse", refuse)
    assert plan_of(folder) == first
    assert len(list((context.home / "cache" / "rehearsals").iterdir())) == 1


@pytest.mark.parametrize("part", ["code", "processor", "library"])
def test_an_answer_counts_for_the_code_the_processor_and_the_libraries_that_gave_it(
    context: Context,
    base_folder: Callable[..., Path],
    plan_of: Callable[..., Plan],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    folder, rehearsed, rehearse = base_folder("phi"), list[Plan](), plan_rehearsal.rehearse
    monkeypatch.setattr(plan_rehearsal, "_known", {})
    first = plan_of(folder)
    monkeypatch.setattr(plan_rehearsal, "_known", {})

    def note(plan: Plan) -> ForwardPath | None:
        rehearsed.append(plan)
        return rehearse(plan)

    monkeypatch.setattr(plan_rehearsal, "rehearse", note)
    if part == "code":
        monkeypatch.setattr(plan_rehearsal, "code_stamp", lambda: "another state")
    elif part == "processor":
        monkeypatch.setattr(hardware, "cpu_name", lambda: "another processor")
    else:
        monkeypatch.setattr(plan_rehearsal, "version", lambda name: f"99 of {name}")
    assert plan_of(folder).training.forward == first.training.forward
    assert len(rehearsed) == 1
    assert len(list((context.home / "cache" / "rehearsals").iterdir())) == 2


def test_the_path_is_no_part_of_what_is_trained(base_folder: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(base_folder("phi"))
    without = plan.model_copy(update={"training": plan.training.model_copy(update={"forward": None})})
    assert plan.hash == without.hash


def test_random_numbers_go_on_as_if_nothing_had_been_rehearsed(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(base_folder("qwen3"))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    plan_rehearsal.rehearse(plan)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_that_misses_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    folder = base_folder("qwen3")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match=r"missing keys.*layers\.1\.mlp\.up_proj"):
        plan_of(folder)


def test_an_architecture_that_is_not_known_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    folder = base_folder("qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-architecture"}))
    with pytest.raises(LuthierError, match="no-such-architecture"):
        plan_of(folder)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused_where_rows_use_it(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    with pytest.raises(DataError, match=r"has token .* embeddings for 300 tokens") as caught:
        plan_of(base_folder("qwen3", vocab_size=300))
    assert "tokenizer" in caught.value.do


def test_what_reads_later_tokens_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    entry = ("bert", sizes | {"num_hidden_layers": 2, "num_attention_heads": 2})
    monkeypatch.setitem(ARCHITECTURES, "encoder", entry)
    with pytest.raises(RequestError, match="earlier tokens see later ones"):
        plan_of(base_folder("encoder"))


def test_an_exception_of_a_library_becomes_a_reason(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.training.methods.lora import Lora

    def fail(*_: object) -> str:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(Lora, "save", fail)
    with pytest.raises(RequestError, match="ZeroDivisionError: deep inside") as caught:
        plan_of(base_folder("qwen3"), method={"name": "lora", "rank": 3})
    assert caught.value.do


def objective(name: str, teacher: Path | None = None) -> ObjectivePlan:
    own: dict[str, dict[str, Any]] = {
        "sft": {"label_smoothing": 0.1, "loss_weighting": "sample"},
        "orpo": {"nll_over": "all"},
        "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0},
        "simpo": {"gamma": 0.5},
        "grpo": {"num_samples": 8, "max_new_tokens": 200, "temperature": 1.0, "kl_weight": 0.1},
        "distillation": {"alpha": 0.5, "temperature": 2.0, "divergence": "forward_kl"},
        "classify": {
            "task_head": {"kind": "classify", "width": 4096, "labels": list("abcde"), "label_counts": [1] * 5}
        },
        "regress": {"task_head": {"kind": "regress", "width": 4096}},
        "rank": {"task_head": {"kind": "rank", "width": 4096}},
        "embed": {"temperature": 0.05, "task_head": {"kind": "embed", "width": 4096, "dimensions": [4096, 256]}},
    }
    found: dict[str, Any] = {"name": name, **own.get(name, {})}
    if OBJECTIVES[name].learns_preferences:
        found["beta"] = 0.1
    if teacher is not None:
        found["teacher"] = {
            "name": "teacher", "path": str(teacher), "sha256": "0" * 64, "precision": "float32", "num_parameters": 1,
            "hidden_size": 4096, "vocabulary_size": 150_000, "context_length_tokens": 512,
        }  # fmt: skip
    return ObjectivePlan.model_validate(found)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_step_is_that_of_the_plans_own_objective(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It runs as it is; and what its loss raises comes before the plan's yes."""
    folder = base_folder("qwen3")
    plan = plan_of(folder, method={"name": "lora", "rank": 2})
    teacher = base_folder("cohere") if name == "distillation" else None
    plan = plan.model_copy(update={"objective": objective(name, teacher)})
    path = plan_rehearsal.rehearse(plan)
    assert path is not None
    assert path.is_fast
    kind = type(load_objective(plan.objective, Tools(template=object(), grade=lambda _: [])))  # type: ignore[arg-type]

    def fail(*_: object) -> None:
        raise ZeroDivisionError("in its loss")

    monkeypatch.setattr(kind, "losses", fail)
    with pytest.raises(RequestError, match=f"objective {name} by method lora.*ZeroDivisionError: in its loss"):
        plan_rehearsal.rehearse(plan)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_the_step_is_taken_by_the_plans_own_optimizer(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from luthier.ml.training import optimizer

    plan = plan_of(base_folder("qwen3"), method={"name": "full"}, training={"optimizer": name})
    used: list[str] = []
    load = optimizer.load_rule
    monkeypatch.setattr(optimizer, "load_rule", lambda trained, rule: used.append(rule.name) or load(trained, rule))
    plan_rehearsal.rehearse(plan)
    assert used == [name]


def test_another_objective_is_rehearsed_again_and_another_reward_is_not(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    plan = plan_of(base_folder("qwen3"))
    keys = {
        plan_rehearsal._key(plan.model_copy(update={"objective": objective(name)})) for name in ("sft", "dpo", "kto")
    }
    assert len(keys) == 3
    drawn = objective("grpo")
    rewarded = drawn.model_copy(update={"rewards": (Reward(metric="token_f1", weight=1.0),)})
    one, other = (plan_rehearsal._key(plan.model_copy(update={"objective": o})) for o in (drawn, rewarded))
    assert one == other


@pytest.mark.parametrize(("name", "why"), [("phi", "and a bias"), ("bloom", None), ("gemma2, caps", None)])
def test_a_teacher_whose_head_cannot_be_kept_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], name: str, why: str | None
) -> None:
    sections = {"objective": {"name": "distillation", "teacher": str(base_folder(name))}}
    if why is None:
        assert plan_of(base_folder("qwen3"), **sections).objective.teacher is not None
        return
    with pytest.raises(RequestError, match=f"teacher .*{why}") as caught:
        plan_of(base_folder("qwen3"), **sections)
    assert "choose another teacher" in caught.value.do


def test_a_teacher_with_an_adapter_on_its_head_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    folder = base_folder("qwen3")
    plan = plan_of(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj", "lm_head"]}))
    found = objective("distillation", folder)
    assert found.teacher is not None
    adapted = found.teacher.model_copy(update={"adapter_path": str(adapter)})
    plan = plan.model_copy(update={"objective": found.model_copy(update={"teacher": adapted})})
    with pytest.raises(RequestError, match="adapter on its output head lm_head"):
        plan_rehearsal.rehearse(plan)


def test_a_teacher_that_misses_a_tensor_is_refused_before_the_plan(
    base_folder: Callable[..., Path], plan_of: Callable[..., Plan]
) -> None:
    folder = base_folder("cohere")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match="up_proj"):
        plan_of(base_folder("qwen3"), objective={"name": "distillation", "teacher": str(folder)})


def test_what_a_slower_path_costs_is_predicted(base_folder: Callable[..., Path], plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(base_folder("phi"))
    why = plan.sources["training.forward"].why
    assert "its own head in chunks" in why
    assert re.search(r"about \d+\.\dx the time of a step by the fast path|slower", why)
    structure, device = read_structure(plan.base_model.path), this_machine(measure())
    work = workload_of(plan, structure, device)
    assert (work.attention, work.loss) == ("by_length", "own_chunks")
    fast = replace(work, loss="learned_chunks")
    assert speed.step_seconds(work, device).value > speed.step_seconds(fast, device).value
