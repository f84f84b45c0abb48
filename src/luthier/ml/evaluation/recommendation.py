"""The one action that an evaluation recommends, by rules in a fixed order.

The table of rules is in docs/explanation/verdict.md. The tuned model is only recommended where the verdict is "better"
and the model is better than the best alternative, too. An alternative costs less than training, so it does not have to
be better than the tuned model to be recommended: not being worse is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.evaluation import (
    NOT_DISTINGUISHABLE,
    Comparison,
    Evaluation,
    Metric,
    SystemResult,
    Verdict,
)
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
from luthier.core.results.recommendation import Action, Recommendation
from luthier.core.text.counted import counted
from luthier.ml.charts.figures import MINUS, decimals_for, number
from luthier.ml.charts.judged_rows import metric_title, on_scale, start
from luthier.ml.evaluation.plain_names import judged_system, name_at_start, plain_name
from luthier.ml.evaluation.verdict_text import LEAKED, TRIVIAL, held_out_rows, rounded_up

MAX_GROWTH: Final = 20
"""Times the evaluated rows: a difference that needs more rows than that is too small to collect them for."""
_PROMPTS: Final = ("few_shot", "instruction", "optimised_prompt")
_TEACHER: Final = "teacher "
_ENOUGH: Final = "With these, the rows are expected to be enough."


@dataclass(frozen=True, slots=True)
class Case:
    """What the rules read.

    Attributes:
        evaluation: with a verdict.
        verdict: of the evaluation.
        judged: the system that the verdict is about.
        rival: the best of the systems that the judged one is not shown to be better than; None where there is none.
        gap: the comparison with it by the verdict's metric; None where it was not compared.
        trivial: what answers without a look at the row and is not shown to be beaten; None where all of it is.
    """

    evaluation: Evaluation
    verdict: Verdict
    judged: SystemResult
    rival: SystemResult | None
    gap: Comparison | None
    trivial: SystemResult | None = None

    @property
    def is_better(self) -> bool:
        """Whether the judged system is better than everything that it was compared with."""
        return self.verdict.word == "better" and self.verdict.better_than_best_alternative in (None, "better")

    @property
    def has_curve(self) -> bool:
        """Whether more training rows are expected to help."""
        return self.verdict.learning_curve is not None and self.verdict.learning_curve.word == "more_rows"

    @property
    def misses_bar(self) -> bool:
        """Whether a figure is required that the judged system is not shown to reach."""
        return self.verdict.good_enough == "no"

    @property
    def is_open(self) -> bool:
        """Whether the difference to the rival is not settled by these rows."""
        return self.gap is not None and self.gap.verdict == NOT_DISTINGUISHABLE

    @property
    def num_left(self) -> int:
        """Held-out rows that are there and were not evaluated."""
        return max(0, (self.evaluation.num_rows_in_file or 0) - self.judged.num_samples)

    @property
    def subject(self) -> str:
        """The judged system in a sentence."""
        return plain_name(self.judged, self.evaluation.systems)

    @property
    def opening(self) -> str:
        """The judged system at the start of a sentence."""
        return name_at_start(self.judged, self.evaluation.systems)

    @property
    def other(self) -> str:
        """The rival in a sentence."""
        return "" if self.rival is None else plain_name(self.rival, self.evaluation.systems)


def recommend(evaluation: Evaluation) -> Recommendation | None:
    """The recommended action; None for an evaluation without a verdict. Samples are not needed for it."""
    if evaluation.verdict is None or not evaluation.systems:
        return None
    case = _case(evaluation, evaluation.verdict)
    for place, rule in enumerate(RULES, start=1):
        if (found := rule(case)) is not None:
            return found.model_copy(update={"rule": place})
    raise AssertionError("the last rule always applies")


def with_agreeing_headline(evaluation: Evaluation) -> Evaluation:
    """The evaluation, whose headline names what to use instead only where that is the recommended action."""
    verdict, found = evaluation.verdict, recommend(evaluation)
    if verdict is None or found is None or found.action == "use_simple_method":
        return evaluation
    # As `verdict.simple_sentence` ends, which does not know the recommended action.
    agreeing = verdict.model_copy(update={"headline": verdict.headline.replace(": use that instead", "")})
    return evaluation.model_copy(update={"verdict": agreeing})


def recommendation_document(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """The recommended action as JSON has it; None without an evaluation or a verdict."""
    found = None if evaluation is None else recommend(evaluation)
    return None if found is None else found.model_dump(mode="json")


def rival_of(evaluation: Evaluation) -> SystemResult | None:
    """The system that a reader compares the judged one with.

    What it does not beat, else the best alternative, else what it beats by least.
    """
    verdict = evaluation.verdict
    if verdict is None or not evaluation.systems:
        return None
    case = _case(evaluation, verdict)
    name = verdict.best_alternative if case.rival is None else case.rival.name
    if name is None and (nearest := _nearest(case)) is not None:
        name = nearest.baseline
    return next((one for one in evaluation.systems if one.name == name), None)


def _case(evaluation: Evaluation, verdict: Verdict) -> Case:
    judged = judged_system(evaluation.systems)
    by_name = {one.name: one for one in evaluation.systems if one is not judged and verdict.metric in one.metrics}
    gaps = {one.baseline: one for one in _own(evaluation, verdict) if one.baseline in by_name}
    # "Not distinguishable" counts as a rival: a cheaper system need only not be worse.
    names = [name for name, gap in gaps.items() if gap.verdict != "better"]
    if not names and verdict.better_than_best_alternative not in (None, "better"):
        names = [name for name in by_name if name == verdict.best_alternative]
    # Signed so that larger is better, whatever the metric: a perplexity falls as a model improves.
    sign = _sign(judged, verdict)
    # Of equal ones the one without a language model, which costs least.
    figures = {name: sign * by_name[name].metrics[verdict.metric].value for name in names}
    best = max(figures, key=lambda name: (figures[name], not by_name[name].is_model), default="")
    trivial = next((by_name[name] for name in names if by_name[name].kind in TRIVIAL), None)
    return Case(evaluation, verdict, judged, by_name.get(best), gaps.get(best), trivial)


def _sign(judged: SystemResult, verdict: Verdict) -> float:
    figure = judged.metrics.get(verdict.metric)
    return 1.0 if figure is None or figure.higher_is_better else -1.0


def _leaked(case: Case) -> Recommendation | None:
    verdict = case.verdict
    if not verdict.num_leaked and not any(LEAKED in caveat for caveat in verdict.caveats):
        return None
    which = held_out_rows(verdict.num_leaked) if verdict.num_leaked else "Some held-out rows"
    are = "is a training row" if verdict.num_leaked == 1 else "are training rows"
    return Recommendation(
        action="evaluate_more",
        title="Evaluate on rows that training has not used.",
        reason=f"{start(which)} {are}, too, so these figures are too good to act on.",
    )


def _use(case: Case) -> Recommendation | None:
    if not case.is_better or case.misses_bar:
        return None
    reached = f" It reaches the required {_bar(case)}." if case.verdict.good_enough == "yes" else ""
    return _of("use_model", f"Use {case.subject}.", f"{_ahead_of_all(case)}{reached}", case.judged)


def _use_in_part(case: Case) -> Recommendation | None:
    coverage = case.verdict.coverage
    if not case.is_better or coverage is None or not coverage.is_shown or not coverage.num_answered:
        return None
    if coverage.is_of_all:
        return _of(
            "use_model",
            f"Use {case.subject} with its likeliest label.",
            f"{_ahead_of_all(case)} Its likeliest label is shown to reach the required {_bar(case)} in all cases.",
            case.judged,
        )
    share = coverage.percent
    return _of(
        "use_model",
        f"Use {case.subject} for the {share} of cases that it is sure of; people answer the others.",
        f"{_ahead_of_all(case)} For all cases it is not shown to reach the required {_bar(case)}, for these it is.",
        case.judged,
    )


def _more_rows_for_bar(case: Case) -> Recommendation | None:
    if not case.is_better or not case.has_curve:
        return None
    return _add_rows(case, f"{_ahead_of_all(case)} It is not shown to reach the required {_bar(case)}.")


def _more_held_out_for_bar(case: Case) -> Recommendation | None:
    needed = _rows_for_bar(case)
    if not case.is_better or needed is None:
        return None
    return _evaluate(
        case, needed, f"Its figure reaches the required {_bar(case)}, but its 95% interval begins below it."
    )


def _larger_base_for_bar(case: Case) -> Recommendation | None:
    if not case.is_better:
        return None
    return _larger_base(case, f"{_ahead_of_all(case)} It is not shown to reach the required {_bar(case)}.")


def _nothing_known(case: Case) -> Recommendation | None:
    if case.rival is not None:
        return None
    why = f"These {held_out_rows(case.judged.num_samples)} do not settle which system is better."
    if case.num_left:
        return _evaluate_all(case, why)
    return _of("evaluate_more", "Evaluate on more held-out rows before you decide.", why)


def _more_rows(case: Case) -> Recommendation | None:
    is_untrained = case.rival is not None and case.rival.is_model
    if not case.has_curve or not (_is_weak(case) or (is_untrained and case.is_open)):
        return None
    return _add_rows(case, f"{_gap(case)}.{_weakness(case)}")


def _more_held_out(case: Case) -> Recommendation | None:
    if case.misses_bar:
        return None
    needed, most = None if case.gap is None else case.gap.rows_needed, MAX_GROWTH * case.judged.num_samples
    if case.is_open and needed is not None and needed <= most and _is_ahead(case):
        return _evaluate(case, needed, f"{_gap(case)}: that may be chance.")
    over = _over_trivial(case)
    if over is None or not 0 < over <= 1:
        return None
    # Half the width of an interval falls with the root of the rows. The small number is for rounding errors.
    needed = math.ceil(case.judged.num_samples / over**2 - 1e-6)
    return _evaluate(case, needed, f"{_gap(case)}.{_weakness(case)}") if needed <= most else None


def _larger_base_instead(case: Case) -> Recommendation | None:
    return _larger_base(case, f"{_gap(case)}.{_weakness(case)}") if _is_weak(case) else None


def _use_prompt(case: Case) -> Recommendation | None:
    rival = case.rival
    if rival is None or not rival.is_model or not rival.is_prompted:
        return None
    if rival.prompting is not None and rival.prompting.kind not in _PROMPTS:
        return None
    why = f"{_gap(case)}, and a prompt needs no training."
    return _of("use_prompt", f"Use {case.other}.", f"{why}{_either(case)}", rival)


def _use_simple_method(case: Case) -> Recommendation | None:
    if case.rival is None or case.rival.is_model:
        return None
    why = f"{_gap(case)}, which needs no language model."
    return _of("use_simple_method", f"Use {case.other} instead.", f"{why}{_either(case)}", case.rival)


def _use_other_model(case: Case) -> Recommendation | None:
    assert case.rival is not None
    return _of("use_other_model", f"Use {case.other} as it is.", f"{_gap(case)}.{_either(case)}", case.rival)


RULES: Final[tuple[Callable[[Case], Recommendation | None], ...]] = (
    _leaked,
    _use,
    _use_in_part,
    _more_rows_for_bar,
    _more_held_out_for_bar,
    _larger_base_for_bar,
    _nothing_known,
    _more_rows,
    _more_held_out,
    _larger_base_instead,
    _use_prompt,
    _use_simple_method,
    _use_other_model,
)
"""The rules in their order; the first one that applies decides."""


def _of(action: Action, title: str, reason: str, system: SystemResult | None = None) -> Recommendation:
    return Recommendation(action=action, title=title, reason=reason, system=None if system is None else system.name)


def _add_rows(case: Case, why: str) -> Recommendation:
    curve = case.verdict.learning_curve
    num = None if curve is None else curve.more_rows
    how_many = "more training rows" if num is None else f"about {num:,} training rows"
    advice = "" if curve is None else f" {curve.advice}"
    return Recommendation(
        action="add_rows", title=f"Add {how_many} and train again.", reason=f"{why}{advice}", num_rows=num
    )


def _evaluate(case: Case, needed: int, why: str) -> Recommendation:
    num = int(rounded_up(needed).replace(",", ""))
    reason = f"{why} {held_out_rows(case.judged.num_samples)} are too few to settle it."
    if case.num_left:
        return _evaluate_all(case, reason, num)
    return Recommendation(
        action="evaluate_more",
        title=f"Evaluate on about {num:,} held-out rows before you decide.",
        reason=reason,
        num_rows=num,
    )


def _evaluate_all(case: Case, why: str, needed: int | None = None) -> Recommendation:
    """First the rows that are there, then those that are to be collected."""
    total = case.judged.num_samples + case.num_left
    left = f"{counted(case.num_left, 'held-out row has', 'held-out rows have')} not been evaluated yet."
    then = ""
    if needed is not None:
        more = int(rounded_up(needed - total).replace(",", "")) if needed > total else 0
        then = f"After that, about {counted(more, 'more row is', 'more rows are')} needed." if more else _ENOUGH
    return Recommendation(
        action="evaluate_more",
        title=f"Evaluate all {counted(total, 'held-out row')} before you decide.",
        reason=" ".join(filter(None, (why, left, then))),
        num_rows=needed,
        num_rows_left=case.num_left,
    )


def _larger_base(case: Case, why: str) -> Recommendation:
    curve = case.verdict.learning_curve
    enough = curve is not None and curve.word == "enough_rows"
    rows = " More rows of this kind are not expected to help." if enough else ""
    return _of("larger_base", "Train a larger base model.", f"{why}{rows}")


def _bar(case: Case) -> str:
    bar = case.verdict.bar
    return "figure" if bar is None else f"{bar.value:.3g} by {metric_title(bar.metric)}"


def _rows_for_bar(case: Case) -> int | None:
    """Held-out rows from which the interval of the judged figure would reach the bar; None where that is hopeless."""
    bar = case.verdict.bar
    figure = None if bar is None else case.judged.metrics.get(bar.metric)
    if bar is None or figure is None:
        return None
    above, below = _over(figure, bar.value), _half_width(figure)
    if above <= 0 or below <= 0:
        return None
    # Half the width of an interval falls with the root of the rows.
    # The interval has to shrink from `below` to `above`, its distance to the bar.
    growth = (below / above) ** 2
    if not 1 < growth <= MAX_GROWTH:
        return None
    # The small number keeps rounding errors of the division from adding a row.
    return math.ceil(case.judged.num_samples * growth - 1e-6)


def _over(figure: Metric, value: float) -> float:
    return (figure.value - value) * (1 if figure.higher_is_better else -1)


def _half_width(figure: Metric) -> float:
    """From the figure to the end of its interval on the worse side."""
    return figure.value - figure.low if figure.higher_is_better else figure.high - figure.value


def _is_weak(case: Case) -> bool:
    """Whether the rival does not solve the task either: not shown to beat a trivial one, below the bar, never right."""
    return bool(_weakness(case))


def _weakness(case: Case) -> str:
    rival, verdict = case.rival, case.verdict
    if rival is None:
        return ""
    if rival.kind in TRIVIAL:
        return " That needs no understanding of a row, so the model has learned little of the task."
    if (over := _over_trivial(case)) is not None and over <= 1 and case.trivial is not None:
        name = plain_name(case.trivial, case.evaluation.systems)
        return f" {name_at_start(rival, case.evaluation.systems)} is not shown to be better than {name} either."
    figure = rival.metrics.get(verdict.metric)
    if verdict.metric in SHARES_OF_CORRECT and figure is not None and figure.value == 0:
        own = case.judged.metrics.get(verdict.metric)
        if own is None or own.value == 0:
            return " No system gives a right answer."
        # These few rows do not settle a difference to nothing.
        return f" {name_at_start(rival, case.evaluation.systems)} gives no right answer."
    bar = verdict.bar
    required = None if bar is None else rival.metrics.get(bar.metric)
    if case.misses_bar and bar is not None and required is not None and _over(required, bar.value) < 0:
        return f" Neither reaches the required {_bar(case)}."
    return ""


def _over_trivial(case: Case) -> float | None:
    """How far the rival is ahead of what answers without a look at the row, in half widths of the 95% interval.

    None where the judged system is better than that, and for a rival that is no better kind of answer itself. Of labels
    that are noise the luckiest of several systems is ahead of the most common answer, too, but not by 1.

    Source: Newcombe, 1998, "Interval estimation for the difference between independent proportions", method 10: the
    half widths of two intervals as the sides of a right angle. For two systems on the same rows it is rather too wide.
    """
    rival, trivial, metric = case.rival, case.trivial, case.verdict.metric
    if rival is None or trivial is None or rival.kind in TRIVIAL:
        return None
    one, other = rival.metrics[metric], trivial.metrics[metric]
    ahead = _over(one, other.value)
    # To the worse side of the rival, and to the better one of the other.
    upper = other.high - other.value if other.higher_is_better else other.value - other.low
    width = math.hypot(_half_width(one), upper)
    return ahead / width if width else math.copysign(math.inf, ahead) if ahead else 0.0


def _is_ahead(case: Case) -> bool:
    return case.gap is not None and _sign(case.judged, case.verdict) * case.gap.difference > 0


def _ahead_of_all(case: Case) -> str:
    """How far it is ahead of the nearest of all that it was compared with."""
    nearest = _nearest(case)
    if nearest is None:
        return "It is better than everything that it was compared with."
    systems, own = case.evaluation.systems, _own(case.evaluation, case.verdict)
    name = next((plain_name(one, systems) for one in systems if one.name == nearest.baseline), nearest.baseline)
    ending = {1: "", 2: " The other one is further behind."}.get(
        len(own), f" {len(own) - 1:,} others are further behind."
    )
    return f"{case.opening} is {_distance(case, nearest, name)}.{ending}"


def _own(evaluation: Evaluation, verdict: Verdict) -> list[Comparison]:
    """The comparisons of the judged system by the verdict's metric."""
    by = (judged_system(evaluation.systems).name, verdict.metric)
    own = [one for one in evaluation.comparisons if (one.candidate, one.metric) == by]
    # A student need not beat its teacher, which costs more.
    return [one for one in own if not one.baseline.startswith(_TEACHER)]


def _nearest(case: Case) -> Comparison | None:
    """The comparison that favours the judged system least."""
    sign = _sign(case.judged, case.verdict)
    return min(_own(case.evaluation, case.verdict), key=lambda one: sign * one.difference, default=None)


def _gap(case: Case) -> str:
    if case.gap is None:
        return f"{case.opening} is not shown to be better than {case.other}"
    return f"{case.opening} is {_distance(case, case.gap, case.other)}"


def _either(case: Case) -> str:
    """That the tuned model does not beat an answer without a look at the row, either: then little is worth using."""
    if case.trivial is None or case.trivial is case.rival:
        return ""
    name = plain_name(case.trivial, case.evaluation.systems)
    return f" {case.opening} is not shown to be better than {name} either."


def _distance(case: Case, gap: Comparison, name: str) -> str:
    """`12 percentage points ahead of a linear classifier (95% interval 4 to 20)`."""
    if gap.test == "strongest_draw":
        # The figure that is shown is the mean of all draws; this is the distance to the strongest of them.
        name = f"the strongest draw of {name}"
    sign = _sign(case.judged, case.verdict)
    is_share = gap.metric in SHARES_OF_CORRECT
    scale = 100.0 if is_share else 1.0
    own, low, high = (scale * sign * value for value in (gap.difference, gap.low, gap.high))
    # A negative sign has swapped the two ends.
    low, high = sorted((low, high))
    decimals = (0 if max(abs(low), abs(high)) >= 2 else 1) if is_share else decimals_for(low, high)
    if own == low == high == 0:
        return f"level with {name} on every one of {held_out_rows(case.judged.num_samples)}"
    metric = case.judged.metrics.get(gap.metric)
    unit = " percentage points" if is_share else on_scale("" if metric is None else metric.unit)
    by = "" if is_share else f", by {metric_title(gap.metric)}"
    # A plain minus: the sentence is also printed on terminals and stored as JSON.
    interval = f"95% interval {number(low, decimals)} to {number(high, decimals)}".replace(MINUS, "-")
    if float(number(abs(own), decimals).replace(",", "")) == 0:
        return f"level with {name} ({interval}{unit}{by})"
    side, size = "ahead of" if own > 0 else "behind", number(abs(own), decimals)
    unit = " percentage point" if is_share and size == "1" else unit
    return f"{size}{unit} {side} {name} ({interval}{by})"
