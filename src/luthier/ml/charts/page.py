"""A report page: the template environment, a chart with its text, and excerpts of long texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.core.text.counted import counted
from luthier.ml.charts import figures
from luthier.ml.charts.visible import shown

TEMPLATES: Final = Path(__file__).parent / "templates"
_FOLD_LINES: Final = 14
_MAX_CHARACTERS: Final = 6_000


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with its heading and the sentence below it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Text of a model or a person, as much as a page shows.

    Attributes:
        start: what is shown first.
        whole: up to 6,000 characters.
        num_characters: length of the text.
        num_left_out: characters beyond `whole`.
    """

    start: str
    whole: str
    num_characters: int
    num_left_out: int

    @property
    def is_folded(self) -> bool:
        """Whether the start is not the whole."""
        return len(self.start) < len(self.whole)


def fold(text: str, characters: int) -> Excerpt:
    """Text beyond about `characters` or 14 lines shows its start first; beyond 6,000 the rest is left out.

    How much is left out is in the result, and on the page.
    """
    whole = text[:_MAX_CHARACTERS]
    start = "\n".join(whole.split("\n")[:_FOLD_LINES])[:characters]
    # A little more than the limit is shown whole: a fold that hides one line is a nuisance.
    if len(whole) - len(start) < characters // 4 and whole.count("\n") < _FOLD_LINES * 5 // 4:
        start = whole
    return Excerpt(start, whole, len(text), len(text) - len(whole))


@cache
def page_environment(templates: Path) -> Environment:
    """Templates of a report; everything is escaped, and what a browser would hide is made visible.

    One for all reports of a folder: it keeps the compiled templates, and compiling them costs more than filling them.

    Args:
        templates: the folder that is searched first; then what all reports share (`style.css`).
    """
    made = Environment(
        loader=FileSystemLoader([templates, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"plain": figures.plain, "short": figures.short_digest, "drawn_chart": _drawn, "t": _as_it_is}
    made.filters |= {"fold": fold, "counted": counted}
    return made


def _drawn(spec: Any) -> Markup:
    """A chart as SVG."""
    from luthier.ml.charts.svg import drawn  # it writes its files by this module

    return drawn(spec)


def _as_it_is(value: Any) -> Any:
    """Reports are English; pages put translations in the place of this filter."""
    return value
