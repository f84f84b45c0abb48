"""Reinforcement from recipe to report: it learns what is rewarded, and a killed run draws the same answers again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.fixtures.service import write_rows

from luthier.core.errors import LuthierError, OverlongError, RecipeError, RequestError
from luthier.core.events import StepDone, ValidationDone
from luthier.features.planning.probes import probe
from luthier.features.planning.quotes import exact_batches, quote_of
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.decode import Continuation
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training import loop
from luthier.ml.training.distributed import World
from luthier.ml.training.objectives import grpo, sampling
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]

LIKE_E = {
    "grader": {
        "type": "text_similarity",
        "input": "{{sample.output_text}}",
        "reference": "eee",
        "evaluation_metric": "fuzzy_match",
    }
}
FORMULA = {"type": "multi", "graders": {"a": LIKE_E["grader"]}, "calculate_output": "b"}
OBJECTIVE = {"name": "grpo", "rewards": [LIKE_E], "num_samples": 8, "max_new_tokens": 3}
TRAINING = {
    "max_steps": 12,
    "global_batch_size": 4,
    "learning_rate": 0.02,
    "precision": "float32",
    "num_threads": 1,
    "validate_every_steps": 6,
    "checkpoint_every_steps": 4,
}
DATA = {"train": "train.jsonl", "validation": "valid.jsonl"}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def steps(context: Context, outcome: TrainOutcome) -> list[dict[str, float]]:
    return [e.measures for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]


def samples(context: Context, outcome: TrainOutcome) -> dict[str, bytes]:
    folder = context.settings.run_folder(outcome.record.run_id) / grpo.FOLDER
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_rewarded_is_learned(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective=OBJECTIVE, training=TRAINING, data=DATA, method={"name": "full"})
    outcome = run(context, recipe)
    rewards = [measures["reward"] for measures in steps(context, outcome)]
    assert len(rewards) == 12
    assert sum(rewards[-3:]) > 4 * sum(rewards[:3])
    validations = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, ValidationDone)]
    assert [e.step for e in validations] == [6, 12]
    assert all(e.loss == -e.measures["reward"] for e in validations)
    assert validations[-1].measures["reward"] > 4 * rewards[0]
    assert len(samples(context, outcome)) == 12
    assert outcome.warnings == ()


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_a_killed_run_draws_the_same_answers_and_ends_with_the_same_bytes(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, num_iterations: int
) -> None:
    objective = OBJECTIVE | {"kl_weight": 0.1, "num_iterations": num_iterations}
    recipe = make_recipe(objective=objective, training=TRAINING | {"max_steps": 7}, data=DATA, method={"name": "lora"})
    whole = run(context, recipe)
    assert whole.plan.method.dropout == 0.0  # not LoRA's usual 0.1
    assert ("clipped_fraction" in steps(context, whole)[0]) == (num_iterations > 1)
    real, calls = loop.one_step, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*given)
        if calls == 6:  # its answers are drawn and kept, its weights are lost
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.setattr(loop, "one_step", real)
    again = resume(context, context.runs.list(limit=1)[0].run_id)
    assert again.warnings == ()
    assert again.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]
    assert steps(context, again) == steps(context, whole)
    assert samples(context, again) == samples(context, whole)


def test_a_grader_sees_the_fields_of_the_row(context: Context, make_recipe: MakeRecipe) -> None:
    grader = {"type": "string_check", "input": "{{item.tag}}", "reference": "even", "operation": "eq"}
    recipe = make_recipe(
        objective=OBJECTIVE | {"rewards": [{"grader": grader}, "exact_match"], "num_samples": 2},
        training={"max_steps": 1, "global_batch_size": 4, "precision": "float32"},
        data={"train": "tagged.jsonl"},
        method={"name": "lora"},
    )
    rows = [{"prompt": f"{n}?", "completion": f"{n}", "tag": ("even", "odd")[n % 2]} for n in range(4)]
    write_rows(recipe.parent / "tagged.jsonl", rows)
    (measures,) = steps(context, run(context, recipe))
    assert measures["reward_string_check"] == 0.5
    assert measures["reward"] == pytest.approx(measures["reward_string_check"] + measures["reward_exact_match"])
    rows[2].pop("tag")
    write_rows(recipe.parent / "tagged.jsonl", rows)
    with pytest.raises(RequestError, match=r"item\.tag, which tagged\.jsonl:3 does not have"):
        run(context, recipe)


def test_a_row_that_lacks_a_part_of_a_field_is_refused_before_anything_is_trained(
    context: Context, make_recipe: MakeRecipe
) -> None:
    grader = {"type": "string_check", "input": "{{item.tag.kind}}", "reference": "even", "operation": "eq"}
    recipe = make_recipe(
        objective=OBJECTIVE | {"rewards": [{"grader": grader}], "num_samples": 2},
        training={"max_steps": 1, "global_batch_size": 4, "precision": "float32"},
        data={"train": "tagged.jsonl"},
        method={"name": "lora"},
    )
    rows = [{"prompt": f"{n}?", "completion": f"{n}", "tag": {"kind": "even"} if n != 2 else {}} for n in range(4)]
    write_rows(recipe.parent / "tagged.jsonl", rows)
    with pytest.raises(RequestError, match=r"tagged\.jsonl:3: a grader refers to item\.tag\.kind"):
        run(context, recipe)
    assert context.runs.list() == []


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"objective": {"name": "grpo"}}, RecipeError, "without objective.rewards"),
        ({"objective": {"name": "sft", "num_samples": 4}}, RecipeError, "sft with objective.num_generations"),
        ({"method": {"name": "lora", "dropout": 0.1}}, RecipeError, "method.dropout 0.1"),
        ({"training": TRAINING | {"neftune_alpha": 5}}, RecipeError, "grpo with training.neftune_alpha 5"),
        ({"method": {"name": "full"}, "objective": OBJECTIVE | {"kl_weight": 0.1}}, RecipeError, "method full"),
        ({"objective": OBJECTIVE | {"rewards": [{"grader": FORMULA}]}}, RequestError, "calculate_output"),
        ({"objective": OBJECTIVE | {"rewards": ["perplexity"]}}, LuthierError, "rewards"),
        ({"objective": OBJECTIVE | {"max_new_tokens": 511}}, OverlongError, "prompts are longer than 1 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_before_anything_is_trained(
    context: Context, make_recipe: MakeRecipe, sections: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"objective": OBJECTIVE, "training": TRAINING, "data": DATA, "method": {"name": "lora"}} | sections
    with pytest.raises(error, match=words):
        run(context, make_recipe(**given))
    assert context.runs.list() == []


def test_kept_answers_say_what_was_rewarded(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(objective=OBJECTIVE, training=TRAINING | {"max_steps": 1}, data=DATA, method={"name": "lora"})
    (kept,) = samples(context, run(context, recipe)).values()
    lines = [json.loads(line) for line in kept.decode().splitlines()]
    assert len(lines) == 16
    for line in lines:
        assert line["reward"] == line["parts"]["text_similarity"]
        assert line["prompt"].endswith("<|im_start|>assistant\n")


def test_a_quote_and_a_probe_reckon_with_answers_as_long_as_they_may_be(
    context: Context, make_recipe: MakeRecipe
) -> None:
    objective = OBJECTIVE | {"num_samples": 4, "max_new_tokens": 20}
    recipe = make_recipe(objective=objective, training=TRAINING, data=DATA, method={"name": "lora"})
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    prompts = [row.num_prompt_tokens for row in prepared.train.tokenised]
    batches = exact_batches(prepared, micro_batch_tokens=2048)
    # every prompt comes equally often: of 40 rows, 4 a step, 10 steps are an epoch; 12 are run
    assert 4 * 4 * (min(prompts) + 20) <= batches.num_tokens <= 4 * 4 * (max(prompts) + 20)
    assert batches.num_learned == pytest.approx(4 * 4 * 20)
    assert batches.num_computed == pytest.approx(batches.num_tokens - 3 * (batches.num_tokens / 4 - 4 * 20))
    quote = quote_of(context, prepared)
    assert any("draws at most 320 tokens" in note for note in quote.prediction.notes)
    step = quote.prediction.step_seconds
    found = probe(context, prepared)
    assert found.num_measurements == 1
    again = quote_of(context, prepared).prediction.step_seconds
    assert 0 < again.low < again.value < again.high
    # Answers may be far shorter: its lower end is further away than that of a run whose rows have their answers, on
    # whatever machine this is.
    given = make_recipe(training=TRAINING, method={"name": "lora"})
    plain = quote_of(context, prepare(context, load_recipe(given), base_dir=given.parent)).prediction.step_seconds
    assert step.low / step.value < 0.9 * plain.low / plain.value


def worker(world: World, prepared: Prepared, folder: Path) -> None:
    torch.set_num_threads(1)
    train_worker(prepared, silent_hooks(folder), world)


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_two_processes_draw_what_one_draws(
    context: Context, make_recipe: MakeRecipe, tmp_path: Path, num_iterations: int
) -> None:
    training = TRAINING | {"max_steps": 4, "validate_every_steps": 2}
    objective = OBJECTIVE | {"num_iterations": num_iterations}
    recipe = make_recipe(objective=objective, training=training, data=DATA, method={"name": "lora"})
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    assert [ended.error for ended in in_world(2, worker, prepared, tmp_path / "two")] == ["", ""]
    alone, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    for name, expected in alone.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)
    first = [(tmp_path / name / "samples" / "step-00000001.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert set(first[1]) & set(first[0])  # rank 0 keeps the first prompts of its own share


def test_calls_of_tools_are_graded_beside_the_text_of_an_answer(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in evaluations: the text that is compared with the row's own has no calls."""
    template = ChatTemplate.load(tiny_model)
    text = 'It is noon.<call>{"name": "clock", "arguments": {"zone": "CET"}}</call>'
    ids = template.tokenizer.encode(text, add_special_tokens=False)
    written = Continuation(ids, template.end_of_turn_ids[0], [-1.0] * (len(ids) + 1))
    monkeypatch.setattr(sampling, "batch_generate", lambda decoder, requests, *_, **__: [written for _ in requests])

    def check(name: str, field: str, reference: str) -> dict[str, Any]:
        said = {"input": f"{{{{sample.{field}}}}}", "reference": reference}
        return {"grader": {"type": "string_check", "name": name, "operation": "eq"} | said}

    rewards = [
        "exact_match",
        check("said", "output_text", "It is noon."),
        check("called", "output_tools[0].function.name", "clock"),
        check("silent", "output_tools", "[]"),
    ]
    recipe = make_recipe(
        objective=OBJECTIVE | {"rewards": rewards, "num_samples": 2},
        training={"max_steps": 1, "global_batch_size": 4, "precision": "float32"},
        data={"train": "called.jsonl"},
        method={"name": "lora"},
    )
    clock = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "It is noon."}]
    rows = [{"messages": turns} | ({"tools": [clock]} if number < 3 else {}) for number in range(4)]
    write_rows(recipe.parent / "called.jsonl", rows)
    outcome = run(context, recipe)
    (measures,) = steps(context, outcome)
    # Three rows of four offer the tool; in the answer to the other one the call is text.
    assert [measures[f"reward_{name}"] for name in ("exact_match", "said", "called", "silent")] == [0.75] * 3 + [0.25]
    (kept,) = samples(context, outcome).values()
    lines = [json.loads(line) for line in kept.decode().splitlines()]
    shown = {line["output"]: [one["function"]["name"] for one in line.get("tool_calls", ())] for line in lines}
    assert shown.items() <= {"It is noon.": ["clock"], text: []}.items()
    assert shown
