"""What a proof asks of a runtime: tokens as it makes them itself, likelihoods, greedy text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.core.conversation import Conversation
from luthier.core.recipe import TemplateOption

LogProbabilities = NDArray[np.float32]
"""[positions, vocabulary] natural logarithms; row i belongs to the token that follows position i."""


class Runtime(Protocol):
    """One export, loaded. Tokens come from the export's own tokenizer and template, never from the source's.

    Attributes:
        name, version: of the runtime.
        has_template: whether the export brings a chat template.
        end_ids: the tokens at which this runtime ends an answer by itself.
        context_tokens: its room where that is less than the model's own context; else None.
    """

    name: str
    version: str
    has_template: bool
    end_ids: frozenset[int]
    context_tokens: int | None

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """The conversation up to where the next answer begins.

        Args:
            conversation: messages and tools.
            options: variables of the template; a runtime that can pass none leaves them out.

        Raises:
            TemplateError: its template fails on it.
        """
        ...

    def text_tokens(self, text: str) -> list[int]:
        """Plain text, with a beginning-of-text token where this runtime puts one."""
        ...

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """[len(ids) - start, vocabulary], each position with all those before it given. Computed afresh."""
        ...

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """The likeliest tokens after `ids`.

        Args:
            ids: the prompt.
            num_new_tokens: the most that are written.

        Returns:
            The new tokens, without the end token where the answer ends by itself.
        """
        ...

    def close(self) -> None:
        """Let go of the weights."""
        ...
