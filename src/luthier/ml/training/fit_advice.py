"""Advice for the next run, from the losses of this one: only what applies, with figures, the most useful first."""

from __future__ import annotations

from typing import Final

from luthier.core.fit import Remedy
from luthier.core.plan import Plan

_FEW_ROWS: Final = 2000
_MAX_DROPOUT: Final = 0.3
_SMALL_RANK: Final = 8
_NOT_ADAPTED: Final = ("full", "ia3", "prompt_tuning")


def for_by_heart(plan: Plan, best_step: int, last_step: int) -> tuple[Remedy, ...]:
    """Against overfitting: fewer steps, more rows, a smaller learning rate, then regularisation."""
    training, found = plan.training, list[Remedy]()
    if best_step < last_step:
        epochs = best_step / training.num_steps_per_epoch
        saved = 1 - best_step / last_step
        text = (
            f"Stop at step {best_step:,} (epoch {epochs:.2g}): {saved:.0%} of the steps taken came after the best one, "
            "and a schedule that ends there ends on a small learning rate."
        )
        found.append(Remedy(text=text, settings=(f"training.max_steps={best_step}",)))
    if not training.early_stopping_patience:
        text = "Let the run stop by itself: early stopping is off."
        found.append(Remedy(text=text, settings=("training.early_stopping_patience=3",)))
    found += _more_rows(plan)
    found.append(
        Remedy(
            text=f"Take smaller steps: half the learning rate of {training.learning_rate:g}.",
            settings=(f"training.learning_rate={training.learning_rate / 2:g}",),
        )
    )
    return (*found, *_held_back(plan))


def _more_rows(plan: Plan) -> list[Remedy]:
    data = plan.data
    if data.part is not None:
        share = data.part[1] - data.part[0]
        text = f"Train on all rows: this run used {share:.0%} of them ({data.train.num_examples:,})."
        return [Remedy(text=text, settings=("data.subset=",))]
    if data.train.num_examples >= _FEW_ROWS:
        return []
    text = (
        f"Get more rows than these {data.train.num_examples:,}, each seen {plan.training.epochs:.2g} times: luthier "
        "plan RECIPE --learning-curve measures what more would buy, luthier data synthesise writes some from documents."
    )
    return [Remedy(text=text)]


def _held_back(plan: Plan) -> list[Remedy]:
    """What regularises and is not used yet, or little.

    Label smoothing is not among it: it raises the very loss that this advice is about (docs/benchmarks.md).
    """
    training, method, found = plan.training, plan.method, list[Remedy]()
    if not training.neftune_alpha:
        text = "Put noise on the embeddings (NEFTune), so that no row is ever seen twice."
        found.append(Remedy(text=text, settings=("training.neftune_alpha=5",)))
    if method.name not in _NOT_ADAPTED and method.dropout < _MAX_DROPOUT:
        more = min(_MAX_DROPOUT, max(0.1, 2 * method.dropout))
        text = f"Raise dropout from {method.dropout:g} to {more:g}."
        found.append(Remedy(text=text, settings=(f"method.dropout={more:g}",)))
    if method.target_rank is None and method.rank > _SMALL_RANK:
        # alpha falls with the rank: alpha / rank, the scale of the update, stays.
        half, alpha = method.rank // 2, method.alpha / method.rank * (method.rank // 2)
        text = f"Give it less to learn with: rank {half} in place of {method.rank}, at the same scale."
        found.append(Remedy(text=text, settings=(f"method.rank={half}", f"method.alpha={alpha:g}")))
    if training.average is None and method.name != "adalora":
        text = "Average the weights over the steps: what is kept is smoother than any one step."
        found.append(Remedy(text=text, settings=("training.average.kind=ema",)))
    if not training.weight_decay:
        text = "Let the weights decay; on few steps at a small rate it does little."
        found.append(Remedy(text=text, settings=("training.weight_decay=0.1",)))
    return found


def for_still_learning(plan: Plan) -> tuple[Remedy, ...]:
    """Against ending too soon: more steps, larger steps, then less regularisation."""
    training, method = plan.training, plan.method
    asked = plan.recipe.training
    if asked is not None and asked.max_steps is not None and asked.max_steps == training.num_steps:
        more = f"training.max_steps={2 * training.num_steps}"
    else:
        more = f"training.epochs={2 * training.epochs:g}"
    found = [Remedy(text=f"Train longer: twice the {training.num_steps:,} steps.", settings=(more,))]
    text = f"Or take larger steps: twice the learning rate of {training.learning_rate:g}."
    found.append(Remedy(text=text, settings=(f"training.learning_rate={2 * training.learning_rate:g}",)))
    if method.name not in _NOT_ADAPTED and method.dropout > 0:
        text = f"Drop the dropout of {method.dropout:g}: nothing was learned by heart yet."
        found.append(Remedy(text=text, settings=("method.dropout=0",)))
    return tuple(found)


def for_astray(plan: Plan) -> tuple[Remedy, ...]:
    """Against steps that are too large."""
    training = plan.training
    found = [
        Remedy(
            text=f"Take smaller steps: a third of the learning rate of {training.learning_rate:g}.",
            settings=(f"training.learning_rate={training.learning_rate / 3:.1g}",),
        )
    ]
    if training.schedule == "constant":
        text = "Let the learning rate fall towards the end: it was constant."
        found.append(Remedy(text=text, settings=("training.lr_schedule=cosine",)))
    if training.average is None and plan.method.name != "adalora":
        text = "Average the weights over the steps: it evens out steps that go to and fro."
        found.append(Remedy(text=text, settings=("training.average.kind=ema",)))
    return tuple(found)


def for_unlooked(plan: Plan, num_validations: int) -> tuple[Remedy, ...]:
    """What makes the next run easier to judge."""
    if num_validations:
        every = max(1, plan.training.num_steps // 10)
        return (Remedy(text="Validate more often.", settings=(f"training.validate_every_steps={every}",)),)
    return (Remedy(text="Keep a tenth of the rows back for validation.", settings=("data.validation=0.1",)),)
