"""A search from a recipe to a judged model: within its budget, killed and gone on with, and what cannot be searched."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.events import StepDone
from luthier.core.recipe import BudgetRecipe
from luthier.core.workflows.study import Trial
from luthier.features.assessments.service import rewrite_run_report
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.planning.quotes import quote_of
from luthier.features.planning.service import make_plan
from luthier.features.planning.training_data import TrainingDataLoader
from luthier.features.recipes.service import recipe_from
from luthier.features.studies import end as study_end
from luthier.features.studies import service as studies
from luthier.features.studies.end import winning_document
from luthier.features.studies.search import StudyFailedError
from luthier.features.studies.service import StudyRequest
from luthier.features.studies.store import StudyStore
from luthier.features.studies.trials import price, train_to
from luthier.ml.planning import defaults
from luthier.platform.home.context import Context

SPACE = {
    "parameters": {
        "training.learning_rate": {"low": 1e-4, "high": 0.05, "log": True},
        "method.rank": [2, 4, 8],
        "training.global_batch_size": [4, 8],
    },
    "only": True,
}


NEAR = SPACE | {
    "parameters": SPACE["parameters"] | {"training.learning_rate": {"low": 1e-3, "high": 5e-3, "log": True}}
}
"""Too near the recipe's own rate for the points that a search begins with."""


def written_recipe(folder, tiny_model, num_rows=80):
    rows = [{"prompt": f"say {n}", "completion": f"word{n % 7} and {n % 5}"} for n in range(num_rows)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return recipe_from(
        {
            "base_model": str(tiny_model),
            "data": {"train": "train.jsonl", "validation": 0.2, "held_out": 0.1},
            "method": {"name": "lora", "rank": 4, "dropout": 0.0},
            "training": {
                "epochs": 2,
                "num_threads": 1,
                "precision": "float32",
                "learning_rate": 0.002,
                "global_batch_size": 8,
            },
            "evaluation": {"metrics": ["perplexity"], "few_shot": 0},
        },
        base_dir=folder,
    )


@pytest.fixture
def recipe(tiny_model, tmp_path):
    return written_recipe(tmp_path, tiny_model)


@pytest.fixture
def short_recipe(tiny_model, tmp_path):
    """Ten steps in place of fourteen, for what is trained many times."""
    return written_recipe(tmp_path, tiny_model, num_rows=48)


@pytest.fixture(scope="module")
def searched(tiny_model, tmp_path_factory):
    """A search that has ended: the open home, its recipe, what it has ended as, and the states that it told of."""
    folder, told = tmp_path_factory.mktemp("searched"), []
    recipe = written_recipe(folder, tiny_model)
    with Context.open(folder / "home") as opened:
        study = studies.begin(opened, request(recipe))
        done = studies.go_on(opened, study.study_id, tell=lambda _, trial: told.append(trial.state))
        yield opened, recipe, done, told


def request(recipe, **changed):
    return StudyRequest(**({"recipe": recipe, "hours": 1.0, "most_trials": 4, "space": SPACE} | changed))


def story(context, study_id):
    """What decides of a search: values, rungs and losses of all trials, without names and times."""
    return [
        (t.kind, t.of, t.values, t.state, [(r.rung, r.step, r.loss) for r in t.results])
        for t in context.studies.trials(study_id)
    ]


def test_from_a_recipe_to_a_judged_model(searched):
    context, recipe, done, told = searched
    trials = context.studies.trials(done.study_id)
    assert (done.status, len([t for t in trials if t.kind == "search"])) == ("done", 4)
    assert trials[0].values == {}  # the recipe as it came is always tried
    assert trials[done.winner].state == "done"
    assert {"waiting", "running", "paused", "done"} <= set(told)
    final = context.runs.get(done.final_run_id)
    assert final.status == "succeeded"
    assert final.evaluation_id is not None  # the held-out rows are looked at here, and nowhere else
    assert all(context.runs.get(t.run_id).evaluation_id is None for t in trials)
    plan = context.runs.plan(done.final_run_id)
    assert plan.data.validation is None  # its rows are trained on in the end
    first = context.runs.plan(trials[0].run_id)
    assert plan.data.train.num_examples == first.data.train.num_examples + first.data.validation.num_examples
    assert winning_document(done, trials)["base_model"] == recipe.base_model
    assert done.hours >= sum(t.hours for t in trials)
    assert studies.go_on(context, done.study_id) == done  # nothing is done again
    assert final.report_path is not None
    assert context.runs.get(trials[0].run_id).report_path is None  # drawn when somebody asks for it
    (page,) = rewrite_run_report(context, trials[0].run_id)
    assert trials[0].run_id in page.read_text(encoding="utf-8")
    assert context.runs.get(trials[0].run_id).report_path == str(page)


@pytest.mark.parametrize(
    ("curve", "keeps"),
    [
        (((0.2, 2.0), (0.4, 1.0), (1.0, 1.5)), True),
        (((0.2, 2.0), (0.8, 1.0), (1.0, 1.1)), False),
        (((0.2, 2.0), (1.0, 1.0)), False),
        ((), False),
    ],
)
def test_a_winner_that_was_best_early_is_trained_with_its_validation_rows_apart(searched, curve, keeps):
    context, recipe, done, _ = searched
    winner = context.studies.trials(done.study_id)[done.winner]
    last = winner.results[-1].model_copy(update={"curve": curve})
    winner = winner.model_copy(update={"results": (last,)})
    own = context.runs.plan(context.studies.trials(done.study_id)[0].run_id)
    made = study_end.final_recipe(done.spec, winner, own)
    assert made.data.validation == (recipe.data.validation if keeps else None)
    assert made.data.split_seed == own.training.seed
    assert made.training.early_stopping_patience == 0
    data = recipe.data.model_copy(update={"validation": "own.jsonl"})
    apart = done.spec.model_copy(update={"recipe": recipe.model_copy(update={"data": data})})
    assert not study_end.keeps_validation(apart, winner)


def test_the_final_run_has_the_batch_size_of_the_winning_trial(searched):
    context, recipe, done, _ = searched
    first = context.studies.trials(done.study_id)[0]
    own = context.runs.plan(first.run_id)
    # Left open: the usual one depends on the number of rows, which is larger in the final run.
    training = recipe.training.model_copy(update={"global_batch_size": None})
    spec = done.spec.model_copy(update={"recipe": recipe.model_copy(update={"training": training})})
    planned = own.model_copy(update={"training": own.training.model_copy(update={"global_batch_size": 5})})
    assert study_end.final_recipe(spec, first, planned).training.global_batch_size == 5
    tried = first.model_copy(update={"values": {"training.global_batch_size": 4}})
    assert study_end.final_recipe(spec, tried, planned).training.global_batch_size == 4


def test_no_step_is_trained_twice(searched):
    context, _, done, _ = searched
    for trial in nonempty(context.studies.trials(done.study_id)):
        steps = [e.step for e in context.runs.events(trial.run_id) if isinstance(e, StepDone)]
        assert steps == list(range(1, trial.results[-1].step + 1))


def test_equal_seeds_give_equal_searches_and_others_do_not(context, short_recipe, monkeypatch):
    def all_is_tried(*_):
        raise Killed

    monkeypatch.setattr(study_end, "_train_final", all_is_tried)  # what comes behind the last trial decides nothing
    made = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        study = studies.begin(context, request(short_recipe, seed=seed, most_trials=3, space=NEAR, rungs=(0.5, 1.0)))
        assert study.spec.start == ()  # all but the recipe itself is suggested
        with pytest.raises(Killed):
            studies.go_on(context, study.study_id)
        made[name] = story(context, study.study_id)
        assert [kind for kind, *_ in made[name]] == ["search"] * 3 + ["confirm"] * 2
    assert made["one"] == made["again"]
    assert made["one"] != made["other"]


CHILD = """
import sys
from luthier.platform.home.context import Context
from luthier.features.studies import service as studies
with Context.open(sys.argv[1]) as context:
    studies.go_on(context, sys.argv[2])
"""


@pytest.mark.drill
def test_killed_again_and_again_it_ends_as_if_undisturbed(context, recipe, tmp_path):
    calm = studies.begin(context, request(recipe))
    studies.go_on(context, calm.study_id)
    expected = story(context, calm.study_id)
    study = studies.begin(context, request(recipe))
    for num_changes in (2, 5, 9):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "home"), study.study_id])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            there = context.studies.trials(study.study_id)
            if sum(1 + len(t.results) for t in there) >= num_changes:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
    studies.go_on(context, study.study_id)
    assert story(context, study.study_id) == expected


class Killed(BaseException):
    pass


class Kills:
    """Ends the process, as a kill does, before and after each kind of write that a study makes, once each."""

    def __init__(self, monkeypatch):
        self.seen = set()
        for name, label in (("put_trial", self._of_trial), ("save", self._of_study)):
            monkeypatch.setattr(StudyStore, name, self._killed(getattr(StudyStore, name), label))

    def _of_trial(self, _study_id, trial):
        return trial.kind, trial.state, trial.rung

    def _of_study(self, study):
        return study.status, study.is_searched, study.winner is not None, study.report_path is not None

    def _killed(self, write, label):
        def put(store, *given):
            self._once("before", *label(*given))
            write(store, *given)
            self._once("after", *label(*given))

        return put

    def _once(self, *moment):
        if moment not in self.seen:
            self.seen.add(moment)
            raise Killed


def test_killed_at_each_of_its_writes_it_ends_with_the_same_trials_and_bytes(context, short_recipe, monkeypatch):
    few = {"most_trials": 2, "rungs": (0.5, 1.0)}
    calm = studies.begin(context, request(short_recipe, **few))
    calm = studies.go_on(context, calm.study_id)
    study = studies.begin(context, request(short_recipe, **few))
    with monkeypatch.context() as patched:
        kills, num_kills = Kills(patched), 0
        while True:
            try:
                done = studies.go_on(context, study.study_id)
            except Killed:
                num_kills += 1
                continue
            break
    assert num_kills == len(kills.seen) > 20
    assert {("before", "confirm", "done", 1), ("after", "final", True, True, False)} <= kills.seen
    assert story(context, study.study_id) == story(context, calm.study_id)
    assert (done.status, done.winner, done.notes) == ("done", calm.winner, calm.notes)
    digests = [context.runs.get(one.final_run_id).result.adapter_sha256 for one in (done, calm)]
    assert digests[0] == digests[1]
    assert Path(done.report_path).is_file()
    both = (done, calm)
    known = {trial.run_id for one in both for trial in context.studies.trials(one.study_id)}
    assert {one.run_id for one in context.runs.list()} == known | {one.final_run_id for one in both}


def test_a_study_keeps_the_defaults_that_it_began_with(context, short_recipe, monkeypatch):
    few = {"most_trials": 2, "rungs": (0.5, 1.0)}
    with monkeypatch.context() as earlier:
        earlier.setattr(defaults, "WEIGHT_DECAY", (0.05, "an earlier default"))
        study = studies.begin(context, request(short_recipe, **few))
        put = StudyStore.put_trial

        def ended(store, study_id, trial):
            put(store, study_id, trial)
            if trial.results:
                raise Killed

        earlier.setattr(StudyStore, "put_trial", ended)
        with pytest.raises(Killed):
            studies.go_on(context, study.study_id)
    assert studies.make_plan(context, short_recipe, base_dir=Path()).training.weight_decay == 0
    done = studies.go_on(context, study.study_id)
    assert done.status == "done"
    runs = [*(trial.run_id for trial in context.studies.trials(study.study_id)), done.final_run_id]
    assert len(runs) > 3
    assert {context.runs.plan(run_id).training.weight_decay for run_id in runs} == {0.05}
    assert [note for note in done.notes if "weight_decay 0.05" in note and "keeps defaults" in note] == [done.notes[-1]]


def test_a_study_that_is_done_without_its_page_gets_it(searched):
    context, _, done, _ = searched
    Path(done.report_path).unlink()
    context.studies.save(done.model_copy(update={"report_path": None}))
    again = studies.go_on(context, done.study_id)
    assert again == done
    assert Path(again.report_path).is_file()


def test_the_search_is_over_once_its_end_is_stored_unless_the_budget_grows(context, recipe):
    study = studies.begin(context, request(recipe, most_trials=1))
    context.studies.save(study.model_copy(update={"is_searched": True, "status": "confirming"}))
    study = context.studies.get(study.study_id)
    assert studies._with_budget(study, None, None).is_searched
    assert studies._with_budget(study, 0.9, None).is_searched
    larger = studies._with_budget(study, 2.0, None)
    assert (larger.is_searched, larger.spec.hours) == (False, 2.0)
    named = study.model_copy(update={"final_run_id": "run-20260101-000000-aaaaaa"})
    assert studies._with_budget(named, 2.0, None).is_searched


def test_a_budget_that_ends_early_still_gives_a_model(context, recipe):
    plenty = studies.begin(context, request(recipe))
    plan = studies.make_plan(context, recipe, base_dir=Path())
    # a run with its evaluation, which the end of a study has
    hours = quote_of(context, price(context, plenty.spec, context_trial(), plan).prepared).prediction.hours.value
    study = studies.begin(context, request(recipe, hours=hours * 2.3, most_trials=40))
    done = studies.go_on(context, study.study_id)
    trials = context.studies.trials(study.study_id)
    assert done.status in ("done", "paused")
    assert len(trials) < 40
    assert done.winner is not None


def test_a_trial_that_ends_before_a_rung_has_reached_all_that_follow(context, recipe):
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 4})})
    spec = studies.begin(context, request(recipe)).spec
    trial = Trial(number=1, values={"training.epochs": 1.0}, run_id="run-20260101-000000-abcdef")
    priced = price(context, spec, trial, make_plan(context, recipe, base_dir=Path()))
    assert priced.steps[0] < priced.steps[1] == priced.steps[2]
    trial = train_to(context, trial, 0, priced)
    assert (trial.state, trial.rung) == ("paused", 0)
    trial = train_to(context, trial, 1, priced)
    assert (trial.state, [(one.rung, one.step) for one in trial.results]) == (
        "done",
        list(enumerate(priced.steps)),
    )
    assert trial.results[1].loss == trial.results[2].loss
    assert len({share for share, _ in trial.curve}) == len(trial.curve)


def test_a_trial_is_priced_without_an_evaluation_and_the_end_with_one(context, recipe):
    study, plan = studies.begin(context, request(recipe)), make_plan(context, recipe, base_dir=Path())
    trial = Trial(number=0, values={}, run_id="run-20260101-000000-abcdef")
    priced = price(context, study.spec, trial, plan)
    quote = quote_of(context, priced.prepared)
    assert quote.hours_by_part["judging"].value > 0
    assert priced.hours == pytest.approx(quote.prediction.hours.value - quote.hours_by_part["judging"].value)
    first = plan.budget.first
    unjudged = plan.budget.model_copy(update={"first": first.model_copy(update={"judging": None})})
    ends = [
        studies._final_hours(context, study, one, TrainingDataLoader())
        for one in (plan, plan.model_copy(update={"budget": unjudged}))
    ]
    assert ends[0] - ends[1] == pytest.approx(first.judging.value / 3600)


def context_trial():
    return Trial(number=0, values={}, run_id="run-20261126-000000-000000")


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"hours": 1e-9}, BudgetTooSmallError, "one trial should take"),
        ({"hours": None}, RequestError, "no budget"),
        ({"hours": math.nan}, RequestError, "--budget-hours nan"),
        ({"hours": math.inf}, RequestError, "--budget-hours inf"),
        ({"hours": 1.0, "usd": math.nan}, RequestError, "--budget-usd nan"),
        ({"hours": -1.0}, RequestError, "--budget-hours -1"),
        ({"space": {"only": True}}, RequestError, "nothing to search"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_begins(context, recipe, changed, error, said):
    with pytest.raises(error, match=said):
        studies.begin(context, request(recipe, **changed))
    assert context.studies.list("default") == []
    assert context.runs.list() == []


def test_without_validation_rows_nothing_can_be_compared(context, recipe):
    bare = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": None})})
    with pytest.raises(RequestError, match=r"without data\.validation"):
        studies.begin(context, request(bare))


def test_a_space_with_one_point_is_trained_and_said(context, recipe):
    space = {"parameters": {"method.rank": 4}, "only": True}
    study = studies.begin(context, request(recipe, space=space))
    assert study.notes == ("the space has one point: its recipe is trained, nothing is searched",)
    done = studies.go_on(context, study.study_id)
    assert (done.status, len(context.studies.trials(study.study_id))) == ("done", 1)


def test_a_budget_that_ends_in_the_final_run_is_told_and_a_larger_one_ends_it(context, recipe, monkeypatch):
    """Nothing more is searched then: the winner has been named."""
    study = studies.begin(context, request(recipe, most_trials=2, rungs=(1.0,)))
    monkeypatch.setattr(study_end, "BudgetRecipe", lambda hours: BudgetRecipe(hours=min(hours, 1e-4)))
    paused = studies.go_on(context, study.study_id)
    assert (paused.status, context.runs.get(paused.final_run_id).status) == ("paused", "paused")
    assert paused.needs_hours > paused.hours > 0
    command, _, budget = paused.way_on.rpartition(" ")
    assert command == f"luthier tune --resume {study.study_id} --budget-hours"
    assert paused.needs_hours <= float(budget) < paused.needs_hours + 0.011
    # Three digits of 100.4 are 100, which a study that has spent 100.3 h refuses.
    long = paused.model_copy(update={"hours": 100.3, "needs_hours": 100.404})
    assert long.way_on == f"luthier tune --resume {study.study_id} --budget-hours 100.41"
    for hours in (None, paused.hours / 2):
        with pytest.raises(BudgetTooSmallError) as refused:
            studies.go_on(context, study.study_id, hours=hours)
        assert refused.value.do == paused.way_on
    monkeypatch.undo()
    trials = context.studies.trials(study.study_id)
    done = studies.go_on(context, study.study_id, hours=2.0)
    assert (done.status, done.needs_hours, done.spec.hours) == ("done", None, 2.0)
    assert (done.winner, done.final_run_id) == (paused.winner, paused.final_run_id)
    assert context.studies.trials(study.study_id) == trials
    assert sum(trial.hours for trial in trials) < done.hours < 2 * paused.hours + 0.1


@pytest.mark.parametrize(
    ("epochs", "num_rungs", "said"), [(4, 3, ""), (2, 2, "after 33% of it"), (0.5, 1, "to its end")]
)
def test_a_training_of_few_steps_has_fewer_rungs_and_it_is_said(context, recipe, epochs, num_rungs, said):
    """Of 16 steps a ninth are two, which say nothing of how it ends; of 4 a third neither."""
    training = recipe.training.model_copy(update={"epochs": epochs})
    study = studies.begin(context, request(recipe.model_copy(update={"training": training}), space=NEAR))
    assert len(study.spec.rungs) == num_rungs
    assert any("the recipe's own training has" in note and said in note for note in study.notes) == bool(said)


def test_a_small_space_ends_when_all_was_tried(context, recipe):
    space = {"parameters": {"method.rank": [2, 4]}, "only": True}
    study = studies.begin(context, request(recipe, space=space, most_trials=9, rungs=(1.0,)))
    done = studies.go_on(context, study.study_id)
    assert any("no other point" in note for note in done.notes)


def test_a_trial_that_cannot_be_is_a_failed_one_and_the_search_goes_on(context, recipe):
    space = {"parameters": {"method.rank": [4, 4000]}, "only": True}
    study = studies.begin(context, request(recipe, space=space, most_trials=3, rungs=(1.0,)))
    done = studies.go_on(context, study.study_id)
    failed = [t for t in context.studies.trials(study.study_id) if t.state == "failed"]
    assert done.status == "done"
    assert "4000" in failed[0].reason


def test_where_all_fail_it_says_why(context, recipe):
    space = {"parameters": {"method.rank": {"low": 3000, "high": 4000}}, "only": True}
    wrong = recipe.model_copy(update={"method": recipe.method.model_copy(update={"rank": 4})})
    study = studies.begin(context, request(wrong, space=space, most_trials=9))
    context.studies.put_trial(study.study_id, context_trial().model_copy(update={"state": "failed", "reason": "none"}))
    with pytest.raises(StudyFailedError, match=r"method\.rank"):
        studies.go_on(context, study.study_id)


def test_a_study_has_no_recipe_to_take_before_its_end(context, recipe):
    study = studies.begin(context, request(recipe))
    with pytest.raises(ConflictError, match="no winner yet"):
        winning_document(study, [])
    with pytest.raises(NotFoundError, match="nearest"):
        context.studies.get(study.study_id[:-1] + "x")
