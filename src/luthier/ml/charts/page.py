"""A report page: the template environment, a chart with its text, and the atomic write to disk."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.core.system.files import disk_full_explained, replace_file, sync_file
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


def replace_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) so that it appears whole or not at all; an older one is replaced.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all; an older one is replaced.

    Raises:
        StorageFullError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with disk_full_explained(
            path,
            expected=f"about {len(content):,} bytes free for it",
            do="free some disk space, then write it again",
        ):
            with temporary.open("wb") as file:
                file.write(content)
                sync_file(file)
            replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
