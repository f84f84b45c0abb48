"""Use cases of the guided run: from three answers to recipes that are planned, and to one that is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import Shape
from luthier.core.errors import RequestError
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.text.names import display_name
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.guided_runs.goals import GOALS, Goal, GoalName, Size, goal_for
from luthier.features.models.service import ModelView
from luthier.features.planning.drafts import Planned
from luthier.features.run_drafts.choices import StartingRows, model_choices, rows_of, shape_of
from luthier.platform.home.context import Context

_QUICK_EPOCHS: Final = 1
_BETTER_EPOCHS: Final = 3
_QUICK_SAMPLES: Final = 50
"""Held-out rows that a quick run evaluates: enough to see a large gain."""
_SAMPLE_PROMPTS: Final = 5
"""Validation prompts that are answered at each checkpoint, so that one can read what the model has learned so far."""
_VALIDATION_SHARE: Final = 0.1
_MIN_ROWS: Final = 100
"""From so many rows on some are set apart for validation; of fewer, each is worth more as a row to learn from."""
_MAX_CANDIDATES: Final = 3
_MAX_HOURS: Final = 24.0
"""What "better" may take: a larger model that needs more is passed over for the next smaller one."""
_BYTES_A_PARAMETER: Final = 6.0
"""A low estimate of training with an adapter: weights in 16 or 32 bits and activations. The plan says it exactly."""
_FIRST_MODEL: Final = "smollm2-135m-instruct"
"""What a server without any model fetches: small, open, and in the catalogue."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The answers so far.

    Attributes:
        goal: What for; None before it is chosen.
        dataset_id: Which data; empty before it is chosen.
        version: Its version; None for the newest.
        base_model: A base model that was named; empty to have one chosen.
    """

    goal: GoalName | None = None
    dataset_id: str = ""
    version: int | None = None
    base_model: str = ""

    @property
    def data(self) -> str:
        """Dataset and version as the form sends them."""
        return f"{self.dataset_id}:{self.version}" if self.version else self.dataset_id


@dataclass(frozen=True, slots=True)
class Found:
    """What the server knows about a wish.

    Attributes:
        goal: As wished, or as the rows suggest.
        dataset: The data; None before it is chosen.
        rows: Its rows, with what is held out.
        shape: What a row holds; None where it cannot be read off.
        problem: Why goal and data do not go together; None where they do.
        models: Base models by name.
    """

    goal: Goal | None
    dataset: Dataset | None
    rows: StartingRows | None
    shape: Shape | None
    problem: RequestError | None
    models: Mapping[str, ModelView]

    @property
    def is_complete(self) -> bool:
        """Whether it can be planned, once a base model is on this machine."""
        return self.goal is not None and self.rows is not None and self.problem is None

    @property
    def missing_model(self) -> ModelView | None:
        """The base model to fetch first; None where one is on this machine."""
        if any(model.path is not None for model in self.models.values()):
            return None
        return self.models.get(_FIRST_MODEL) or next(iter(self.models.values()), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe for one size, with the base model that it trains."""

    keys: dict[str, Any]
    model: ModelView


def newest_data(context: Context, caller: Caller) -> list[tuple[Dataset, DatasetVersion]]:
    """The datasets of the project with their newest versions, newest first."""
    return list(context.datasets.list(caller.project_id))


def find(context: Context, caller: Caller, wish: Wish) -> Found:
    """What follows from the answers so far.

    Raises:
        NotFoundError: The project has no such dataset or version.
    """
    models = model_choices(context, caller)
    if not wish.dataset_id:
        return Found(_goal(wish.goal), None, None, None, None, models)
    dataset = context.datasets.get(caller.project_id, wish.dataset_id)
    rows = rows_of(context, caller, wish.dataset_id, wish.version)
    shape = shape_of(context, caller, rows.version.file_id)
    goal = _goal(wish.goal or goal_for(shape))
    return Found(goal, dataset, rows, shape, _mismatch(goal, dataset, shape), models)


def candidates(found: Found, wish: Wish, size: Size) -> list[Candidate]:
    """The recipes of a size, the preferred one first; empty where no base model is on this machine."""
    assert found.goal is not None, "asked for complete wishes alone"
    assert found.rows is not None, "asked for complete wishes alone"
    here = {name: one for name, one in found.models.items() if one.path is not None}
    if wish.base_model:
        models = {name: one for name, one in here.items() if name == wish.base_model}
    else:
        models = _fitting(here, found, size)
    length: dict[str, Any] = {"training": {"epochs": _QUICK_EPOCHS if size == "quick" else _BETTER_EPOCHS}}
    decided = found.goal.recipe(found.shape or "prompt_completion")
    if size == "quick":
        decided["evaluation"] = decided.get("evaluation", {}) | {"max_samples": _QUICK_SAMPLES}
    data = dict(found.rows.data)
    if found.goal.writes_answers(found.shape):
        # Only where the version is no side of a split, which has decided what each row is for.
        if found.rows.split is None and (found.rows.version.num_rows or 0) >= _MIN_ROWS:
            data.setdefault("validation", _VALIDATION_SHARE)
        if "validation" in data:
            decided["evaluation"] = decided.get("evaluation", {}) | {"sample_prompts": _SAMPLE_PROMPTS}
    base = {"data": data, **length, **decided}
    return [Candidate({"base_model": name, **base}, one) for name, one in models.items()]


def choose(
    options: list[Candidate], plan: Callable[[int, Candidate], Planned | None]
) -> tuple[Candidate, Planned | None]:
    """The first candidate that fits the memory and the hours, with its plan; None while it is being made.

    Where none does, the last one, which is the smallest, with what the plan says about it.

    Args:
        options: At least one.
        plan: The plan of a candidate by its place; None while it is being made.
    """
    for place, option in enumerate(options):
        planned = plan(place, option)
        if planned is None or place + 1 == len(options) or _is_good(planned):
            return option, planned
    raise AssertionError("there is at least one candidate")


def name_of(found: Found, model: ModelView | None, now: float) -> str:
    """What the run will be called."""
    dataset = "" if found.dataset is None else found.dataset.name
    return display_name(dataset, "" if model is None else model.title, datetime.fromtimestamp(now, UTC))


def _is_good(planned: Planned) -> bool:
    if planned.plan is None:
        return False
    predicted = planned.plan["predicted"]
    return bool(predicted["fits"]) and predicted["hours"] <= _MAX_HOURS


def _goal(name: GoalName | None) -> Goal | None:
    return None if name is None else GOALS[name]


def _mismatch(goal: Goal | None, dataset: Dataset, shape: Shape | None) -> RequestError | None:
    if goal is None or shape is None or shape in goal.shapes:
        return None
    fitting = [one.title for one in GOALS.values() if shape in one.shapes]
    return RequestError(
        f"each row of “{dataset.name}” holds {_HOLDS[shape]}",
        expected=f"rows with {goal.rows}",
        do=f"choose other data, or another purpose: {', '.join(fitting)}",
    )


_HOLDS: Final[dict[Shape, str]] = {
    "chat": "a conversation",
    "sharegpt": "a conversation",
    "prompt_completion": "a question and an answer",
    "alpaca": "a task and an answer",
    "text": "a text without a question or a label",
    "preference": "a better and a worse answer",
    "unpaired": "an answer marked as good or bad",
}


def _fitting(here: Mapping[str, ModelView], found: Found, size: Size) -> dict[str, ModelView]:
    """The base models to try for a size: the smallest, or the largest that may fit, then smaller ones."""
    assert found.goal is not None, "asked for complete wishes alone"
    # A conversation needs a chat template; texts are learned as they are.
    chats = {name: one for name, one in here.items() if one.has_chat_template}
    known = here if found.shape == "text" or not chats else chats
    by_size = sorted(known.items(), key=lambda item: item[1].num_parameters)
    if size == "quick":
        return dict(by_size[:1])
    memory = memory_bytes()[0]
    possible = [item for item in by_size if _BYTES_A_PARAMETER * item[1].num_parameters <= memory] or by_size[:1]
    return dict(reversed(possible[-_MAX_CANDIDATES:]))
