"""The environment of templates for each language, and which templates a language has whole.

A folder of templates is shown in a language where the catalog has every message of it and of all that its templates
extend, include and import. Else its pages are English as a whole, so that no page mixes two languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from typing import Any, Final

from fastapi import Request
from jinja2 import BaseLoader, Environment, meta
from markupsafe import Markup, escape

from luthier.ml.charts.spec import OwnName, Series
from luthier.ml.evaluation.plain_names import listed_names
from luthier.platform.ui.i18n.catalog import Catalog, catalog
from luthier.platform.ui.i18n.figures import Figures
from luthier.platform.ui.i18n.language import ENGLISH, language_of
from luthier.platform.ui.i18n.messages import Message
from luthier.platform.ui.i18n.templates import rewritten

_NO_CHART: Final = '<p class="muted no-chart">'
_NOTHING: Final = "Nothing to draw yet for"
_CHART_TEXTS: Final = frozenset(
    ("title", "caption", "description", "name", "unit", "words", "other_words", "text", "low", "high")
)
_CHART_LISTS: Final = frozenset(("rows", "columns", "lines", "marks", "notes", "cells", "series"))
_WORD: Final = re.compile(r"\b[a-z]{3,}\b")
_LETTER: Final = re.compile(r"[^\W\d_]")
_ENGLISH_TEXT: Final = Markup('<span lang="en">{}</span>')


class TranslatedLoader(BaseLoader):
    """The templates of another loader, with the texts of a catalog in the place of their own."""

    def __init__(self, source: BaseLoader, texts: Catalog) -> None:
        self._source, self._texts = source, texts

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        """The source of a template in the language of the catalog."""
        source, path, is_current = self._source.get_source(environment, template)
        return rewritten(source, self._texts.page), path, is_current

    def list_templates(self) -> list[str]:
        """Those of the other loader."""
        return self._source.list_templates()


@dataclass(frozen=True, slots=True)
class Words:
    """Texts that Python made, in the language of a page: `{{ entry.name | t }}`."""

    texts: Catalog | None
    figures: Figures | None

    def __call__(self, value: Any) -> Any:
        """The text in this language; in English where the catalog does not have it. No strings: unchanged."""
        return value if self.texts is None else self.found(value)[0]

    def in_text(self, value: Any) -> Any:
        """The same as content of an element; what stays English is marked as English."""
        if self.texts is None:
            return value
        found, is_known = self.found(value)
        return found if is_known else _ENGLISH_TEXT.format(found)

    def found(self, value: Any) -> tuple[Any, bool]:
        """The text in this language, and whether it is one that needs no mark as English."""
        assert self.texts is not None
        assert self.figures is not None
        if not isinstance(value, str) or isinstance(value, Markup | OwnName):
            return value, True
        text = str(value)
        localised = self.figures.localised(text)
        if not _LETTER.search(text):
            return localised, True
        found = self.texts.sentence(text, self.figures.localised)
        if found is not None:
            return found, True
        # Translated before, as by a chart whose parts are shown twice.
        if self.texts.is_translation(text):
            return text, True
        # Figures, units, names and codes are no English.
        is_english = _WORD.search(text) is not None and (" " in text.strip() or text.isalpha())
        if is_english:
            self.texts.note_missed(text)
        return localised, not is_english


ENGLISH_WORDS: Final = Words(None, None)


@cache
def words(language: str) -> Words:
    """The translation of Python's texts for a language."""
    if language == ENGLISH:
        return ENGLISH_WORDS
    texts = catalog(language)
    return Words(texts, figures_of(language))


@cache
def figures_of(language: str) -> Figures:
    """The figures of a language other than English."""
    texts = catalog(language)
    return Figures(language, lambda text: texts.sentence(text, lambda value: value) or text)


def decimal_mark(language: str) -> str:
    """The sign before the decimals of a number."""
    return "." if language == ENGLISH else figures_of(language).decimal_mark


def decimal_mark_of(request: Request) -> str:
    """The sign before the decimals of a number in what a visitor types: that of the language of their pages."""
    return decimal_mark(language_of(request))


def translated_environment(source: Environment, language: str) -> Environment:
    """The environment of the templates in a language; `source` has them in English."""
    assert source.loader is not None
    # An overlay shares the settings, but has its own cache: one template name has a source for each language.
    made = source.overlay(loader=TranslatedLoader(source.loader, catalog(language)))
    translate = words(language)
    made.filters = {**source.filters, **figures_of(language).filters(), "t": translate, "t_text": translate.in_text}
    made.filters["system_name"] = partial(_system_name, translate)
    made.filters["chart_words"] = partial(_charted, translate)
    made.filters["page_advice"] = partial(_advice, source.filters["page_advice"], translate)
    english: Any = source.globals["drawn"]
    draw = partial(_drawn, translate, english)
    made.filters["drawn_chart"] = lambda spec: draw(_charted(translate, spec))
    made.globals = {**source.globals, "drawn": draw}
    return made


def _system_name(translate: Words, name: Any) -> Any:
    """The name of an evaluated system: ours, such as `base`, in this language; those that people gave stay."""
    return listed_names((name,), translate)[0] if isinstance(name, str) and not isinstance(name, Markup) else name


def _drawn(translate: Words, draw: Callable[..., Markup], spec: Any) -> Markup:
    """A chart that has been translated already; without points it is a sentence."""
    found = draw(spec, figure=None if translate.figures is None else translate.figures.localised)
    if not found.startswith(_NO_CHART):
        return found
    return Markup(found.replace(_NOTHING, str(escape(translate(_NOTHING))), 1))  # noqa: S704 - escaped where it is made


def _charted(translate: Words, part: Any) -> Any:
    """A chart, a part of one or a list of parts, with its texts in this language.

    Names of series stay, beside the shown ones: new points of a run come under them. Labels of a matrix stay: they may
    be texts of people.
    """
    if isinstance(part, list | tuple):
        return type(part)(_charted(translate, inner) for inner in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changed: dict[str, Any] = {}
    for one in fields(part):
        value = getattr(part, one.name)
        if isinstance(part, Series) and one.name == "shown" and part.name:
            changed["shown"] = translate(part.name)
        elif isinstance(value, str) and one.name in _CHART_TEXTS and not isinstance(part, Series):
            changed[one.name] = translate(value)
        elif isinstance(part, Series) and one.name == "labels":
            changed[one.name] = [translate(label) for label in value]
        elif one.name == "ticks" and value:
            changed[one.name] = [(at, translate(word)) for at, word in value]
        elif is_dataclass(value) or (one.name in _CHART_LISTS and value):
            changed[one.name] = _charted(translate, value)
    return replace(part, **changed) if changed else part


def _advice(links: Callable[..., Markup], translate: Words, advice: str) -> Markup:
    """The advice of an error with its links, in this language where the catalog has it."""
    found, is_known = translate.found(advice)
    # The figures of an English text may be part of code.
    return links(found, translate) if is_known else _ENGLISH_TEXT.format(links(advice))


def messages_of(source: str) -> list[Message]:
    """The messages of a template, in order of appearance."""
    found: list[Message] = []
    rewritten(source, found.append)  # append returns None: nothing is translated
    return found


class Coverage:
    """Which templates a language has whole. It reads each folder once."""

    def __init__(self, environment: Environment, language: str) -> None:
        self._environment, self._texts = environment, catalog(language)
        self._missing: dict[str, list[Message]] = {}
        self._folders: dict[str, bool] = {}

    def has(self, template: str) -> bool:
        """Whether the folder of a template is translated, with all that its templates use."""
        folder = template.rpartition("/")[0]
        if folder not in self._folders:
            # Decided for the folder as a whole: pages that link to each other stay in one language.
            self._folders[folder] = not any(self.missing(name) for name in self._family(folder))
        return self._folders[folder]

    def missing(self, template: str) -> list[Message]:
        """The messages of one template that the catalog does not have."""
        if template not in self._missing:
            found = messages_of(self._source(template))
            self._missing[template] = [message for message in found if self._texts.page(message) is None]
        return self._missing[template]

    def _family(self, folder: str) -> list[str]:
        """The templates of a folder, and all that they extend, include and import."""
        found: list[str] = []
        waiting = [name for name in self._templates() if name.rpartition("/")[0] == folder]
        while waiting:
            name = waiting.pop()
            # Templates may include each other in a circle.
            if name not in found:
                found.append(name)
                waiting += self._used(name)
        return found

    def _templates(self) -> list[str]:
        assert self._environment.loader is not None
        return [name for name in self._environment.loader.list_templates() if name.endswith(".html")]

    def _used(self, template: str) -> Iterator[str]:
        tree = self._environment.parse(self._source(template))
        return (name for name in meta.find_referenced_templates(tree) if name is not None)

    def _source(self, template: str) -> str:
        assert self._environment.loader is not None
        return self._environment.loader.get_source(self._environment, template)[0]
