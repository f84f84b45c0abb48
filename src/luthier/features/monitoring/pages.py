"""/monitor: deployed models that are monitored, charts of their signals, alerts, and the exchanges behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError
from luthier.core.records.monitoring import Alert, Signal, SignalGroup, WatchReport
from luthier.features.feedback import review as review_queue
from luthier.features.feedback import service as feedback
from luthier.features.model_cards.service import target_names
from luthier.features.monitoring import alerts, model_settings
from luthier.features.monitoring import loop as monitor_loop
from luthier.features.monitoring.loop import CheckState, PastCheck
from luthier.features.monitoring.planned import planned_signals
from luthier.features.runs.view import rounded
from luthier.features.traffic import service as traffic
from luthier.ml.charts.spec import Axis, Mark, Plot, Point, Series
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import Advised, Page, redirect, render
from luthier.platform.ui.visitor import Admin, HomeContext, Reader, Trainer, one_state

if TYPE_CHECKING:
    import polars as pl

_HOUR = 3600.0


def signal_charts(signals: Sequence[Signal], past: Sequence[PastCheck]) -> list[Plot]:
    """One chart for each signal that two checks have seen a value of; what has changed comes first.

    Args:
        signals: Of the newest check.
        past: All checks that are shown, the newest last.
    """
    # False sorts before True, and the sort is stable: the rest keeps the order of the report.
    order = sorted(signals, key=lambda one: one.state != "changed")
    return [chart for one in order if (chart := _chart(one, past)) is not None]


def _chart(signal: Signal, past: Sequence[PastCheck]) -> Plot | None:
    values: list[Point] = []
    low: list[Point] = []
    high: list[Point] = []
    changed: list[Point] = []
    for look in past:
        seen = look.signals.get(signal.name)
        if seen is None or seen.value is None:
            continue
        # Negative hours before the newest check; three decimals are 4 seconds, below a pixel.
        hours = round((look.at - past[-1].at) / _HOUR, 3)
        values.append((hours, seen.value))
        if seen.low is not None and seen.high is not None:
            low.append((hours, seen.low))
            high.append((hours, seen.high))
        if seen.state == "changed":
            changed.append((hours, seen.value))
    if len(values) < 2:
        return None
    series = [Series("value", rounded(values), "tuned")]
    if len(low) > 1:
        series += [Series("95%, low", rounded(low), "quiet"), Series("95%, high", rounded(high), "quiet")]
    if changed:
        series.append(Series("changed", rounded(changed), "bad", "dots"))
    if signal.reference is not None:
        ends = [(values[0][0], signal.reference), (values[-1][0], signal.reference)]
        series.append(Series("reference", rounded(ends), "other-3"))
    since = () if signal.since is None or not changed else (Mark((signal.since - past[-1].at) / _HOUR, "since"),)
    return Plot(
        key=f"signal-{signal.name}",
        title=signal.title,
        x=Axis("hours before the last check"),
        y=Axis(signal.title, signal.unit),
        series=series,
        marks=since,
        caption=signal.sentence,
        group="signals",
    )


router = APIRouter(prefix="/monitor")
PAGE = Page("Monitor", "/monitor", "read", order=80, key="o", group="watch")
TRAFFIC = Page(
    "Traffic",
    "/monitor/exchanges",
    "read",
    order=82,
    key="f",
    group="watch",
    advised=(Advised(commands=("traffic list",)),),
)

_PAGE: Final = 50
_MAX_ALERTS: Final = 50
_DAY: Final = 24 * 3600.0
_GROUPS: Final[dict[SignalGroup, str]] = {
    "serving": "Serving",
    "input": "What users ask",
    "output": "What is answered",
    "quality": "Quality",
    "bias": "Groups of people",
}
Kind = Literal["all", "failed", "words", "said"]
_KINDS: Final[dict[Kind, str]] = {
    "all": "All",
    "failed": "Failed",
    "words": "With text",
    "said": "With feedback",
}
_Field = Annotated[str, Form(max_length=1024)]
_Model = Annotated[str, Query(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model of the list.

    Attributes:
        name: As clients ask for it.
        state: The state of its checks; None before the first.
        report: The last report; None before the first.
        num_open: Open alerts.
    """

    name: str
    state: CheckState | None
    report: WatchReport | None
    num_open: int

    @property
    def num_unknown(self) -> int:
        """Signals with too little data."""
        return 0 if self.report is None else sum(one.state == "unknown" for one in self.report.signals)


@router.get("")
@one_state
def index(request: Request, context: HomeContext, caller: Reader) -> Response:
    """All models that are watched, and the alerts that are open."""
    settings = alerts.alert_settings(context, caller.project_id)
    is_open = alerts.list_alerts(context, caller.project_id, status="open")
    # Models with open alerts are listed even when they are no longer monitored, else these would be invisible.
    names = dict.fromkeys(
        [*monitor_loop.monitored_models(context, caller.project_id, settings), *(one.model for one in is_open)]
    )
    states = monitor_loop.states_of(context, caller.project_id)
    seen = monitor_loop.check_histories(context, caller.project_id)
    models = [
        WatchedModel(
            name,
            states.get(name),
            seen[name].report if name in seen else None,
            sum(one.model == name for one in is_open),
        )
        for name in names
    ]
    stuck = [mail for mail in mails.list_mails(context, caller.project_id) if mail.last_answer]
    values = {"models": models, "alerts": is_open[:_MAX_ALERTS], "num_open": len(is_open), "settings": settings}
    return render(request, "monitoring/list.html", values | {"stuck": stuck})


@router.get("/model")
def model(request: Request, context: HomeContext, caller: Reader, name: _Model) -> Response:
    """One model: signals with charts, its alerts, and what else is monitored of it."""
    return _model_page(request, context, caller, name)


@router.post("/model")
def change_model_settings(
    request: Request,
    context: HomeContext,
    caller: Admin,
    name: Annotated[str, Form(min_length=1, max_length=255)],
    judge: _Field = "",
    num_judged: _Field = "",
    suite: _Field = "",
    suite_every: _Field = "",
    groups: Annotated[str, Form(max_length=20_000)] = "",
    normal_now: Annotated[bool, Form()] = False,
) -> Response:
    """Change the judge, the suite and the groups of people of a model; an empty number keeps what was set."""
    given = {"judge": judge, "num_judged": num_judged, "suite": suite, "suite_every": suite_every, "groups": groups}
    given["normal_now"] = "yes" if normal_now else ""
    try:
        _check_is_monitored(context, caller, name)
        model_settings.change_settings(context, caller, name, given, decimal_mark=decimal_mark_of(request))
    except LuthierError as error:
        return _model_page(request, context, caller, name, given, error)
    return redirect(request, f"/monitor/model?{urlencode({'name': name})}", "The next check uses these settings.")


def _check_is_monitored(context: Context, caller: Caller, name: str) -> None:
    if name not in monitor_loop.monitored_models(context, caller.project_id):
        raise NotFoundError(f"{name[:100]!r} is not monitored", expected="a model of the list", do="open the list")


def _model_page(
    request: Request,
    context: Context,
    caller: Caller,
    name: str,
    given: Mapping[str, str] | None = None,
    error: LuthierError | None = None,
) -> Response:
    found = alerts.list_alerts(context, caller.project_id, model=name, limit=_MAX_ALERTS)
    watched = _watched(context, caller, name, [one for one in found if one.status == "open"])
    # A removed deployment keeps its page as long as there are checks or alerts about it.
    if watched.state is None and not found and name not in monitor_loop.monitored_models(context, caller.project_id):
        raise NotFoundError(
            f"{name[:100]!r} is not monitored",
            expected="a deployment of this project, or a model that its settings name",
            do="`luthier alerts settings --watch MODEL`",
        )
    seen = monitor_loop.check_history(context, caller.project_id, name)
    signals = seen.report.signals if seen.report is not None else ()
    groups = [(title, [one for one in signals if one.group == group]) for group, title in _GROUPS.items()]
    said = feedback.list_feedback(context, caller.project_id, model=name, since=context.access.now() - 7 * _DAY)
    settings = alerts.alert_settings(context, caller.project_id)
    is_unknown = any(one.state == "unknown" for one in signals) or seen.report is None
    traffic_now, planned = planned_signals(context, caller.project_id, name, settings) if is_unknown else (None, [])
    values = {
        "watched": watched,
        "form": model_settings.settings_form(context, caller, name, given),
        "keep": model_settings.KEEP,
        "error": error,
        "settings": settings,
        "traffic_now": traffic_now,
        "planned": planned,
        "look": monitor_loop.check_progress(context, caller.project_id, name),
        "report": seen.report,
        "groups": [(title, ones) for title, ones in groups if ones],
        "charts": signal_charts(signals, seen.past),
        "alerts": found,
        "thumbs": {thumb: sum(one.thumb == thumb for one in said) for thumb in ("up", "down")},
        "num_corrections": sum(one.correction is not None for one in said),
    }
    return render(request, "monitoring/model.html", values, status=200 if error is None else status_of(error))


@router.post("/look")
def look(
    request: Request, context: HomeContext, caller: Trainer, name: Annotated[str, Form(min_length=1, max_length=255)]
) -> Response:
    """Begin a look, and lead to where what it has seen will be: a look reads hours of exchanges."""
    _check_is_monitored(context, caller, name)
    # In the background: a check reads hours of traffic, which would hold the request open.
    monitor_loop.start_check(context, caller.project_id, name)
    return redirect(request, f"/monitor/model?{urlencode({'name': name})}")


@router.get("/exchanges")
def exchanges(
    request: Request,
    context: HomeContext,
    caller: Reader,
    name: Annotated[str | None, Query(max_length=255, pattern=r"^[^\x00]*$")] = None,
    show: Kind = "all",
    before: float | None = None,
    before_id: Annotated[str | None, Query(max_length=255)] = None,
) -> Response:
    """Requests and answers, newest first. before, before_id: time (seconds since 1970) and id of the last one
    of the page before; of the same time, those of a lower id follow."""
    import polars as pl

    # `until` itself is left out, so the next representable time is used.
    until = before if before is None or before_id is None else math.nextafter(before, math.inf)
    conditions = [pl.lit(value=True)]
    # By the id as well: without it, those of the time at the border of two pages would be on neither.
    if before is not None and before_id is not None:
        conditions.append((pl.col("at") < before) | (pl.col("exchange_id") < before_id))
    if show == "failed":
        conditions.append(pl.col("status") >= 400)
    elif show == "words":
        conditions.append(pl.col("has_text"))
    elif show == "said":
        ids = {one.exchange_id for one in feedback.list_feedback(context, caller.project_id, model=name or None)}
        conditions.append(pl.col("exchange_id").is_in(list(ids)) if ids else pl.lit(value=False))
    found, is_all = traffic.newest_rows(
        context,
        caller.project_id,
        model=name or None,
        until=until,
        condition=pl.all_horizontal(conditions),
        limit=_PAGE + 1,
    )
    rows = _newest(found.sort("at", "exchange_id"))
    said = feedback.feedback_of(context, caller.project_id, [row["exchange_id"] for row in rows])
    values = {
        "name": name or "",
        "rows": rows,
        "num_all": found.height if is_all else None,
        "said": {row["exchange_id"]: [o for o in said if o.exchange_id == row["exchange_id"]] for row in rows},
        "kinds": [(kind, words, _address(name, kind)) for kind, words in _KINDS.items()],
        "show": show,
        "older": _address(name, show, rows[-1]) if found.height > len(rows) else None,
    }
    return render(request, "monitoring/exchanges.html", values)


@router.get("/exchanges/{exchange_id}")
def exchange(request: Request, context: HomeContext, caller: Reader, exchange_id: str) -> Response:
    """One exchange: its text if it was stored, and its feedback."""
    return _exchange(request, context, caller, exchange_id, None)


@router.post("/exchanges/{exchange_id}/review")
def review(request: Request, context: HomeContext, caller: Trainer, exchange_id: str) -> Response:
    """Have it reviewed."""
    try:
        made = review_queue.queue_exchange(context, caller, exchange_id)
    except LuthierError as error:
        return _exchange(request, context, caller, exchange_id, error)
    notice = "It waits for review." if made.num_queued else "It was queued before."
    if made.num_wordless:
        notice = "It cannot be reviewed: its text was not stored."
    return redirect(request, f"/monitor/exchanges/{exchange_id}", notice)


def _exchange(
    request: Request, context: Context, caller: Caller, exchange_id: str, error: LuthierError | None
) -> Response:
    found = traffic.exchange(context, caller.project_id, exchange_id)
    values = {
        "exchange": found,
        "names": target_names(context, caller.project_id, [found.target]),
        "said": feedback.feedback_of(context, caller.project_id, [exchange_id]),
        "is_queued": exchange_id in context.review_items.exchange_ids(caller.project_id),
        "error": error,
    }
    return render(request, "monitoring/exchange.html", values, status=status_of(error) if error else 200)


def _watched(context: Context, caller: Caller, name: str, is_open: list[Alert]) -> WatchedModel:
    state = monitor_loop.state_of(context, caller.project_id, name)
    report = monitor_loop.check_history(context, caller.project_id, name).report
    return WatchedModel(name, state, report, sum(one.model == name for one in is_open))


def _newest(found: pl.DataFrame) -> list[dict[str, Any]]:
    # The frame is in order of time, oldest first.
    return list(found.tail(_PAGE).reverse().iter_rows(named=True))


def _address(name: str | None, show: Kind, last: Mapping[str, Any] | None = None) -> str:
    values = {"name": name, "show": show}
    if last is not None:
        values |= {"before": last["at"], "before_id": last["exchange_id"]}
    return f"/monitor/exchanges?{urlencode({key: value for key, value in values.items() if value})}"
