"""Conversations rendered by transformers, those of plain messages without the conversions of `apply_chat_template`.

transformers copies messages, tools and options several times to rebuild objects that a template must not see, which
takes as long as the template. Messages of nothing but text, without thoughts, tools or options with parts, stay as they
are in all of these steps, so they are given to the compiled template at once.

The function that compiles is a private one of transformers. So fixed conversations are rendered both ways before the
first text of a template; where texts or errors differ, or the function is missing, transformers renders everything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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
_QUESTION: Final = {"role": "user", "content": " Which <wood> & 'ß'?\n"}
_ANSWER: Final = {"role": "assistant", "content": '<think>\nIt is light.\n</think>\n\nSpruce, "12" Euro. '}
_PROBES: Final[tuple[list[dict[str, Any]], ...]] = (
    [_QUESTION],
    [_QUESTION, _ANSWER],
    [{"role": "system", "content": "You build guitars."}, _QUESTION, _ANSWER, {**_QUESTION, "name": "Ada"}],
)
"""Templates may reject some of them, for their roles or fields: with the same error both ways."""
_PROBE_OPTIONS: Final[tuple[Mapping[str, Any], ...]] = ({}, {"enable_thinking": False, "bos_token": "<other>"})


class PlainRenderer:
    """Renders by the chat template of a tokenizer.

    Args:
        tokenizer: Has the template, and the special tokens that it may write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._proved: dict[str, bool] = {}  # by the template's text: a tokenizer may have several

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        options: Mapping[str, Any],
        *,
        add_generation_prompt: bool,
    ) -> str:
        """The text that the template writes.

        Args:
            messages: The conversation, in the form that the template expects.
            tools: Definitions of tools; None where the template is given none.
            options: Variables of the template, which replace special tokens of the same name.
            add_generation_prompt: Whether the beginning of an answer follows.

        Raises:
            jinja2.TemplateError: The template rejects the conversation.
            TypeError, ValueError, KeyError, AttributeError, IndexError: It computes with what it does not get.
        """
        template = self._tokenizer.get_chat_template(tools=tools)
        if tools is None and is_plain(messages, options) and self._is_proved(template):
            return self._at_once(template, messages, options, add_generation_prompt)
        return self._by_transformers(template, messages, tools, options, add_generation_prompt)

    def _is_proved(self, template: str) -> bool:
        """Whether some probe is written, and all probes give the same text or error both ways."""
        if (known := self._proved.get(template)) is not None:
            return known
        found = [
            (
                _outcome(lambda: self._at_once(template, messages, options, begins)),  # noqa: B023 - called at once
                _outcome(lambda: self._by_transformers(template, messages, None, options, begins)),  # noqa: B023
            )
            for messages in _PROBES
            for options in _PROBE_OPTIONS
            for begins in (False, True)
        ]
        self._proved[template] = all(ours == theirs for ours, theirs in found) and any(
            isinstance(ours, str) for ours, _ in found
        )
        return self._proved[template]

    def _at_once(
        self, template: str, messages: list[dict[str, Any]], options: Mapping[str, Any], add_generation_prompt: bool
    ) -> str:
        # transformers compiles a template once; its environment is the bounded one (`use_bounded_sandbox`).
        compiled = chat_template_utils._compile_jinja_template(template)
        return str(
            compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._tokenizer.special_tokens_map, **options},
            )
        )

    def _by_transformers(
        self,
        template: str,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        options: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **options,
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


def _outcome(render: Callable[[], str]) -> str | tuple[type[Exception], str]:
    """The text, or the type and the message of the error."""
    try:
        return render()
    except Exception as error:  # noqa: BLE001 - templates raise anything, and so does another version's function
        return type(error), str(error)
