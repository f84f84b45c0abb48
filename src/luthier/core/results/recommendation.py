"""What to do after an evaluation: one action, with its reason."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel

Action = Literal[
    "use_model",
    "use_prompt",
    "use_simple_method",
    "use_other_model",
    "add_rows",
    "larger_base",
    "evaluate_more",
]
"""Use the tuned model; a prompt of the base model; a method without a language model; another model as it is. Train on
more rows; train a larger base model; evaluate on more held-out rows."""


class Recommendation(FrozenModel):
    """The recommended action after an evaluation.

    Attributes:
        action: what to do.
        title: the same as a sentence.
        reason: why, with the figures that decide.
        rule: the number of the rule that decided (docs/explanation/verdict.md).
        system: the evaluated system to use; None where none is to be used.
        num_rows: of `add_rows` the training rows to add; of `evaluate_more` the held-out rows to evaluate in all; None
            where no number can be given.
        num_rows_left: of `evaluate_more` the held-out rows that are there and were not evaluated; None without any.
    """

    action: Action
    title: str
    reason: str
    rule: int = 0
    system: str | None = None
    num_rows: int | None = None
    num_rows_left: int | None = None
