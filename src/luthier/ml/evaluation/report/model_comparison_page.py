"""The page of a showdown: the answer, what it rests on, every system, what each costs, and what was not equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from luthier.core.cost import Estimate
from luthier.core.evaluation import Sample
from luthier.core.workflows.model_comparison import ModelComparisonResult, Standing, SystemKind
from luthier.ml.charts import figures
from luthier.ml.charts.drawing import short
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.judged_rows import difference_row, metric_rows, units_of
from luthier.ml.charts.metric_titles import metric_heading, metric_title
from luthier.ml.charts.page import Chart, page_environment, replace_text
from luthier.ml.charts.spec import Axis, Note, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.report.interval_chart import interval_chart
from luthier.ml.evaluation.report.page import TEMPLATES, fold

_COLOURS: Final[dict[SystemKind, Role]] = {"zero-shot": "base", "few-shot": "other-1", "tuned": "tuned"}
_MARKS: Final[dict[SystemKind, Literal["circle", "square", "diamond"]]] = {
    "zero-shot": "circle",
    "few-shot": "square",
    "tuned": "diamond",
}
_BADGES: Final = {"tuned": "tune it", "prompting": "prompting is enough", "nothing": "none of them"}
_TONES: Final = {"tuned": "good", "prompting": "open", "nothing": "bad"}
_BY_BYTES: Final = "bits_per_byte"


def write_model_comparison_page(result: ModelComparisonResult, path: Path) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_model_comparison_page(result))
    return path


def render_model_comparison_page(result: ModelComparisonResult) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    environment = page_environment(TEMPLATES, fold)
    spec, answer = result.spec, result.recommendation
    systems = [one.result for one in result.standings]
    units = units_of(systems)
    of_answer = [one for one in result.comparisons if answer.system in (one.candidate, one.baseline)]
    return environment.get_template("model_comparison.html.j2").render(
        result=result,
        spec=spec,
        answer=answer,
        badge=_BADGES[answer.word],
        tone=_TONES[answer.word],
        key_figures=_key_figures(result),
        charts=model_comparison_charts(result),
        systems=[row_of(result, one) for one in result.standings],
        metrics=metric_rows(systems, result.comparisons, spec.primary),
        names=[one.name for one in systems],
        differences=[
            difference_row(one, units[one.metric]) for one in of_answer if one.metric in (spec.primary, _BY_BYTES)
        ],
        contenders=[_contender_row(result, number) for number in range(len(spec.contenders))],
        samples=_samples(result.standings),
        when=figures.when(result.created_at),
        judged_title=metric_heading(spec.primary),
        file=Path(spec.data).name,
        held_out=Path(spec.held_out).name,
    )


@dataclass(frozen=True, slots=True)
class SystemRow:
    """One system as a table shows it, as text; empty where a figure was not measured.

    Attributes:
        name: of the system.
        kind: zero-shot, few-shot or tuned.
        is_chosen: it is the one that is recommended.
        value: the figure that decides, with its interval.
        bits_per_byte: with its interval.
        seconds: of an answer.
        usd: of 1,000 answers, with its range.
        cut_off: answers that were cut off or empty.
    """

    name: str
    kind: str
    is_chosen: bool
    value: str
    bits_per_byte: str
    seconds: str
    usd: str
    cut_off: str


def row_of(result: ModelComparisonResult, one: Standing) -> SystemRow:
    """A system as text."""
    cut = [(one.result.num_cut_off, "cut off"), (one.result.num_empty, "empty")]
    return SystemRow(
        name=one.result.name,
        kind=one.kind,
        is_chosen=one.result.name == result.recommendation.system,
        value=_figure(one, result.spec.primary),
        bits_per_byte=_figure(one, _BY_BYTES),
        seconds="" if one.seconds_per_answer is None else f"{one.seconds_per_answer:.3g}",
        usd=estimate(one.usd_per_1000_answers),
        cut_off=", ".join(f"{number:,} {word}" for number, word in cut if number),
    )


def estimate(value: Estimate | None) -> str:
    """A figure with its range; empty where there is none."""
    return "" if value is None else f"{value.value:.2g} [{value.low:.2g}, {value.high:.2g}]"


def model_comparison_charts(result: ModelComparisonResult) -> list[Chart]:
    """The figure that decides, bits per byte, and quality against the time of an answer."""
    systems = [one.result for one in result.standings]
    colours = {one.result.name: _COLOURS[one.kind] for one in result.standings}
    # Bits per byte may be the figure that decides: drawn once.
    names = list(dict.fromkeys((result.spec.primary, _BY_BYTES)))
    charts = [interval_chart(systems, colours, name) for name in names if name in systems[0].metrics]
    timed = [one for one in result.standings if one.seconds_per_answer is not None]
    return [*charts, _against_time(result, timed)] if timed else charts


def _against_time(result: ModelComparisonResult, timed: Sequence[Standing]) -> Chart:
    primary = result.spec.primary
    series, notes = [], []
    for one in timed:
        metric, seconds = one.result.metrics[primary], one.seconds_per_answer or 0.0
        dot = Series(
            "",
            [(seconds, metric.value)],
            _COLOURS[one.kind],
            "dots",
            intervals=[(metric.low, metric.high)],
            mark=_MARKS[one.kind],
            radius_pixels=4.5,
        )
        series.append(dot)
        label = short(result.spec.contenders[one.contender].label)
        # Labels take turns above and below, so that neighbours overlap less.
        notes.append(Note(seconds, metric.value, label, below=one.contender % 2 == 1))
    caption = "Circle: as it is; square: with examples in its prompt; diamond: tuned. Up is better, left is faster."
    if not timed[0].result.metrics[primary].higher_is_better:
        caption = caption.replace("Up is", "Down is")
    parts = [f"{one.result.name} {one.seconds_per_answer:.3g} s, {_figure(one, primary)}" for one in timed]
    chart = Plot(
        "chart-against-time",
        f"{metric_heading(primary)} against the time of an answer",
        Axis("seconds an answer"),
        Axis(metric_heading(primary)),
        series,
        notes=notes,
        description=f"{metric_title(primary)} and seconds an answer: {'; '.join(parts)}.",
        width_pixels=460,
        height_pixels=320,
    )
    return report_chart(chart, heading="Quality against time", caption=caption)


def _key_figures(result: ModelComparisonResult) -> list[Fact]:
    spec = result.spec
    planned = spec.planned_hours
    expected = f"of {figures.duration(spec.hours * 3600)}; {planned.low:.2g} to {planned.high:.2g} h were expected"
    return [
        Fact("Contenders", f"{len(spec.contenders)}", f"{len(result.standings)} systems judged"),
        Fact("Rows judged", figures.count(spec.num_judged), f"of {figures.count(spec.num_held_out)}"),
        Fact("Examples trained on", figures.count(spec.num_examples), f"each; {spec.epochs:.3g} times the same rows"),
        Fact("Took", figures.duration(result.hours * 3600), expected),
    ]


def _contender_row(result: ModelComparisonResult, number: int) -> dict[str, str]:
    contender, tuning = result.spec.contenders[number], result.tunings[number]
    peak = tuning.peak_memory_bytes
    hours = contender.training_hours
    return {
        "name": contender.label,
        "model": contender.model if contender.model != contender.label else "",
        "licence": contender.licence or "not known",
        "parameters": figures.short_count(contender.num_parameters),
        "weights": figures.size(contender.weights_bytes),
        "peak": "" if peak is None else figures.size(peak),
        "rate": f"{contender.learning_rate:g}",
        "steps": f"{contender.num_steps:,} of {contender.batch_size:,}",
        "took": figures.duration(tuning.hours * 3600),
        "expected": f"{hours.low * 60:.2g} to {hours.high * 60:.2g} min expected",
        "usd": f"{estimate(tuning.usd)} USD" if tuning.usd else "",
        "run_id": tuning.run_id,
        "reason": tuning.reason,
    }


def _samples(standings: Sequence[Standing]) -> list[tuple[Sample, list[tuple[str, Sample]]]]:
    """The first judged rows, each with what every system has written."""
    rows = zip(*(one.result.samples for one in standings), strict=True)
    return [(row[0], [(one.result.name, sample) for one, sample in zip(standings, row, strict=True)]) for row in rows]


def _figure(one: Standing, name: str) -> str:
    metric = one.result.metrics.get(name)
    if metric is None:
        return ""
    decimals = figures.decimals_for(metric.low, metric.high)
    return f"{figures.number(metric.value, decimals)} {figures.interval(metric.low, metric.high, decimals)}"
