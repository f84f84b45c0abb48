"""What to try next, as a function of what was tried: Optuna's samplers, asked again each time from the trials' record.

Nothing is kept between two questions but the trials themselves, so a search that was killed asks as it would have, and
one seed with one worker gives one sequence. A trial that was not gone on with counts by its loss on the rung that it
had reached, after all that got further. One that has reached none yet counts as a bad one, so that several workers do
not all try what lies beside it (the constant liar: Ginsbourger et al., 2010, "Kriging Is Well-Suited to Parallelize
Optimization", section 3.2).

tpe     Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization", section 4; multivariate as Falkner et al.,
        2018, "BOHB", section 3.2
cmaes   `tune.evolution`
nsga2   for several goals: Deb et al., 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II"
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from luthier.core.digest import sha256_document
from luthier.core.workflows.study import GoalName, Parameter, Plain, SamplerName, Space, StudySpec, Trial, Values
from luthier.ml.search.evolution import evolved
from luthier.ml.search.front import point_of
from luthier.ml.search.rungs import ranked

if TYPE_CHECKING:
    import optuna

NUM_RANDOM: Final = 8
"""Trials before TPE has seen enough to say anything, and those of one generation of NSGA-II."""
_MAX_TRIES: Final = 50


def next_values(spec: StudySpec, trials: Sequence[Trial], number: int) -> Values | None:
    """Values for trial `number` of a study: the recipe itself, then the points to start from, then what is suggested.

    Args:
        trials: all that were begun. None where the space has no other point that is found.
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
        trials: all that were begun.
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
    """A study in memory that knows what the trials came to."""
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
    """Ask for every trial once more and tell its result: so NSGA-II knows to which generation each belongs.

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
    """What plays a part and lies in the space: values of the recipe need not, nor those of before a narrowing."""
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
