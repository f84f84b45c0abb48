"""The annotation page: a row, its decision, and the links to other rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlencode

from luthier.core.dataset import Row
from luthier.core.errors import LuthierError, RowProblem
from luthier.features.datasets.annotations import SHOWN, Queue, Show, named_lines
from luthier.features.datasets.records import RowDecision

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
        """Whether training learns it, as far as the row alone tells."""
        if self.place.speaker:
            return self.place.speaker in _LEARNED_SPEAKERS and not self.place.pointer.startswith("/prompt/")
        return self.place.name in _LEARNED_FIELDS


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
        """The row as the file has it. Raises NotFoundError."""
        return None if self.line is None else self.queue.row(self.line)

    @property
    def problem(self) -> RowProblem | None:
        """Why the row cannot be read."""
        return self.row if isinstance(self.row, RowProblem) else None

    @property
    def decision(self) -> RowDecision | None:
        """What was said of the row."""
        return None if self.line is None else self.queue.decisions.get(self.line)

    @property
    def fields(self) -> dict[str, Any]:
        """The row as it is to be: edited, where somebody did."""
        if self.decision is not None and self.decision.edited is not None:
            return self.decision.edited
        return self.row.fields if isinstance(self.row, Row) else {}

    @cached_property
    def texts(self) -> list[ShownText]:
        """The row's texts to read; what an edit has changed is marked."""
        from luthier.ml.data.diff.words import word_diff
        from luthier.ml.data.rows.row_text import text_fields

        before = text_fields(self.row.fields) if isinstance(self.row, Row) else []
        known = {place.pointer: place.text for place in before}
        shown = []
        for place in text_fields(self.fields):
            old, text = known.get(place.pointer, ""), place.text[:_MAX_SHOWN]
            spans: tuple[tuple[str, str], ...] = (("=", text),)
            # The word diff is quadratic in the number of words: long texts are shown without marks.
            if text != old and self.decision is not None and max(len(old), len(place.text)) <= _MAX_COMPARED:
                spans = word_diff(old, text) if self.decision.edited is not None else spans
            shown.append(ShownText(place, spans, max(0, len(place.text) - _MAX_SHOWN)))
        return shown

    @property
    def focus(self) -> str:
        """The place that an edit most likely changes: the last text that is learned, else the first text."""
        texts = [shown for shown in self.texts if shown.place.is_text]
        learned = [shown.place.pointer for shown in texts if shown.is_learned]
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
        return [(show, self.queue.counts[show]) for show in SHOWN]

    def at(self, *, row: int | None = None, show: str | None = None, edit: str | None = None, rows: str = "") -> str:
        """The address of another row, filter or form of this queue. rows: `all` for no choice of rows."""
        version = self.queue.version
        kept = "" if rows == "all" else rows or self.only
        values = {"version": version.number, "show": show or self.queue.show, "row": row, "edit": edit, "rows": kept}
        # Empty values are left out, so that addresses are short and the same view has one address.
        known = {name: value for name, value in values.items() if value}
        return f"/datasets/{version.dataset_id}/annotate?{urlencode(known, safe=',')}"

    def news(self) -> str:
        """The address that tells what others have said since."""
        values = {"version": self.queue.version.number, "row": self.line or 0}
        if self.decision is not None:
            values["seen"] = self.decision.decided_at  # type: ignore[assignment]
        return f"/datasets/{self.queue.version.dataset_id}/annotate/news?{urlencode(values)}"
