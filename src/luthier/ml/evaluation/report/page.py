"""The report of a run as one HTML page and as JSON: views of the documents put into the template, everything escaped.

It is made in memory and written atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.evaluation import Evaluation, Sample
from luthier.core.events import Event
from luthier.core.plan import Plan
from luthier.core.results.cost import Quote
from luthier.core.run import RunRecord
from luthier.core.system.files import replace_text
from luthier.ml.charts import figures
from luthier.ml.charts.forecast import forecast_of
from luthier.ml.charts.judged_rows import (
    forgetting_rows,
    metric_heading,
    metric_title,
    scored_heading,
    thinking_sentence,
)
from luthier.ml.charts.page import page_environment
from luthier.ml.evaluation.prompt_views import prompt_rows
from luthier.ml.evaluation.recommendation import recommendation_document
from luthier.ml.evaluation.report import facts
from luthier.ml.evaluation.report.charts import curve_charts, curves, measure_charts, rank_charts
from luthier.ml.evaluation.report.evaluation_results import (
    Assessed,
    ChosenRow,
    choose_samples,
    confusion_charts,
    differences,
    interval_charts,
    label_confidence_charts,
    metric_rows,
    rows_charts,
    system_colours,
    without_chart,
)
from luthier.ml.evaluation.report.facts import outcomes
from luthier.ml.evaluation.report.rewarded import Drawn, rewarded
from luthier.ml.evaluation.result_views import Roles, roles
from luthier.ml.evaluation.verdict_text import listed

TEMPLATES: Final = Path(__file__).parent / "templates"
MAX_EXAMPLE_CHARACTERS: Final = 20_000

MaskedExample = Sequence[tuple[str, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the report of a run is made from. The same data give the same bytes.

    Attributes:
        record: of the run.
        plan: of the run.
        events: of the run, in order.
        evaluation: of the run; None where it was not judged.
        versions: names of programs and of the machine, to what they are; shown as they come.
        example: one training example as (text, learned) pieces.
        licence: of the base model.
        quote: what was predicted before the run, shown beside what was measured.
        drawn: answers that were drawn in a few of its steps.
        assessed: what else it was judged by.
    """

    record: RunRecord
    plan: Plan
    events: Sequence[Event]
    evaluation: Evaluation | None
    versions: Mapping[str, str]
    example: MaskedExample = ()
    licence: str = "not stated"
    quote: Quote | None = None
    drawn: Sequence[Drawn] = ()
    assessed: Assessed | None = None


def render_page(data: ReportData) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    record, plan, events, evaluation = data.record, data.plan, data.events, data.evaluation
    fit = record.result.fit if record.result else None
    environment = page_environment(TEMPLATES)
    of_rewards = rewarded(plan, events, data.drawn)
    charts = curve_charts(curves(events), plan.objective.loss_unit, fit)
    measured = measure_charts(events, plan.objective.name)
    # The loss of drawn answers lies near 0 in every case: the reward is shown in its place.
    shown_charts = [*charts, *measured] if of_rewards is None else [*of_rewards.charts, *charts[1:]]
    return environment.get_template("report.html.j2").render(
        record=record,
        plan=plan,
        method=facts.method_title(plan),
        when=figures.when(record.updated_at),
        outcomes=outcomes(record, plan, evaluation),
        key_figures=facts.key_figures(record, plan, events),
        judged=_judged(evaluation, plan),
        assessed=data.assessed,
        model_facts=facts.model_facts(record, plan, data.licence),
        splits=facts.split_facts(plan, record.result.stream if record.result else None),
        example=shown_example(data.example),
        example_left_out=max(0, sum(len(text) for text, _ in data.example) - MAX_EXAMPLE_CHARACTERS),
        curves=shown_charts,
        rewarded=of_rewards,
        fit=fit,
        ranks=rank_charts(record.result.ranks if record.result else {}),
        forecast=forecast_of(record, events, data.quote),
        warnings=facts.warnings(record, plan, events),
        plan_rows=plan.shown_values(),
        recipe=facts.recipe_yaml(plan),
        commands=facts.commands(record, plan),
        repeatable=_repeatable(plan),
        versions=dict(data.versions),
    )


def _judged(evaluation: Evaluation | None, plan: Plan) -> dict[str, Any] | None:
    """Everything about the evaluation; None where nothing was evaluated."""
    found = roles(evaluation) if evaluation is not None else None
    if evaluation is None or found is None:
        return None
    return judged_view(evaluation, found, is_unseen=_is_unseen(evaluation, plan))


def judged_view(evaluation: Evaluation, found: Roles, *, is_unseen: bool) -> dict[str, Any]:
    """What `judged.html.j2` shows of an evaluation.

    Args:
        evaluation: what was evaluated.
        found: candidate and baseline.
        is_unseen: training saw none of its rows.
    """
    choices = choose_samples(evaluation, found)
    mine, others = differences(evaluation, found)
    return {
        "evaluation": evaluation,
        "is_unseen": is_unseen,
        "held_out_name": Path(evaluation.held_out_file).name,
        "duration": figures.duration(evaluation.seconds),
        "roles": found,
        "colours": {name: f"--{role}" for name, role in system_colours(evaluation, found).items()},
        "metrics": metric_rows(evaluation),
        "differences": mine,
        "other_differences": others,
        "charts": interval_charts(evaluation, found),
        "rows": rows_charts(evaluation),
        "confusions": confusion_charts(evaluation, found),
        "confidence": label_confidence_charts(evaluation, found),
        "without_chart": _without_chart(evaluation),
        "prompts": prompt_rows(evaluation),
        "forgetting": evaluation.forgetting,
        "forgetting_rows": forgetting_rows(evaluation.forgetting, metric_heading) if evaluation.forgetting else [],
        "choices": choices,
        "samples_title": _samples_title(len(choices.chosen)),
        "score_title": scored_heading(evaluation.systems, choices.metric),
        "groups": _groups(choices.chosen, choices.metric),
        "thoughts": [sentence for system in evaluation.systems if (sentence := thinking_sentence(system)) is not None],
        "cut_off": [(system.name, system.num_cut_off) for system in evaluation.systems if system.num_cut_off],
    }


def _without_chart(evaluation: Evaluation) -> str:
    """Says which metrics have no chart, and why; empty where all have one."""
    found = without_chart(evaluation)
    if not found:
        return ""
    same = "all systems have the same figures" if len(evaluation.systems) > 1 else "its interval has no width"
    return f"No chart for {listed([metric_title(name) for name in found])}: {same}."


def _is_unseen(evaluation: Evaluation, plan: Plan) -> bool:
    """Whether it is known that training saw none of the rows: they are the plan's own, and none of those leaked."""
    held_out = plan.data.held_out
    return held_out is not None and held_out.sha256 == evaluation.held_out_sha256 and not plan.data.num_leaked


def _repeatable(plan: Plan) -> str:
    """How far the same inputs give the same model; accelerators add numbers up in an order that may change."""
    exactly = "byte for byte" if plan.training.device == "cpu" else "up to rounding"
    return f"The same recipe, data and versions on the same machine give the same model, {exactly}."


def _samples_title(num: int) -> str:
    words = {0: "No", 1: "One", 10: "Ten"}
    return f"{words.get(num, str(num))} {'sample' if num == 1 else 'samples'}"


def _score(sample: Sample, metric: str | None) -> str:
    score = None if metric is None else sample.scores.get(metric)
    return "" if score is None else figures.number(score, 2)


def _groups(chosen: Sequence[ChosenRow], metric: str | None) -> list[dict[str, Any]]:
    """The chosen samples under three headings, numbered through."""
    titles = {"best": "Best", "worst": "Worst", "random": "Random"}
    numbered = [
        {
            "number": place,
            "choice": choice,
            "gain": None if choice.gain is None else figures.signed(choice.gain, 2),
            "scores": [_score(sample, metric) for _, sample in choice.outputs],
        }
        for place, choice in enumerate(chosen, start=1)
    ]
    groups = []
    for kind, title in titles.items():
        members = [view for view, choice in zip(numbered, chosen, strict=True) if choice.kind == kind]
        if members:
            groups.append({"kind": kind, "title": title, "members": members})
    return groups


def shown_example(example: MaskedExample) -> list[tuple[str, bool]]:
    """The first 20,000 characters of a masked example, neighbouring tokens of one kind joined into one element."""
    joined: list[tuple[str, bool]] = []
    room = MAX_EXAMPLE_CHARACTERS
    for whole, learned in example:
        text = whole[:room]
        # At 0 all further texts are empty, and add nothing.
        room -= len(text)
        if joined and joined[-1][1] == learned:
            joined[-1] = (joined[-1][0] + text, learned)
        elif text:
            joined.append((text, learned))
    return joined


HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
_FORMAT: Final = 1


def render_report(data: ReportData, *, draws_page: bool = True) -> tuple[str, dict[str, Any]]:
    """The report as an HTML page, empty where `draws_page` is false, and as a JSON document."""
    evaluation, assessed, quote = data.evaluation, data.assessed, data.quote
    document = {
        "format": _FORMAT,
        "run": data.record.model_dump(mode="json"),
        "plan": data.plan.model_dump(mode="json"),
        "events": [event.model_dump(mode="json") for event in data.events],
        "evaluation": evaluation.model_dump(mode="json") if evaluation is not None else None,
        "recommendation": recommendation_document(evaluation),
        "samples": _shown(evaluation),
        "example": [{"text": text, "learned": learned} for text, learned in data.example],
        "licence": data.licence,
        "drawn": [dict(line) for line in data.drawn],
        "assessed": None if assessed is None else assessed.as_json(),
        "predicted": quote.as_json() if quote is not None else None,
        "versions": dict(data.versions),
    }
    return render_page(data) if draws_page else "", document


def write_report(folder: Path, data: ReportData, *, draws_page: bool = True) -> Path:
    """Write report.html and report.json into `folder` (made if missing); returns the path of the page.

    Each file appears whole or not at all; an older one is replaced.

    Args:
        folder: where both files go.
        data: what the report shows.
        draws_page: false writes report.json alone, from which the page can be drawn later; the path is that of
            report.json then.

    Raises:
        StorageFullError: the disk is full.
    """
    page, document = render_report(data, draws_page=draws_page)
    folder.mkdir(parents=True, exist_ok=True)
    # The data first: the page can be drawn again from report.json, not the other way round.
    replace_text(folder / JSON_NAME, json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    if not draws_page:
        return folder / JSON_NAME
    replace_text(folder / HTML_NAME, page)
    return folder / HTML_NAME


def _shown(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Which samples the page shows and by what rule; the samples themselves are in `evaluation`."""
    found = roles(evaluation) if evaluation is not None else None
    if evaluation is None or found is None:
        return None
    choices = choose_samples(evaluation, found)
    chosen = [{"kind": choice.kind, "row_id": choice.row_id, "gain": choice.gain} for choice in choices.chosen]
    return {"rule": choices.rule, "metric": choices.metric, "chosen": chosen}
