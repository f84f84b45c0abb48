"""An evaluation for people: one sentence, one picture, three samples, one recommended action.

One view for all renderings: the page of an evaluation, the page of its run, the report, and the text of commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from markupsafe import Markup

from luthier.core.evaluation import Evaluation, Metric, Sample, SystemResult
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
from luthier.core.ids import sha256_bytes
from luthier.core.results.recommendation import Recommendation
from luthier.ml.charts.figures import MINUS, common_decimals, number
from luthier.ml.charts.judged_rows import Tone, metric_axis, metric_heading, metric_title, on_scale, tone_of
from luthier.ml.charts.spec import Axis, Bar, Bars, Role
from luthier.ml.evaluation.plain_names import judged_system, name_at_start, plain_name, short_name
from luthier.ml.evaluation.recommendation import recommend, rival_of
from luthier.ml.evaluation.result_views import bar_mark, base_of, metric_names
from luthier.ml.evaluation.verdict_text import held_out_rows, listed

MAX_BARS: Final = 9
MAX_CHARACTERS: Final = 600
_WIDTH: Final = 360

Kind = Literal["typical", "best", "worst"]
_TITLES: Final[dict[Kind, str]] = {"typical": "Typical", "best": "Best", "worst": "Worst"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a text.

    Attributes:
        text: what is shown; empty for an empty text.
        num_left_out: characters that are not shown.
    """

    text: str
    num_left_out: int = 0


@dataclass(frozen=True, slots=True)
class PickedAnswer:
    """What one system answered to a picked row. score: its own figure as text; empty for none."""

    name: str
    answer: Excerpt
    score: str


@dataclass(frozen=True, slots=True)
class Pick:
    """One of the three samples."""

    kind: Kind
    title: str
    row_id: str
    prompt: Excerpt
    reference: Excerpt
    answers: tuple[PickedAnswer, ...]


@dataclass(frozen=True, slots=True)
class Picks:
    """The samples in the order typical, best, worst, and the rule that chose them; both empty without answers."""

    rule: str = ""
    picks: tuple[Pick, ...] = ()


@dataclass(frozen=True, slots=True)
class VerdictView:
    """The view.

    Attributes:
        sentence: how many rows each of the main systems answers correctly, or their figures.
        recommendation: what to do; None without a verdict.
        tone: the colour of the verdict.
        chart: the figures of all systems with their intervals; None where nothing can be drawn.
        num_not_drawn: systems beyond those of the chart.
        picks: three samples.
        caveats: what limits it, most severe first.
    """

    sentence: str
    recommendation: Recommendation | None
    tone: Tone
    chart: Bars | None
    num_not_drawn: int
    picks: Picks
    caveats: tuple[str, ...]

    @property
    def picture(self) -> Markup:
        """The chart as SVG; empty without one."""
        from luthier.ml.charts.svg import drawn

        return Markup("") if self.chart is None else drawn(self.chart)


def verdict_view(evaluation: Evaluation) -> VerdictView | None:
    """The view of an evaluation; None where no system was evaluated. Without stored samples it shows none."""
    if not evaluation.systems:
        return None
    verdict, rival = evaluation.verdict, rival_of(evaluation)
    names = metric_names(evaluation)
    metric = verdict.metric if verdict is not None else names[0] if names else ""
    shown = _in_order(evaluation, metric)
    return VerdictView(
        sentence=_sentence(evaluation, metric, rival),
        recommendation=recommend(evaluation),
        tone=tone_of(None if verdict is None else verdict.word),
        chart=_chart(evaluation, metric, shown[:MAX_BARS], rival) if shown else None,
        num_not_drawn=max(0, len(shown) - MAX_BARS),
        picks=_picks(evaluation, metric, rival),
        caveats=() if verdict is None else verdict.caveats,
    )


def _in_order(evaluation: Evaluation, metric: str) -> list[SystemResult]:
    """The judged system, its base, then the alternatives, the best one first."""
    systems = [one for one in evaluation.systems if metric in one.metrics]
    judged = judged_system(evaluation.systems)
    base = base_of(evaluation.systems, judged.name)
    first = [one for one in systems if one is judged] + [one for one in systems if one.name == base]
    rest = [one for one in systems if one is not judged and one.name != base]
    # All systems of an evaluation share the direction of a metric.
    sign = -1 if rest and rest[0].metrics[metric].higher_is_better else 1
    return [*first, *sorted(rest, key=lambda one: sign * one.metrics[metric].value)]


def _sentence(evaluation: Evaluation, metric: str, rival: SystemResult | None) -> str:
    systems, judged = evaluation.systems, judged_system(evaluation.systems)
    figure = judged.metrics.get(metric)
    if figure is None:
        return f"{name_at_start(judged, systems)} was evaluated on {held_out_rows(judged.num_samples)}."
    base = base_of(systems, judged.name)
    others = [one for one in systems if one.name == base and one is not judged]
    others += [] if rival is None or rival.name == base else [rival]
    others = [one for one in others if metric in one.metrics]
    if metric in SHARES_OF_CORRECT:
        num = f"{_num_right(judged, figure)} of {held_out_rows(judged.num_samples)}"
        opening = f"{name_at_start(judged, systems)} answers {num} correctly"
        parts = [f"{plain_name(one, systems)} {_num_right(one, one.metrics[metric])}" for one in others]
    else:
        decimals = common_decimals([one.metrics[metric] for one in (judged, *others)])
        opening = f"By {metric_title(metric)}{on_scale(figure.unit)}, {plain_name(judged, systems)} reaches "
        opening += number(figure.value, decimals)
        parts = [f"{plain_name(one, systems)} {number(one.metrics[metric].value, decimals)}" for one in others]
    direction = "" if metric in SHARES_OF_CORRECT else f" ({_direction(figure)})"
    text = f"{', '.join([opening, *([listed(parts)] if parts else [])])}{direction}."
    # A plain minus: the sentence is also printed on terminals.
    return text.replace(MINUS, "-")


def _direction(figure: Metric) -> str:
    return "higher is better" if figure.higher_is_better else "lower is better"


def _num_right(system: SystemResult, figure: Metric) -> str:
    """How many rows are right; of several draws of examples about how many."""
    num = figure.value * system.num_samples
    whole = round(num)
    # A mean over draws of few-shot examples need not be a whole number of rows.
    about = "" if abs(num - whole) < 0.01 else "about "
    return f"{about}{whole:,}"


def _chart(evaluation: Evaluation, metric: str, shown: Sequence[SystemResult], rival: SystemResult | None) -> Bars:
    judged, systems = judged_system(evaluation.systems), evaluation.systems
    is_share = metric in SHARES_OF_CORRECT
    decimals = common_decimals([one.metrics[metric] for one in shown])
    rows, described = [], []
    for one in shown:
        found = one.metrics[metric]
        scale = one.num_samples if is_share else 1
        words = _num_right(one, found).removeprefix("about ") if is_share else number(found.value, decimals)
        role: Role = "tuned" if one is judged else "other-1" if one is rival else "base"
        name = short_name(one, systems)
        rows.append(Bar(name, scale * found.value, words, role, interval=(scale * found.low, scale * found.high)))
        ends = [f"{scale * end:,.0f}" if is_share else number(end, decimals) for end in (found.low, found.high)]
        described.append(f"{name} {words} ({ends[0]} to {ends[1]})")
    first, limit = shown[0].metrics[metric], bar_mark(evaluation.verdict, metric)
    if is_share:
        num = judged.num_samples
        axis, title = Axis("", low=0.0, high=float(num)), f"Right answers of {held_out_rows(num)}"
        if limit is not None:
            # In rows, as the axis is.
            limit = type(limit)(num * limit.x, f"{limit.name.partition(': ')[0]}: {num * limit.x:,.4g}")
    else:
        axis, title = metric_axis(metric), f"{metric_heading(metric)}{on_scale(first.unit)}, {_direction(first)}"
    caption = "Thin lines: 95% intervals."
    return Bars(
        "verdict-figures",
        title,
        axis,
        rows,
        limit=limit,
        caption=caption,
        description=f"{title}, with 95% intervals: {'; '.join(described)}.",
        width_pixels=_WIDTH,
    )


def _picks(evaluation: Evaluation, metric: str, rival: SystemResult | None) -> Picks:
    """The middle, the first and the last row by the gain over the rival.

    Without per-row scores of the verdict's metric the first metric that has them ranks.
    """
    judged = judged_system(evaluation.systems)
    own = {one.row_id: one for one in judged.samples}
    other = _other(evaluation, rival)
    theirs = {} if other is None else {one.row_id: one for one in other.samples}
    ranking = _ranking(evaluation, metric, judged)
    if not own or ranking is None:
        return Picks()
    sign = 1.0 if judged.metrics[ranking].higher_is_better else -1.0
    keys = _keys(own, theirs, ranking, sign)
    if not keys:
        return Picks()
    chosen = _chosen(evaluation.evaluation_id, keys)
    systems, name = evaluation.systems, "" if other is None else plain_name(other, evaluation.systems)
    picks = []
    for kind, row_id in chosen.items():
        both = [(judged, own[row_id]), *([(other, theirs[row_id])] if other is not None and row_id in theirs else [])]
        answers = tuple(
            PickedAnswer(name_at_start(one, systems), _excerpt(sample.shown), _score(sample, ranking))
            for one, sample in both
        )
        sample = own[row_id]
        prompt, reference = _excerpt(sample.prompt), _excerpt(sample.reference)
        picks.append(Pick(kind, _TITLES[kind], row_id, prompt, reference, answers))
    return Picks(_rule(len(keys), ranking, name), tuple(picks))


def _other(evaluation: Evaluation, rival: SystemResult | None) -> SystemResult | None:
    """What the judged system's answers are shown beside: the rival, else its base, where they have answers."""
    judged = judged_system(evaluation.systems)
    base = base_of(evaluation.systems, judged.name)
    beside = [rival, *(one for one in evaluation.systems if one.name == base)]
    return next((one for one in beside if one is not None and one is not judged and one.samples), None)


def _ranking(evaluation: Evaluation, metric: str, judged: SystemResult) -> str | None:
    # Fifty rows show which metrics have scores by row; reading all samples for that would take as long as the page.
    scored = {name for sample in judged.samples[:50] for name in sample.scores}
    names = [metric, *metric_names(evaluation)]
    return next((name for name in names if name in scored and name in judged.metrics), None)


def _keys(
    own: Mapping[str, Sample], theirs: Mapping[str, Sample], ranking: str, sign: float
) -> dict[str, tuple[float, float]]:
    """Of each row with scores the gain over the other system, then the own score, more is better."""
    found = {}
    for row_id, sample in own.items():
        score = sample.scores.get(ranking)
        if score is None:
            continue
        beside = theirs.get(row_id)
        before = beside.scores.get(ranking) if beside is not None else None
        # A row that only one system answered has no gain.
        if theirs and before is None:
            continue
        found[row_id] = (sign * (score - (before or 0.0)), sign * score)
    return found


def _chosen(evaluation_id: str, keys: Mapping[str, tuple[float, float]]) -> dict[Kind, str]:
    ranked = sorted(keys.values())
    places: dict[Kind, tuple[float, float]] = {
        # The lower median: a row that exists, and not a mean of two.
        "typical": ranked[(len(ranked) - 1) // 2],
        "best": ranked[-1],
        "worst": ranked[0],
    }
    chosen: dict[Kind, str] = {}
    for kind, key in places.items():
        # Rows already chosen are excluded: with few rows one sample could otherwise be typical and best at once.
        tied = [row for row, own in keys.items() if own == key and row not in chosen.values()]
        if tied:
            chosen[kind] = min(tied, key=lambda row: sha256_bytes(f"{evaluation_id}\n{row}".encode()))
    return chosen


def _rule(num: int, ranking: str, other: str) -> str:
    by = metric_title(ranking)
    order = f"the gain over {other} by {by}" if other else by
    return (
        f"Of {held_out_rows(num)}, ordered by {order}, the largest first: the middle one, the first and the last. Ties "
        "are settled by a digest of the row, not by choice."
    )


def _score(sample: Sample, metric: str) -> str:
    score = sample.scores.get(metric)
    if score is None:
        return ""
    if metric in SHARES_OF_CORRECT:
        return "right" if score == 1 else "wrong"
    return f"{metric_heading(metric)} {number(score, 2)}"


def _excerpt(text: str) -> Excerpt:
    # A little more than the limit is shown whole.
    if len(text) <= MAX_CHARACTERS + 60:
        return Excerpt(text)
    return Excerpt(text[:MAX_CHARACTERS], len(text) - MAX_CHARACTERS)
