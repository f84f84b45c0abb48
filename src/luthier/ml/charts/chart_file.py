"""A chart as a file of its own: SVG that follows the reader's light or dark screen, or PNG on white paper."""

from __future__ import annotations

import io
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from luthier.core.errors import ConflictError, RequestError
from luthier.ml.charts.page import TEMPLATES, replace_bytes, replace_text
from luthier.ml.charts.svg import css_variable, inline_svg, stand_ins

SUFFIXES: Final = (".svg", ".png")
_DOTS_AN_INCH: Final = 192


def check_chart_path(path: Path) -> None:
    """Raises RequestError for a file that no chart can be written to; called before the work that it shows."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"chart {path} ends in {path.suffix!r}",
            expected=f"a file that ends in {' or '.join(SUFFIXES)}",
            do="rename it",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(
            f"chart {path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}",
            expected="a file in an existing folder",
            do="make the folder, or choose another place",
        )
    if path.is_file() and not _is_picture(path):
        raise ConflictError(
            f"chart {path} is there already, and is no picture",
            expected="a name that is free, or a chart to replace",
            do="choose another name, or move that file away",
        )


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1024)
    return not head or head.startswith((b"\x89PNG", b"<svg", b"<?xml"))


def write_chart(figure: Figure, path: Path, *, name: str, title: str, description: str) -> None:
    """Write a figure that was drawn on `reporting.svg.canvas`, whole or not at all; an older file is replaced.

    Raises RequestError as `check_chart_path` does, StorageFullError.

    Args:
        name, title, description: as for `inline_svg`.
    """
    check_chart_path(path)
    if path.suffix.lower() == ".png":
        _paint(figure, _palettes()[0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_AN_INCH, facecolor="white", metadata={"Title": title})
        replace_bytes(path, buffer.getvalue())
        return
    markup = str(inline_svg(figure, name=name, title=title, description=description))
    light, dark = (" ".join(f"{key}: {value};" for key, value in palette.items()) for palette in _palettes())
    style = (
        f"<style>svg {{ {light} background: var(--paper); font-family: system-ui, sans-serif; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    )
    head, rest = markup.split(">", 1)
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" ', 1)
    replace_text(path, f"{head}>{style}{rest}\n")


def _paint(figure: Figure, palette: dict[str, str]) -> None:
    """Real colours in place of the stand-ins, on everything that was drawn."""
    real = {stand_in: palette[css_variable(stand_in)] for stand_in in stand_ins()}
    for artist in figure.findobj():
        for kind in ("color", "facecolor", "edgecolor", "markeredgecolor", "markerfacecolor"):
            get, put = getattr(artist, f"get_{kind}", None), getattr(artist, f"set_{kind}", None)
            if get is None or put is None:
                continue
            try:
                found = to_hex(get())
            except (TypeError, ValueError):  # none, or one for each of many parts
                continue
            if found in real:
                put(real[found])


@lru_cache(maxsize=1)
def _palettes() -> tuple[dict[str, str], dict[str, str]]:
    """The light and the dark colours of the report's own style, by their CSS variable."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    found = [dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]+);", block)) for block in (light, dark)]
    return found[0], found[1]
