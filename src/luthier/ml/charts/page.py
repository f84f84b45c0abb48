"""A report page: the template environment, and a chart with its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.ml.charts import figures
from luthier.ml.charts.visible import shown

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with its heading and the sentence below it."""

    title: str
    caption: str
    svg: Markup


@cache
def page_environment(templates: Path, fold: Callable[..., Any] | None = None) -> Environment:
    """Templates of a report; everything is escaped, and what a browser would hide is made visible.

    One for all reports of a folder: it keeps the compiled templates, and compiling them costs more than filling them.

    Args:
        templates: the folder that is searched first; then what all reports share (`style.css`).
        fold: the filter `fold`, which shortens long texts.
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
    if fold is not None:
        made.filters["fold"] = fold
    return made


def _drawn(spec: Any) -> Markup:
    """A chart as SVG."""
    from luthier.ml.charts.svg import drawn  # it writes its files by this module

    return drawn(spec)


def _as_it_is(value: Any) -> Any:
    """Reports are English; pages put translations in the place of this filter."""
    return value
