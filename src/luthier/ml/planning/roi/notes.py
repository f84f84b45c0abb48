"""What an answer rests on without saying so in a figure: what the case left out, and what was taken for granted."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.core.results.roi import Case, MeasuredGains, Way
from luthier.ml.planning.roi import words
from luthier.ml.planning.roi.flows import HOURS_A_MONTH, Economy, serving_hours
from luthier.ml.planning.roi.inputs import Values


def notes(case: Case, measured: MeasuredGains | None, economy: Economy, values: Values) -> tuple[str, ...]:
    """One sentence for each thing that a reader would have to know."""
    return (*_measured(case, measured), *_left_out(case), *_capacity(case, economy, values))


def _measured(case: Case, measured: MeasuredGains | None) -> Iterator[str]:
    if measured is None:
        yield "The accuracy gain is assumed, not measured: train, then pass --verdict RUN."
        return
    yield (
        f"Gains are those of evaluation {measured.evaluation_id}: {measured.metric_title} on {measured.num_rows:,} "
        f"held-out rows; today's way is {measured.today}."
    )
    if case.verdict.correct_per_point is not None:
        point = case.verdict.correct_per_point.typical
        yield (
            f"{measured.metric_title} is no share of correct answers: by the case, where it rises by 1, {point:g} more "
            f"of the answers are correct."
        )
    yield from measured.notes


def _left_out(case: Case) -> Iterator[str]:
    if case.upkeep.retrain_every_months is None:
        yield "It is never trained again: the case names no retraining."
    else:
        yield "Retraining costs one training, one evaluation and its hours, spread evenly over the months between."
    # By the upper end: a range that begins at 0 still names hours.
    if case.upkeep.review_hours_per_month.high == 0:
        yield "Nobody looks at its answers once it is in use: the case names no hours of reviewing a month."
    if case.evaluation.hours.high == 0 and case.evaluation.cost.high == 0:
        yield "Evaluating costs nothing, by the case."
    if case.months_until_launch.high == 0:
        yield "It is in use from the first day: the case names no months until then."
    yield "Plainer ways are in use from the first day. Today's way costs nothing more once another has its place."
    yield "Money is not discounted, and calls stay as many as they are."


def _capacity(case: Case, economy: Economy, values: Values) -> Iterator[str]:
    """Where calls need more device hours than a month has: several machines side by side, which the costs include."""
    ways: list[tuple[str, str, Way]] = [("today", "today's way", case.today), ("tuned", "the tuned model", case.tuned)]
    ways += [(f"alternatives.{name}", words.MIDDLE[name], way) for name, way in economy.alternatives().items()]
    for key, title, way in ways:
        if way.self_served is None:
            continue
        inputs = values.get(f"{key}.input_tokens", values["calls.input_tokens"])
        outputs = values.get(f"{key}.output_tokens", values["calls.output_tokens"])
        hours = float(serving_hours(key, inputs, outputs, values))
        if hours > HOURS_A_MONTH:
            yield (
                f"Calls of {title} need about {hours:,.0f} hours of its devices a month, more than the "
                f"{HOURS_A_MONTH:,.0f} that a month has: {hours / HOURS_A_MONTH:.1f} times as many side by side, and "
                "that is what is priced."
            )
