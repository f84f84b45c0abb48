"""How many tokens answers and thoughts may take, from the answers and thoughts of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example
from luthier.core.defaults import NEW_TOKENS
from luthier.core.ports import THINKING_TOKENS
from luthier.ml.inference.models.thinking import thinking_format

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate

_SPARE: Final = 1.25
_ROUND: Final = 32
_DELIMITERS: Final = 16
"""Tokens for what surrounds a thought."""


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """What the answers of rows take with one model's tokenizer.

    Attributes:
        longest_answer, longest_thought: tokens; 0 where no row has one.
        thinks: the model's chat template knows of thoughts, and its generation prompt has not closed an empty one.
    """

    longest_answer: int
    longest_thought: int
    thinks: bool

    @property
    def max_new_tokens(self) -> int:
        """Room for the longest answer and a quarter more, at least `NEW_TOKENS`."""
        if self.longest_answer < NEW_TOKENS:
            return NEW_TOKENS
        return _rounded(self.longest_answer * _SPARE)

    @property
    def max_thinking_tokens(self) -> int:
        """Room for the longest thought and half more; at least 2,048 tokens for a model that thinks by itself."""
        own = _rounded(1.5 * self.longest_thought + _DELIMITERS) if self.longest_thought else 0
        return max(own, THINKING_TOKENS) if self.thinks else own


def answer_lengths(examples: Sequence[Example], template: ChatTemplate) -> AnswerLengths:
    """The lengths for rows and a model's template."""
    form = thinking_format(template)
    # One more for the token that ends the answer.
    answers = [len(template.ids(one.reference)) + 1 for one in examples if one.reference]
    thoughts = [len(template.ids(one.thought)) for one in examples if one.thought]
    return AnswerLengths(
        longest_answer=max(answers, default=0),
        longest_thought=max(thoughts, default=0),
        thinks=form is not None and not form.prompt_closes,
    )


def limits_of(
    examples: Sequence[Example], template: ChatTemplate, max_new_tokens: int | None, max_thinking_tokens: int | None
) -> tuple[int, int | None]:
    """The limits of an answer and of a thought: those that are given, the others by the rows' own lengths.

    The second is None for a model and rows without thoughts: the engine then knows best.
    """
    if max_new_tokens is not None and max_thinking_tokens is not None:
        return max_new_tokens, max_thinking_tokens
    lengths = answer_lengths(examples, template)
    new = lengths.max_new_tokens if max_new_tokens is None else max_new_tokens
    return new, (lengths.max_thinking_tokens or None) if max_thinking_tokens is None else max_thinking_tokens


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / _ROUND) * _ROUND
