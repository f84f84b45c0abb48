"""/datasets/{id}/annotate: rows one after the other: accept, reject or edit, and make a version of the decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.dataset import Row
from luthier.core.errors import LuthierError, RequestError, RowProblem
from luthier.core.text.counted import counted
from luthier.features.datasets import annotations as annotation_queue
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.annotations import SHOWN, Queue, Show, named_lines
from luthier.features.datasets.pages.datasets import Number, head, waiting_page
from luthier.features.datasets.store import Decision, RowDecision
from luthier.ml.data.provenance import PROVENANCE
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

if TYPE_CHECKING:
    from luthier.ml.data.rows.row_text import TextField

_MAX_SHOWN: Final = 20_000
_MAX_COMPARED: Final = 8_000
_LEARNED_SPEAKERS: Final = frozenset({"assistant", "gpt", "model", "chatgpt", "function_call"})
_LEARNED_FIELDS: Final = frozenset({"completion", "output", "chosen", "text"})


@dataclass(frozen=True, slots=True)
class ShownText:
    """One text of a row.

    Attributes:
        place: Where the text is in the row.
        spans: Pairs of sign and text as in `data.diff.words`, where an edit changed it.
        num_more: Characters that are not shown.
    """

    place: TextField
    spans: tuple[tuple[str, str], ...]
    num_more: int

    @property
    def is_learned(self) -> bool:
        """Whether training learns it, if the row alone shows it."""
        if self.place.speaker:
            return self.place.speaker in _LEARNED_SPEAKERS and not self.place.pointer.startswith("/prompt/")
        return self.place.name in _LEARNED_FIELDS


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """The passage that a pair was written from.

    Attributes:
        text: The passage.
        source: The file, page and section that it is from.
    """

    text: str
    source: str


def source_text(provenance: Mapping[str, Any]) -> str:
    """Where a passage is from: file, page and section, as far as they are known."""
    page = f"page {provenance['page']}" if provenance.get("page") is not None else ""
    parts = (provenance.get("file"), page, provenance.get("section"))
    return ", ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class AnnotationView:
    """A row of a queue to be read or edited.

    Attributes:
        queue: The queue.
        line: The line of the row; None where no row is shown.
        edit: Which form is open.
        notice: What the last request has done.
        error: Why a form was refused.
        typed: What a refused form held, by place, or under `json`.
        note: The note of a version that could not be made.
    """

    queue: Queue
    line: int | None
    edit: Literal["text", "json"] | None = None
    notice: str = ""
    error: LuthierError | None = None
    typed: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def row(self) -> Row | RowProblem | None:
        """The row as the file has it.

        Raises:
            NotFoundError: The rows have no such line.
        """
        return None if self.line is None else self.queue.row(self.line)

    @property
    def problem(self) -> RowProblem | None:
        """Why the row cannot be read."""
        return self.row if isinstance(self.row, RowProblem) else None

    @property
    def decision(self) -> RowDecision | None:
        """The decision about the row."""
        return None if self.line is None else self.queue.decisions.get(self.line)

    @property
    def fields(self) -> dict[str, Any]:
        """The resulting row: edited, where it was."""
        if self.decision is not None and self.decision.edited is not None:
            return self.decision.edited
        return self.row.fields if isinstance(self.row, Row) else {}

    @cached_property
    def texts(self) -> list[ShownText]:
        """The row's texts to read; what an edit has changed is marked."""
        from luthier.ml.data.diff.row_changes import word_diff
        from luthier.ml.data.rows.row_text import text_fields

        before = text_fields(self.row.fields) if isinstance(self.row, Row) else []
        known = {place.pointer: place.text for place in before}
        shown = []
        for place in text_fields(self.fields):
            if self.passage is not None and place.name == PROVENANCE:
                continue  # shown as the passage beside the pair
            old, text = known.get(place.pointer, ""), place.text[:_MAX_SHOWN]
            spans: tuple[tuple[str, str], ...] = (("=", text),)
            # The word diff is quadratic in the number of words: long texts are shown without marks.
            if text != old and self.decision is not None and max(len(old), len(place.text)) <= _MAX_COMPARED:
                spans = word_diff(old, text) if self.decision.edited is not None else spans
            shown.append(ShownText(place, spans, max(0, len(place.text) - _MAX_SHOWN)))
        return shown

    @property
    def passage(self) -> ShownPassage | None:
        """The passage beside a pair; None where the row holds none."""
        found = self._provenance
        if not isinstance(text := found.get("passage"), str):
            return None
        return ShownPassage(text[:_MAX_SHOWN], source_text(found))

    @property
    def warnings(self) -> list[str]:
        """What a check has marked when the row was written, unless the row was edited since."""
        is_edited = self.decision is not None and self.decision.edited is not None
        found = self._provenance.get("warnings")
        return [] if is_edited or not isinstance(found, list) else [str(line) for line in found]

    @property
    def num_open(self) -> int:
        """Undecided rows of the filter."""
        return self.queue.num_open

    @property
    def _provenance(self) -> Mapping[str, Any]:
        found = self.fields.get(PROVENANCE)
        return found if isinstance(found, dict) else {}

    @property
    def focus(self) -> str:
        """The place that an edit most likely changes: the last text that is learned, else the first text."""
        texts = [shown for shown in self.texts if shown.place.is_text]
        chosen = self.queue.version.columns.get("completion")
        learned = [shown.place.pointer for shown in texts if shown.is_learned or shown.place.name == chosen]
        # The last answer is what an annotator corrects most often.
        return learned[-1] if learned else texts[0].place.pointer if texts else ""

    @property
    def json(self) -> str:
        """The row as JSON to be edited."""
        from luthier.ml.data.rows.row_text import as_json

        return self.typed.get("json", as_json(self.fields))

    @cached_property
    def following(self) -> int | None:
        """The line that comes next."""
        return None if self.line is None else self.queue.after(self.line)

    @cached_property
    def previous(self) -> int | None:
        """The line before."""
        return None if self.line is None else self.queue.before(self.line)

    @property
    def number(self) -> int:
        """Which row of the file it is, from 1 on."""
        position = None if self.line is None else self.queue.rows.position(self.line)
        return 0 if position is None else position + 1

    @property
    def only(self) -> str:
        """The rows that it is about, as an address names them."""
        return named_lines(self.queue.only)

    @property
    def filters(self) -> list[tuple[Show, int]]:
        """What can be shown, and how many rows of each there are."""
        return [(show, self.queue.counts[show]) for show in SHOWN if show != "warned" or self.queue.warned]

    def at(self, *, row: int | None = None, show: str | None = None, edit: str | None = None, rows: str = "") -> str:
        """The address of another row, filter or form of this queue.

        Args:
            row: The row, by its line; None for the first one that the filter leaves.
            show: The filter; None for that of this page.
            edit: The open form, `text` or `json`; None for none.
            rows: A choice of rows, as this page has one; `all` for no choice, empty for that of this page.
        """
        version = self.queue.version
        kept = "" if rows == "all" else rows or self.only
        values = {"version": version.number, "show": show or self.queue.show, "row": row, "edit": edit, "rows": kept}
        # Empty values are left out, so that addresses are short and the same view has one address.
        known = {name: value for name, value in values.items() if value}
        return f"/datasets/{version.dataset_id}/annotate?{urlencode(known, safe=',')}"

    def news(self) -> str:
        """The address for later decisions of others."""
        values = {"version": self.queue.version.number, "row": self.line or 0}
        if self.decision is not None:
            values["seen"] = self.decision.decided_at  # type: ignore[assignment]
        return f"/datasets/{self.queue.version.dataset_id}/annotate/news?{urlencode(values)}"


router = APIRouter(prefix="/datasets/{dataset_id}/annotate")

Edit = Literal["text", "json"]
_Rows = Annotated[str, Query(max_length=16_000)]
_RowsOfForm = Annotated[str, Form(max_length=16_000)]
_WORDS: Final[Mapping[str, str]] = {"accept": "accepted", "reject": "rejected", "edit": "edited"}
_MAX_FIELDS: Final = 5_000


async def _form_of(request: Request) -> FormData:
    # One field a text of the row: long conversations have thousands, and Starlette's default is 1,000.
    return await request.form(max_fields=_MAX_FIELDS, max_files=0)


SentForm = Annotated[FormData, Depends(_form_of)]


@router.get("")
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: Number = None,
    show: Show = "undecided",
    row: int | None = None,
    rows: _Rows = "",
    edit: Edit | None = None,
) -> Response:
    """The requested row, else the first that is shown."""
    values = head(context, caller, dataset_id, version, "/annotate")
    if (waiting := waiting_page(request, context, caller, values)) is not None:
        return waiting
    queue = _queue(context, caller, dataset_id, version, show, rows)
    line = queue.first() if row is None else row
    return _page(request, context, caller, AnnotationView(queue, line, edit if caller.may("train") else None))


@router.post("/decide")
def decide(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form()],
    row: Annotated[int, Form()],
    decision: Annotated[Literal["accept", "reject"], Form()],
    seen: Annotated[float | None, Form()] = None,
    show: Annotated[Show, Form()] = "undecided",
    rows: _RowsOfForm = "",
) -> Response:
    """Keep one decision, and lead to the next row."""
    queue = _queue(context, caller, dataset_id, version, show, rows)
    made = annotation_queue.decide(context, caller, queue, row, decision, seen=seen)
    return _onward(
        request, context, caller, queue.having(row, made.decision), row, _decision_message(row, decision, made)
    )


@router.post("/all")
def decide_all(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form()],
    decision: Annotated[Literal["accept", "reject", "undo"], Form()],
    show: Annotated[Show, Form()] = "undecided",
    rows: _RowsOfForm = "",
) -> Response:
    """Keep one decision about all undecided rows that are shown, or take one's own decisions of the filter back."""
    queue = _queue(context, caller, dataset_id, version, show, rows)
    view = AnnotationView(queue, None)

    def work() -> Led:
        lines = annotation_queue.decide_all(context, caller, queue, decision)
        match decision:
            case "accept":
                notice = f"{counted(len(lines), 'row is', 'rows are')} accepted."
            case "reject":
                notice = f"{counted(len(lines), 'row is', 'rows are')} rejected."
            case "undo":
                notice = f"{counted(len(lines), 'row is', 'rows are')} undecided again."
        return Led(view.at(show="undecided"), notice)

    # Of a million rows this takes seconds: the page waits for it elsewhere.
    return page_work(request).answer(request, "The rows are being decided", work, back=view.at())


@router.post("/edit")
def edit(request: Request, context: HomeContext, caller: Trainer, dataset_id: str, form: SentForm) -> Response:
    """Store the edited row, and go to the next; or show what is wrong with it."""
    from luthier.ml.data.rows.row_text import from_json, with_texts

    version, line = _number(form, "version"), _number(form, "row")
    queue = _queue(context, caller, dataset_id, version, _show(form), str(form.get("rows", "")))
    # An empty field means "no decision was shown", which is not the same as time 0.
    seen = None if not form.get("seen") else _float(form, "seen")
    # The field that it has shows which form was sent.
    mode: Edit = "json" if "json" in form else "text"
    texts = {name.removeprefix("text:"): str(text) for name, text in form.items() if name.startswith("text:")}
    try:
        fields = (
            from_json(str(form["json"])) if mode == "json" else with_texts(AnnotationView(queue, line).fields, texts)
        )
        made = annotation_queue.decide(context, caller, queue, line, "edit", seen=seen, edited=fields)
    except LuthierError as error:
        typed = {"json": str(form["json"])} if mode == "json" else texts
        return _page(request, context, caller, AnnotationView(queue, line, mode, error=error, typed=typed))
    return _onward(
        request, context, caller, queue.having(line, made.decision), line, _decision_message(line, "edit", made)
    )


@router.post("/undo")
def undo(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form()],
    row: Annotated[int | None, Form()] = None,
    show: Annotated[Show, Form()] = "undecided",
    rows: _RowsOfForm = "",
) -> Response:
    """Undo the decision about a row, or the visitor's newest decision, and go to that row."""
    queue = _queue(context, caller, dataset_id, version, show, rows)
    found = annotation_queue.take_back(context, caller, queue, row)
    if found is None:
        line = row if row is not None else queue.first()
        return _lead(request, context, caller, AnnotationView(queue, line, notice="you have no decision to undo"))
    words = f"row {found.row} is undecided again; it was {_WORDS[found.decision]}"
    return _lead(request, context, caller, AnnotationView(queue.having(found.row, None), found.row, notice=words))


@router.post("/version")
def make(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form()],
    note: Annotated[str, Form(max_length=5000)] = "",
) -> Response:
    """Make the next version from the decisions."""
    queue = annotation_queue.open_queue(context, caller, dataset_id, version)

    def work() -> Led:
        made = annotation_queue.make_version(context, caller, queue, note=note)
        counts = made.details
        notice = (
            f"Version {made.number} is created: {counted(counts['rejected'], 'row')} left out, {counts['edited']:,} "
            "edited."
        )
        return Led(f"/datasets/{dataset_id}?version={made.number}", notice)

    try:
        back = f"/datasets/{dataset_id}/annotate?version={version}"
        return page_work(request).answer(request, "The next version is being made", work, back=back)
    except LuthierError as error:
        return _page(request, context, caller, AnnotationView(queue, queue.first(), error=error, note=note))


@router.get("/news")
def news(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: int,
    row: int,
    seen: float | None = None,
) -> Response:
    """Decisions of others since the page was made: on the shown row, and their number in total."""
    version_of = dataset_versions.get_version(context, caller, dataset_id, version)
    decisions = {one.row: one for one in context.datasets.decisions(dataset_id, version_of.number)}
    decision = decisions.get(row)
    # One's own decisions in another tab are no news.
    is_news = decision is not None and decision.decided_at != seen and decision.author != caller.name
    values = {"decision": decision if is_news else None, "words": _WORDS}
    return render(request, "datasets/news.html", values)


def _queue(context: Context, caller: Caller, dataset_id: str, version: int | None, show: Show, rows: str) -> Queue:
    only = annotation_queue.parse_lines(rows)
    return annotation_queue.open_queue(context, caller, dataset_id, version, show=show, only=only)


def _onward(request: Request, context: Context, caller: Caller, queue: Queue, line: int, words: str) -> Response:
    """To the row behind one that was just decided; at the end to the first that is left, where only some are shown."""
    following = queue.after(line)
    if following is None:
        # In the undecided queue skipped rows are left at its start; in other filters the row itself stays in view.
        following = queue.first() if queue.show == "undecided" else line
    return _lead(request, context, caller, AnnotationView(queue, following, notice=words))


def _lead(request: Request, context: Context, caller: Caller, view: AnnotationView) -> Response:
    if is_fragment_request(request):
        return _page(request, context, caller, view)
    return redirect(request, view.at(row=view.line), f"{view.notice[:1].upper()}{view.notice[1:]}.")


def _page(request: Request, context: Context, caller: Caller, view: AnnotationView) -> Response:
    version = view.queue.version
    template = "datasets/desk.html" if is_fragment_request(request) else "datasets/annotate.html"
    values = head(context, caller, version.dataset_id, version.number, "/annotate")
    status = 200 if view.error is None else status_of(view.error)
    answer = render(request, template, values | {"desk": view, "words": _WORDS}, status=status)
    if is_fragment_request(request):
        answer.headers["HX-Replace-Url"] = view.at(row=view.line, edit=view.edit)
    return answer


def _decision_message(line: int, decision: Decision, made: annotation_queue.Decided) -> str:
    words = f"row {line} is {_WORDS[decision]}"
    if made.overruled is not None:
        words += (
            f"; {made.overruled.author} had {_WORDS[made.overruled.decision]} it in the meantime, your decision "
            "counts now"
        )
    return words


def _show(form: FormData) -> Show:
    found = str(form.get("show", "undecided"))
    return next((show for show in annotation_queue.SHOWN if show == found), "undecided")


def _number(form: FormData, name: str) -> int:
    text = str(form.get(name, ""))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise _bad(name, text)
    return int(text)


def _float(form: FormData, name: str) -> float:
    try:
        return float(str(form[name]))
    except ValueError as error:
        raise _bad(name, str(form[name])) from error


def _bad(name: str, text: str) -> LuthierError:
    return RequestError(f"{name}={text[:40]!r}", expected="a number, as this page sends it", do="reload the page")
