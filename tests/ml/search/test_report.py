"""The page of a study says what was found, what it rests on, and shows hostile text as text."""

from __future__ import annotations

from luthier.core.recipe import Recipe
from luthier.core.workflows.study import Parameter, Result, Space, Study, StudySpec, Trial
from luthier.ml.search.report.page import Ending, budget_rows, headline, study_charts, write_study_page
from luthier.ml.search.sampling import importances

RATE = Parameter(name="training.learning_rate", kind="float", low=1e-5, high=1e-2, log=True, why="by factors")
RANK = Parameter(name="method.rank", kind="choice", choices=(4, 8, 16), why="room")
DROPOUT = Parameter(name="method.dropout", kind="choice", choices=(0.0, 0.1), why="against overfitting")
RECIPE = Recipe.model_validate({"base_model": "<script>alert(1)</script>", "data": {"train": "t", "validation": 0.1}})


def make_study(**changed):
    spec = StudySpec(
        recipe=RECIPE, space=Space(parameters=(RATE, RANK, DROPOUT)), hours=2.0, most_trials=20, rungs=(1 / 3, 1.0)
    )
    values = {
        "study_id": "study-20261126-120000-abcdef",
        "created_at": "2026-11-26T12:00:00+00:00",
        "status": "done",
        "spec": spec,
        "winner": 3,
        "hours": 1.5,
        "overhead_hours": 0.01,
    }
    return Study(**(values | changed))


def make_trials():
    made = []
    for n in range(16):
        values = {
            "training.learning_rate": 10 ** (-5 + 3 * n / 16),
            "method.rank": (4, 8, 16)[n % 3],
            "method.dropout": 0.1 * (n % 2),
        }
        loss = 3.0 if n == 0 else 1 + abs(n - 3) / 10
        results = [Result(rung=0, step=5, share=1 / 3, loss=loss + 1, study_hours=n / 20)]
        is_whole = n in (0, 3, 4)
        if is_whole:
            results.append(Result(rung=1, step=15, share=1.0, loss=loss, study_hours=n / 20 + 0.01))
        made.append(
            Trial(
                number=n,
                values=values if n else {},
                run_id="run",
                state="done" if is_whole else "paused",
                results=tuple(results),
                hours=0.05,
            )
        )
    hostile = "<img src=x onerror=alert(2)>"
    return [*made, Trial(number=16, values={}, run_id="run", state="failed", reason=hostile)]


def test_the_headline_holds_the_best_against_the_recipe_as_it_came():
    said = headline(make_study(), make_trials(), {3: [1.0, 1.2]})
    assert said.startswith("17 recipes were tried in 1\N{NO-BREAK SPACE}h 30\N{NO-BREAK SPACE}min: ")
    assert "trial 3 is best, mean validation loss 1.1000 over 2 seeds (deviation 0.1414)" in said
    assert said.endswith("The original recipe had 3.0000.")
    assert "none is named best" in headline(make_study(winner=None), make_trials(), {})


def test_the_budget_is_accounted_for():
    rows = {name: hours for name, hours, _ in budget_rows(make_study(), make_trials())}
    assert abs(rows["trials"] - 0.8) < 1e-9
    assert abs(sum(rows.values()) - 1.5) < 1e-9


def test_what_decides_the_loss_matters_most():
    found = importances(make_study().spec.space, make_trials()[1:])
    assert next(iter(found)) == "training.learning_rate"
    assert abs(sum(found.values()) - 1) < 1e-6
    assert importances(make_study().spec.space, make_trials()[:5]) == {}


def test_the_page_shows_everything_and_runs_nothing(tmp_path):
    trials = make_trials()
    ending = Ending(recipe={"base_model": "<b>m</b>"}, headline="The tuned model is better.")
    shares = importances(make_study().spec.space, trials[1:])
    path = write_study_page(tmp_path / "report.html", make_study(), trials, shares, {}, ending)
    page = path.read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "The tuned model is better." in page
    assert page.count("<figure>") == 6  # progress, importance, three slices, all at once
    assert "http" not in page.replace("http://www.w3.org", "")


def test_points_that_name_few_values_do_not_hide_what_mattered():
    trials = make_trials()
    first = trials[1].model_copy(update={"values": {RATE.name: 2e-5}})
    found = importances(make_study().spec.space, [*trials[:1], first, *trials[2:]])
    assert next(iter(found)) == RATE.name
    assert set(found) == {RATE.name, RANK.name, DROPOUT.name}
    # With what the recipe sets, these trials count like any other.
    own = {RATE.name: 1e-4, RANK.name: 8, DROPOUT.name: 0.0}
    few = [trial.model_copy(update={"values": {}}) for trial in trials[:4]]
    assert importances(make_study().spec.space, [*few, *trials[4:12]]) == {}
    assert set(importances(make_study().spec.space, [*few, *trials[4:12]], own)) == set(own)


def test_values_that_were_taken_out_of_the_space_are_left_out_of_what_mattered():
    trials = [trial for trial in make_trials()[1:] if trial.results]
    twice = [*trials, *(trial.model_copy(update={"number": 20 + trial.number}) for trial in trials)]
    smaller = Space(parameters=(RATE, RANK.model_copy(update={"choices": (4, 8)}), DROPOUT))
    assert any(trial.values[RANK.name] == 16 for trial in twice)
    assert next(iter(importances(smaller, twice))) == RATE.name


def test_a_search_that_has_not_ended_has_taken_what_its_trials_have():
    going_on = headline(make_study(winner=None, hours=0.0), make_trials(), {})
    assert going_on == headline(make_study(winner=None, hours=16 * 0.05 + 0.01), make_trials(), {})


def test_a_choice_that_was_taken_out_of_the_space_is_no_dot_at_another_one():
    study = make_study()
    smaller = Space(parameters=(RATE, RANK.model_copy(update={"choices": (4, 8)}), DROPOUT))
    narrowed = study.model_copy(update={"spec": study.spec.model_copy(update={"space": smaller})})
    for asked, num in ((study, 15), (narrowed, 10)):
        chart = next(one for one in study_charts(asked, make_trials(), {}) if one.title == "rank")
        assert f"{num} trials; the best has rank" in chart.svg
