"""Human names in the place of ids, in texts that name runs by their ids and rows by those of their files.

Programs name a system by its run, as in `run-20261125-093000-1f2e3d is better than base`, and rows by their file, as in
`file-20261130-115118-6bd96a.csv`. Pages write `Client questions · SmolLM2 · 28 Nov` and `questions.csv`, and show
the id in a line of details. Only what belongs to the reader's project is named; the id of anything else stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, TypeVar

from jinja2 import pass_context
from jinja2.runtime import Context as TemplateContext
from markupsafe import Markup
from pydantic import BaseModel

from luthier.core.text.names import distinct_names
from luthier.platform.home.context import Context

_NAMED: Final = re.compile(
    r"(?<![\w/=-])(?:(?P<run>run-[0-9]{8}-[0-9]{6}-[0-9a-f]{6})"
    r"|(?P<file>file-[0-9]{8}-[0-9]{6}-[0-9a-f]{6})(?:\.[a-z0-9]+)*)(?![\w-])"
)
"""Not within an address (`/runs/run-…`, `?model=run-…`). The name of a file takes the place of its endings, too."""
_KEPT: Final = re.compile(r".*(?:_id|_ids|sha256|address|command)|samples?|prompt|reference|answer|output|spans")
"""Fields that hold ids and addresses for programs, or texts of rows and models, which are shown as they are."""
Value = TypeVar("Value")


class HumanNames:
    """What people call the runs and files that texts of a page name by their ids; each is looked up once."""

    def __init__(self, context: Context, project_id: str) -> None:
        self._context, self._project_id = context, project_id
        self._runs: dict[str, str] = {}
        self._files: dict[str, str] = {}
        self._searched: set[str] = set()

    def read(self, texts: Iterable[str]) -> HumanNames:
        """Look up all that the texts name, together: few statements for a whole list."""
        found = [match for text in texts for match in _NAMED.finditer(text)]
        runs = {match["run"] for match in found if match["run"]} - self._searched
        files = {match["file"] for match in found if match["file"]} - self._searched
        self._searched |= runs | files
        if runs:
            own = self._context.runs.ids_of_project(self._project_id, sorted(runs))
            self._runs |= self._context.run_labels.names(own)
        if files:
            self._files |= self._context.files.names(self._project_id, sorted(files))
        return self

    def __call__(self, text: str) -> str:
        """A text with names in the place of ids; no two runs have one name."""
        self.read((text,))
        names = self._names
        return _with_names(text, names) if names else text

    def within(self, value: Value) -> Value:
        """The same in all texts of a record, a chart, a mapping or a list; texts of rows and models stay.

        Only what `read` has found is named.
        """
        names = self._names
        return _within(value, names) if names else value

    @property
    def _names(self) -> dict[str, str]:
        return distinct_names(self._runs) | self._files


def _with_names(text: str, names: Mapping[str, str]) -> str:
    return _NAMED.sub(lambda found: names.get(found["run"] or found["file"], found[0]), text)


def _within(value: Any, names: Mapping[str, str]) -> Any:
    """The value with human names; the very same where it has no ids of theirs."""
    if isinstance(value, str):
        # Markup is escaped already, and a name is not.
        made = value if isinstance(value, Markup) else _with_names(value, names)
        return value if made == value else type(value)(made)
    if isinstance(value, BaseModel):
        changed = _changed({name: getattr(value, name) for name in type(value).model_fields}, names)
        return value.model_copy(update=changed) if changed else value
    if is_dataclass(value) and not isinstance(value, type):
        changed = _changed({one.name: getattr(value, one.name) for one in fields(value) if one.init}, names)
        return replace(value, **changed) if changed else value
    if isinstance(value, dict):
        return {_within(key, names): one if _stays_as_it_is(key) else _within(one, names) for key, one in value.items()}
    if isinstance(value, tuple | list):
        made_items = [_within(one, names) for one in value]
        if all(one is old for one, old in zip(made_items, value, strict=True)):
            return value
        return type(value)(*made_items) if hasattr(value, "_fields") else type(value)(made_items)
    return value


def _changed(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    made = {name: _within(one, names) for name, one in found.items() if not _stays_as_it_is(name)}
    return {name: one for name, one in made.items() if one is not found[name]}


def _stays_as_it_is(name: Any) -> bool:
    return isinstance(name, str) and _KEPT.fullmatch(name) is not None


@pass_context
def named(template: TemplateContext, text: Any) -> Any:
    """The filter `named`: `{{ export.source | named }}` is the name of the run that the text names by its id."""
    names = template.get("human_names")
    # Macros that are imported without the context of the page have no names; numbers and None name nothing.
    is_text = isinstance(text, str) and not isinstance(text, Markup)
    return names(text) if is_text and names is not None else text
