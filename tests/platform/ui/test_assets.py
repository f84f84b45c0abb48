"""Style, scripts and typeface as they are sent: addresses by content, the typeface's files named, and few bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import Browser
from tests.vacuous import nonempty

from luthier.platform.ui import assets
from luthier.platform.ui.assets import Assets

KIB = 1024
needs_vendor = pytest.mark.skipif(
    not (assets._HERE / "vendor" / "text-latin.woff2").is_file(), reason="the assets of others were not built (Node)"
)


def sizes(one: TestClient, page: str) -> dict[str, int]:
    """Compressed bytes of what a first visit to a page loads, by address."""
    found = set(re.findall(r'(?:src|href|data-htmx)="(/assets/[^"]+)"', page))
    answers = {address: one.get(address, headers={"accept-encoding": "gzip"}) for address in found}
    return {address: int(answer.headers["content-length"]) for address, answer in answers.items()}


@needs_vendor
def test_the_style_names_the_files_of_the_typeface(browser: Browser) -> None:
    one = browser("read")
    made = Assets()
    style = one.get(made.address("app.css") or "").text
    files = re.findall(r"url\((text-[\w-]+\.woff2)\)", style)
    assert len(files) == 2
    for file in nonempty(files):
        answer = one.get(f"/assets/{file}", headers={"accept-encoding": "gzip"})
        assert answer.content[:4] == b"wOF2"
        assert answer.headers["content-type"] == "font/woff2"
        assert "content-encoding" not in answer.headers, "it is compressed already"
    assert "font-display:optional" in style, "text does not move when it arrives"


def test_only_places_to_drop_files_have_dashed_round_borders() -> None:
    # Such a border is drawn dash by dash along a path: it took a third of the time in which an empty page was drawn.
    sheets = sorted((assets._HERE / "static" / "css").glob("*.css"))
    rules = [rule for sheet in nonempty(sheets) for rule in re.findall(r"[^{}]+\{[^{}]*\}", sheet.read_text("utf-8"))]
    dashed = [rule for rule in rules if re.search(r"border:[^;]*dashed", rule) and "border-radius" in rule]
    assert [rule.partition("{")[0].strip() for rule in nonempty(dashed)] == [".drop"]


@needs_vendor
def test_a_first_visit_is_at_most_120_kib_without_charts(browser: Browser) -> None:
    one = browser("read", "train", "infer")
    for path in ("/", "/start", "/glossary", "/models", "/playground"):
        answer = one.get(path, headers={"accept-encoding": "identity"})
        loaded = sizes(one, answer.text)
        assert any("text-latin-" in address for address in loaded), "loaded before the style asks for it"
        assert not any("echarts" in address for address in loaded), path
        assert sum(loaded.values()) + len(answer.content) <= 120 * KIB, path


def test_without_the_assets_of_others_the_system_gives_the_typeface(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("css", "js", "images"):
        (tmp_path / "static" / folder).mkdir(parents=True)
    (tmp_path / "static" / "css" / "00.css").write_text("body { color: red }")
    monkeypatch.setattr(assets, "_HERE", tmp_path)
    made = Assets()
    assert made.address("text-latin.woff2") is None
    assert made.address("app.css") is not None
