"""A student learns from a teacher that is asked once, is killed at any moment, and is evaluated beside it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import OptedTurns
from luthier.core.errors import ConflictError, NotFoundError, RecipeError, RequestError
from luthier.core.events import StepDone, ValidationDone, WarningRaised
from luthier.features.models.resolve import as_candidate
from luthier.features.planning import probes
from luthier.features.planning.quotes import quote_of
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.planning import hardware
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.objectives import distillation
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

MakeRecipe = Callable[..., Path]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("teachers") / "larger", hidden=64, layers=3, seed=9)


@pytest.fixture
def make_student(make_recipe: MakeRecipe, teacher: Path) -> MakeRecipe:
    def make(*, is_judged: bool = False, **objective: Any) -> Path:
        data = {"train": "train.jsonl", "validation": "valid.jsonl"} | ({"held_out": "test.jsonl"} if is_judged else {})
        return make_recipe(data=data, objective={"name": "distillation", "teacher": str(teacher), **objective})

    return make


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def test_the_whole_way_with_the_teachers_score_beside(
    context: Context, make_student: MakeRecipe, teacher: Path
) -> None:
    outcome = run(context, make_student(is_judged=True, alpha=0.8))
    assert outcome.record.status == "succeeded"
    assert outcome.evaluation is not None
    names = [system.name for system in outcome.evaluation.systems if system.kind == "model"]
    assert names == ["base", "base + 2 examples", "base + 2 nearest examples", f"teacher {teacher}", "tuned"]
    assert outcome.evaluation.verdict is not None
    assert "teacher" not in outcome.evaluation.verdict.headline
    events = context.runs.events(outcome.record.run_id)
    steps = [event for event in events if isinstance(event, StepDone)]
    for event in nonempty([*steps, *(e for e in events if isinstance(e, ValidationDone))]):
        mixed = 0.2 * event.measures["cross_entropy"] + 0.8 * event.measures["divergence"]
        assert event.loss == pytest.approx(mixed, rel=1e-5)
    assert steps[-1].measures["divergence"] < steps[0].measures["divergence"]
    assert "teacher" in context.settings.run_folder(outcome.record.run_id).joinpath("quote.json").read_text()


def test_from_the_answers_alone_it_is_supervised_fine_tuning(
    context: Context, make_student: MakeRecipe, make_recipe: MakeRecipe
) -> None:
    plain = {"train": "train.jsonl", "validation": "valid.jsonl"}
    apart = [
        [event.loss for event in context.runs.events(outcome.record.run_id) if isinstance(event, StepDone)]
        for outcome in (run(context, make_student(alpha=0.0)), run(context, make_recipe(data=plain)))
    ]
    assert apart[0] == pytest.approx(apart[1], rel=1e-5)


def test_a_run_is_a_teacher_too(context: Context, make_student: MakeRecipe, make_recipe: MakeRecipe) -> None:
    taught = run(context, make_recipe(data={"train": "train.jsonl"}, training={"max_steps": 3}))
    run_id = taught.record.run_id
    path = make_student(teacher=run_id, alpha=1.0, divergence="jensen_shannon", temperature=2.0)
    outcome = run(context, path)
    found = outcome.plan.objective.teacher
    assert found is not None
    assert found.adapter_sha256 == taught.as_json()["adapter_sha256"]
    assert outcome.plan.objective.teacher_share == 0.5
    assert outcome.record.status == "succeeded"
    events = context.runs.events(outcome.record.run_id)
    assert not [e for e in events if isinstance(e, WarningRaised) and e.code == "teacher_trained_otherwise"]


def test_a_teacher_is_judged_with_the_prompts_of_its_own_training(
    context: Context, make_student: MakeRecipe, make_recipe: MakeRecipe
) -> None:
    taught = run(context, make_recipe(data={"train": "train.jsonl", "system": "fold"}, training={"max_steps": 1}))
    outcome = run(context, make_student(teacher=taught.record.run_id, alpha=1.0))
    teacher = outcome.plan.objective.teacher
    assert teacher is not None
    assert as_candidate(teacher).opted_turns == OptedTurns(folds_system=True)
    warnings = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, WarningRaised)]
    (said,) = [e.message for e in warnings if e.code == "teacher_trained_otherwise"]
    assert '{"folds_system": true}, and looks at rows that are written with {}' in said


def test_killed_while_the_teacher_speaks_and_again_while_the_student_learns_the_bytes_are_the_same(
    context: Context, make_student: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_student()
    monkeypatch.setattr(distillation, "PART_BYTES", 1)
    whole = run(context, recipe).as_json()
    num_parts = len(list(context.settings.run_folder(whole["run_id"]).glob("teacher/part-*")))
    ask, left = TransformersEngine.hidden_states, [2]

    def killed(self, examples, task):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return ask(self, examples, task)

    monkeypatch.setattr(TransformersEngine, "hidden_states", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    record = context.runs.list()[0]
    assert record.status == "paused"
    assert record.run_id != whole["run_id"]
    left[0] = 10**6
    resumed = resume(context, record.run_id).as_json()
    assert resumed["status"] == "succeeded"
    assert resumed["adapter_sha256"] == whole["adapter_sha256"]
    assert 10**6 - left[0] <= num_parts
    folders = [context.settings.run_folder(d["run_id"]) / "teacher" for d in (whole, resumed)]
    assert [p.read_bytes() for p in sorted(folders[0].iterdir())] == [
        p.read_bytes() for p in sorted(folders[1].iterdir())
    ]


def test_a_signal_while_the_teacher_speaks_pauses_the_run(
    context: Context, make_student: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = TransformersEngine.hidden_states

    def told(self, examples, task):  # type: ignore[no-untyped-def]
        signal.raise_signal(signal.SIGTERM)
        return ask(self, examples, task)

    monkeypatch.setattr(TransformersEngine, "hidden_states", told)
    outcome = run(context, make_student())
    assert outcome.record.status == "paused"
    assert "SIGTERM received, while the teacher was asked" in str(outcome.record.stopped_because)
    monkeypatch.setattr(TransformersEngine, "hidden_states", ask)
    assert resume(context, outcome.record.run_id).record.status == "succeeded"


def test_damaged_states_are_asked_again_with_a_warning(context: Context, make_student: MakeRecipe) -> None:
    recipe = make_student()
    outcome = run(context, recipe)
    folder = context.settings.run_folder(outcome.record.run_id)
    context.runs.update(outcome.record.run_id, status="failed")
    (folder / "teacher" / "part-00000.safetensors").write_bytes(b"rot")
    shutil.rmtree(folder / "checkpoints")
    again = resume(context, outcome.record.run_id)
    assert again.as_json()["adapter_sha256"] == outcome.as_json()["adapter_sha256"]
    events = context.runs.events(outcome.record.run_id)
    assert [e.code for e in events if isinstance(e, WarningRaised)].count("teacher_asked_again") == 1


@pytest.mark.parametrize(
    ("objective", "error", "words"),
    [
        ({"teacher": "http://127.0.0.1:1/v1#m"}, RequestError, "luthier data answer"),
        ({"teacher": "no-such-model"}, NotFoundError, "no-such-model"),
        ({"teacher_share": 0.3}, RecipeError, "divergence forward_kl"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused(
    context: Context, make_student: MakeRecipe, objective: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(context, make_student(**objective))
    assert context.runs.list() == []


def test_a_teacher_is_asked_for_and_only_where_one_is_needed(context: Context, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="without a teacher"):
        run(context, make_recipe(objective={"name": "distillation"}))
    with pytest.raises(RecipeError, match=r"sft with objective\.teacher"):
        run(context, make_recipe(objective={"name": "sft", "teacher": "x"}))


def test_another_vocabulary_is_refused_with_the_tokens_that_differ(
    context: Context, make_student: MakeRecipe, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", vocabulary=400)
    with pytest.raises(RequestError, match=r"another vocabulary: 16 of 400 tokens differ"):
        run(context, make_student(teacher=str(other)))


def test_a_shorter_context_is_refused(context: Context, make_student: MakeRecipe, tmp_path: Path) -> None:
    short = make_tiny_model(tmp_path / "short", context_length_tokens=16)
    with pytest.raises(RequestError, match="with a context of 16"):
        run(context, make_student(teacher=str(short)))


def test_a_teacher_that_changed_ends_a_resume(
    context: Context, make_student: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "changing", seed=1)
    outcome = run(context, make_student(teacher=str(folder)))
    context.runs.update(outcome.record.run_id, status="failed")
    make_tiny_model(folder, seed=2)
    with pytest.raises(ConflictError, match=r"the teacher .* has changed"):
        resume(context, outcome.record.run_id)


def test_the_plan_is_known_by_the_teachers_weights_and_not_by_where_they_lie(
    context: Context, make_student: MakeRecipe, teacher: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(teacher, tmp_path / "moved")
    other = make_tiny_model(tmp_path / "other", hidden=64, layers=3, seed=10)

    def hash_of(**objective: Any) -> str:
        path = make_student(**objective)
        return prepare(context, load_recipe(path), base_dir=path.parent).plan.hash

    assert hash_of() == hash_of(teacher=str(elsewhere))
    assert len({hash_of(), hash_of(teacher=str(other)), hash_of(temperature=2.0), hash_of(alpha=0.4)}) == 4


def test_the_quote_counts_the_teachers_pass_and_its_memory(
    context: Context, make_student: MakeRecipe, make_recipe: MakeRecipe, teacher: Path
) -> None:
    path = make_student()
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    quote = quote_of(context, prepared)
    assert quote.hours_by_part["teacher"].value > 0
    parts = [quote.hours_by_part[name].value for name in ("steps", "validations", "checkpoints", "teacher")]
    assert quote.prediction.hours.value == pytest.approx(sum(parts))
    why = prepared.plan.sources["objective.teacher"].why
    assert "asked once before training" in why
    device = this_machine(hardware.measure())
    work = workload_of(prepared.plan, read_structure(prepared.model.path), device)
    assert work.teacher is not None
    giant = type(work.teacher)(10**10, 384, 64, "bfloat16", "bfloat16", 1.0, 1.0)
    assert predict_memory(replace(work, teacher=giant), device).total_bytes.value > 4e10
    plain = predict_memory(replace(work, teacher=None), device).weights_bytes
    assert predict_memory(work, device).weights_bytes - plain == 384 * 64 * 4


def test_a_probe_needs_no_teacher(context: Context, make_student: MakeRecipe) -> None:
    path = make_student()
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    assert probes.probe(context, prepared).num_measurements == 1
