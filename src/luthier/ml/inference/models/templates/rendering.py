"""A chat template as text without transformers, for what only asks how a template writes: a process stays light.

The environment is that of `transformers.utils.chat_template_utils` (5.24): its filters, functions and the block
`{% generation %}`, in our bounded sandbox. Conversations are plain JSON. What is trained, generated and exported is
rendered by transformers itself; `tests/ml/inference/models/templates/test_rendering.py` holds both against each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.utils import Namespace

from luthier.ml.inference.models.templates.jinja_sandbox import BoundedEnvironment

_REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    values: Mapping[str, Any] | None = None,
) -> str:
    """A conversation as text.

    Args:
        template: Text of the template.
        messages: The conversation.
        tools: Its functions.
        add_generation_prompt: Whether the beginning of an answer follows.
        values: Special tokens and options by name.

    Raises:
        jinja2.TemplateError: The template is broken, or rejects the conversation.
        TypeError, ValueError, KeyError, AttributeError, IndexError: It computes with what it does not get.
    """
    return _compiled(template).render(
        messages=[_with_aliases(message) for message in messages],
        tools=tools,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **(values or {}),
    )


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


def _with_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose thought has each of the names that templates read."""
    thought = next((message[name] for name in _REASONING_FIELDS if message.get(name) is not None), None)
    return dict(message) if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes characters of HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict` without its attributes, by which a template could reach Python."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> dict[Any, Any]:
        return dict(*_args, **_kwargs)

    def fromkeys(self, *_args: Any, **_kwargs: Any) -> dict[Any, Any]:
        """As that of `dict`."""
        return dict.fromkeys(*_args, **_kwargs)


class _Namespace(Namespace):
    """A namespace without names of Python's internals."""

    def __init__(*_args: Any, **_kwargs: Any) -> None:  # without `self`, which may be a name, too
        own, given = _args[0], _args[1:]
        attributes = dict(*given, **_kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace with the name {name!r}, which begins with an underscore")


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`: its content, with its own scope."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        """The nodes of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())
