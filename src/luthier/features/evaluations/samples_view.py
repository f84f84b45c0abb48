"""The part of a page that shows what models wrote: searched, filtered, in order, a few at a time."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import Depends, Query

from luthier.core.errors import RequestError
from luthier.core.evaluation import Evaluation
from luthier.ml.charts.judged_rows import units_of
from luthier.ml.charts.metric_titles import metric_heading, on_scale
from luthier.ml.charts.word_differences import word_differences
from luthier.ml.evaluation.roles import Roles
from luthier.ml.evaluation.sample_rows import (
    BETTER,
    KINDS,
    ORDERS,
    Better,
    Choice,
    Kind,
    Order,
    SampleRow,
    choose_rows,
    scored_metrics,
)

_PAGE: Final = 10
_Text = Annotated[str, Query(max_length=500)]


def _asked(
    q: _Text = "",
    metric: _Text = "",
    better: _Text = "",
    kind: _Text = "",
    low: _Text = "",
    high: _Text = "",
    order: _Text = "worst",
    marks: _Text = "reference",
) -> dict[str, str]:
    asked = {"q": q, "metric": metric, "better": better, "kind": kind, "low": low, "high": high, "order": order}
    return asked | {"marks": marks}


SamplesAsked = Annotated[dict[str, str], Depends(_asked)]
"""What a handler asks for to know which samples are wanted."""
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]


def samples_shown(
    evaluation: Evaluation, who: Roles, asked: dict[str, str], number: int, address: str
) -> dict[str, Any]:
    """All that the part shows. number: of the page, from 1. address: of the page that it stands on."""
    metrics = scored_metrics(evaluation)
    error = None
    try:
        choice = _choice(asked, metrics)
    except RequestError as wrong:
        error, choice = wrong, Choice(metric=metrics[0] if metrics else None)
    rows = choose_rows(evaluation, who, choice)
    # Ceiling division; an empty result still has one (empty) page.
    num_pages = max(1, -(-len(rows) // _PAGE))
    # A filter may shorten the list below the page that the address names.
    number = min(number, num_pages)
    shown = rows[(number - 1) * _PAGE : number * _PAGE]
    first = {key: value for key, value in asked.items() if value}
    units = units_of(evaluation.systems)
    return {
        "evaluation": evaluation,
        "who": who,
        "error": error,
        "asked": asked | {"metric": choice.metric or "", "order": choice.order},
        "scored": [(name, metric_heading(name)) for name in metrics],
        "title_of": metric_heading,
        "scale_of": lambda name: on_scale(units.get(name, "")),
        "rows": [(row, _outputs(evaluation, who, row, asked["marks"])) for row in shown],
        "num_found": len(rows),
        "num_rows": max((len(system.samples) for system in evaluation.systems), default=0),
        "page": number,
        "num_pages": num_pages,
        "first_number": (number - 1) * _PAGE + 1,
        "address": address,
        "page_address": lambda to: f"{address}?{urlencode(first | {'page': str(to)})}#samples",
    }


def _choice(asked: dict[str, str], metrics: list[str]) -> Choice:
    """What was asked for, checked. Raises RequestError."""
    for name, allowed in (("better", BETTER), ("kind", KINDS), ("order", ORDERS), ("metric", ("", *metrics))):
        if asked[name] not in allowed:
            raise RequestError(
                f"{name}={asked[name]!r}",
                expected=f"one of {', '.join(repr(word) for word in allowed)}",
                do="choose from the list",
            )
    better: Better = asked["better"]  # type: ignore[assignment]
    kind: Kind = asked["kind"]  # type: ignore[assignment]
    order: Order = asked["order"]  # type: ignore[assignment]
    return Choice(
        metric=asked["metric"] or (metrics[0] if metrics else None),
        words=asked["q"],
        better=better,
        kind=kind,
        low=_end("From", asked["low"]),
        high=_end("To", asked["high"]),
        order=order,
    )


def _end(name: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        found = float("nan")
    # NaN is the only value that differs from itself; `float("nan")` parses without an error.
    if found != found:
        raise RequestError(f"{name} {text!r}", expected="a number such as 0.5", do="correct it, or leave it empty")
    return found


def _outputs(evaluation: Evaluation, who: Roles, row: SampleRow, marks: str) -> list[dict[str, Any]]:
    """What each system wrote. stretches: with marks where there are any to be, None where it is shown as it is."""
    against = row.samples.get(who.baseline or "") if marks == "baseline" else None
    other = row.reference if marks == "reference" else None if against is None else against.output
    outputs = []
    for system in evaluation.systems:
        if (sample := row.samples.get(system.name)) is not None:
            is_marked = other is not None and other != "" and (sample is not against) and sample.output != ""
            stretches = word_differences(other or "", sample.output) if is_marked else None
            outputs.append({"system": system, "sample": sample, "stretches": stretches})
    return outputs
