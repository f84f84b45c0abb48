"""Renderings of plain messages without the conversions of `apply_chat_template`, which take as long as the template.

transformers copies messages, tools and options several times to rebuild objects that a template must not see. Messages
of nothing but text, without thoughts, tools or options with parts, stay as they are in all of these steps, so they are
given to the compiled template at once. `tests/ml/inference/models/templates/test_plain_rendering.py` holds both ways
against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

_THOUGHTS: Final = frozenset(("reasoning_content", "thinking", "reasoning"))
_SCALARS: Final = (str, int, float, bool, type(None))


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
        # Exact types: what is derived from them is rebuilt.
        and all(type(value) in _SCALARS for value in options.values())
    )


def render_plain(
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """As `apply_chat_template` renders messages for which `is_plain` holds, without tools.

    Args:
        tokenizer: Has the special tokens that a template may write.
        template: Its text.
        messages: The conversation.
        options: Variables of the template, which replace special tokens of the same name.
        add_generation_prompt: Whether the beginning of an answer follows.
    """
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
