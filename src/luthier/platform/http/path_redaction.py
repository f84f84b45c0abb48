"""Answers without paths of this machine, for callers that are not on it.

What is a path is known by the field that holds it, never by how its text looks. Three kinds of field:

    a reference    a file, a folder or a model, such as `adapter_path`: shown as its id, or the last part of the path
    text of rows   what a row or a model says, such as `excerpt`: never changed
    prose          our own sentences, such as `came`: absolute paths that the references of the same document name, and
                   files in the home, are replaced where they occur exactly; a bare name never is, since a sentence
                   may quote a row that says the same word
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any, Final

from luthier.core.errors import DataError, LuthierError, RowProblem, WorkError
from luthier.core.plan import Plan
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

REFERENCES: Final = frozenset(
    (
        "adapter", "adapter_path", "against", "base", "base_model", "base_name", "base_path", "baseline", "candidate",
        "corpus", "data", "data_file", "file", "folder", "gate", "held_out", "held_out_file", "model", "models", "name",
        "path", "reflection_model", "report_path", "source", "suite", "suite_file", "systems", "target", "teacher",
        "train", "validation",
    )
)  # fmt: skip
"""Fields whose text names a file, a folder or a model where it is an absolute path."""
ROW_IDS: Final = frozenset(("row", "row_id", "rows"))
"""Fields that name a row by its file and its line."""
ROW_TEXT: Final = frozenset(
    (
        "cells", "completion", "content", "excerpt", "fields", "item", "labels", "messages", "note", "output", "prompt",
        "reference", "samples", "text", "turns", "value",
    )
)  # fmt: skip
"""Fields with what rows and models say."""
_REFERENCE: Final = re.compile(r"(?P<before>[\w,-]*@)?(?P<path>/[^\n]+?)(?P<after> (?:\+ |\()[^\n/]*)?")
_NAMED_VALUES: Final = frozenset(("value", "values"))


def home_paths(context: Context) -> dict[str, str]:
    """What is shown in prose in place of the home, within which paths count from there, and of base models' folders."""
    from luthier.platform.home.model_names import base_models

    models = {path: name for name, path in base_models(context).items() if path.startswith("/")}
    return models | {f"{context.home}/": "", str(context.home): "the home"}


def run_paths(context: Context, plan: Plan | None) -> dict[str, str]:
    """`home_paths`, and what a run's plan names elsewhere: files of rows, and the folder of its base model."""
    return home_paths(context) if plan is None else reference_paths(context, plan.model_dump(mode="json"))


def reference_paths(context: Context, document: Any) -> dict[str, str]:
    """`home_paths`, and the absolute paths that the references of a document name elsewhere."""
    places = home_paths(context)
    return _references_in(document, places) | places


def redact_paths(document: Any, places: Mapping[str, str]) -> Any:
    """A plain document without paths of this machine.

    Args:
        document: JSON values.
        places: What is shown in place of which path or prefix.

    Returns:
        The document, its references as ids or last parts of paths; text of rows is unchanged.
    """
    known = _references_in(document, places) | dict(places)
    return _redacted(document, known, field="")


def shown_failure(context: Context, job: Job) -> WorkError | None:
    """Why a job has failed, as pages show it; None where it has not. Files are named by id, as readers know them."""
    if job.error is None:
        return None
    shown = redact_paths(job.error, reference_paths(context, job.document))
    return WorkError(shown["came"], expected=shown["expected"], do=shown["do"])


def shown_reference(value: str, places: Mapping[str, str] | None = None) -> str:
    """A file, folder or model as displayed: what `places` has for it, else by the last part of its path.

    Text around the path stays, as in `/models/base + 4 examples` or `6@/models/base`.
    """
    known = places or {}
    if value in known:
        return _encodable(known[value])
    before, path, after = _parts(value)
    if not path:
        return _encodable(value)
    inside = next((place for place in known if place.endswith("/") and path.startswith(place)), None)
    if path in known:
        shown = known[path]
    elif inside is not None:
        shown = known[inside] + path.removeprefix(inside)
    else:
        shown = PurePosixPath(path).name or path
    return _encodable(f"{before}{shown}{after}")


def redact_text(text: str, places: Mapping[str, str]) -> str:
    """A sentence of ours without the paths that are known; any other text in it is unchanged."""
    if any(place in text for place in places):
        # Longest first: a folder must not replace the beginning of a file in it that has its own name.
        text = re.sub(_any_of(sorted(places, key=len, reverse=True)), lambda match: places[match[0]], text)
    return _encodable(text)


def redact_page(page: str, places: Mapping[str, str]) -> str:
    """A page of HTML that was written for this machine, without the paths that are known."""
    # Paths may be escaped in the page (`&amp;`), and unescaped within scripts: both are looked for.
    return redact_text(page, {escape(place): escape(shown) for place, shown in places.items()} | dict(places))


@contextlib.contextmanager
def redacted_errors(places: Mapping[str, str]) -> Iterator[None]:
    """Remove paths of this machine from our errors that the block raises.

    Args:
        places: What is shown in place of which path.
    """
    try:
        yield
    except LuthierError as error:
        _redact_error(error, places)
        raise


def _redact_error(error: LuthierError, places: Mapping[str, str]) -> None:
    error.came, error.expected, error.do = (redact_text(one, places) for one in (error.came, error.expected, error.do))
    # `str(error)` and pickling read args, which were made before the change.
    error.args = (f"{error.came}\n  expected: {error.expected}\n  what to do: {error.do}",)
    if isinstance(error, DataError):
        error.problems = tuple(_redacted_problem(problem, places) for problem in error.problems)


def _redacted_problem(problem: RowProblem, places: Mapping[str, str]) -> RowProblem:
    reason = redact_text(problem.reason, places)
    return RowProblem(
        shown_reference(problem.file, places), problem.line, problem.field, problem.value, reason, problem.kind
    )


def _redacted(value: Any, places: Mapping[str, str], *, field: str) -> Any:
    if isinstance(value, dict):
        return {
            _key(key, places, field): _redacted(inner, places, field=_field_of(value, key, field))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(inner, places, field=field) for inner in value]
    if not isinstance(value, str):
        return value
    if field in ROW_TEXT:
        return _encodable(value)
    if field in ROW_IDS:
        return _row_id(value, places)
    if field in REFERENCES:
        return shown_reference(value, places)
    return redact_text(value, {place: shown for place, shown in places.items() if "/" in place})


def _key(key: Any, places: Mapping[str, str], field: str) -> Any:
    """A name that something is kept by, such as that of a system, which may be the folder of its model."""
    is_path = field not in ROW_TEXT and isinstance(key, str) and key.startswith("/")
    return shown_reference(key, places) if is_path else key


def _field_of(holder: Mapping[str, Any], key: Any, outer: str) -> str:
    """What kind of field a key is: that of the setting that it is the value of, and within rows' text always text."""
    # Everything within text of rows is text of rows, under any keys.
    if outer in ROW_TEXT and outer != "value":
        return outer
    if key in _NAMED_VALUES and isinstance(name := holder.get("name"), str):
        return name.rpartition(".")[2]
    return str(key)


def _references_in(document: Any, places: Mapping[str, str], field: str = "") -> dict[str, str]:
    """The absolute paths in fields of references, and how each is shown."""
    found: dict[str, str] = {}
    if isinstance(document, dict):
        for key, value in document.items():
            found |= _references_in(value, places, _field_of(document, key, field))
    elif isinstance(document, list | tuple):
        for value in document:
            found |= _references_in(value, places, field)
    elif isinstance(document, str) and field in REFERENCES:
        path = _parts(document)[1]
        if len(PurePosixPath(path).parts) > 2:  # a word with one slash is too short to be looked for in sentences
            found[path] = shown_reference(path, places)
    return found


def _parts(value: str) -> tuple[str, str, str]:
    """The text before an absolute path, the path, and the text behind it; no path in anything else."""
    match = _REFERENCE.fullmatch(value)
    return (match["before"] or "", match["path"], match["after"] or "") if match else (value, "", "")


def _row_id(value: str, places: Mapping[str, str]) -> str:
    file, colon, line = value.rpartition(":")
    return f"{shown_reference(file, places)}:{line}" if colon and line.isdigit() else shown_reference(value, places)


def _encodable(text: str) -> str:
    """Half a character, which comes from a request, fits no answer."""
    return text.encode("utf-8", "backslashreplace").decode()


def _any_of(places: Sequence[str]) -> str:
    """A pattern of whole paths: none begins within a word, and none ends within a longer name."""
    known = [re.escape(place) + ("" if place.endswith("/") else r"(?![\w/-]|\.\w)") for place in places]
    return rf"(?:(?<![\w/])|(?<=file://))(?:{'|'.join(known)})"
