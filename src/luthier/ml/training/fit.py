"""What the losses of a run say: overfitted, still learning, unstable or settled."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from luthier.core.events import Event, StepDone, ValidationDone, comparable_loss
from luthier.core.fit import Fit
from luthier.core.plan import Plan
from luthier.ml.training.fit_advice import for_astray, for_by_heart, for_still_learning, for_unlooked

RISE: Final = 0.01
"""A final validation loss this share above its best counts as a rise; less is within the noise of a few rows."""

LAST_SHARE: Final = 0.3
FALL: Final = 0.02
"""A fall of this share over the last share of the steps means that the end was not reached. The last few steps say
little: a learning rate that falls to nothing flattens every curve there."""

_TINY: Final = 1e-12


def diagnose(plan: Plan, events: Sequence[Event]) -> Fit:
    """How a run fitted its rows, by its events. Of a step that was trained twice the later event counts.

    Validation losses are compared with the best one that may be kept. Training loss is the mean of the steps between
    two validations, without what regularisation adds to it.
    """
    steps = {e.step: e for e in events if isinstance(e, StepDone)}
    checks = [v for _, v in sorted({e.step: e for e in events if isinstance(e, ValidationDone)}.items())]
    # Each new best is flagged when it comes, so the last flagged one is the best of all.
    best = next((check for check in reversed(checks) if check.is_best), None)
    if best is None or len(checks) < 2:
        return Fit(kind="unknown", seen=_too_few(checks), remedies=for_unlooked(plan, len(checks)))
    last = checks[-1]
    before = next((c for c in reversed(checks) if c.step <= (1 - LAST_SHARE) * last.step), checks[0])
    starts = [0, *(check.step for check in checks[:-1])]
    trained = {c.step: _between(steps, start, c.step) for start, c in zip(starts, checks, strict=True)}
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
                f"fell {losses}: from step {best.step:,} on the model learned its rows by heart. The weights of that "
                "step are kept."
            )
            return Fit(kind="overfitted", seen=seen, remedies=for_by_heart(plan, best.step, last.step), **at)
        seen += f"went {losses}: the steps were too large. The weights of step {best.step:,} are kept."
        return Fit(kind="unstable", seen=seen, remedies=for_astray(plan), **at)
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
    """Mean loss of the steps after `start` up to `stop`; nan where there was none."""
    losses = [comparable_loss(e) for step, e in steps.items() if start < step <= stop]
    return fmean(losses) if losses else float("nan")


def _too_few(checks: Sequence[ValidationDone]) -> str:
    if not checks:
        return "There were no validation rows, so nobody can say whether the model learned its rows by heart."
    return f"There was only one validation, at step {checks[0].step:,}: one loss shows no course."
