"""The page of `luthier automl`: the answer, the result of each stage, where the budget went, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.evaluation import Evaluation
from luthier.core.workflows.automl import AutomlSpec
from luthier.core.workflows.pipeline import Pipeline, StageStatus
from luthier.ml.charts import figures
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.judged_rows import metric_rows, tone_of
from luthier.ml.charts.page import Chart, page_environment, replace_text
from luthier.ml.charts.spec import Role
from luthier.ml.evaluation.report.interval_chart import interval_chart
from luthier.ml.evaluation.report.page import TEMPLATES, fold


@dataclass(frozen=True, slots=True)
class AutoStage:
    """A stage as the page shows it.

    Attributes:
        name: of the stage.
        words: what it does, for people.
        status: how far it is.
        lines: its result.
        hours: time that it took.
        href: a page of its own; empty where there is none.
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

    Raises:
        StorageFullError: the disk is full.
    """
    environment = page_environment(TEMPLATES, fold)
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
        recipe=recipe,
        commands=commands,
        facts=_facts(spec, evaluation, spent_hours),
        spent=[(name, figures.duration(hours * 3600), figures.percent(share)) for name, hours, share in spent],
        shared=[
            ("choosing a model", figures.duration(spec.showdown_hours * 3600)),
            (
                "all else, of which the search has what is left",
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
    if evaluation.verdict is None:
        return "open", "prompting is enough"
    return tone_of(evaluation.verdict.word), evaluation.verdict.word


def _charts(evaluation: Evaluation | None) -> list[Chart]:
    if evaluation is None:
        return []
    colours: dict[str, Role] = {
        one.name: "tuned" if one.adapter else "other-1" if one.num_few_shot else "base" for one in evaluation.systems
    }
    names = dict.fromkeys(name for one in evaluation.systems for name in one.metrics)
    return [interval_chart(evaluation.systems, colours, name) for name in names]


def _facts(spec: AutomlSpec, evaluation: Evaluation | None, spent_hours: float) -> list[Fact]:
    judged = "none yet" if evaluation is None else figures.count(evaluation.num_rows)
    return [
        Fact("Contenders", f"{len(spec.models)}", ", ".join(spec.models)),
        Fact("Held-out rows judged", judged, "looked at once"),
        Fact("Took", figures.duration(spent_hours * 3600), f"of {figures.duration(spec.hours * 3600)}"),
    ]
