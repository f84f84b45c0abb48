"""A prompt as token ids, for engines that are given these; one that cannot fit is refused before it is tokenised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import OverlongError, RequestError
from luthier.core.stream import TextRequest
from luthier.ml.inference.tool_parsing import ToolFormat

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate


def ids_of(template: ChatTemplate, tools: ToolFormat, request: TextRequest, context_tokens: int) -> list[int]:
    """The ids of a request, written by a template.

    Args:
        template: of the model, with the options of the request.
        tools: how tools enter the prompt.
        request: conversation, text or token ids.
        context_tokens: of the model.

    Raises:
        RequestError: the prompt is empty.
        OverlongError: no room for one token of an answer.
        TemplateError: the template cannot write the conversation.
    """
    if request.token_ids is not None:
        return checked(list(request.token_ids), context_tokens)
    if request.conversation is not None:
        text = template.render(tools.conversation(request), add_generation_prompt=True)
    else:
        text = request.text or ""
    check_bytes(template.least_tokens(text), context_tokens)
    return checked(template.ids(text), context_tokens)


def check_bytes(least_tokens: int, context_tokens: int) -> None:
    """Refuse a text that cannot fit, whatever its tokens are.

    Args:
        least_tokens: a lower bound of its tokens.
        context_tokens: of the model.

    Raises:
        OverlongError: it cannot fit.
    """
    if least_tokens >= context_tokens:
        raise overlong(least_tokens, context_tokens, "at least ")


def checked(ids: list[int], context_tokens: int) -> list[int]:
    """The ids.

    Raises:
        RequestError: there is none.
        OverlongError: they leave no room.
    """
    if not ids:
        raise RequestError("an empty prompt", expected="at least one token", do="write something")
    if len(ids) >= context_tokens:
        raise overlong(len(ids), context_tokens)
    return ids


def overlong(num_tokens: int, context_tokens: int, about: str = "") -> OverlongError:
    """What is said of a prompt that is too long."""
    return OverlongError(
        f"a prompt of {about}{num_tokens:,} tokens",
        expected=f"fewer than the {context_tokens:,} of the context, so that an answer fits",
        do="shorten the prompt",
        num_tokens=num_tokens,
        most_tokens=context_tokens,
    )
