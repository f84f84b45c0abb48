"""The report of a run: made in memory, written as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.cost import Quote
from luthier.core.evaluation import Evaluation
from luthier.core.events import Event
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.ml.charts.page import replace_text
from luthier.ml.evaluation.report.assessed import Assessed
from luthier.ml.evaluation.report.page import MaskedExample, render_page
from luthier.ml.evaluation.report.rewarded import Drawn
from luthier.ml.evaluation.report.samples import choose_samples
from luthier.ml.evaluation.roles import roles

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
_FORMAT: Final = 1


def render_report(
    *,
    draws_page: bool = True,
    record: RunRecord,
    plan: Plan,
    events: Sequence[Event],
    evaluation: Evaluation | None,
    versions: Mapping[str, str],
    example: MaskedExample = (),
    licence: str = "not stated",
    quote: Quote | None = None,
    drawn: Sequence[Drawn] = (),
    assessed: Assessed | None = None,
) -> tuple[str, dict[str, Any]]:
    """The report as an HTML page, empty where none is to be drawn, and as a JSON document.

    The same arguments give the same bytes.

    Args:
        draws_page: false leaves the page empty.
        record: of the run.
        plan: of the run.
        events: of the run, in order.
        evaluation: of the run; None where it was not judged.
        versions: names of programs and of the machine, to what they are; shown as they come.
        example: one training example as (text, learned) pieces.
        licence: of the base model.
        quote: what was predicted before the run, to be shown beside what came.
        drawn: answers that were drawn in a few of its steps.
        assessed: what else it was judged by.
    """
    page = ""
    if draws_page:
        page = render_page(
            record=record,
            plan=plan,
            events=events,
            evaluation=evaluation,
            versions=versions,
            example=example,
            licence=licence,
            quote=quote,
            drawn=drawn,
            assessed=assessed,
        )
    document = {
        "format": _FORMAT,
        "run": record.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "events": [event.model_dump(mode="json") for event in events],
        "evaluation": evaluation.model_dump(mode="json") if evaluation is not None else None,
        "samples": _shown(evaluation),
        "example": [{"text": text, "learned": learned} for text, learned in example],
        "licence": licence,
        "drawn": [dict(line) for line in drawn],
        "assessed": None if assessed is None else assessed.as_json(),
        "predicted": quote.as_json() if quote is not None else None,
        "versions": dict(versions),
    }
    return page, document


def write_report(
    folder: Path,
    *,
    draws_page: bool = True,
    record: RunRecord,
    plan: Plan,
    events: Sequence[Event],
    evaluation: Evaluation | None,
    versions: Mapping[str, str],
    example: MaskedExample = (),
    licence: str = "not stated",
    quote: Quote | None = None,
    drawn: Sequence[Drawn] = (),
    assessed: Assessed | None = None,
) -> Path:
    """Write report.html and report.json into `folder` (made if missing); returns the path of the page.

    Each file appears whole or not at all; an older one is replaced. draws_page: false writes report.json alone, from
    which the page can be drawn later; the path is that of report.json then. Other arguments as in `render_report`.

    Raises:
        StorageFullError: the disk is full.
    """
    page, document = render_report(
        draws_page=draws_page,
        record=record,
        plan=plan,
        events=events,
        evaluation=evaluation,
        versions=versions,
        example=example,
        licence=licence,
        quote=quote,
        drawn=drawn,
        assessed=assessed,
    )
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
