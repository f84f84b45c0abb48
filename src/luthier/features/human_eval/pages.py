"""/evaluations/panels: rating panels as the team sees them: create, progress, links, files, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id
from luthier.core.json_limits import json_utf8
from luthier.core.results.evaluation_overview import EvaluationOverview
from luthier.core.results.human_eval import RatingKind
from luthier.core.results.human_eval_report import Agreement, PanelFigures, PanelReport
from luthier.core.text.counted import counted
from luthier.core.text.names import distinct_names
from luthier.core.text.written_numbers import typed_whole
from luthier.features.evaluations.view import listed_in_language
from luthier.features.human_eval import service as rating_links
from luthier.features.human_eval import service as rating_panels
from luthier.features.human_eval.files import FileFormat, export_panel, preference_pairs
from luthier.features.human_eval.items import USUAL_NUM_ROWS, answers_of
from luthier.features.human_eval.service import RaterLink
from luthier.features.runs.views import list_evaluations, read_evaluation, rows_names
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import Tone, tone_of
from luthier.ml.charts.spec import OTHERS, Axis, IntervalRow, Intervals
from luthier.platform.auth.public_address import learn_public_address, link_root, public_address
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import Advised, Page, page_language, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, root_of

MEASURES: Final = {
    "krippendorff_alpha": "Krippendorff's alpha",
    "fleiss_kappa": "Fleiss' kappa",
    "cohen_kappa": "Cohen's kappa",
}


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A figure with its interval and what it means.

    Attributes:
        name: What it is about.
        about: The metric or criterion.
        value: The figure.
        interval: Its 95% interval.
        counts: What it was computed from.
        p_value: The p-value of a difference.
        word: The verdict.
        tone: Whether it is shown as good or bad.
        rows_needed: How many rows would decide it; None where it is decided, or unknown.
    """

    name: str
    about: str
    value: str
    interval: str
    counts: str = ""
    p_value: str = ""
    word: str = ""
    tone: Tone = "quiet"
    rows_needed: int | None = None


@dataclass(frozen=True, slots=True)
class FiguresView:
    """Everything that follows from one set of ratings.

    Attributes:
        title: Whose ratings they are.
        found: The figures.
        agreements: Agreement between raters, a row for each measure.
        agreement_cautions: What limits these.
        rows: Win rates, rankings, scores and differences.
        charts: The same as charts.
    """

    title: str
    found: PanelFigures
    agreements: list[FigureRow]
    agreement_cautions: list[str]
    rows: list[FigureRow]
    charts: list[Intervals]


def views_of(report: PanelReport) -> list[FiguresView]:
    """One for all raters, and where some seem not to read another one without them, which comes first."""
    everyone = _view("Everyone", "all", report.everyone)
    if report.without_caught is None:
        return [everyone]
    return [_view(f"Without {', '.join(report.caught)}", "without", report.without_caught), everyone]


def shown_estimate(one: Estimate) -> tuple[str, str]:
    """A figure and its interval, as precise as the interval is narrow."""
    # More digits than the interval supports would pretend a precision that the data does not have.
    decimals = figures.decimals_for(one.low, one.high)
    return figures.number(one.value, decimals), figures.interval(one.low, one.high, decimals)


def _view(title: str, key: str, found: PanelFigures) -> FiguresView:
    cautions = list(dict.fromkeys(one.caution for one in found.agreements if one.caution))
    rows = [*_win_rates(found), *_standings(found), *_scores(found), *_differences(found)]
    agreements = [_agreement(one) for one in found.agreements]
    return FiguresView(title, found, agreements, cautions, rows, _charts(key, found))


def _agreement(one: Agreement) -> FigureRow:
    value, interval = shown_estimate(one.estimate)
    counts = f"{one.num_raters} raters, {counted(one.num_items, 'item')}; {one.raw:.0%} of pairs agree"
    return FigureRow(MEASURES[one.measure], one.criterion or "preference", value, interval, counts)


def _win_rates(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.win_rates:
        value, interval = shown_estimate(one.rate)
        counts_of = ((one.num_wins, "win", ""), (one.num_losses, "loss", "losses"), (one.num_ties, "tie", ""))
        counts = f"{', '.join(counted(*each) for each in counts_of)} on {counted(one.num_rows, 'row')}"
        rows.append(
            FigureRow(
                name=f"{one.system} against {one.against}",
                about="win rate",
                value=value,
                interval=interval,
                counts=counts,
                p_value=figures.p_value(one.p_value),
                word=one.word,
                tone=tone_of(one.word),
                rows_needed=one.rows_needed,
            )
        )
    return rows


def _standings(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.standings:
        low, high = ("open" if end is None else figures.number(end, 2) for end in (one.low, one.high))
        interval = f"[{low}, {high}]"
        rows.append(FigureRow(one.system, "strength (log)", figures.number(one.value, 2), interval, "Bradley-Terry"))
    return rows


def _scores(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.scores:
        value, interval = shown_estimate(one.mean)
        rows.append(FigureRow(one.system, one.criterion, value, interval, counted(one.num_ratings, "rating")))
    return rows


def _differences(found: PanelFigures) -> list[FigureRow]:
    rows = []
    for one in found.differences:
        value, interval = shown_estimate(one.difference)
        rows.append(
            FigureRow(
                name=f"{one.system} less {one.against}",
                about=one.criterion,
                value=value,
                interval=interval,
                p_value=figures.p_value(one.p_value),
                word=one.word,
                tone=tone_of(one.word),
                rows_needed=one.rows_needed,
            )
        )
    return rows


def _charts(key: str, found: PanelFigures) -> list[Intervals]:
    charts = []
    if found.win_rates:
        above = [
            # Percentage points above a coin toss, so that zero means no preference.
            Estimate(value=100 * r.value - 50, low=100 * r.low - 50, high=100 * r.high - 50)
            for r in (one.rate for one in found.win_rates)
        ]
        names = [f"{one.system} over {one.against}" for one in found.win_rates]
        caption = "Right of zero: preferred more often than not. An interval across zero is inconclusive."
        axis = Axis("win rate less 50%", "percentage points", least=-50, most=50)
        rows = _drawn(names, above)
        charts.append(Intervals(f"{key}-wins", "Who is preferred", axis, rows, zero=True, caption=caption))
    if found.standings:
        ends = [end for one in found.standings for end in (one.value, one.low, one.high) if end is not None]
        strengths = [  # an open interval is drawn to the end of the picture
            Estimate(
                value=one.value,
                # Bradley-Terry strengths diverge for a system that won or lost every comparison.
                low=min(ends) - 1 if one.low is None else one.low,
                high=max(ends) + 1 if one.high is None else one.high,
            )
            for one in found.standings
        ]
        rows = _drawn([one.system for one in found.standings], strengths)
        caption = "Zero is the mean of all systems; 1.1 more is preferred three times out of four."
        caption += f" {found.ranking_caution}" if found.ranking_caution else ""
        axis = Axis("strength by Bradley and Terry", "log")
        charts.append(Intervals(f"{key}-standing", "Ranking of all systems", axis, rows, zero=True, caption=caption))
    for criterion in dict.fromkeys(one.criterion for one in found.scores):
        of_it = [one for one in found.scores if one.criterion == criterion]
        rows = _drawn([one.system for one in of_it], [one.mean for one in of_it])
        axis = Axis(criterion, "1 to 5", low=1, high=5)
        charts.append(Intervals(f"{key}-{criterion}", f"{criterion.capitalize()} of each system", axis, rows))
    return charts


def _drawn(names: Sequence[str], found: Sequence[Estimate]) -> list[IntervalRow]:
    pairs = zip(names, found, strict=True)
    return [
        IntervalRow(name, one.value, one.low, one.high, OTHERS[place % len(OTHERS)])
        for place, (name, one) in enumerate(pairs)
    ]


router = APIRouter(prefix="/evaluations/panels")
PAGE = Page(
    "Panels",
    router.prefix,
    "read",
    order=55,
    key="l",
    group="evaluate",
    advised=(Advised(commands=("human-eval",), title="Panels of raters"),),
)

_ADDRESS: Final = "/evaluations/panels"
_MAX_EVALUATIONS: Final = 100
_TYPES: Final = {"csv": "text/csv; charset=utf-8", "json": "application/json", "parquet": "application/octet-stream"}
_EMPTY: Final = {
    "kind": "pairwise",
    "raters": "3",
    "most_rows": str(USUAL_NUM_ROWS),
    "attention": "10",
    "instructions": "",
    "name": "",
}
_Short = Annotated[str, Form(max_length=2000)]
_Long = Annotated[str, Form(max_length=2 * rating_panels.MAX_INSTRUCTIONS_CHARACTERS)]
"""Browsers send two characters for the end of a line, and let a person write as many as are allowed with one each."""


@router.get("")
def index(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The list, newest first."""
    panels = rating_panels.list_panels(context, caller)
    names = HumanNames(context, caller.project_id)
    names.read(text for one in panels for text in (one.panel.name, *one.panel.systems))
    return render(request, "human_eval/list.html", {"panels": panels, "human_names": names})


@router.get("/new")
def new(request: Request, context: HomeContext, caller: Trainer, evaluation: str = "") -> Response:
    """A form; first of all which evaluation the answers are taken from."""
    return _form(request, context, caller, evaluation, {})


@router.post("/new")
def create(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    evaluation: _Short = "",
    systems: Annotated[list[str], Form(max_length=50)] = [],  # noqa: B006 - FastAPI copies it
    kind: Annotated[RatingKind, Form()] = "pairwise",
    raters: _Short = "3",
    most_rows: _Short = str(USUAL_NUM_ROWS),
    attention: _Short = "10",
    instructions: _Long = "",
    name: _Short = "",
    public_url: _Short = "",
) -> Response:
    """Make a panel, and lead to its page, which shows the links once."""
    instructions = instructions.replace("\r\n", "\n")
    try:
        if public_url:
            learn_public_address(context, caller, public_url)
        answered = answers_of(
            read_evaluation(context, caller.project_id, evaluation),
            systems,
            most_rows=_whole(most_rows, "rows", decimal_mark_of(request), most=100_000),
        )
        made = rating_panels.create_panel(
            context,
            caller,
            answered,
            kind=kind,
            raters=_people(raters),
            attention=_whole(attention, "attention checks in percent", decimal_mark_of(request), least=0, most=50)
            / 100,
            instructions=instructions,
            name=name.strip(),
        )
    except LuthierError as error:
        form = {"kind": kind, "raters": raters, "most_rows": most_rows, "attention": attention}
        form |= {"instructions": instructions, "name": name, "public_url": public_url}
        return _form(request, context, caller, evaluation, {"error": error, "form": form, "chosen": systems})
    return _lead(request, made.panel.panel_id, made.links)


@router.get("/{panel_id}")
def show(request: Request, context: HomeContext, caller: Reader, panel_id: str) -> Response:
    """The state of a panel, and links of raters that were just made."""
    return _show(request, context, caller, panel_id, shown=shown_once(request).take(request))


@router.post("/{panel_id}/close")
def close(request: Request, context: HomeContext, caller: Trainer, panel_id: str) -> Response:
    """Take no more ratings."""
    try:
        rating_panels.close_panel(context, caller, panel_id)
    except ConflictError as error:
        return _show(request, context, caller, panel_id, error=error)
    return redirect(request, f"{_ADDRESS}/{panel_id}", "The panel is closed: it takes no more ratings.")


@router.post("/{panel_id}/raters")
def add(request: Request, context: HomeContext, caller: Trainer, panel_id: str, name: _Short = "") -> Response:
    """One more rater, whose link the page shows once."""
    try:
        made = rating_links.add_rater(context, caller, panel_id, name)
    except RequestError as error:
        return _show(request, context, caller, panel_id, new_rater=name, error=error)
    return _lead(request, panel_id, (made,))


@router.post("/{panel_id}/raters/{rater_id}/{deed}")
def change(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    panel_id: str,
    rater_id: str,
    deed: Literal["renew", "revoke"],
) -> Response:
    """Another link for a rater, or none any more."""
    try:
        if deed == "revoke":
            rater = rating_links.revoke_link(context, caller, panel_id, rater_id)
            notice = f"The link of {rater.name} no longer works; their ratings are kept."
            return redirect(request, f"{_ADDRESS}/{panel_id}", notice)
        made = rating_links.renew_link(context, caller, panel_id, rater_id)
    except ConflictError as error:
        return _show(request, context, caller, panel_id, error=error)
    return _lead(request, panel_id, (made,))


@router.get("/{panel_id}/ratings.{file_format}")
def download(context: HomeContext, caller: Reader, panel_id: str, file_format: FileFormat) -> Response:
    """All ratings, as a file."""
    content = export_panel(context, caller.project_id, panel_id, file_format)
    return _file(content, f"{panel_id}.{file_format}", _TYPES[file_format])


@router.get("/{panel_id}/pairs.jsonl")
def pairs(context: HomeContext, caller: Reader, panel_id: str) -> Response:
    """Preference pairs to train on."""
    found = preference_pairs(context, caller, panel_id)
    if not found.rows:
        reasons = ", ".join(f"{number} ({reason})" for reason, number in found.left_out.items())
        raise RequestError(
            f"no pair on which people agreed: {reasons or 'nothing is rated yet'}",
            expected="at least one item where most raters prefer one answer",
            do="wait for more ratings, or add raters",
        )
    content = b"".join(json_utf8(row) + b"\n" for row in found.rows)
    return _file(content, f"{panel_id}-pairs.jsonl", "application/x-ndjson")


def _form(request: Request, context: Context, caller: Caller, evaluation_id: str, values: dict[str, Any]) -> Response:
    known = list_evaluations(context, caller.project_id, limit=_MAX_EVALUATIONS).evaluations
    found: Evaluation | None = None
    if evaluation_id:
        found = read_evaluation(context, caller.project_id, evaluation_id)
    written = [] if found is None else [system for system in found.systems if system.samples]
    chosen = values.get("chosen") or [system.name for system in written if system.is_model]
    common: dict[str, Any] = {"evaluations": known, "evaluation": found, "written": written}
    common |= _evaluation_names(context, caller, known)
    language = page_language(request, "human_eval/new.html")
    common["systems_of"] = {one.evaluation_id: listed_in_language(one.systems, language) for one in known}
    common |= {
        "form": _EMPTY | {"public_url": root_of(request)},
        "address_of_links": public_address(context, caller.project_id, for_raters=True),
    }
    error = values.get("error")
    status = 200 if error is None else status_of(error)
    return render(request, "human_eval/new.html", common | values | {"chosen": chosen, "error": error}, status=status)


def _evaluation_names(context: Context, caller: Caller, known: Sequence[EvaluationOverview]) -> dict[str, Any]:
    """What people call evaluations and their rows; no two evaluations have one name."""
    runs = context.run_labels.names(sorted({one.run_id for one in known if one.run_id}))
    named = {one.evaluation_id: runs[one.run_id] if one.run_id else ", ".join(one.models) for one in known}
    names = HumanNames(context, caller.project_id)
    return {
        "evaluation_names": distinct_names(named),
        "rows_names": rows_names(context, caller.project_id, [one.held_out_file for one in known]),
        "human_names": names.read(name for one in known for name in one.systems),
    }


def _lead(request: Request, panel_id: str, links: tuple[RaterLink, ...]) -> Response:
    return redirect(request, shown_once(request).put(request, f"{_ADDRESS}/{panel_id}", {"links": links}))


def _show(
    request: Request,
    context: Context,
    caller: Caller,
    panel_id: str,
    *,
    shown: dict[str, Any] | None = None,
    new_rater: str = "",
    error: LuthierError | None = None,
) -> Response:
    report = rating_panels.panel_report(context, caller, panel_id)
    report = HumanNames(context, caller.project_id).read(report.panel.systems).within(report)
    root = link_root(context, caller.project_id, root_of(request), for_raters=True)
    values = {
        "report": report,
        "panel": report.panel,
        "shown": {"source": _source_name(context, caller, report.panel.source)},
        "is_of_evaluation": is_id(report.panel.source, "eval"),
        "views": views_of(report),
        "links": [(link.rater.name, f"{root}{link.path}") for link in (shown or {}).get("links", ())],
        "is_shown_before": (shown or {}).get("is_shown_before", False),
        "estimate": shown_estimate,
        "address": f"{_ADDRESS}/{panel_id}",
        "new_rater": new_rater,
        "address_of_links": public_address(context, caller.project_id, for_raters=True),
        "error": error,
    }
    return render(request, "human_eval/show.html", values, status=200 if error is None else status_of(error))


def _source_name(context: Context, caller: Caller, source: str) -> str:
    """What people call the evaluation or the file that the answers are from."""
    if not is_id(source, "eval"):
        return source.replace("\\", "/").rpartition("/")[2]
    try:
        run_id = read_evaluation(context, caller.project_id, source).run_id
    except NotFoundError:
        return "an evaluation that was removed"
    return "an evaluation" if run_id is None else context.run_labels.names([run_id])[run_id]


def _people(text: str) -> int | list[str]:
    """`3`, or names with commas or line breaks between."""
    # Length before int(): a number with thousands of digits takes quadratic time to parse.
    if text.strip().isdecimal() and len(text.strip()) < 6:
        return int(text)
    return [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]


def _whole(text: str, what: str, mark: str, *, least: int = 1, most: int) -> int:
    try:
        found = typed_whole(text, mark)
    except ValueError:
        found = -1
    if not least <= found <= most:
        raise RequestError(
            f"{what}: {text[:40]!r}", expected=f"a whole number from {least} to {most:,}", do="correct it"
        )
    return found


def _file(content: bytes, name: str, media_type: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
