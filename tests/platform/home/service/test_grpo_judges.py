"""Reinforcement with models that grade: learned from, resumed to the byte, and refused where they cannot grade."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.events import StepDone, ValidationDone, WarningRaised
from luthier.core.ports import Generation, ProgressTask, SilentTask
from luthier.features.models.resolve import as_candidate
from luthier.features.planning import judges, view
from luthier.features.planning.format import plan_lines, quote_lines, time_line
from luthier.features.planning.judges import beside, find_judges
from luthier.features.planning.quotes import quote_of
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.evaluation.sandbox.runners import isolation
from luthier.ml.training import loop
from luthier.ml.training.distributed import World
from luthier.ml.training.objectives import grpo
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.testing.tiny import make_tiny_judge
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]

TRAINING = {
    "max_steps": 6,
    "global_batch_size": 4,
    "learning_rate": 0.02,
    "precision": "float32",
    "num_threads": 1,
    "validate_every_steps": 3,
    "checkpoint_every_steps": 2,
}
DATA = {"train": "train.jsonl", "validation": "valid.jsonl"}


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_judge(tmp_path_factory.mktemp("judge") / "judge")


def score(judge: Path | str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Grade {{sample.output_text}} against {{item.reference}}"}]
    return {"type": "score_model", "name": "opinion", "model": str(judge), "input": messages} | changes


def objective(*graders: Mapping[str, Any]) -> dict[str, Any]:
    rewards = [{"grader": dict(grader)} for grader in graders]
    return {"name": "grpo", "rewards": rewards, "num_samples": 4, "max_new_tokens": 3}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def measures(context: Context, outcome: TrainOutcome) -> list[dict[str, float]]:
    return [e.measures for e in context.runs.events(outcome.record.run_id) if isinstance(e, StepDone)]


def samples(context: Context, outcome: TrainOutcome) -> dict[str, bytes]:
    folder = context.settings.run_folder(outcome.record.run_id) / grpo.FOLDER
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_s_scores_are_learned_and_a_killed_run_ends_with_the_same_bytes(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        objective=objective(score(tiny_judge, range=[-1, 3], sampling_params={"max_completions_tokens": 2})),
        training=TRAINING,
        data=DATA,
        method={"name": "full"},
    )
    # Another home: nothing that the whole run was told is there for the one that is killed.
    with Context.open(tmp_path / "other") as other:
        whole = run(other, recipe)
        expected = (measures(other, whole), samples(other, whole), whole.as_json()["adapter_sha256"])
        checks = [e for e in other.runs.events(whole.record.run_id) if isinstance(e, ValidationDone)]
    assert len(checks) == 2
    assert all("ungraded_fraction" in one.measures for one in checks)
    lines = [json.loads(line) for file in expected[1].values() for line in file.decode().splitlines()]
    assert {line["reward"] for line in lines} <= {-1.0, 0.0, 1.0}
    assert {line["reward"] for line in lines} >= {0.0, 1.0}
    # The lower end of the range, and nothing else, is marked: the model never says it.
    assert all((line["reward"] == -1.0) == ("is_ungraded" in line) for line in lines)
    real, calls = loop.one_step, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*given)
        if calls == 4:  # its answers are graded, its weights are lost
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.setattr(loop, "one_step", real)
    again = resume(context, context.runs.list(limit=1)[0].run_id)
    assert again.as_json()["adapter_sha256"] == expected[2]
    assert (measures(context, again), samples(context, again)) == expected[:2]


def test_the_replies_of_before_are_read_and_not_asked_for_again(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = score(tiny_judge, type="label_model", labels=["0", "1"], passing_labels=["1"])
    same = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "x", "operation": "ne"}
    parts = {"good": label, "other": same}
    multi = {"type": "multi", "graders": parts, "calculate_output": "0.5 * good + other"}
    recipe = make_recipe(
        objective=objective(multi), training=TRAINING | {"max_steps": 2}, data=DATA, method={"name": "lora"}
    )
    first = run(context, recipe)
    lines = [json.loads(line) for file in samples(context, first).values() for line in file.decode().splitlines()]
    assert {line["reward"] for line in lines} >= {1.0, 1.5}

    def asked(*given: Any) -> list[Generation]:
        raise AssertionError("a reply is stored, and the model is asked again")

    monkeypatch.setattr(judges, "open_engine", asked)
    assert measures(context, run(context, recipe)) == measures(context, first)


def test_a_model_whose_replies_have_no_score_is_refused_before_anything_is_trained(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path
) -> None:
    recipe = make_recipe(objective=objective(score(tiny_model)), training=TRAINING, data=DATA, method={"name": "lora"})
    with pytest.raises(RequestError, match=r"no reply of .* to 4 rows can be read as a score") as caught:
        run(context, recipe)
    assert "a number from 0 to 1" in caught.value.expected
    (record,) = context.runs.list()
    assert not [e for e in context.runs.events(record.run_id) if isinstance(e, StepDone)]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "https://example.com/v1"}, RequestError, "names no model"),
        ({"model": "no-such-model"}, NotFoundError, "no-such-model"),
        ({"range": [1, 1]}, RequestError, "'opinion': range 1 to 1"),
        ({"input": [{"role": "user", "content": "{{sample.choices}}"}]}, RequestError, "sample.choices"),
        ({"input": [{"role": "user", "content": "{{item.tag}}"}]}, RequestError, "item.tag, which train.jsonl:1"),
    ],
)
def test_what_cannot_grade_is_refused_with_the_plan(
    context: Context,
    make_recipe: MakeRecipe,
    tiny_judge: Path,
    changes: dict[str, Any],
    error: type[LuthierError],
    words: str,
) -> None:
    recipe = make_recipe(
        objective=objective(score(tiny_judge) | changes), training=TRAINING, data=DATA, method={"name": "lora"}
    )
    with pytest.raises(error) as caught:
        prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert words in caught.value.came


def test_other_weights_under_the_name_of_the_judge_are_not_resumed_with(
    context: Context, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_tiny_judge(tmp_path / "judge")
    recipe = make_recipe(objective=objective(score(judge)), training=TRAINING, data=DATA, method={"name": "lora"})

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    real = loop.one_step
    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.setattr(loop, "one_step", real)
    weights = judge / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ConflictError, match="which grades the answers, has changed since the run began"):
        resume(context, context.runs.list(limit=1)[0].run_id)


def test_the_memory_of_models_that_grade_is_not_planned_with(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path
) -> None:
    recipe = load_recipe(make_recipe(objective=objective(score(tiny_judge)), training=TRAINING, data=DATA))
    found = find_judges(context, recipe)
    (judge,) = found.values()
    machine = hardware_of(context).model_copy(
        update={"device": "cuda", "accelerator_memory_bytes": 10**9, "each_memory_bytes": (10**9, 2 * 10**9)}
    )
    left = beside(machine, found)
    taken = 10**9 - left.accelerator_memory_bytes
    assert taken >= judge.num_parameters * (4 if judge.precision == "float32" else 2)
    assert left.each_memory_bytes == (10**9 - taken, 2 * 10**9 - taken)
    assert beside(machine, {}) == machine


def test_the_plan_counts_what_models_that_grade_read_and_write(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path
) -> None:
    short = score(tiny_judge, sampling_params={"max_completions_tokens": 2})
    multi = {"type": "multi", "graders": {"opinion": short}, "calculate_output": "opinion"}
    rewards = objective(multi, score(tiny_judge))
    recipe = make_recipe(objective=rewards, training=TRAINING, data=DATA, method={"name": "lora"})
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    plan = prepared.plan
    first, second = plan.objective.grading or ()
    (judge,) = plan.objective.judges or ()
    template = as_candidate(judge).chat_template()
    rows = [*prepared.train.examples, *prepared.validation.examples][:32]
    texts = [f"Grade  against {row.reference}" for row in rows]
    turns = [Conversation(messages=(Message(role="user", content=text),)) for text in texts]
    tokens = [len(template.ids(template.render(turn, add_generation_prompt=True))) for turn in turns]
    assert first.prompt_tokens == second.prompt_tokens == pytest.approx(sum(tokens) / len(tokens))
    assert (first.judge, first.answers_read, first.new_tokens, second.new_tokens) == (judge.name, 1, 2, 256)
    quote = quote_of(context, prepared)
    parts = quote.hours_by_part
    assert parts["grading"].value > 0
    assert quote.prediction.step_seconds.value * 6 == pytest.approx(
        3600 * (parts["steps"].value + parts["grading"].value)
    )
    # A step asks each of its 16 answers twice.
    (line, other) = [line for line in plan_lines("", plan) if "graded by" in line]
    assert "(opinion): 16 questions a step" in line
    assert "up to 3 of the answer, replies of up to 2 tokens" in line
    assert "replies of up to 256 tokens" in other
    assert any(line.startswith("  grading ") and "of a step" in line for line in quote_lines(quote))
    assert "of these for grading by models" in time_line(quote)
    (shown,) = [one for one in view._figures(quote.as_json()) if one.name == "Grading by models"]
    assert shown.value
    assert shown.low
    # What is said of the time is no part of what is trained.
    alone = plan.objective.model_copy(update={"grading": None})
    assert plan.model_copy(update={"objective": alone}).hash == plan.hash


class Recorder:
    """Notes each task: its title, how much there is to do, and how much was done in the end."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None, float]] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        recorder = self

        class Task(SilentTask):
            done = 0.0

            def advance(self, amount: float = 1) -> None:
                self.done += amount

            def __exit__(self, *_: object) -> None:
                recorder.tasks.append((title, total, self.done))

        return Task()


def test_a_step_shows_how_many_of_its_answers_are_graded(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path
) -> None:
    grader = score(tiny_judge, sampling_params={"max_completions_tokens": 2})
    recipe = make_recipe(
        objective=objective(grader), training=TRAINING | {"max_steps": 1}, data=DATA, method={"name": "lora"}
    )
    context.progress = recorder = Recorder()
    run(context, recipe)
    graded = [one for one in recorder.tasks if one[0] == "Grading answers"]
    # The trial before the run, and the answers of the step; equal questions are asked once.
    assert len(graded) >= 2
    assert all(total == done > 0 for _, total, done in graded)
    assert max(total or 0 for _, total, _ in graded) > 4


CODE = """
import random

def grade(sample, item):
    if sum(map(ord, sample["output_text"])) % 4 == 0:
        raise ValueError("no score for it")
    return random.random() + len(item["reference"])
"""
"""Another score each time that it is run, and none for some answers."""
locked_down = pytest.mark.skipif(not isolation().seccomp, reason="this machine cannot lock a process down")


@pytest.fixture
def code_context(context: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"python_graders": True}))
    return context


def fails(output: str) -> bool:
    return sum(map(ord, output)) % 4 == 0


@locked_down
def test_code_grades_and_a_resumed_run_reads_the_scores_that_it_had(
    code_context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, grader = code_context, {"type": "python", "name": "luck", "source": CODE}
    recipe = make_recipe(objective=objective(grader), training=TRAINING, data=DATA, method={"name": "lora"})
    real, calls = loop.one_step, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*given)
        if calls == 4:  # its answers are graded, its weights are lost
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.setattr(loop, "one_step", real)
    (record,) = context.runs.list()
    folder = context.settings.run_folder(record.run_id) / grpo.FOLDER
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    seen = [e.measures for e in context.runs.events(record.run_id) if isinstance(e, StepDone)]
    assert (len(before), len(seen)) == (4, 3)
    outcome = resume(context, record.run_id)
    # Steps 3 and 4 were taken again, from the checkpoint of step 2, with the scores of before.
    assert measures(context, outcome)[:3] == seen
    after = samples(context, outcome)
    assert {name: after[name] for name in before} == before
    lines = [json.loads(line) for file in after.values() for line in file.decode().splitlines()]
    assert {fails(line["output"]) for line in lines} == {True, False}
    assert all((line["reward"] == 0.0) == ("is_ungraded" in line) == fails(line["output"]) for line in lines)
    assert any(one["ungraded_fraction"] > 0 for one in measures(context, outcome))
    (said,) = [
        e for e in context.runs.events(record.run_id) if isinstance(e, WarningRaised) if e.code == "grader_failed"
    ]
    assert "grader 'luck' has given an answer no score (ValueError: no score for it)" in said.message


@locked_down
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def grade(sample, item):\n    return item['nothing']", "own answers of 4 rows no score: KeyError"),
        ("def grade(sample, item):\n    return open('/etc/passwd').read()", "PermissionError"),
    ],
)
def test_code_that_grades_no_row_ends_the_run_before_anything_is_trained(
    code_context: Context, make_recipe: MakeRecipe, source: str, words: str
) -> None:
    grader = {"type": "python", "source": source}
    recipe = make_recipe(objective=objective(grader), training=TRAINING, data=DATA, method={"name": "lora"})
    with pytest.raises(RequestError, match=words):
        run(code_context, recipe)
    (record,) = code_context.runs.list()
    assert not [e for e in code_context.runs.events(record.run_id) if isinstance(e, StepDone)]


def test_code_of_a_recipe_is_refused_where_the_home_does_not_allow_it(
    context: Context, make_recipe: MakeRecipe
) -> None:
    multi = {"type": "multi", "graders": {"a": {"type": "python", "source": CODE}}, "calculate_output": "a"}
    recipe = make_recipe(objective=objective(multi), training=TRAINING, data=DATA, method={"name": "lora"})
    with pytest.raises(RequestError, match="this home runs no code of recipes") as caught:
        prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert "LUTHIER_PYTHON_GRADERS=true" in caught.value.expected


@locked_down
def test_code_that_is_no_python_is_refused_with_the_plan(code_context: Context, make_recipe: MakeRecipe) -> None:
    grader = {"type": "python", "source": "def grade(:"}
    recipe = make_recipe(objective=objective(grader), training=TRAINING, data=DATA, method={"name": "lora"})
    with pytest.raises(RequestError, match="its source is no Python"):
        prepare(code_context, load_recipe(recipe), base_dir=recipe.parent)


def worker(world: World, prepared: Prepared, folder: Path, home: Path) -> None:
    torch.set_num_threads(1)
    with Context.open(home) as own:
        train_worker(prepared, silent_hooks(folder, replies=judges.replies_of(own)), world)


def test_two_processes_grade_as_one_does(
    context: Context, make_recipe: MakeRecipe, tiny_judge: Path, tmp_path: Path
) -> None:
    grader = score(tiny_judge, sampling_params={"max_completions_tokens": 2})
    recipe = make_recipe(
        objective=objective(grader), training=TRAINING | {"max_steps": 3}, data=DATA, method={"name": "lora"}
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    ended = in_world(2, worker, prepared, tmp_path / "two", context.home)
    assert [one.error for one in ended] == ["", ""]
    alone, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    for name, expected in alone.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)
