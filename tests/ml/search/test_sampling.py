"""What is tried next depends on the record alone."""

from __future__ import annotations

import math
import statistics

from luthier.core.workflows.study import Parameter, Result, Space, Trial
from luthier.ml.search.sampling import suggest

RATE = Parameter(name="training.learning_rate", kind="float", low=1e-5, high=1e-1, log=True)
METHOD = Parameter(name="method.name", kind="choice", choices=("lora", "full"))
RANK = Parameter(name="method.rank", kind="int", low=1, high=64, log=True, when={"method.name": ("lora",)})
SPACE = Space(parameters=(RATE, METHOD, RANK))


def tried(number, values, *losses, state="done"):
    results = tuple(Result(rung=r, step=r, share=1.0, loss=loss) for r, loss in enumerate(losses))
    return Trial(number=number, values=values, run_id="run", state=state, results=results)


def ask(trials, number, *, seed=0, sampler="tpe", space=SPACE):
    return suggest(space, trials, sampler=sampler, seed=seed, number=number, num_rungs=1)


def search(sampler, num, seed):
    trials = []
    for number in range(num):
        values = ask(trials, number, seed=seed, sampler=sampler)
        loss = abs(math.log10(values["training.learning_rate"]) + 3) + (values["method.name"] == "full")
        trials.append(tried(number, values, loss))
    return trials


def test_equal_records_give_equal_values():
    assert [t.values for t in search("tpe", 12, 3)] == [t.values for t in search("tpe", 12, 3)]
    assert search("tpe", 1, 3)[0].values != search("tpe", 1, 4)[0].values


def test_what_plays_no_part_is_not_set():
    seen = [trial.values for trial in search("random", 20, 0)]
    assert all(("method.rank" in values) == (values["method.name"] == "lora") for values in seen)
    assert {values["method.name"] for values in seen} == {"lora", "full"}


def test_tpe_finds_more_than_chance_does():
    better = sum(
        min(t.loss for t in search("tpe", 30, seed)) < min(t.loss for t in search("random", 30, seed))
        for seed in range(6)
    )
    assert better >= 4


def test_what_others_are_trying_is_kept_away_from():
    """Of many workers that ask at once, none would know of the others: they would crowd around one point."""
    known = search("tpe", 20, 2)

    def spread_of_asked_at_once(is_told):
        trials, asked = list(known), []
        for number in range(20, 36):
            values = ask(trials if is_told else known, number, seed=1)
            asked.append(math.log10(values["training.learning_rate"]))
            trials.append(tried(number, values, state="running"))
        return statistics.pstdev(asked)

    assert spread_of_asked_at_once(True) > 1.5 * spread_of_asked_at_once(False)


def test_no_point_is_tried_twice_and_an_empty_space_says_so():
    space = Space(parameters=(METHOD,))
    first = ask([], 1, space=space)
    second = ask([tried(0, {}, 1.0), tried(1, first, 1.0)], 2, space=space)
    assert {first["method.name"], second["method.name"]} == {"lora", "full"}
    assert ask([tried(0, first, 1.0), tried(1, second, 1.0)], 2, space=space) is None


def test_failed_trials_and_the_recipe_itself_may_lie_outside():
    trials = [
        tried(0, {}, 1.0),
        tried(1, {"method.name": "other"}, 0.5),
        tried(2, {"method.name": "lora"}, state="failed"),
    ]
    assert ask(trials, 3) is not None


def test_cmaes_finds_more_than_chance_does_and_keeps_to_the_space():
    numbers = Space(parameters=(RATE, Parameter(name="training.epochs", kind="choice", choices=(1, 2, 4, 8))))

    def best(sampler, seed):
        trials = []
        for number in range(30):
            values = ask(trials, number, seed=seed, sampler=sampler, space=numbers)
            assert 1e-5 <= values["training.learning_rate"] <= 1e-1
            assert values["training.epochs"] in (1, 2, 4, 8)
            loss = abs(math.log10(values["training.learning_rate"]) + 3) + abs(values["training.epochs"] - 4) / 4
            trials.append(tried(number, values, loss))
        return min(trial.loss for trial in trials)

    assert sum(best("cmaes", seed) < best("random", seed) for seed in range(6)) >= 4


def test_nsga2_finds_both_ends_of_what_cannot_be_had_together():
    trials = []
    for number in range(40):
        values = suggest(SPACE, trials, sampler="nsga2", seed=1, number=number, num_rungs=1, goals=("quality", "size"))
        rank = values.get("method.rank", 128)
        off = abs(math.log10(values["training.learning_rate"]) + 3)
        trials.append(tried(number, values, off + 1 / rank).model_copy(update={"goals": {"size": float(rank)}}))
    late = trials[16:]  # after two generations
    assert min(abs(math.log10(t.values["training.learning_rate"]) + 3) for t in late) < 0.3
    assert min(t.goals["size"] for t in late) <= 4


def test_running_trials_count_as_bad_ones_whatever_the_default_of_optuna_is(monkeypatch):
    """It was off by default before Optuna 5."""
    import optuna

    given = []

    class Sampler(optuna.samplers.TPESampler):
        def __init__(self, **arguments):
            given.append(arguments)
            super().__init__(**arguments)

    monkeypatch.setattr(optuna.samplers, "TPESampler", Sampler)
    assert ask([], 1) is not None
    assert given[0]["constant_liar"] is True
