"""Conversations rendered by transformers, those of plain messages without the conversions of `apply_chat_template`.

transformers copies messages, tools and options several times to rebuild objects that a template must not see, which
takes as long as the template. Messages of nothing but text, without thoughts, tools or options with parts, stay as they
are in all of these steps, so they are given to the compiled template at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

_THOUGHTS: Final = frozenset(("reasoning_content", "thinking", "reasoning"))
_SCALARS: Final = (str, int, float, bool, type(None))
_TAKEN: Final = frozenset(
    name
    for function in (PreTrainedTokenizerFast.apply_chat_template, chat_template_utils.render_jinja_template)
    for name in inspect.signature(function).parameters
)
"""Names that transformers reads itself and does not hand on to the template."""


def rendered(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    options: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text that the tokenizer's chat template writes.

    Args:
        tokenizer: Has the template, and the special tokens that it may write.
        messages: The conversation, in the form that the template expects.
        tools: Definitions of tools; None where the template is given none.
        options: Variables of the template, which replace special tokens of the same name.
        add_generation_prompt: Whether the beginning of an answer follows.

    Raises:
        jinja2.TemplateError: The template rejects the conversation.
        TypeError, ValueError, KeyError, AttributeError, IndexError: It computes with what it does not get.
    """
    template = tokenizer.get_chat_template(tools=tools)
    if tools is not None or not is_plain(messages, options):
        return str(
            tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **options,
            )
        )
    # transformers compiles a template once; its environment is the bounded one (`use_bounded_sandbox`).
    compiled = chat_template_utils._compile_jinja_template(template)
    return str(
        compiled.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens_map, **options},
        )
    )


def is_plain(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> bool:
    """Whether transformers would give exactly these messages and options to the template.

    Args:
        messages: In the form that the template expects.
        options: Variables of the template.
    """
    return (
        bool(messages)
        and all(
            type(message) is dict
            and _THOUGHTS.isdisjoint(message)
            and all(type(value) is str for value in message.values())
            for message in messages
        )
        and _TAKEN.isdisjoint(options)
        # Exact types: what is derived from them is rebuilt.
        and all(type(value) in _SCALARS for value in options.values())
    )
