"""Several goals, what a study begins with, and trials that are stopped or come to nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.features.studies.service.test_service import SPACE, recipe, request

from luthier.core.errors import DivergedError, RequestError
from luthier.core.events import StepDone, ValidationDone
from luthier.core.workflows.study import DATA_FRACTION, Trial, recipe_with
from luthier.features.planning.service import make_plan
from luthier.features.studies import service as studies
from luthier.features.studies import trials
from luthier.features.studies.end import winning_document
from luthier.features.studies.search import distance
from luthier.features.studies.trials import HOPELESS, CurveWatch
from luthier.ml.search.rungs import Finished, front_of
from luthier.testing.records import make_plan as plan_of

__all__ = ["recipe"]  # the fixture
UNREACHABLE = Finished(tuple(tuple((n / 9, 0.01 - n / 1e4) for n in range(1, 10)) for _ in range(5)))


def test_a_front_its_knee_and_a_study_that_begins_with_what_another_found(context, recipe):
    ranks = {"parameters": {"method.rank": [2, 4, 8]}, "only": True}
    study = studies.begin(context, request(recipe, goals=("quality", "size"), most_trials=3, space=ranks))
    assert study.spec.sampler == "nsga2"
    done = studies.go_on(context, study.study_id)
    tried = context.studies.trials(study.study_id)
    sizes = {t.number: t.goals["size"] for t in tried}
    assert sizes[0] == 4 * context.runs.plan(tried[0].run_id).method.num_trainable_parameters
    front, knee = front_of(done.spec, tried, {})
    assert {t.state for t in front} == {"done"}
    assert done.winner in {t.number for t in front}
    assert knee in {t.number for t in front}
    page = Path(done.report_path).read_text()
    assert "the knee" in page
    assert "Quality against size" in page
    assert winning_document(done, tried, 1)["method"]["rank"] == tried[1].values["method.rank"]

    context.studies.save(done.model_copy(update={"winner": 1}))
    later = studies.begin(context, request(recipe, knows_others=True))
    assert later.spec.start[0].values == tried[1].values
    assert study.study_id in later.spec.start[0].why
    assert any(study.study_id in note for note in later.notes)
    alone = studies.begin(context, request(recipe)).spec.start
    assert [point for point in alone if study.study_id in point.why] == []


@pytest.mark.parametrize(
    "changed",
    [{"goals": ("size",)}, {"goals": ("quality", "quality")}, {"goals": ("quality", "cost"), "sampler": "cmaes"}],
)
def test_goals_that_cannot_be_sought_are_refused(context, recipe, changed):
    with pytest.raises(RequestError):
        studies.begin(context, request(recipe, **changed))


def test_data_are_alike_by_their_number_and_length_and_only_for_the_same_task():
    plan = plan_of()
    assert distance(plan, plan) == 0.0
    train = plan.data.train
    counts = ("num_examples", "num_tokens", "num_trained_tokens")
    larger_set = train.model_copy(update={name: getattr(train, name) * 8 for name in counts})
    more = plan.model_copy(update={"data": plan.data.model_copy(update={"train": larger_set})})
    assert distance(plan, more) == pytest.approx(math.log(8) / 3)
    assert (
        distance(plan, plan.model_copy(update={"objective": plan.objective.model_copy(update={"name": "dpo"})})) is None
    )
    larger = plan.base_model.model_copy(update={"num_parameters": 4 * plan.base_model.num_parameters})
    assert distance(plan, plan.model_copy(update={"base_model": larger})) is None


def ready(context, recipe, number=1):
    spec = studies.begin(context, request(recipe, space=SPACE)).spec
    trial = Trial(number=number, values={}, run_id=f"run-20261126-120000-00000{number}")
    return trial, trials.price(context, spec, trial, make_plan(context, recipe, base_dir=Path()))


def test_a_trial_whose_curve_cannot_become_the_best_is_stopped_on_its_way(context, recipe):
    training = recipe.training.model_copy(update={"epochs": 4})  # long enough for all rungs
    trial, priced = ready(context, recipe.model_copy(update={"training": training}))
    stopped = trials.train_to(context, trial, 2, priced, finished=UNREACHABLE)
    assert stopped.state == "stopped"
    assert stopped.reason.startswith(HOPELESS + "after ")
    steps = [e.step for e in context.runs.events(trial.run_id) if isinstance(e, StepDone)]
    assert len(steps) < priced.steps[-1]
    assert len([e for e in context.runs.events(trial.run_id) if isinstance(e, ValidationDone)]) >= 3


def test_a_watch_that_takes_over_after_a_kill_says_the_same():
    made = {"loss": 3.0, "num_trained_tokens": 1, "is_best": False, "seconds": 0.0}
    seen = [ValidationDone(step=step, **made) for step in (10, 20, 30, 40)]
    calm, taken_over = CurveWatch(UNREACHABLE, 90), CurveWatch(UNREACHABLE, 90)
    for event in seen[:3]:
        calm.note(event)
    taken_over.begin(seen, from_step=30)  # the kill has left one more, of steps that are done again
    assert calm.stop_requested() == taken_over.stop_requested()
    assert calm.stop_requested() is not None


def test_a_loss_that_is_no_number_fails_its_trial_and_says_so(context, recipe, monkeypatch):
    trial, priced = ready(context, recipe, 2)
    real = trials._go_on

    def go_on(*asked):
        real(*asked)
        raise DivergedError("the loss is nan at step 3", expected="a number", do="lower the rate")

    monkeypatch.setattr(trials, "_go_on", go_on)
    failed = trials.train_to(context, trial, 0, priced)
    assert (failed.state, failed.reason, failed.results) == ("failed", "the loss is nan at step 3", ())


def test_a_share_of_the_rows_can_be_searched(recipe):
    assert recipe_with(recipe, {DATA_FRACTION: 0.25})["data"]["subset"] == [0.0, 0.25]


@pytest.mark.parametrize(("share", "subset"), [(0.5, [0.2, 0.4]), (1, [0.2, 0.6]), (1.5, [0.2, 1.5])])
def test_a_share_of_the_rows_is_one_of_the_subset_of_the_recipe(recipe, share, subset):
    own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"part": (0.2, 0.6)})})
    assert recipe_with(own, {DATA_FRACTION: share})["data"]["subset"] == pytest.approx(subset)
