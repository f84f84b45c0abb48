"""The tree of errors, and how errors of libraries are reported.

    LuthierError                exit code 1
    ├── RequestError            exit code 2: what was requested cannot be done as asked
    │   ├── RecipeError         the recipe is wrong (unknown key, wrong type, impossible value)
    │   ├── DataError           the rows are wrong; carries one RowProblem for each bad place
    │   │   ├── OverlongError   rows longer than the context, and the recipe does not say what to do
    │   │   └── LeakageError    held-out rows are in the training data
    │   ├── TemplateError       the chat template cannot be trusted with a loss mask
    │   ├── UnsupportedError    a value of OpenAI's API that this server cannot follow, and where it is
    │   ├── NotFoundError       no such model, run or file
    │   ├── QuotaError          what a key may use in a day is used up
    │   ├── FileQuotaError      the files of a project take as many bytes as they may
    │   └── ConflictError       the thing exists but is in use or in another state
    └── WorkError               exit code 1: the request was right, the work failed
        ├── ModelSourceError    a base model could not be fetched, or came damaged
        ├── CheckpointError     no checkpoint that can be trusted
        ├── DivergedError       the loss or a gradient became NaN or infinite
        ├── ParityError         an export is not what it was made from
        ├── MemoryLimitError    a model is larger than models may be on this server
        ├── MemoryShortError    the system, or an accelerator, had no more memory to give
        ├── DefectError         our own code failed at the request
        ├── StorageFullError    no room left on the disk
        ├── BusyError           too many ask already; carries after how long to ask again
        ├── UnreachableError    a database that does not answer now; a later try may succeed
        └── PeerLostError       exit code 75: another process of the same run has gone, or cannot be reached

Each error is built from three parts, so that none can be left out: what came, what was expected, what to do.

The message of a library may quote what it was working on (SQLite a value of another table, polars a row, the system a
path), so it could carry data out to a caller. Commands on this machine show it, callers over the network get its kind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from luthier.core.json_limits import JsonLimitError


class LuthierError(Exception):
    """Base of all errors that Luthier raises on purpose.

    Args:
        came: what was found, with the value itself.
        expected: what would have been right.
        do: the next thing to try.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 503
    """As the API answers it."""
    retry_helps: ClassVar[bool] = True
    """Whether the same may go well a moment later; of what is for good, clients learn not to repeat it."""

    def __init__(self, came: str, *, expected: str, do: str) -> None:
        self.came, self.expected, self.do = came, expected, do
        # Exception.args holds the finished text: `str(error)` works for code that does not know this class.
        super().__init__(f"{came}\n  expected: {expected}\n  what to do: {do}")

    @property
    def in_one_line(self) -> str:
        """All three parts in one line, as clients of the API get them."""
        return f"{self.came}; expected: {self.expected}; what to do: {self.do}"

    def as_json(self) -> dict[str, Any]:
        """The error as a plain document, for `--json` and the API."""
        return {"type": type(self).__name__, "came": self.came, "expected": self.expected, "do": self.do}


class StoppedError(Exception):
    """Work ended by its stop check, between two pieces of it. Not a fault: the caller that passed the check catches it.

    Args:
        reason: What the check returned, such as which cap of a budget is spent.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StillRunningError(Exception):
    """Work elsewhere continues, and the caller does not wait for it. Not a fault: the caller asks again later.

    Args:
        what: What continues, such as the id of a batch at a provider.
        num_done: Its parts that are done.
        num_total: All of its parts; 0 where that is not known.
    """

    def __init__(self, what: str, *, num_done: int, num_total: int) -> None:
        super().__init__(what)
        self.what, self.num_done, self.num_total = what, num_done, num_total


class RequestError(LuthierError):
    """What was requested cannot be done as asked."""

    exit_code = 2
    http_status = 400


class RecipeError(RequestError):
    """The recipe is wrong."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One bad place in a data file.

    Attributes:
        file: The file.
        line: The line from 1 on, or the row number where a format has no lines; 0 for the whole file.
        field: The field; empty for the whole row.
        value: What was found, for people; empty where it is not shown.
        reason: What is wrong with it.
        kind: "encoding" where the bytes are not UTF-8 text, "empty_answer" where what is to be learned is empty,
            "schema" for all else.
    """

    file: str
    line: int
    field: str
    value: str
    reason: str
    kind: Literal["schema", "encoding", "empty_answer"] = "schema"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        field = f" field {self.field!r}" if self.field else ""
        value = f" has {self.value}" if self.value else ""
        return f"{where}{field}{value}: {self.reason}"


class DataError(RequestError):
    """The rows are wrong. The first few problems are in the message, all of them in `problems`."""

    num_shown: ClassVar[int] = 5

    def __init__(self, came: str, *, expected: str, do: str, problems: Sequence[RowProblem] = ()) -> None:
        self.problems = tuple(problems)
        lines = [f"    {problem}" for problem in self.problems[: self.num_shown]]
        if len(self.problems) > self.num_shown:
            lines.append(f"    ... and {len(self.problems) - self.num_shown} more")
        super().__init__("\n".join([came, *lines]), expected=expected, do=do)

    def as_json(self) -> dict[str, Any]:
        """The error with every problem as a separate document."""
        problems = [
            {"file": p.file, "line": p.line, "field": p.field, "value": p.value, "reason": p.reason}
            for p in self.problems
        ]
        return {**super().as_json(), "problems": problems}


class OverlongError(DataError):
    """Rows or prompts are longer than the context, and nothing says what to do with them.

    Args:
        num_tokens: of a prompt, or the least that it can have.
        most_tokens: the context. Both 0 where it is not about one.
    """

    def __init__(
        self,
        came: str,
        *,
        expected: str,
        do: str,
        problems: Sequence[RowProblem] = (),
        num_tokens: int = 0,
        most_tokens: int = 0,
    ) -> None:
        super().__init__(came, expected=expected, do=do, problems=problems)
        self.num_tokens, self.most_tokens = num_tokens, most_tokens


class LeakageError(DataError):
    """Held-out rows are in the training data, so a verdict on them would mean nothing."""


class TemplateError(RequestError):
    """The chat template renders a conversation in a way that no loss mask can be proved on."""


class UnsupportedError(RequestError):
    """A value of OpenAI's API that this server cannot follow.

    Args:
        code, param: as in its error object.
    """

    def __init__(
        self, came: str, *, expected: str, do: str, code: str = "unsupported_value", param: str | None = None
    ) -> None:
        super().__init__(came, expected=expected, do=do)
        self.code, self.param = code, param


class NotFoundError(RequestError):
    """No such model, run or file."""

    http_status = 404


class QuotaError(RequestError):
    """What a key may use in a day is used up."""

    http_status = 429


class FileQuotaError(RequestError):
    """The files of a project take as many bytes as they may."""

    http_status = 413


class NotAllowedError(RequestError):
    """The caller may not do this to this thing, though others of their scope may."""

    http_status = 403


class ConflictError(RequestError):
    """The thing exists, but it is in use or in a state that does not allow this."""

    http_status = 409


class WorkError(LuthierError):
    """The request was right, the work failed."""


class ModelSourceError(WorkError):
    """A base model could not be fetched, or what came is damaged."""

    retry_helps = False


class DataSourceError(WorkError):
    """Rows could not be fetched from where they are, or what came is damaged."""

    retry_helps = False


class CheckpointError(WorkError):
    """There is no checkpoint that can be trusted."""

    retry_helps = False


class DivergedError(WorkError):
    """The loss or a gradient became NaN or infinite."""

    retry_helps = False


class ParityError(WorkError):
    """An export does not compute what its source computes, or more of its quality was lost than may be."""


class MemoryLimitError(WorkError):
    """A model is larger than models may be on this server."""

    retry_helps = False


class MemoryShortError(WorkError):
    """The system or an accelerator had no more memory to give: other programs hold it, or the work takes too much."""


class DefectError(WorkError):
    """Our own code failed at the request; the same would fail again."""

    http_status = 500
    retry_helps = False


class StorageFullError(WorkError):
    """No room is left on the disk."""

    http_status = 507


class BusyError(WorkError):
    """Too many ask already.

    Args:
        retry_seconds: when there may be room.
    """

    http_status = 429

    def __init__(self, came: str, *, expected: str, do: str, retry_seconds: float = 5.0) -> None:
        super().__init__(came, expected=expected, do=do)
        self.retry_seconds = retry_seconds


class UnreachableError(WorkError):
    """A database does not answer now; the statement had no effect, and a later try may succeed."""


class PeerLostError(WorkError):
    """Another process of the same run has gone or cannot be reached; what the checkpoints hold is not lost."""

    exit_code = 75


def error_from(document: dict[str, Any]) -> LuthierError:
    """The error in a document of `LuthierError.as_json`; a WorkError where its kind is not known here."""
    # Looked up in this module alone: a document must not be able to name any class of the process.
    kind = globals().get(str(document.get("type")))
    if not (isinstance(kind, type) and issubclass(kind, LuthierError)):
        kind = WorkError
    # The three parts are all that every class takes; what a class adds (problems, code, param) is not carried over.
    return kind(document["came"], expected=document["expected"], do=document["do"])


_hides_words: Final[ContextVar[bool]] = ContextVar("hides_library_words", default=False)


@contextlib.contextmanager
def library_words_hidden() -> Iterator[None]:
    """Within the block, and in what is called from it, `library_reason` gives the kind of an error alone."""
    # A ContextVar follows async tasks and threads that copy the context; a global would mix requests up.
    before = _hides_words.set(True)
    try:
        yield
    finally:
        _hides_words.reset(before)


def are_library_words_hidden() -> bool:
    """Whether messages now go to a caller over the network."""
    return _hides_words.get()


def first_line(said: object, empty: str | None = None) -> str:
    """The first line of what an error (or a text) says.

    Args:
        said: The error, or its text.
        empty: What is returned where it says nothing; None for the kind of the error.
    """
    lines = str(said).strip().splitlines()
    return lines[0] if lines else type(said).__name__ if empty is None else empty


def validation_reason(problem: Mapping[str, Any]) -> str:
    """What is wrong with one value in the words of pydantic, or of our validator without its "Value error, "."""
    return str(problem["msg"]).removeprefix("Value error, ")


def library_reason(error: BaseException) -> str:
    """The reason that a library gives, formatted for the reader.

    Returns:
        Its own words; for callers over the network the kind of the error, with the place in the text where it has one.
    """
    if not _hides_words.get() or isinstance(error, JsonLimitError):  # whose words are ours
        return str(error) or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, re.error):
        return "a mistake" if error.pos is None else f"a mistake at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"no {error.encoding} text from byte {error.start:,} on"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the system refuses it ({errno.errorcode.get(error.errno, 'unknown')})"
    return type(error).__name__
