"""What to try next, as a function of what was tried: TPE, CMA-ES and NSGA-II, computed from the record of trials.

Only the trials are kept between two calls, so a search that was killed continues as it would have, and
one seed with one worker gives one sequence. A trial that was not continued counts by its loss on the rung that it had
reached, after all that got further. One that has reached none yet counts as a bad one, so that several workers do not
all try its neighbours (the constant liar: Ginsbourger et al., 2010, "Kriging Is Well-Suited to Parallelize
Optimization", section 3.2).

tpe     Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization", section 4; multivariate as Falkner et al.,
        2018, "BOHB", section 3.2
cmaes   Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, over all that has an order: rates by
        factors, counts, and choices of numbers by their places. Optuna's CmaEsSampler keeps its state in the trials
        that it proposed, and takes no choices; here the strategy (package `cmaes`) is given the record again, one
        generation after another, so that its proposals depend on nothing else. It uses only the order within a
        generation, so losses of different rungs may be in one. What has no order is left to TPE.
nsga2   for several goals: Deb et al., 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II"

`importances` says which of the searched parameters mattered, by PED-ANOVA: how differently each one is spread among the
best quarter of the trials and among all (Watanabe, Bansal, Hutter, 2023, "PED-ANOVA: Efficiently Quantifying
Hyperparameter Importance in Arbitrary Subspaces", IJCAI). It is measured on the first rung, which all trials have
reached; what only pays later is seen too small there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from luthier.core.ids import sha256_document
from luthier.core.workflows.study import GoalName, Parameter, Plain, SamplerName, Space, StudySpec, Trial, Values
from luthier.ml.search.rungs import point_of, ranked

if TYPE_CHECKING:
    import optuna

_WIDTH: Final = 0.25
"""The deviation that it begins with, as a share of each range."""


def evolved(space: Space, trials: Sequence[Trial], *, own: Values, seed: int) -> Values:
    """Values for what has an order and always plays a part; empty where that is less than two parameters.

    Args:
        space: what may vary.
        trials: all that were begun.
        own: what the recipe as it came sets; the search begins there.
        seed: of the study.
    """
    axes = [p for p in space.parameters if _has_order(p) and not p.when]
    if len(axes) < 2:
        return {}
    import numpy as np
    from cmaes import CMA

    start = np.array([_place(axis, own) if axis.name in own else 0.5 for axis in axes])
    strategy = CMA(mean=start, sigma=_WIDTH, bounds=np.array([[0.0, 1.0]] * len(axes)), seed=seed % 2**31)
    order = {trial.number: float(place) for place, trial in enumerate(ranked(trials))}
    known = [
        (np.array([_place(axis, own | trial.values) for axis in axes]), order[trial.number])
        for trial in trials
        if trial.number in order and all(axis.name in own | trial.values for axis in axes)
    ]
    size = strategy.population_size
    # CMA-ES updates by whole generations; an incomplete last one waits for its members.
    for first in range(0, len(known) - size + 1, size):
        strategy.tell(known[first : first + size])
    asked = strategy.ask()
    return {axis.name: _value(axis, float(place)) for axis, place in zip(axes, asked, strict=True)}


def _has_order(parameter: Parameter) -> bool:
    if parameter.is_fixed:
        return False
    return parameter.kind != "choice" or all(
        isinstance(c, int | float) and not isinstance(c, bool) for c in parameter.choices
    )


def _place(axis: Parameter, values: Values) -> float:
    """Where a value is in a parameter's range, 0 to 1; one outside at the nearer end."""
    value = float(values[axis.name])
    if axis.kind == "choice":
        choices = sorted(float(choice) for choice in axis.choices)
        nearest = min(range(len(choices)), key=lambda i: abs(choices[i] - value))
        # The middle of its cell, so that equal steps of the strategy reach neighbouring choices.
        return (nearest + 0.5) / len(choices)
    assert axis.low is not None
    assert axis.high is not None
    low, high, value = (
        math.log(x) if axis.log else x for x in (axis.low, axis.high, min(max(value, axis.low), axis.high))
    )
    return (value - low) / (high - low)


def _value(axis: Parameter, place: float) -> float | int | str:
    if axis.kind == "choice":
        choices = sorted(axis.choices, key=float)
        # A place of exactly 1 would be one past the end.
        return choices[min(len(choices) - 1, int(place * len(choices)))]
    assert axis.low is not None
    assert axis.high is not None
    low, high = (math.log(x) if axis.log else x for x in (axis.low, axis.high))
    value = low + place * (high - low)
    value = math.exp(value) if axis.log else value
    return round(value) if axis.kind == "int" else min(max(float(f"{value:.4g}"), axis.low), axis.high)


NUM_RANDOM: Final = 8
"""Trials before TPE has seen enough to say anything, and those of one generation of NSGA-II."""
_MAX_TRIES: Final = 50


def next_values(spec: StudySpec, trials: Sequence[Trial], number: int) -> Values | None:
    """Values for trial `number` of a study: the recipe itself, then the points to start from, then what is suggested.

    Args:
        spec: of the study.
        trials: all that were begun. None where the space has no other point that is found.
        number: of the trial, from 0.
    """
    if number == 0:
        return {}
    tried = [trial.values for trial in trials if trial.kind == "search"]
    if number <= len(spec.start) and (values := spec.start[number - 1].values) not in tried:
        return dict(values)
    return suggest(
        spec.space,
        trials,
        sampler=spec.sampler,
        seed=spec.seed,
        number=number,
        num_rungs=len(spec.rungs),
        goals=spec.goals,
        own=spec.own_values,
    )


def suggest(
    space: Space,
    trials: Sequence[Trial],
    *,
    sampler: SamplerName,
    seed: int,
    number: int,
    num_rungs: int,
    goals: Sequence[GoalName] = ("quality",),
    own: Values | None = None,
) -> Values | None:
    """Values for trial `number`, none that were tried before; None where the space has no other point that is found.

    Equal arguments give equal values.

    Args:
        space: what may vary.
        trials: all that were begun.
        sampler: who suggests.
        seed: of the study.
        number: of the trial.
        num_rungs: of the study.
        goals: what is sought.
        own: what the recipe as it came sets; what a trial leaves out is taken from there.
    """
    own = own or {}
    tried = [own | trial.values for trial in trials if trial.kind == "search"]
    study = _study_of(
        space, trials, sampler=sampler, seed=_seed(seed, number, 0), num_rungs=num_rungs, goals=goals, own=own
    )
    for attempt in range(_MAX_TRIES):
        if attempt:
            # A sampler that proposes what was tried would propose it again: from the second try on points are drawn at
            # random.
            study.sampler = _sampler("random", _seed(seed, number, attempt))
        asked = study.ask()
        values: Values = {}
        for parameter in space.parameters:
            if is_active(parameter, values):
                values[parameter.name] = _ask(asked, parameter)
        if sampler == "cmaes" and not attempt:
            values |= evolved(space, trials, own=own, seed=_seed(seed, number, 0))
        if values not in tried and own | values not in tried:
            return values
    return None


def is_active(parameter: Parameter, values: Values) -> bool:
    """Whether a parameter plays a part, given those before it."""
    return all(values.get(name) in wanted for name, wanted in parameter.when.items())


def _study_of(
    space: Space,
    trials: Sequence[Trial],
    *,
    sampler: SamplerName,
    seed: int,
    num_rungs: int,
    goals: Sequence[GoalName],
    own: Values,
) -> optuna.Study:
    """A study in memory that knows the results of the trials."""
    import optuna

    if optuna.logging.get_verbosity() < optuna.logging.WARNING:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=_sampler(sampler, seed), directions=["minimize"] * len(goals))
    usable = [t for t in trials if t.kind == "search" and t.loss is not None and t.state != "failed"]
    if len(goals) > 1:
        _replay(study, space, usable, goals, own)
        return study
    states = optuna.trial.TrialState
    for trial in usable:
        known = lies_in(space, own | trial.values)
        is_whole = trial.rung == num_rungs - 1
        study.add_trial(
            optuna.trial.create_trial(
                # TPE ranks pruned trials by their last rung, behind all complete ones.
                state=states.COMPLETE if is_whole else states.PRUNED,
                value=trial.loss if is_whole else None,
                params=known,
                distributions={p.name: distribution(p) for p in space.parameters if p.name in known},
                intermediate_values={result.rung: result.loss for result in trial.results},
            )
        )
    for trial in trials:
        if trial.kind == "search" and trial.loss is None and trial.state != "failed":  # another worker is at it
            known = lies_in(space, own | trial.values)
            ranges = {p.name: distribution(p) for p in space.parameters if p.name in known}
            # The constant liar: TPE counts running trials among the bad ones, which
            # keeps workers apart.
            study.add_trial(optuna.trial.create_trial(state=states.RUNNING, params=known, distributions=ranges))
    return study


def _replay(study: optuna.Study, space: Space, trials: Sequence[Trial], goals: Sequence[GoalName], own: Values) -> None:
    """Propose every trial again and report its result: so NSGA-II knows to which generation each belongs.

    Losses of different rungs cannot be compared: a trial's quality is its place among all by how far it got, then loss.
    """
    places = {trial.number: float(place) for place, trial in enumerate(ranked(trials))}
    for trial in trials:
        known = lies_in(space, own | trial.values)
        # Enqueued values are what the next `ask` returns, so the sampler itself assigns the trial to a generation.
        study.enqueue_trial(known)
        asked = study.ask()
        for parameter in space.parameters:
            if parameter.name in known:
                _ask(asked, parameter)
        study.tell(asked, point_of(trial, goals, quality=places[trial.number]))


def lies_in(space: Space, values: Values) -> Values:
    """Active values within the space: values of the recipe need not be, nor those from before a narrowing."""
    return {
        p.name: values[p.name]
        for p in space.parameters
        if p.name in values and is_active(p, values) and _fits(distribution(p), values[p.name])
    }


def _sampler(name: SamplerName, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=NUM_RANDOM, seed=seed)
    with warnings.catch_warnings():  # multivariate and group are called experimental
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(
            n_startup_trials=NUM_RANDOM,
            multivariate=True,
            group=True,
            constant_liar=True,  # off by default before Optuna 5
            seed=seed,
        )


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """The range of a parameter as Optuna writes it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _fits(distribution: optuna.distributions.BaseDistribution, value: Plain) -> bool:
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(value, int | float) and bool(distribution._contains(float(value)))


def _ask(asked: optuna.Trial, parameter: Parameter) -> Plain:
    if parameter.kind == "choice":
        return cast("Plain", asked.suggest_categorical(parameter.name, parameter.choices))
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.kind == "int":
        return asked.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    # Four digits: recipes stay readable, and equal points can be recognised.
    return float(f"{asked.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log):.4g}")


def _seed(seed: int, number: int, attempt: int) -> int:
    # A hash instead of seed + number: neighbouring seeds must not share streams.
    return int(sha256_document([seed, number, attempt])[:8], 16)


MIN_TRIALS: Final = 12
"""With fewer, the best quarter is three trials, and says nothing."""


def importances(space: Space, trials: Sequence[Trial], own: Values | None = None) -> dict[str, float]:
    """The share of each parameter, largest first, of all together 1; empty where there are too few trials.

    Parameters that play a part in some trials only are left out, and so are trials of which a value is not known.

    Args:
        space: what may vary.
        trials: all that were begun.
        own: what the recipe as it came sets; what a trial leaves out is taken from there.
    """
    import optuna

    searched = [(t, (own or {}) | t.values) for t in trials if t.kind == "search" and t.results]
    names = [p.name for p in space.parameters if not p.is_fixed and all(is_active(p, known) for _, known in searched)]
    # The recipe and the points that a search begins with name few values, and a recipe need not set the others.
    usable = [(trial, known) for trial, known in searched if all(name in known for name in names)]
    if len(usable) < MIN_TRIALS or len(names) < 2:
        return {}
    kinds = {p.name: distribution(p) for p in space.parameters if p.name in names}
    study = optuna.create_study(direction="minimize")
    for trial, known in usable:
        values = {name: known[name] for name in names}
        # Values from before a narrowing are outside of today's ranges, which Optuna refuses.
        if all(_fits(kinds[name], value) for name, value in values.items()):
            study.add_trial(optuna.trial.create_trial(value=trial.results[0].loss, params=values, distributions=kinds))
    if len(study.trials) < MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
