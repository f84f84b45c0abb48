"""/evaluations/judges: judges compared with people, as `luthier judge list` and `luthier judge calibrate` have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import LuthierError
from luthier.core.estimate import Estimate
from luthier.core.records.calibration import LOWEST_KAPPA, Calibration
from luthier.core.text.names import distinct_names
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.generation.configured_teacher import configured_teacher
from luthier.features.human_eval import service as rating_panels
from luthier.features.judges import service as judges
from luthier.features.model_cards import service as project_models
from luthier.ml.charts import figures
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_text, shown_reference
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

_ADDRESS: Final = "/evaluations/judges"
router = APIRouter(prefix=_ADDRESS)
_MAX_TUNED: Final = 100
_MAX_SHOWN: Final = 100
_PREFERENCES: Final = {"a": "first is better", "tie": "tie", "b": "second is better"}
_Name = Annotated[str, Form(max_length=1024)]


@dataclass(frozen=True, slots=True)
class Compared:
    """A calibration as it is shown.

    Attributes:
        found: The calibration.
        judge: Its judge, without a path.
        source: Where the ratings are from, without a path.
        labels: What people and the judge may say.
        reasons: Why it may enter a gate or not, without paths.
        cautions: What the figures do not show, without paths.
    """

    found: Calibration
    judge: str
    source: str
    labels: tuple[str, ...]
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]


@router.get("")
def index(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The comparisons, newest first, and the form of a new one."""
    return _page(request, context, caller, {})


@router.post("")
def calibrate(
    request: Request, context: HomeContext, caller: Trainer, judge: _Name = "", panel: _Name = ""
) -> Response:
    """Queue the comparison of a judge with the people of a panel, and lead to its progress."""
    try:
        made = evaluation_orders.start_calibration(context, caller, judge, panel)
    except LuthierError as error:
        return _page(request, context, caller, {"judge": judge, "panel": panel, "error": error})
    notice = "The comparison is queued: a worker of this server will run it."
    return redirect(request, f"/evaluations/orders/{made.job.job_id}", notice)


def _page(request: Request, context: Context, caller: Caller, given: Mapping[str, Any]) -> Response:
    stored = judges.calibrations(context, caller.project_id)
    places = home_paths(context)
    panels = rating_panels.list_panels(context, caller)
    tuned, _ = project_models.list_tuned(context, caller, limit=_MAX_TUNED)
    run_names = distinct_names(context.run_labels.names([view.record.run_id for view in tuned]))
    shown = [_compared(one, places) for one in stored[:_MAX_SHOWN]]
    panel_names = {one.panel.panel_id: one.panel.name for one in panels}
    names = HumanNames(context, caller.project_id)
    names.read(text for one in shown for text in (one.judge, one.source))
    values: dict[str, Any] = {"judge": "", "panel": "", "error": None}
    values |= given
    values |= {
        "shown": shown,
        "num_stored": len(stored),
        "panels": [one.panel for one in panels],
        "panel_names": panel_names,
        "tuned": [(view.record.run_id, run_names[view.record.run_id]) for view in tuned],
        "bases": [view.name for view in project_models.list_bases(context, caller.project_id) if view.is_here],
        "teacher": configured_teacher(context),
        "estimate": _estimate,
        "lowest": LOWEST_KAPPA,
        "project_words": project_option(caller.project_id),
        "human_names": names,
    }
    error = values["error"]
    return render(request, "evaluation_orders/judges.html", values, status=status_of(error) if error else 200)


def _compared(found: Calibration, places: Mapping[str, str]) -> Compared:
    """A calibration without paths of this machine: a judge may be a file, and ratings may be of one."""
    named = {name: shown_reference(name, places) for name in (found.judge, found.source)}
    known = dict(places) | {name: shown for name, shown in named.items() if name.startswith("/")}
    return Compared(
        found,
        named[found.judge],
        named[found.source],
        tuple(_PREFERENCES.get(label, label) for label in found.table.labels),
        tuple(redact_text(text, known) for text in found.reasons),
        tuple(redact_text(text, known) for text in found.cautions),
    )


def _estimate(one: Estimate) -> tuple[str, str]:
    """A figure and its interval, as precise as the interval is narrow."""
    decimals = figures.decimals_for(one.low, one.high)
    return figures.number(one.value, decimals), figures.interval(one.low, one.high, decimals)
