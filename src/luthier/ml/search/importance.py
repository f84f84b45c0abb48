"""Which of the searched things mattered: PED-ANOVA over the trials of a study.

Watanabe, Bansal, Hutter, 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces",
IJCAI: how differently each parameter is spread among the best quarter of the trials and among all. It is measured on
the first rung, which all trials have reached; what only pays later is seen too small there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final

from luthier.core.workflows.study import Space, Trial

MIN_TRIALS: Final = 12
"""With fewer, the best quarter is three trials, and says nothing."""


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """The share of each parameter, largest first, of all together 1; empty where there are too few trials.

    Parameters that play a part in some trials only are left out.
    """
    import optuna

    from luthier.ml.search.sampling import distribution

    usable = [t for t in trials if t.kind == "search" and t.results and t.values]
    names = [p.name for p in space.parameters if not p.is_fixed and all(p.name in t.values for t in usable)]
    if len(usable) < MIN_TRIALS or len(names) < 2:
        return {}
    kinds = {p.name: distribution(p) for p in space.parameters if p.name in names}
    study = optuna.create_study(direction="minimize")
    for trial in usable:
        values = {name: trial.values[name] for name in names}
        # Values from before a narrowing lie outside of today's ranges, which Optuna refuses.
        if all(kinds[name]._contains(kinds[name].to_internal_repr(value)) for name, value in values.items()):
            study.add_trial(optuna.trial.create_trial(value=trial.results[0].loss, params=values, distributions=kinds))
    if len(study.trials) < MIN_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
