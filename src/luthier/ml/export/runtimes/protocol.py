"""The interface of a runtime in a parity check: its own tokens, likelihoods, and greedy text.

Also shared functions: log-probabilities from logits, and a conversation for other template engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError, library_reason
from luthier.core.json_limits import loads
from luthier.core.recipe import TemplateOption
from luthier.ml.inference.models.templates.thought_writing import FIELDS

LogProbabilities = NDArray[np.float32]
"""[positions, vocabulary] of natural logarithms; row i belongs to the token after position i."""


class Runtime(Protocol):
    """One loaded export. Tokens come from the export's own tokenizer and template, never from the source's.

    Attributes:
        name, version: name and version of the runtime.
        has_template: whether the export has a chat template.
        end_ids: the tokens at which this runtime itself ends an answer.
        context_tokens: its context if it is shorter than the model's; else None.
    """

    name: str
    version: str
    has_template: bool
    end_ids: frozenset[int]
    context_tokens: int | None

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """The tokens of a conversation up to the start of the next answer.

        Args:
            conversation: messages and tools.
            options: variables of the template; a runtime that cannot pass them ignores them.

        Raises:
            TemplateError: the template fails on the conversation.
        """
        ...

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of plain text, with a beginning-of-text token if this runtime adds one."""
        ...

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """[len(ids) - start, vocabulary], each position given all earlier ones. Computed without a previous cache."""
        ...

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """The likeliest tokens after `ids`.

        Args:
            ids: the prompt.
            num_new_tokens: the largest number of new tokens.

        Returns:
            The new tokens, without the end token if the answer ends by itself.
        """
        ...

    def close(self) -> None:
        """Free the weights."""
        ...


def log_softmax(logits: NDArray[np.float32]) -> LogProbabilities:
    """Log-probabilities [positions, vocabulary], in place, summed in float64."""
    # The largest becomes 0, so that exp cannot overflow.
    logits -= logits.max(axis=1, keepdims=True)
    for row in logits:
        row -= np.log(np.exp(row, dtype=np.float64).sum())
    return logits


def message_documents(conversation: Conversation, *, parsed_arguments: bool) -> list[dict[str, Any]]:
    """The messages in OpenAI format, without fields that only training reads.

    Thoughts are included under every name that templates read.

    Args:
        conversation: the messages.
        parsed_arguments: arguments of tool calls as objects, as templates expect; else as JSON text, as in HTTP.

    Raises:
        TemplateError: arguments are not JSON.
    """
    return [_document(message, parsed_arguments) for message in conversation.messages]


def _document(message: Message, parsed_arguments: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning is not None:
        document |= dict.fromkeys(FIELDS, message.reasoning)
    if message.name is not None:
        document["name"] = message.name
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        document["tool_calls"] = [_call(call, parsed_arguments) for call in message.tool_calls]
    return document


def _call(call: dict[str, Any], parsed_arguments: bool) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments") or "{}"
    if parsed_arguments and isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except ValueError as error:
            raise TemplateError(
                f"a call of {function.get('name')!r} with arguments {arguments[:80]!r}: {library_reason(error)}",
                expected="arguments as JSON text",
                do="repair the row",
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}
