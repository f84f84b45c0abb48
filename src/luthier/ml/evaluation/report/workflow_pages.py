"""The pages of workflows: a model comparison, `luthier automl`, and a distillation.

Each starts with the answer or verdict; then come the systems side by side, what they cost, and what was not equal, the
stages of automl with where the budget went and the next commands, and how the student of a distillation was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from luthier.core.estimate import Estimate
from luthier.core.evaluation import Evaluation, Sample, SystemResult
from luthier.core.system.files import replace_text
from luthier.core.workflows.pipeline import (
    ALONE,
    TAUGHT,
    AutomlSpec,
    ModelComparisonResult,
    Pipeline,
    StageStatus,
    Standing,
    Student,
    SystemKind,
)
from luthier.ml.charts import figures
from luthier.ml.charts.drawing import short
from luthier.ml.charts.figures import Fact
from luthier.ml.charts.judged_rows import difference_row, metric_heading, metric_rows, metric_title, tone_of, units_of
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import Axis, Mark, Note, Plot, Role, Series
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.report.evaluation_results import interval_chart
from luthier.ml.evaluation.report.page import TEMPLATES, judged_view
from luthier.ml.evaluation.result_views import Roles

_COLOURS: Final[dict[SystemKind, Role]] = {
    "zero-shot": "base",
    "likeliest-label": "other-3",
    "few-shot": "other-1",
    "few-shot-nearest": "other-4",
    "tuned": "tuned",
}
_MARKS: Final[dict[SystemKind, Literal["circle", "square", "diamond"]]] = {
    "zero-shot": "circle",
    "likeliest-label": "circle",
    "few-shot": "square",
    "few-shot-nearest": "square",
    "tuned": "diamond",
}
_OPEN: Final = ("likeliest-label", "few-shot-nearest")
_WITHOUT_MODEL: Final[Role] = "other-2"
_BADGES: Final = {"tuned": "tune it", "prompting": "prompting is enough", "nothing": "none of them"}
_COMPARISON_TONES: Final = {"tuned": "good", "prompting": "open", "nothing": "bad"}
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
    environment = page_environment(TEMPLATES)
    spec, answer = result.spec, result.recommendation
    systems = [*(one.result for one in result.standings), *result.baselines]
    units = units_of(systems)
    of_answer = [one for one in result.comparisons if answer.system in (one.candidate, one.baseline)]
    return environment.get_template("model_comparison.html.j2").render(
        result=result,
        spec=spec,
        answer=answer,
        badge=no_better_than(answer.use_instead) if answer.use_instead else _BADGES[answer.word],
        tone=_COMPARISON_TONES["prompting" if answer.use_instead else answer.word],
        key_figures=_comparison_figures(result),
        charts=model_comparison_charts(result),
        systems=system_rows(result),
        metrics=metric_rows(systems, result.comparisons, spec.primary),
        names=[one.name for one in systems],
        differences=[
            difference_row(one, units[one.metric]) for one in of_answer if one.metric in (spec.primary, _BY_BYTES)
        ],
        contenders=[_contender_row(result, number) for number in range(len(spec.contenders))],
        samples=_samples([*(one.result for one in result.standings), *result.baselines]),
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
        kind: as of a `Standing`; `baseline` without a language model.
        licence: of its base model; empty for a baseline.
        is_chosen: it is the one that is recommended.
        value: the figure that decides, with its interval.
        bits_per_byte: with its interval.
        seconds: of an answer; of a baseline, of fitting it and all its answers.
        usd: of 1,000 answers, with its range.
        cut_off: answers that were cut off or empty.
    """

    name: str
    kind: str
    licence: str
    is_chosen: bool
    value: str
    bits_per_byte: str
    seconds: str
    usd: str
    cut_off: str


def system_rows(result: ModelComparisonResult) -> list[SystemRow]:
    """Every system as text: the models, then the baselines without one."""
    models = [
        _row(
            result,
            one.result,
            kind=one.kind,
            licence=result.spec.contenders[one.contender].licence,
            seconds="" if one.seconds_per_answer is None else f"{one.seconds_per_answer:.3g}",
            usd=estimate(one.usd_per_1000_answers),
        )
        for one in result.standings
    ]
    simple = [
        _row(result, one, kind="baseline", licence="", seconds=f"{one.seconds:.2g} in all", usd="")
        for one in result.baselines
    ]
    return [*models, *simple]


def _row(
    result: ModelComparisonResult, system: SystemResult, *, kind: str, licence: str, seconds: str, usd: str
) -> SystemRow:
    cut = [(system.num_cut_off, "cut off"), (system.num_empty, "empty")]
    return SystemRow(
        name=system.name,
        kind=kind,
        licence=licence,
        is_chosen=system.name == result.recommendation.system,
        value=_figure(system, result.spec.primary),
        bits_per_byte=_figure(system, _BY_BYTES),
        seconds=seconds,
        usd=usd,
        cut_off=", ".join(f"{number:,} {word}" for number, word in cut if number),
    )


def no_better_than(name: str) -> str:
    """The badge of an answer that a baseline without a language model is as good as."""
    return f"no better than {name}"


def estimate(value: Estimate | None) -> str:
    """A figure with its range; empty where there is none."""
    return "" if value is None else f"{value.value:.2g} [{value.low:.2g}, {value.high:.2g}]"


def model_comparison_charts(result: ModelComparisonResult) -> list[Chart]:
    """The figure that decides, bits per byte, and quality against the time of an answer."""
    systems = [*(one.result for one in result.standings), *result.baselines]
    colours = {one.result.name: _COLOURS[one.kind] for one in result.standings}
    colours |= {one.name: _WITHOUT_MODEL for one in result.baselines}
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
            is_open=one.kind in _OPEN,
            radius_pixels=4.5,
        )
        series.append(dot)
        label = short(result.spec.contenders[one.contender].label)
        # Labels take turns above and below, so that neighbours overlap less.
        notes.append(Note(seconds, metric.value, label, below=one.contender % 2 == 1))
    kinds = {one.kind for one in timed}
    ring = "; open circle: its likeliest label" if "likeliest-label" in kinds else ""
    square = "; open square: with the nearest examples" if "few-shot-nearest" in kinds else ""
    caption = f"Circle: as it is{ring}; square: with examples in its prompt{square}; diamond: tuned. "
    caption += "Up is better, left is faster."
    if not timed[0].result.metrics[primary].higher_is_better:
        caption = caption.replace("Up is", "Down is")
    parts = [f"{one.result.name} {one.seconds_per_answer:.3g} s, {_figure(one.result, primary)}" for one in timed]
    # Its time is of another kind (fitting it), so the best baseline without a model is a line, not a point.
    marks = []
    if (best := _best_baseline(result)) is not None:
        marks.append(Mark(best.metrics[primary].value, best.name, axis="y", role=_WITHOUT_MODEL))
        caption += f" Dashed line: {best.name}, without a language model."
        parts.append(f"{best.name}, without a language model, {_figure(best, primary)}")
    chart = Plot(
        "chart-against-time",
        f"{metric_heading(primary)} against the time of an answer",
        Axis("seconds an answer"),
        Axis(metric_heading(primary)),
        series,
        notes=notes,
        marks=marks,
        description=f"{metric_title(primary)} and seconds an answer: {'; '.join(parts)}.",
        width_pixels=460,
        height_pixels=320,
    )
    return report_chart(chart, heading="Quality against time", caption=caption)


def _best_baseline(result: ModelComparisonResult) -> SystemResult | None:
    found = [one for one in result.baselines if result.spec.primary in one.metrics]
    if not found:
        return None
    best = max if found[0].metrics[result.spec.primary].higher_is_better else min
    return best(found, key=lambda one: one.metrics[result.spec.primary].value)


def _comparison_figures(result: ModelComparisonResult) -> list[Fact]:
    spec = result.spec
    planned = spec.planned_hours
    expected = f"of {figures.duration(spec.hours * 3600)}; {planned.low:.2g} to {planned.high:.2g} h were expected"
    return [
        Fact(
            "Contenders",
            f"{len(spec.contenders)}",
            f"{len(result.standings)} systems evaluated"
            + (f", {len(result.baselines)} baselines without a model" if result.baselines else ""),
        ),
        Fact("Rows evaluated", figures.count(spec.num_judged), f"of {figures.count(spec.num_held_out)}"),
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


def _samples(systems: Sequence[SystemResult]) -> list[tuple[Sample, list[tuple[str, Sample]]]]:
    """The first evaluated rows, each with what every system has written."""
    rows = zip(*(one.samples for one in systems), strict=True)
    return [(row[0], [(one.name, sample) for one, sample in zip(systems, row, strict=True)]) for row in rows]


def _figure(system: SystemResult, name: str) -> str:
    metric = system.metrics.get(name)
    if metric is None:
        return ""
    decimals = figures.decimals_for(metric.low, metric.high)
    return f"{figures.number(metric.value, decimals)} {figures.interval(metric.low, metric.high, decimals)}"


@dataclass(frozen=True, slots=True)
class AutoStage:
    """A stage as the page shows it.

    Attributes:
        name: of the stage.
        words: what it does, for people.
        status: how far it is.
        lines: its result.
        hours: time that it took.
        href: its own page; empty where there is none.
    """

    name: str
    words: str
    status: StageStatus
    lines: tuple[str, ...]
    hours: float
    href: str = ""


def write_auto_page(
    path: Path,
    pipeline: Pipeline,
    spec: AutomlSpec,
    *,
    headline: str,
    stages: Sequence[AutoStage],
    evaluation: Evaluation | None,
    recipe: str,
    spent_hours: float,
    commands: Sequence[str],
) -> Path:
    """Write the page to `path`, whole or not at all.

    Args:
        path: of the page.
        pipeline: the workflow with its stages.
        spec: the request.
        headline: the result in one sentence.
        stages: what each stage has found, and the hours that it took.
        evaluation: of the result; None before there is one.
        recipe: the recipe to train with, as YAML; empty where none is recommended.
        spent_hours: of the whole run.
        commands: to paste next.

    Raises:
        StorageFullError: the disk is full.
    """
    environment = page_environment(TEMPLATES)
    verdict = None if evaluation is None else evaluation.verdict
    tone, badge = _tone(stages, evaluation)
    spent = [(one.name, one.hours, one.hours / spec.hours) for one in stages]
    page = environment.get_template("automl.html.j2").render(
        pipeline=pipeline,
        spec=spec,
        headline=headline,
        verdict=verdict,
        tone=tone,
        badge=badge,
        stages=stages,
        evaluation=evaluation,
        charts=_charts(evaluation),
        metrics=[] if evaluation is None else metric_rows(evaluation.systems, evaluation.comparisons, None),
        left_out=() if evaluation is None else evaluation.baselines_left_out,
        recipe=recipe,
        commands=commands,
        facts=_automl_facts(spec, evaluation, spent_hours),
        spent=[(name, figures.duration(hours * 3600), figures.percent(share)) for name, hours, share in spent],
        shared=[
            ("choosing a model", figures.duration(spec.showdown_hours * 3600)),
            (
                "all else, of which the search gets the rest",
                figures.duration((spec.hours - spec.showdown_hours) * 3600),
            ),
        ],
        data=Path(spec.data).name,
    )
    replace_text(path, page)
    return path


def _tone(stages: Sequence[AutoStage], evaluation: Evaluation | None) -> tuple[str, str]:
    if any(one.status in ("refused", "failed") for one in stages):
        return "bad", "it ended early"
    if evaluation is None:
        return "quiet", "not done"
    verdict = evaluation.verdict
    if evaluation.run_id is not None and verdict is not None:
        return tone_of(verdict.word), verdict.title
    # Prompting, held against what needs no model.
    if verdict is None or verdict.better_than_best_alternative == "better":
        return "open", "prompting is enough"
    return "open", no_better_than(str(verdict.best_alternative))


def _charts(evaluation: Evaluation | None) -> list[Chart]:
    if evaluation is None:
        return []
    colours: dict[str, Role] = {
        one.name: _WITHOUT_MODEL
        if not one.is_model
        else "tuned"
        if one.adapter
        else "other-1"
        if one.num_few_shot
        else "base"
        for one in evaluation.systems
    }
    names = dict.fromkeys(name for one in evaluation.systems for name in one.metrics)
    return [interval_chart(evaluation.systems, colours, name) for name in names]


def _automl_facts(spec: AutomlSpec, evaluation: Evaluation | None, spent_hours: float) -> list[Fact]:
    judged = "none yet" if evaluation is None else figures.count(evaluation.num_rows)
    return [
        Fact("Contenders", f"{len(spec.models)}", ", ".join(spec.models)),
        Fact("Held-out rows evaluated", judged, "used once"),
        Fact("Took", figures.duration(spent_hours * 3600), f"of {figures.duration(spec.hours * 3600)}"),
    ]


_DISTILLATION_TONES = {"worth it": "good", "not worth it": "bad", "not settled": "open"}
_KINDS = {
    "sequence": "the answers that the teacher wrote to the prompts",
    "logit": "the gold answers, and at each of their tokens the teacher's distribution",
}


def render_student(student: Student) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    assert student.evaluation is not None
    assert student.verdict is not None
    environment = page_environment(TEMPLATES)
    return environment.get_template("distilled.html.j2").render(
        student=student,
        verdict=student.verdict,
        tone=_DISTILLATION_TONES[student.verdict.word],
        judged=judged_view(student.evaluation, Roles(TAUGHT, ALONE), is_unseen=True),
        key_figures=_student_figures(student),
        facts=_student_facts(student),
    )


def write_student_report(path: Path, student: Student) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_student(student))
    return path


def _student_figures(student: Student) -> list[Fact]:
    found = [
        Fact("Student", f"{student.student_parameters / 1e6:,.1f} M", "parameters"),
        Fact("Rows learned", f"{student.num_rows:,}", "the same in both trainings"),
        Fact("Rows evaluated", f"{student.evaluation.num_rows if student.evaluation else 0:,}", "seen by none"),
    ]
    if student.teacher_parameters is not None:
        share = student.student_parameters / student.teacher_parameters
        found.insert(0, Fact("Size", f"{share:.0%}", "of the teacher"))
    return found


def _student_facts(student: Student) -> list[Fact]:
    found = [
        Fact("Teacher", student.teacher),
        Fact("Student", student.student_model, f"layers {student.layers} of the teacher" if student.layers else ""),
        Fact("Learned with the teacher", _KINDS[student.kind]),
        Fact("Learned without", "the gold answers of the same rows, for as many steps"),
        Fact("Rows", student.data_file),
    ]
    for name, run in (("With the teacher", student.taught), ("Without", student.alone)):
        if run is not None:
            words = f"{run.num_steps:,} steps, {run.num_trained_tokens:,} learned tokens, {run.method}"
            found.append(Fact(name, run.run_id, words))
    return found
