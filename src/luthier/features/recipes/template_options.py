"""Checks of `data.template_options`, which need the chat template of the base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RecipeError, TemplateError
from luthier.core.recipe import TemplateOption

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_SWITCH_WORDS: Final = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_QUESTION: Final = Conversation(messages=(Message(role="user", content="Hello"),))


def check_options_are_read(options: Iterable[str], template: ChatTemplate, base_model: str) -> None:
    """Raise RecipeError for an option that the chat template of a base model never reads."""
    known = sorted(template.names.options)
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, 1)
            raise RecipeError(
                f"data.template_options.{name}, which the chat template of {base_model} never reads",
                expected=f"one of these: {', '.join(known)}" if known else "none: this template has no options",
                do=f"write {nearest[0]}" if nearest else "remove it: it would change nothing",
            )


def check_switches(options: Mapping[str, TemplateOption], template: ChatTemplate, base_model: str) -> None:
    """Raise RecipeError for a word such as `no` that the chat template of a base model takes for its opposite.

    In a recipe `no` and `off` are texts, since some options take texts. Where a template only asks whether a switch is
    false, every text counts as true, and the run would silently be trained on other prompts than were asked for.
    """
    for name, value in options.items():
        meant = _SWITCH_WORDS.get(value.strip().casefold()) if isinstance(value, str) else None
        if meant is None:
            continue
        with_text, with_opposite, with_meant = (_prompt(template, name, one) for one in (value, not meant, meant))
        if with_text == with_opposite != with_meant:
            text, taken, right = repr(value), str(not meant).lower(), str(meant).lower()
            raise RecipeError(
                f"data.template_options.{name} has the text {text}, which the chat template of {base_model} takes for "
                f"{taken}",
                expected="true or false",
                do=f"write {name}: {right}",
            )


def _prompt(template: ChatTemplate, name: str, value: TemplateOption) -> str | None:
    """The prompt of a question with one option; None if the template rejects its value."""
    try:
        return template.with_options({**template.options, name: value}).render(_QUESTION, add_generation_prompt=True)
    except TemplateError:
        return None
