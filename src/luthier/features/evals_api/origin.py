"""What the report of a run is about: the run that made the evaluated model, and items that it was trained on.

Gates read results by the run that made a model, and none of rows that it was trained on. An item has no field that is
its answer by definition: whatever text a grader compares with, and whatever the item holds, may be it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import LuthierError, NotFoundError, RequestError, StorageFullError, UnreachableError
from luthier.core.records.deployment import NAME
from luthier.core.text.counted import counted
from luthier.features.evals_api.data import Rows, messages_of, text_of
from luthier.features.evals_api.records import Eval, EvalRun
from luthier.features.models.names import is_tuned_name
from luthier.features.planning.evaluation_plan import rows_of_run
from luthier.features.serving.graders import GraderRequest, MultiRequest, PythonRequest, SingleGrader
from luthier.ml.evaluation.graders import filled
from luthier.platform.home.context import Context

_MAX_ANSWERS: Final = 32
"""Texts of an item that may be its answer."""
_MAX_DEPTH: Final = 4
_AT_ONCE: Final = 20_000
"""Rows that are looked for in one pass over the training rows."""
_OF_A_DEPLOYMENT: Final = (
    "The model is a deployment: the result is about what it routed to at the time, and counts for no run at a gate."
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a result belongs.

    Attributes:
        subject: what the results of the model are stored by, where gates find them.
        run_id: the run that made the model; None for a base model, a deployment and stored answers.
        outcome: the same, where the model is what that run made in the end.
        num_leaked: items that the run was trained on.
        cautions: what a reader of the report should know of that, a sentence each.
    """

    subject: str
    run_id: str | None = None
    outcome: str | None = None
    num_leaked: int = 0
    cautions: tuple[str, ...] = ()


def origin_of(context: Context, one: Eval, run: EvalRun, rows: Rows) -> Origin:
    """The origin of the model that a run asked, and how many of its items it was trained on.

    Where that is not known, the result is stored by the eval, so that no gate takes it for one of the model.

    Raises:
        StorageFullError, UnreachableError: the training rows cannot be read now.
    """
    if not is_tuned_name(run.model):
        found = context.deployments.find(run.project_id, run.model) if NAME.fullmatch(run.model) else None
        return Origin(run.model or run.eval_id, cautions=() if found is None else (_OF_A_DEPLOYMENT,))
    try:
        tuned = context.tuned_models.get(run.project_id, run.model)
        if context.runs.project_of(tuned.run_id) != run.project_id:
            # Which items are among its rows says something of them, and only the model is shared.
            return Origin(run.eval_id, cautions=(_unknown("The model was made by another project"),))
        trained = rows_of_run(context, tuned.run_id)
        exact, same_prompt = _trained_on(one, run, rows, trained)
    except (StorageFullError, UnreachableError):
        raise  # the attempt is made again
    except NotFoundError:
        return Origin(run.eval_id, cautions=(_unknown("The model, or the run that made it, was deleted"),))
    except LuthierError:
        return Origin(run.eval_id, cautions=(_unknown("The training rows of the model are missing or have changed"),))
    said = []
    if exact:
        said.append(
            f"{counted(exact, 'item was', 'items were')} trained on, of {rows.num_rows:,}: the figures look too good."
        )
    if same_prompt:
        said.append(
            f"{counted(same_prompt, 'item has', 'items have')} the prompt of a training row with another answer, of "
            f"{rows.num_rows:,}."
        )
    outcome = tuned.run_id if tuned.step is None else None
    return Origin(outcome or run.model, tuned.run_id, outcome, exact, tuple(said))


def _unknown(why: str) -> str:
    return f"{why}, so it is not known whether items were trained on, and the result does not count at a gate."


def _trained_on(one: Eval, run: EvalRun, rows: Rows, trained: Sequence[Example]) -> tuple[int, int]:
    """How many items are among training rows, and how many more have the prompt of one, with another answer."""
    from luthier.ml.data.split.split import leaked_ids

    exact, same_prompt = set[int](), set[int]()
    waiting: list[Example] = []

    def look() -> None:
        found = leaked_ids(trained, waiting)
        exact.update(problem.line for problem in found.exact)
        same_prompt.update(problem.line for problem in found.same_prompt)
        waiting.clear()

    has_answer = any(_compares(grader) for grader in one.testing_criteria)
    without = set[int]()
    for position, row in rows.read(0):
        prompt = _prompt(run, row.item)
        if prompt is None:
            continue
        answers = _answers(one.testing_criteria, row.item)
        if not has_answer or not answers:
            # Where only a model grades, no text of the item need be its answer.
            without.add(position)
        waiting += [_example(position, prompt, answer) for answer in answers or [""]]
        if len(waiting) >= _AT_ONCE:
            look()
    look()
    exact |= same_prompt & without
    return len(exact), len(same_prompt - exact)


def _prompt(run: EvalRun, item: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The turns that an item asks the model; None where it cannot be asked."""
    try:
        turns = messages_of(run, item)
        return tuple(Message(role=turn["role"], content=text_of(turn.get("content"))) for turn in turns)
    except (RequestError, ValidationError, KeyError):
        return None


def _example(position: int, prompt: tuple[Message, ...], answer: str) -> Example:
    turns = (*prompt, Message(role="assistant", content=answer))
    return Example(id=f"item:{position}", conversation=Conversation(messages=turns))


def _parts(grader: GraderRequest) -> list[SingleGrader]:
    return list(grader.by_name.values()) if isinstance(grader, MultiRequest) else [grader]


def _compares(grader: GraderRequest) -> bool:
    """Whether a grader compares with something of the item, or may do so as code does."""
    return any(isinstance(one, PythonRequest) or hasattr(one, "reference") for one in _parts(grader))


def _answers(graders: Sequence[GraderRequest], item: Mapping[str, Any]) -> list[str]:
    """The texts that may be the answer of an item, each once: what graders compare with, and all that it holds."""
    found: dict[str, None] = {}
    for grader in graders:
        for one in _parts(grader):
            reference = getattr(one, "reference", None)
            if reference is None:
                continue
            try:
                found.setdefault(filled(reference, {}, item))
            except RequestError:
                continue  # a field that the item lacks, or one of the answer
    for text in _texts(item, _MAX_DEPTH):
        if len(found) >= _MAX_ANSWERS:
            break
        found.setdefault(text)
    return [text for text in found if text.strip()]


def _texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool | int | float):
        yield json.dumps(value)
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, depth - 1)
