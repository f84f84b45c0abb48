"""Which names a chat template reads: options beside the conversation, and fields of its messages.

Read off the syntax tree of the template, so that an option that it never reads is found before anything is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import jinja2.ext
from jinja2 import meta, nodes
from jinja2.parser import Parser

from luthier.ml.inference.models.bounded_jinja import BoundedEnvironment

GIVEN: Final = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
"""What every rendering gives: no options."""
_TOKENS: Final = "_token"
_FUNCTIONS: Final = frozenset(("raise_exception", "strftime_now", "dict", "namespace"))


@dataclass(frozen=True, slots=True)
class TemplateNames:
    """Names in a chat template.

    Attributes:
        options: variables that the template expects from outside.
        fields: all names and keys that it looks up.
    """

    options: frozenset[str]
    fields: frozenset[str]


@lru_cache(maxsize=32)
def names_of(template: str) -> TemplateNames:
    """The names that a template reads; none of one that does not parse, which rendering reports."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    try:
        tree = environment.parse(template)
        undeclared = meta.find_undeclared_variables(tree)
    except jinja2.TemplateError:
        return TemplateNames(frozenset(), frozenset())
    # a name that some branch sets is the template's own, unless it is asked whether anybody gave it
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"} - _asked_for(tree)
    options = {name for name in undeclared if not name.endswith(_TOKENS)} - GIVEN - _FUNCTIONS - own
    return TemplateNames(frozenset(options), frozenset(_fields(tree)))


def _asked_for(tree: nodes.Template) -> set[str]:
    """Names in `x is defined`, `x is undefined` and `x | default(...)`."""
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")]
    asked += [found.node for found in tree.find_all(nodes.Filter) if found.name in ("default", "d") and found.node]
    return {node.name for node in asked if isinstance(node, nodes.Name)}


def _fields(tree: nodes.Template) -> set[str]:
    found = {node.attr for node in tree.find_all(nodes.Getattr)}
    return found | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}` that transformers adds to jinja: what it holds."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> Any:
        """The nodes of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
