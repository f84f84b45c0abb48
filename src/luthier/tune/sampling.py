"""What to try next, as a function of what was tried: Optuna's samplers, asked anew each time from the trials' record.

Nothing is kept between two questions but the trials themselves, so a search that was killed asks as it would have, and
one seed with one worker gives one sequence. TPE: Bergstra et al., 2011, "Algorithms for Hyper-Parameter Optimization",
section 4; multivariate as Falkner et al., 2018, "BOHB", section 3.2. A trial that was not gone on with counts by its
loss on the rung that it had reached, after all that got further.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from luthier.core.digest import sha256_document
from luthier.core.study import Parameter, Plain, SamplerName, Space, Trial, Values

if TYPE_CHECKING:
    import optuna

NUM_RANDOM: Final = 8
"""Trials before TPE has seen enough to say anything."""
_MOST_TRIES: Final = 50


def suggest(
    space: Space, trials: Sequence[Trial], *, sampler: SamplerName, seed: int, number: int, num_rungs: int
) -> Values | None:
    """Values for trial `number`, none that were tried before; None where the space has no other point that is found.

    trials: all that were begun. Equal arguments give equal values.
    """
    tried = [trial.values for trial in trials if trial.kind == "search"]
    study = _study_of(space, trials, sampler=sampler, seed=_seed(seed, number, 0), num_rungs=num_rungs)
    for attempt in range(_MOST_TRIES):
        if attempt:
            study.sampler = _sampler("random", _seed(seed, number, attempt))
        asked = study.ask()
        values: Values = {}
        for parameter in space.parameters:
            if is_active(parameter, values):
                values[parameter.name] = _ask(asked, parameter)
        if values not in tried:
            return values
    return None


def is_active(parameter: Parameter, values: Values) -> bool:
    """Whether a parameter plays a part, given those before it."""
    return all(values.get(name) in wanted for name, wanted in parameter.when.items())


def _study_of(
    space: Space, trials: Sequence[Trial], *, sampler: SamplerName, seed: int, num_rungs: int
) -> optuna.Study:
    import optuna

    if optuna.logging.get_verbosity() < optuna.logging.WARNING:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=_sampler(sampler, seed), direction="minimize")
    kinds = {parameter.name: distribution(parameter) for parameter in space.parameters}
    states = optuna.trial.TrialState
    for trial in trials:
        if trial.kind != "search" or trial.loss is None or trial.state == "failed":
            continue
        known = {name: value for name, value in trial.values.items() if name in kinds and _fits(kinds[name], value)}
        is_whole = trial.rung == num_rungs - 1
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if is_whole else states.PRUNED,
                value=trial.loss if is_whole else None,
                params=known,
                distributions={name: kinds[name] for name in known},
                intermediate_values={result.rung: result.loss for result in trial.results},
            )
        )
    return study


def _sampler(name: SamplerName, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():  # multivariate and group are called experimental
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(n_startup_trials=NUM_RANDOM, multivariate=True, group=True, seed=seed)


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
    """Whether a value lies in the space: the recipe's own, which comes first, need not."""
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
    return float(f"{asked.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log):.4g}")


def _seed(seed: int, number: int, attempt: int) -> int:
    return int(sha256_document([seed, number, attempt])[:8], 16)
