"""Use cases: decide about single rows of a dataset's version, and make the next version of the decisions.

A decision is stored immediately with its author. Where two people decide about one row, the newer decision counts, and
its author is shown the other one. The audit log has no entry for a decision, but one for the version made of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import open_rows
from luthier.features.datasets.store import DatasetVersion, Decision, RowDecision
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import Row
    from luthier.core.errors import RowProblem
    from luthier.ml.data.rows.row_index import RowIndex

Show = Literal["undecided", "all", "warned", "accepted", "rejected", "edited"]
SHOWN: Final[tuple[Show, ...]] = get_args(Show)
_DECISION_OF: Final[Mapping[str, Decision]] = {"accepted": "accept", "rejected": "reject", "edited": "edit"}
MAX_ROWS_NAMED: Final = 10_000
MAX_ROWS_LINKED: Final = 500
"""Rows that a link to a queue names: an address has to stay short."""


@dataclass(frozen=True)
class Queue:
    """Rows to decide about, by their lines, in the order of the file.

    Attributes:
        version: The version that the rows belong to.
        rows: The index of its rows.
        decisions: All decisions about the version, by line.
        show: Which rows are shown.
        only: Lines that the queue is limited to, ascending; empty for all.
    """

    version: DatasetVersion
    rows: RowIndex
    decisions: Mapping[int, RowDecision]
    show: Show = "undecided"
    only: tuple[int, ...] = ()

    def having(self, line: int, decision: RowDecision | None) -> Queue:
        """The queue with another word on a row; None: with none."""
        others = {one: said for one, said in self.decisions.items() if one != line}
        return replace(self, decisions=others if decision is None else others | {line: decision})

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many rows of the queue were decided, and how; `undecided` and `all` too, and `warned` where some are.

        Filters do not matter.
        """
        # A set: `only` may have 10,000 lines, and every decision is looked up in it.
        about = set(self.only)
        found = Counter(one.decision for line, one in self.decisions.items() if not about or line in about)
        total = len(self.only) if self.only else self.rows.num_rows
        named: dict[str, int] = {show: found[decision] for show, decision in _DECISION_OF.items()}
        if self.warned:
            named["warned"] = sum(not about or line in about for line in self.warned)
        return named | {"all": total, "decided": found.total(), "undecided": total - found.total()}

    @cached_property
    def warned(self) -> frozenset[int]:
        """The lines of rows that a check has marked when they were written."""
        return frozenset(self.version.details.get("warned", ()))

    @cached_property
    def open_lines(self) -> list[int]:
        """The lines of the filter that nobody has decided about, in the order of the file."""
        if self.show in _DECISION_OF:
            return []
        lines = self.only or (sorted(self.warned) if self.show == "warned" else self.rows.lines())
        return [line for line in lines if line not in self.decisions and self._is_shown(line)]

    @property
    def num_open(self) -> int:
        """How many rows `open_lines` has; no row is read for it."""
        if not self.only and self.show in ("all", "undecided"):
            return self.counts["undecided"]
        return len(self.open_lines)

    @cached_property
    def by_author(self) -> list[tuple[str, int]]:
        """Who decided how many rows of the version, most first."""
        return Counter(one.author for one in self.decisions.values()).most_common()

    def first(self) -> int | None:
        """The first line that is shown."""
        return self.after(0)

    def after(self, line: int) -> int | None:
        """The next line that is shown; None at the end."""
        # Known lines are searched by bisection: the current line need not be among them (it was just decided).
        if (few := self._few) is not None:
            place = bisect_right(few, line)
            return few[place] if place < len(few) else None
        return next((one for one in self._lines(line, 1) if one > line and self._is_shown(one)), None)

    def before(self, line: int) -> int | None:
        """The line before that is shown; None at the start."""
        if (few := self._few) is not None:
            place = bisect_left(few, line)
            return few[place - 1] if place else None
        return next((one for one in self._lines(line, -1) if one < line and self._is_shown(one)), None)

    def row(self, line: int) -> Row | RowProblem:
        """The row of a line.

        Raises:
            NotFoundError: The rows have no such line.
        """
        position = self.rows.position(line)
        if position is None:
            raise no_such_row(line)
        return self.rows.row(position)

    @cached_property
    def _few(self) -> list[int] | None:
        """The lines that are shown, where they are known without reading the file."""
        if self.only:
            return [line for line in self.only if self._is_shown(line)]
        if self.show in _DECISION_OF:
            return sorted(line for line in self.decisions if self._is_shown(line))
        return sorted(self.warned) if self.show == "warned" else None

    def _is_shown(self, line: int) -> bool:
        decided = self.decisions.get(line)
        if self.show == "all":
            return True
        if self.show == "undecided":
            return decided is None
        if self.show == "warned":
            return line in self.warned
        return decided is not None and decided.decision == _DECISION_OF[self.show]

    def _lines(self, line: int, step: int) -> Iterator[int]:
        """From a line on; those that are skipped were decided, so it reads no more rows than decisions."""
        start = self.rows.position(line)
        if start is None:
            # Line 0 means "before the first": `first()` is `after(0)`.
            start = 0 if step > 0 else self.rows.num_rows - 1
        return self.rows.lines(start, step)


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that was stored.

    Attributes:
        decision: The decision, with the time of the database.
        overruled: Another person's decision about the row since the page was shown; None where there is none.
    """

    decision: RowDecision
    overruled: RowDecision | None = None


def open_queue(
    context: Context,
    caller: Caller,
    dataset_id: str,
    number: int | None,
    *,
    show: Show = "undecided",
    only: tuple[int, ...] = (),
) -> Queue:
    """The queue of a version.

    Args:
        context: The home.
        caller: Whose project it is.
        dataset_id: The dataset.
        number: The number of the version; None for the newest.
        show: Which rows are shown.
        only: Lines to limit the queue to, such as those of a finding; lines that are not rows are left out.

    Raises:
        NotFoundError: No such dataset or version, or none of the lines is a row.
        DataError: The file cannot be read.
        WorkError: The machine could not index the file.
    """
    version = dataset_versions.get_version(context, caller, dataset_id, number)
    rows = open_rows(context, caller, version)
    decisions = {one.row: one for one in context.datasets.decisions(dataset_id, version.number)}
    # Sorted because `after` and `before` bisect over it.
    there = tuple(sorted(line for line in set(only) if rows.position(line) is not None))
    if only and not there:
        raise NotFoundError(
            "none of the named rows exists",
            expected=f"numbers of rows of version {version.number}",
            do="name other rows, or go through all rows",
        )
    return Queue(version, rows, decisions, show, there)


def decide(
    context: Context,
    caller: Caller,
    queue: Queue,
    line: int,
    decision: Decision,
    *,
    seen: float | None = None,
    edited: Mapping[str, Any] | None = None,
) -> Decided:
    """Store the caller's decision about a row.

    Args:
        context: The home.
        caller: Whose project it is.
        queue: The queue of the version.
        line: The line of the row.
        decision: What is decided.
        seen: The time of the decision that the caller was shown, in seconds since 1970; None for none.
        edited: The row as it should be, for an edit.

    Raises:
        NotFoundError: No such row.
        RequestError: An edit that training could not use, or that changes nothing.
    """
    row = queue.row(line)
    if decision == "edit":
        edited = _checked(queue, row, edited)
    made = RowDecision(row=line, decision=decision, edited=None if edited is None else dict(edited), author=caller.name)
    before = queue.decisions.get(line)
    kept = context.datasets.decide(queue.version.dataset_id, queue.version.number, made)
    # `seen` is the time of the decision that the page showed. Another time means that a colleague decided in between.
    is_news = before is not None and before.author != caller.name and before.decided_at != seen
    return Decided(kept, before if is_news else None)


def decide_all(
    context: Context, caller: Caller, queue: Queue, decision: Literal["accept", "reject", "undo"]
) -> Sequence[int]:
    """Decide about all rows of the queue's filter at once; returns their lines.

    Accept and reject take the rows that nobody has decided about, at the time of writing too: no decision is replaced.
    Undo takes the caller's own decisions of the filter back.
    """
    version = queue.version
    if decision != "undo":
        return context.datasets.decide_open(
            version.dataset_id, version.number, queue.open_lines, decision, caller.name, progress=context.progress
        )
    about = set(queue.only)
    wanted = _DECISION_OF.get(queue.show)
    lines = [
        line
        for line, one in queue.decisions.items()
        if one.author == caller.name and one.decision == wanted and (not about or line in about)
    ]
    context.datasets.undo_decisions(version.dataset_id, version.number, lines)
    return lines


def take_back(context: Context, caller: Caller, queue: Queue, line: int | None = None) -> RowDecision | None:
    """Remove a decision.

    Args:
        context: The home.
        caller: Whose project it is.
        queue: The queue of the version.
        line: The line of the row; None for the caller's own newest decision.

    Returns:
        The decision that was removed; None where there was none.
    """
    if line is None:
        own = [one for one in queue.decisions.values() if one.author == caller.name]
        # Ties of the clock (milliseconds) are broken by the row, so undo always takes back one definite decision.
        found = max(own, key=lambda one: (one.decided_at, one.row), default=None)
    else:
        found = queue.decisions.get(line)
    if found is not None:
        context.datasets.undo_decision(queue.version.dataset_id, queue.version.number, found.row)
    return found


def make_version(context: Context, caller: Caller, queue: Queue, *, note: str = "") -> DatasetVersion:
    """The next version: without the rejected rows, with the edited ones as they should be, all else byte for byte.

    Raises:
        RequestError: Nothing would change, or no row would be left.
    """
    from luthier.features.datasets.decided_rows import Counts, decided_rows

    version, changes = queue.version, {one.decision for one in queue.decisions.values()}
    if not changes & {"reject", "edit"}:
        raise RequestError(
            "no row was rejected or edited",
            expected="a decision that changes something",
            do="go through the rows first; accepting all of them does not change the version",
        )
    rejected = sum(one.decision == "reject" for one in queue.decisions.values())
    if rejected >= queue.rows.num_rows:
        raise RequestError(
            "all rows were rejected", expected="at least one row that is kept", do="accept or edit some rows"
        )
    # Filled while `keep_rows` consumes the generator, hence read only after it.
    counts = Counts()
    stem = version.filename.split(".", 1)[0] or "rows"
    with context.progress.task("Writing rows", queue.rows.num_rows, "rows") as task:
        rows = decided_rows(queue, counts, task)
        file = dataset_versions.keep_rows(context, caller, rows, f"{stem}.jsonl")
    return dataset_versions.add_version(
        context,
        caller,
        version.dataset_id,
        file,
        origin="annotation",
        parent=version.number,
        note=note,
        details=counts.as_details(queue),
    )


def parse_lines(text: str) -> tuple[int, ...]:
    """`3,17,20-25` as numbers; none for an empty text.

    Raises RequestError for what is no such list, and for more than 10,000 of them.
    """
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        ends = part.split("-")
        # At most 12 digits, checked before int() runs; isascii refuses digits of other scripts, which int() takes.
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() and len(end) < 13 for end in ends):
            raise RequestError(f"rows={part[:40]!r}", expected="numbers such as 3,17,20-25", do="correct the address")
        low, high = int(ends[0]), int(ends[-1])
        if low > high:
            raise RequestError(
                f"rows={part[:40]!r}: it ends before it begins",
                expected="numbers such as 3,17,20-25",
                do="swap the two numbers",
            )
        # The span is checked before range() is expanded: `1-999999999999` would fill the memory.
        if high - low >= MAX_ROWS_NAMED or len(found) + high - low >= MAX_ROWS_NAMED:
            raise RequestError(
                f"rows={part[:40]!r}: more rows than can be named in one request",
                expected=f"at most {MAX_ROWS_NAMED:,}",
                do="name fewer rows, or go through all of them",
            )
        found.update(range(low, high + 1))
    # No numbers means all rows, which only an empty text asks for.
    if text.strip() and not found:
        raise RequestError(f"rows={text[:40]!r}", expected="numbers such as 3,17,20-25", do="correct the address")
    return tuple(sorted(found))


def named_lines(lines: tuple[int, ...]) -> str:
    """The text that `parse_lines` reads, neighbours as one range."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and parts[-1][1] == line - 1:
            parts[-1][1] = line
        else:
            parts.append([line, line])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def no_such_row(line: int) -> NotFoundError:
    """The error for a row that the file does not have."""
    return NotFoundError(f"no row on line {line}", expected="a row of this version", do="start from the first row")


def _checked(queue: Queue, row: Row | RowProblem, edited: Mapping[str, Any] | None) -> Mapping[str, Any]:
    from luthier.features.datasets.decided_rows import check_edited

    if edited is None:
        raise RequestError("an edit without a row", expected="the corrected row", do="open the row and edit it")
    check_edited(queue.rows, row, edited, queue.version.columns)
    return edited
