"""Diagnosis from the losses of a run: early stopping, over- and underfitting, and advice for the next run.

`EarlyStopping` decides during a run when to stop and when to warn. `diagnose` reports afterwards whether it overfitted,
was still learning, was unstable or converged, with only the advice that applies, most useful first.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from luthier.core.events import Event, StepDone, ValidationDone, comparable_loss
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan
from luthier.core.run import Fit, Remedy
from luthier.ml.training.methods.rules import rules_of
from luthier.ml.training.optimizers.rules import rules_of as optimizer_rules

_FEW_ROWS: Final = 2000
_MAX_DROPOUT: Final = 0.3
_SMALL_RANK: Final = 8


def for_overfitted(plan: Plan, best_step: int, last_step: int) -> tuple[Remedy, ...]:
    """Against overfitting: fewer steps, more rows, a smaller learning rate, then regularisation.

    Args:
        plan: of the run.
        best_step: with the lowest validation loss.
        last_step: that was taken.
    """
    training, found = plan.training, list[Remedy]()
    if best_step < last_step:
        epochs = f" (epoch {best_step / training.num_steps_per_epoch:.2g})" if plan.data.has_epochs else ""
        saved = 1 - best_step / last_step
        text = (
            f"Stop at step {best_step:,}{epochs}: {saved:.0%} of the steps taken came after the best one, "
            "and a schedule that ends there ends on a small learning rate."
        )
        found.append(Remedy(text=text, settings=(f"training.max_steps={best_step}",)))
    if not training.early_stopping_patience:
        text = "Let the run stop by itself: early stopping is off."
        found.append(Remedy(text=text, settings=("training.early_stopping_patience=3",)))
    found += _more_rows(plan)
    found.append(
        Remedy(
            text=f"Use smaller steps: half the learning rate of {training.learning_rate:g}.",
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
    if data.train.num_examples >= _FEW_ROWS or not data.has_epochs:
        return []
    text = (
        f"Get more rows than these {data.train.num_examples:,}, each seen {plan.training.epochs:.2g} times: luthier "
        "plan RECIPE --learning-curve measures what more would gain, luthier data synthesise writes some from "
        "documents."
    )
    return [Remedy(text=text)]


def _held_back(plan: Plan) -> list[Remedy]:
    """Regularisation that is not used yet, or only a little.

    Label smoothing is not listed: it raises the loss that this advice is about (docs/benchmarks.md).
    """
    training, method, rules = plan.training, plan.method, rules_of(plan.method.name)
    found = list[Remedy]()
    if not training.neftune_alpha:
        text = "Put noise on the embeddings (NEFTune), so that no row is ever seen twice."
        found.append(Remedy(text=text, settings=("training.neftune_alpha=5",)))
    if "dropout" in rules.settings and method.dropout < _MAX_DROPOUT:
        # At least 0.1: less has no effect that a validation set could show.
        more = min(_MAX_DROPOUT, max(0.1, 2 * method.dropout))
        text = f"Raise dropout from {method.dropout:g} to {more:g}."
        found.append(Remedy(text=text, settings=(f"method.dropout={more:g}",)))
    if method.target_rank is None and method.rank > _SMALL_RANK:
        # alpha is reduced with the rank, so that alpha / rank, the scale of the update, is unchanged.
        half, alpha = method.rank // 2, method.alpha / method.rank * (method.rank // 2)
        text = f"Reduce its capacity: rank {half} instead of {method.rank}, at the same scale."
        found.append(Remedy(text=text, settings=(f"method.rank={half}", f"method.alpha={alpha:g}")))
    if _can_be_averaged(plan):
        text = "Average the weights over the steps: what is kept is smoother than any one step."
        found.append(Remedy(text=text, settings=("training.average.kind=ema",)))
    if not training.weight_decay and rules.takes_decay:
        text = "Let the weights decay; on few steps at a small rate it does little."
        found.append(Remedy(text=text, settings=("training.weight_decay=0.1",)))
    return found


def _can_be_averaged(plan: Plan) -> bool:
    """Whether the weights could be averaged and are not, neither by the plan nor by its optimizer."""
    is_averaged = plan.training.average is not None or optimizer_rules(plan.training.optimizer.name).averages_weights
    return not is_averaged and not rules_of(plan.method.name).not_averaged


def for_still_learning(plan: Plan) -> tuple[Remedy, ...]:
    """Against stopping too early: more steps, larger steps, then less regularisation."""
    training, method = plan.training, plan.method
    asked = plan.recipe.training
    if asked is not None and asked.max_steps is not None and asked.max_steps == training.num_steps:
        more = f"training.max_steps={2 * training.num_steps}"
    else:
        more = f"training.epochs={2 * training.epochs:g}"
    found = [Remedy(text=f"Train longer: twice the {training.num_steps:,} steps.", settings=(more,))]
    text = f"Or use larger steps: twice the learning rate of {training.learning_rate:g}."
    found.append(Remedy(text=text, settings=(f"training.learning_rate={2 * training.learning_rate:g}",)))
    if method.dropout > 0:
        text = f"Remove the dropout of {method.dropout:g}: nothing was memorised."
        found.append(Remedy(text=text, settings=("method.dropout=0",)))
    return tuple(found)


def for_unstable(plan: Plan) -> tuple[Remedy, ...]:
    """Against steps that are too large."""
    training = plan.training
    found = [
        Remedy(
            text=f"Use smaller steps: a third of the learning rate of {training.learning_rate:g}.",
            settings=(f"training.learning_rate={training.learning_rate / 3:.1g}",),
        )
    ]
    if training.schedule == "constant" and not optimizer_rules(training.optimizer.name).averages_weights:
        text = "Let the learning rate fall towards the end: it was constant."
        found.append(Remedy(text=text, settings=("training.lr_schedule=cosine",)))
    if _can_be_averaged(plan):
        text = "Average the weights over the steps: it evens out steps that go to and fro."
        found.append(Remedy(text=text, settings=("training.average.kind=ema",)))
    return tuple(found)


def for_unknown(plan: Plan, num_validations: int) -> tuple[Remedy, ...]:
    """Settings that make the next run easier to evaluate."""
    if num_validations:
        every = max(1, plan.training.num_steps // 10)
        return (Remedy(text="Validate more often.", settings=(f"training.validate_every_steps={every}",)),)
    if plan.data.stream is not None:  # of which no fraction can be taken
        return (Remedy(text="Name a file of validation rows: data.validation.", settings=()),)
    return (Remedy(text="Keep a tenth of the rows back for validation.", settings=("data.validation=0.1",)),)


RISE: Final = 0.01
"""A final validation loss this share above its best counts as a rise; less is within the noise of a few rows."""

LAST_SHARE: Final = 0.3
FALL: Final = 0.02
"""A decrease by this share over the last share of the steps means that the run had not converged. The last few steps
mean little: a learning rate near zero flattens every curve there."""

_TINY: Final = 1e-12


def diagnose(plan: Plan, events: Sequence[Event]) -> Fit:
    """How well a run fitted its rows, from its events. For a step that was trained twice the later event counts.

    Validation losses are compared with the best one whose weights may be saved. Training loss is the mean of the steps
    between two validations, without what regularisation adds to it.
    """
    steps = {e.step: e for e in events if isinstance(e, StepDone)}
    checks = [v for _, v in sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.items())]
    # Each new best is flagged when it occurs, so the last flagged one is the best of all.
    best = next((check for check in reversed(checks) if check.is_best), None)
    if best is None or len(checks) < 2:
        return Fit(kind="unknown", seen=_too_few(checks), remedies=for_unknown(plan, len(checks)))
    last = checks[-1]
    # The newest validation that is at least LAST_SHARE of the steps old; of few validations the first one.
    before = next((c for c in reversed(checks) if c.step <= (1 - LAST_SHARE) * last.step), checks[0])
    # Training loss is noisy by step: each validation is compared with the mean since the one before.
    starts = [0, *(check.step for check in checks[:-1])]
    trained = {c.step: _between(steps, start, c.step) for start, c in zip(starts, checks, strict=True)}
    # Relative, since losses are nats for texts and dimensionless for preferences; _TINY: a loss may be 0.
    rise = (last.loss - best.loss) / max(abs(best.loss), _TINY)
    at = {"best_step": best.step, "last_step": last.step}
    losses = f"from {trained[best.step]:.3f} to {trained[last.step]:.3f}"
    if best is not last and rise >= RISE:
        seen = (
            f"Validation loss was lowest at step {best.step:,} ({best.loss:.3f}) and {last.loss:.3f} at step "
            f"{last.step:,}, {rise:.1%} more, while training loss "
        )
        if trained[last.step] < trained[best.step]:
            seen += (
                f"fell {losses}: from step {best.step:,} on the model memorised its rows. The weights of that step "
                "are kept."
            )
            return Fit(kind="overfitted", seen=seen, remedies=for_overfitted(plan, best.step, last.step), **at)
        seen += f"went {losses}: the steps were too large. The weights of step {best.step:,} are kept."
        return Fit(kind="unstable", seen=seen, remedies=for_unstable(plan), **at)
    # The same rule in the other direction, over the last part of the run.
    fell = (before.loss - last.loss) / max(abs(before.loss), _TINY)
    if best is last and fell >= FALL:
        seen = (
            f"Validation loss was still falling at the end: {before.loss:.3f} at step {before.step:,}, {last.loss:.3f} "
            f"at step {last.step:,} ({fell:.1%} less), the last and the best."
        )
        return Fit(kind="still_learning", seen=seen, remedies=for_still_learning(plan), **at)
    seen = (
        f"Validation loss was {before.loss:.3f} at step {before.step:,} and {last.loss:.3f} at the end; its best was "
        f"{best.loss:.3f}, at step {best.step:,}, whose weights are kept. It neither rose from its best by {RISE:.0%} "
        f"nor fell by {FALL:.0%} over the last {LAST_SHARE:.0%} of the steps."
    )
    return Fit(kind="settled", seen=seen, **at)


def _between(steps: dict[int, StepDone], start: int, stop: int) -> float:
    """Mean loss of the steps after `start` up to `stop`; nan if there were none."""
    # Without what regularisation adds, so that it compares with validation loss.
    losses = [comparable_loss(e) for step, e in steps.items() if start < step <= stop]
    return fmean(losses) if losses else float("nan")


def _too_few(checks: Sequence[ValidationDone]) -> str:
    if not checks:
        return "There were no validation rows, so overfitting cannot be assessed."
    return f"There was only one validation, at step {checks[0].step:,}: one loss shows no trend."


OVERFITTING_RISES = 2


class EarlyStopping(FrozenModel):
    """The state of early stopping; part of every checkpoint, so that a resumed run makes the same decisions.

    Attributes:
        best_loss: lowest validation loss so far; None before the first validation.
        best_step: the step of that loss.
        num_since_best: validations since then.
        num_rises: rises in a row of validation loss while training loss fell.
        last_loss: of the last validation.
        last_train_loss: mean training loss before the last validation.
        has_warned: whether overfitting was reported.
        patience: validations without a new best before the run stops; 0 never stops (Prechelt, 1998, "Early Stopping,
            but when?", criterion UP).
    """

    patience: int
    best_loss: float | None = None
    best_step: int = 0
    num_since_best: int = 0
    num_rises: int = 0
    last_loss: float | None = None
    last_train_loss: float | None = None
    has_warned: bool = False

    def after(self, step: int, loss: float, train_loss: float) -> EarlyStopping:
        """The state after a validation at `step`; `train_loss` is the mean since the validation before.

        Args:
            step: optimizer steps that are done.
            loss: mean validation loss.
            train_loss: mean training loss since the validation before, without what regularisation adds.
        """
        is_best = self.best_loss is None or loss < self.best_loss
        # A rise while training loss falls: a rise of both is a step that was too large, not overfitting.
        rises = (
            self.last_loss is not None
            and self.last_train_loss is not None
            and loss > self.last_loss
            and train_loss < self.last_train_loss
        )
        num_rises = self.num_rises + 1 if rises else 0
        return self.model_copy(
            update={
                "best_loss": loss if is_best else self.best_loss,
                "best_step": step if is_best else self.best_step,
                "num_since_best": 0 if is_best else self.num_since_best + 1,
                "num_rises": num_rises,
                "last_loss": loss,
                "last_train_loss": train_loss,
                # Uses the count before this validation, so that `overfitting` is set for exactly one validation.
                "has_warned": self.has_warned or self.num_rises >= OVERFITTING_RISES,
            }
        )

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience > 0 and self.num_since_best >= self.patience

    @property
    def overfitting(self) -> str | None:
        """The warning to emit now, at most once per run, or None."""
        if self.has_warned or self.num_rises < OVERFITTING_RISES:
            return None
        return (
            f"validation loss rose {self.num_rises} times in a row (now {self.last_loss:.4f}, best "
            f"{self.best_loss:.4f} at step {self.best_step}) while training loss fell: the model is memorising the "
            "rows. The best checkpoint is kept; what to do about it is at the end of the run and in its report"
        )
