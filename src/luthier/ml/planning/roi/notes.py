"""Notes of an answer: what it rests on without a figure, what the case left out, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.core.results.roi import Case, Way
from luthier.core.results.roi_result import MeasuredGains
from luthier.ml.charts.judged_rows import start
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.flows import HOURS_A_MONTH, Economy, serving_hours
from luthier.ml.planning.roi.inputs import Values, today_accuracy


def notes(case: Case, measured: MeasuredGains | None, economy: Economy, values: Values) -> tuple[str, ...]:
    """One sentence for each thing that a reader would have to know."""
    return (*_measured(case, measured), *_left_out(case), *_capacity(case, economy, values))


def _measured(case: Case, measured: MeasuredGains | None) -> Iterator[str]:
    if case.tuned.alone is not None or case.verdict.alone_at is not None:
        yield "Today's way is assumed to be as accurate on the rest as on all cases; the rest is often harder."
    if measured is None:
        what = "What it answers alone" if case.tuned.alone is not None else "The accuracy gain"
        yield f"{what} is assumed, not measured: train, then pass --verdict RUN."
        return
    if measured.alone is not None and measured.alone.threshold is None:
        yield (
            f"At no threshold of confidence are {words.share(measured.alone.asked)} of its answers right, so it "
            "answers nothing alone. Train on more rows, or use its answers as suggestions that a person checks; if "
            "today's answers are right less often than that, give their accuracy."
        )
    elif measured.alone is not None and measured.alone.threshold is not None:
        yield (
            f"It answers alone from a confidence of {measured.alone.threshold:.2f} on, chosen so that "
            f"{words.share(measured.alone.asked)} of these answers are right, and evaluated on other rows."
        )
    now = today_accuracy(case, measured)
    ending = (
        "" if now is None else f": {words.share(now.value)} correct ({words.share(now.low)} to {words.share(now.high)})"
    )
    yield (
        f"Gains are those of evaluation {measured.evaluation_id}: {measured.metric_title} on {measured.num_rows:,} "
        f"held-out rows; today's way is {measured.today}{ending}."
    )
    if measured.today_kind == "given":
        yield (
            "Today's accuracy was measured on other rows than the tuned model's: the gain is less certain than a "
            "paired one."
        )
    if case.verdict.correct_per_point is not None:
        point = case.verdict.correct_per_point.typical
        yield (
            f"{measured.metric_title} is not a share of correct answers: by the case, where it rises by 1, {point:g} "
            f"more of the answers are correct."
        )
    if measured.baselines:
        yield from _baselines(case, measured)
    yield from measured.notes


def _baselines(case: Case, measured: MeasuredGains) -> Iterator[str]:
    costs = case.alternatives.baselines
    each = 0.0 if costs is None else costs.cost_per_call.typical
    price = (
        f"{words.money(each, case.currency)} a call"
        if each
        else "nothing a call (set alternatives.baselines.cost_per_call)"
    )
    yield (
        f"Baselines without a language model pay no tokens: a CPU answers, for {price}. Except for the commonest "
        "answer they carry the tuned model's hours of people and its evaluations, but not its training."
    )
    # A case may start from a base model that answers nothing correctly, which no one would use unchanged.
    best = max(measured.baselines, key=lambda one: one.value.value)
    figure = measured.today_figure
    if measured.today_kind == "model" and figure is not None and best.value.value > figure.value:
        yield (
            f"{start(best.title)} has {best.value.value:.3g} in {measured.metric_title}, and today's way, "
            f"{measured.today}, {figure.value:.3g}: where that is not what you do today, set verdict.today."
        )


def _left_out(case: Case) -> Iterator[str]:
    if case.upkeep.retrain_every_months is None:
        yield "It is never trained again: the case names no retraining."
    else:
        yield "Retraining costs one training, one evaluation and its hours, spread evenly over the months between."
    # By the upper end: a range that begins at 0 still names hours.
    if case.upkeep.review_hours_per_month.high == 0:
        yield "No one reviews its answers once it is in use: the case names no hours of reviewing a month."
    if case.evaluation.hours.high == 0 and case.evaluation.cost.high == 0:
        yield "Evaluating costs nothing, by the case."
    if case.months_until_launch.high == 0:
        yield "It is in use from the first day: the case names no months until then."
    yield "Simpler ways are in use from the first day. Today's way costs nothing more once another has replaced it."
    yield "Money is not discounted, and the number of calls stays the same."


def _capacity(case: Case, economy: Economy, values: Values) -> Iterator[str]:
    """Where calls need more device hours than a month has: several machines side by side, which the costs include."""
    ways: list[tuple[str, str, Way]] = [("today", "today's way", case.today), ("tuned", "the tuned model", case.tuned)]
    ways += [(f"alternatives.{name}", words.MIDDLE[name], way) for name, way in economy.alternatives().items()]
    for key, title, way in ways:
        if way.self_served is None:
            continue
        hours = float(serving_hours(key, *economy.tokens(key, way, values), values))
        if hours > HOURS_A_MONTH:
            yield (
                f"Calls of {title} need about {hours:,.0f} hours of its devices a month, more than the "
                f"{HOURS_A_MONTH:,.0f} that a month has: {hours / HOURS_A_MONTH:.1f} times as many side by side, and "
                "that is what is priced."
            )
