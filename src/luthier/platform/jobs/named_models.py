"""The models that a job asks for: each kind of job declares where its document names them (`KindRules.models`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

TEACHER: Final = "teacher"
BASE_MODEL: Final = "base_model"
_GRADERS: Final = ("score_model", "label_model")

LookUp = Literal["weights", "command", "project"]
"""How a job looks a name up. weights: a run, a tuned model or a base model. command: a deployment, too, as commands
find one: of the own project, then of `default`, then the only one. project: as the API does, within the project."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that a job needs until it has ended.

    Attributes:
        name: As the job looks it up.
        look_up: What the name may be.
    """

    name: str
    look_up: LookUp = "weights"


def models_in(document: Any, keys: Collection[str], look_up: LookUp = "weights") -> Iterator[NamedModel]:
    """The models that a request names, at any depth.

    Args:
        document: The request: a recipe, a fine-tuning job, graders, a workflow.
        keys: That name a model or a list of models. Graders that ask a model, and the key `teacher`, are found anyway,
            as commands look them up.
        look_up: For the names under these keys.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            is_grader = key == "model" and document.get("type") in _GRADERS
            if isinstance(value, str) and (is_grader or key == TEACHER):
                yield NamedModel(value, "command")
            elif key in keys and isinstance(value, str):
                yield NamedModel(value, look_up)
            elif key in keys and isinstance(value, list) and all(isinstance(one, str) for one in value):
                yield from (NamedModel(one, look_up) for one in value)
            else:
                yield from models_in(value, keys, look_up)
    elif isinstance(document, list):
        for one in document:
            yield from models_in(one, keys, look_up)


class UnreadModelsError(Exception):
    """Within a transaction, the models of a job were asked for that can only be read from a file."""


_read_ahead: ContextVar[dict[str, tuple[str, ...]] | None] = ContextVar("models_read_ahead", default=None)


@contextmanager
def models_read_ahead() -> Iterator[None]:
    """In the block models that files name are read once, and never within a transaction (see `read_models`)."""
    token = _read_ahead.set({})
    try:
        yield
    finally:
        _read_ahead.reset(token)


def read_models(key: str, read: Callable[[], tuple[str, ...]], *, is_in_transaction: bool) -> tuple[str, ...]:
    """The models that a file names.

    Args:
        key: What is read: the same key names the same models forever.
        read: Reads them.
        is_in_transaction: Whether a transaction is open, which would stay so while a file is read or fetched.

    Raises:
        UnreadModelsError: A transaction is open, and within `models_read_ahead` they were not read before it.
    """
    known = _read_ahead.get()
    if known is None:
        return read()
    if key not in known:
        if is_in_transaction:
            raise UnreadModelsError(key)
        known[key] = read()
    return known[key]
