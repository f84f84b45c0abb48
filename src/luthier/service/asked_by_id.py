"""Use cases for who is not on this machine: recipes and audits that name files by id and models by name.

A request never names a path: what stands where a file is wanted must be the id of a file of the project. An answer
names none either: where a path would stand, stands the id, or the last part of the path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from luthier.core.errors import LuthierError, NotFoundError, RequestError
from luthier.core.ids import is_id
from luthier.core.stored_file import StoredFile
from luthier.service.context import Context
from luthier.service.questions import Question, answer_to

Ask = Callable[[Context, Question, dict[str, Any]], dict[str, Any]]
"""Who answers a question, as `questions.answer_to` does."""

_FILES: Final = ("train", "validation", "held_out")
_REPLAYED: Final = ("file", "held_out")


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What is to be audited: ids of files, names of models and checks; as `audits.AuditOptions` says.

    most_lines: of how many rows of each finding the lines are told as well.
    """

    file_id: str
    against: str | None = None
    model: str | None = None
    only: tuple[str, ...] | None = None
    mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    method: str = "lora"
    most_lines: int = 0


@dataclass(frozen=True, slots=True)
class Names:
    """Files by id and models by name, as this machine knows them; `shown`: what stands for these in answers."""

    context: Context
    project_id: str
    shown: dict[str, str] = field(default_factory=dict)

    def file(self, place: str, file_id: Any) -> str:
        """Lay out a file of the project and return its path. Raises RequestError for what is the id of none."""
        from luthier.service.files import local_path

        path = str(local_path(self.context, self.stored(place, file_id)))
        self.shown[path] = str(file_id)
        return path

    def stored(self, place: str, file_id: Any) -> StoredFile:
        """A file of the project as it is known. Raises RequestError for what is the id of none."""
        from luthier.service.files import get_file

        wrong = RequestError(
            f"{place} is {str(file_id)[:100]!r}",
            expected="the id of a file of this project, such as file-20261125-093000-1f2e3d",
            do="upload the file first (POST /v1/files), and name it by its id",
        )
        if not isinstance(file_id, str) or not is_id(file_id, "file"):
            raise wrong
        try:
            return get_file(self.context, self.project_id, file_id)
        except NotFoundError:
            raise wrong from None

    def model(self, place: str, name: Any) -> str:
        """The name of a base model as recipes know it."""
        from luthier.service.base_models import find_base_model

        try:
            found = find_base_model(self.context, str(name))
        except NotFoundError as error:
            raise RequestError(f"{place}: {error.came}", expected=error.expected, do=error.do) from None
        self.shown[found] = str(name)
        return found


def plan_of(
    context: Context, project_id: str, recipe: Mapping[str, Any], *, ask: Ask = answer_to, compares: bool = False
) -> dict[str, Any]:
    """The complete plan and the quote of a recipe that names files by id: what `luthier plan --json` prints.

    ask: who answers the question. compares: with `advice` on the method, and what it takes on other `devices`.

    Raises RequestError and what `plans.prepare` raises.
    """
    names = Names(context, project_id)
    document = with_places(recipe, file=names.file, model=names.model)
    return _told(names, lambda: ask(context, "plan", {"recipe": document, "compares": compares}))


def with_places(
    recipe: Mapping[str, Any], *, file: Callable[[str, Any], str], model: Callable[[str, Any], str]
) -> dict[str, Any]:
    """The recipe with what `file` and `model` say of each file and each model that it names, given its place.

    A share to take out of the training rows stays what it is.
    """
    document = dict(recipe)
    if "base_model" in document:
        document["base_model"] = model("base_model", document["base_model"])
    if isinstance(objective := document.get("objective"), dict) and objective.get("teacher") is not None:
        document["objective"] = objective | {"teacher": model("objective.teacher", objective["teacher"])}
    if isinstance(data := document.get("data"), dict):
        document["data"] = _laid_out(file, data)
    return document


def audit_of(context: Context, project_id: str, request: AuditRequest) -> dict[str, Any]:
    """What is wrong with a file of the project. Raises RequestError and what `audits.audit` raises."""
    names = Names(context, project_id)
    given = {
        "file": names.file("file_id", request.file_id),
        "against": None if request.against is None else names.file("against", request.against),
        "model": None if request.model is None else names.model("model", request.model),
        "only": request.only,
        "mapping": None if request.mapping is None else dict(request.mapping),
        "group_by": request.group_by,
        "method": request.method,
        "most_lines": request.most_lines,
    }
    found = _told(names, lambda: answer_to(context, "audit", given))
    return found | {"file": request.file_id, "against": request.against}


def answer_about(
    context: Context,
    project_id: str,
    question: Question,
    file_id: str,
    given: Mapping[str, Any],
    *,
    against: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """The answer to a question about the rows of a file, which stand in it as they are.

    given: the rest of the question. against: the id of a second file. Raises RequestError and what the question raises.
    """
    from luthier.service.files import get_file

    names = Names(context, project_id)
    path = names.file("file_id", file_id)
    names.shown[PurePosixPath(path).name] = get_file(context, project_id, file_id).filename
    asked = dict(given) | {
        "file": path,
        "against": None if against is None else names.file("against", against),
        "model": None if model is None else names.model("model", model),
    }
    with errors_telling(_shown(names)):
        return answer_to(context, question, asked)


def without_places(document: Any, shown: Mapping[str, str]) -> Any:
    """A document without paths of this machine. shown: what is to stand in place of which path."""
    if isinstance(document, dict):
        return {name: without_places(value, shown) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [without_places(value, shown) for value in document]
    return _plain(document, shown) if isinstance(document, str) else document


def _plain(text: str, shown: Mapping[str, str]) -> str:
    for place in sorted(shown, key=len, reverse=True):
        text = text.replace(place, shown[place])
    text = text.encode("utf-8", "backslashreplace").decode()  # half a character, from a request, fits no answer
    return PurePosixPath(text).name if text.startswith("/") and "\n" not in text else text


def _laid_out(file: Callable[[str, Any], str], data: dict[str, Any]) -> dict[str, Any]:
    laid = data | {
        key: file(f"data.{key}", value)
        for key in _FILES
        if (value := data.get(key)) is not None and (key == "train" or not _is_share(value))
    }
    if isinstance(replay := data.get("replay"), dict):
        laid["replay"] = replay | {
            key: file(f"data.replay.{key}", value)
            for key in _REPLAYED
            if (value := replay.get(key)) is not None and (key == "file" or not _is_share(value))
        }
    return laid


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float)


def _told(names: Names, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or the error, without paths."""
    with errors_telling(_shown(names)):
        found: dict[str, Any] = without_places(answer(), _shown(names))
    return found


@contextlib.contextmanager
def errors_telling(shown: Mapping[str, str]) -> Iterator[None]:
    """Our errors out of the block, without paths of this machine. shown: what stands in place of which words."""
    try:
        yield
    except LuthierError as error:
        came, expected, do = (_plain(words, shown) for words in (error.came, error.expected, error.do))
        raise type(error)(came, expected=expected, do=do) from error


def _shown(names: Names) -> dict[str, str]:
    return names.shown | {f"{names.context.home}/": ""}
