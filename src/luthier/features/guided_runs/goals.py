"""What a model is trained for, in the words of people who have a task: which rows fit, and what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.dataset import Shape

GoalName = Literal["answers", "labels", "fields", "style", "preferences"]
Size = Literal["quick", "better"]
_PAIRS: Final[tuple[Shape, ...]] = ("prompt_completion", "chat", "alpaca", "sharegpt")


@dataclass(frozen=True, slots=True)
class Goal:
    """One purpose.

    Attributes:
        name: In addresses and forms.
        title: What the model will do.
        words: An example of it.
        rows: What a row must hold.
        shapes: The shapes of rows that hold it, the usual ones first.
    """

    name: GoalName
    title: str
    words: str
    rows: str
    shapes: tuple[Shape, ...]

    def writes_answers(self, shape: Shape | None) -> bool:
        """Whether the model answers prompts with text, so that a person can read how its answers change."""
        return self.name in ("answers", "fields", "style") and shape is not None and shape != "text"

    def recipe(self, shape: Shape) -> dict[str, Any]:
        """The keys of a recipe that the goal decides, for rows of a shape; the planner decides the rest."""
        if self.name == "labels":
            return {"objective": {"name": "classify"}}
        if self.name == "fields":
            return {"evaluation": {"metrics": ["exact_match", "token_f1"]}}
        if self.name == "preferences":
            return {"objective": {"name": "kto" if shape == "unpaired" else "dpo"}}
        return {}


GOALS: Final[dict[GoalName, Goal]] = {
    "answers": Goal(
        "answers",
        "Answer questions",
        "Customers ask, and the model answers as your team does.",
        "a question and its answer",
        _PAIRS,
    ),
    "labels": Goal(
        "labels",
        "Sort texts into categories",
        "An e-mail comes in: is it a complaint, an order or a question?",
        "a text and its label",
        _PAIRS,
    ),
    "fields": Goal(
        "fields",
        "Extract fields",
        "A letter goes in; name, date and amount come out as JSON.",
        "a text and the extracted fields",
        _PAIRS,
    ),
    "style": Goal(
        "style",
        "Write in your style",
        "Reports, letters or product texts in your own style.",
        "a text of yours, or a task and the text for it",
        ("text", *_PAIRS),
    ),
    "preferences": Goal(
        "preferences",
        "Give the better of two answers",
        "You have pairs of answers, and someone marked the better one.",
        "a question with a better and a worse answer, or an answer marked as good or bad",
        ("preference", "unpaired"),
    ),
}
SIZES: Final[dict[Size, tuple[str, str]]] = {
    "quick": ("Small and quick", "A first result, to see whether more is worth it."),
    "better": ("Better and slower", "The largest model of this server that fits, and more passes over your data."),
}


def goal_for(shape: Shape | None) -> GoalName | None:
    """The goal that rows of a shape suggest; None where they are unknown."""
    if shape is None:
        return None
    # Not every goal names a shape first: pairs are questions with answers until someone says otherwise.
    return next(
        (goal.name for goal in GOALS.values() if goal.shapes[0] == shape),
        "answers" if shape in _PAIRS else "preferences",
    )
