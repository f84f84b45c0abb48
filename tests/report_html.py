"""Reads a report page as a browser would, and asserts that it is whole and stands alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}
LOADING = {"src", "href", "srcset", "data", "poster", "action", "xlink:href", "background"}


class ReportHtml(HTMLParser):
    """Balance of tags, references, ids, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "tags that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.references += [str(value) for name, value in attrs if name in LOADING]
        self.labels += str(found.get("aria-labelledby") or "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def checked(html: str) -> ReportHtml:
    """The page, after asserting that it loads nothing, runs nothing and names each id once."""
    found = ReportHtml(html)
    assert html.startswith("<!DOCTYPE html>")
    assert all(reference.startswith("#") for reference in found.references)
    assert "http" not in html.lower()
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not [tag for tag, _ in found.tags if tag in {"script", "iframe", "object", "embed", "link", "img"}]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert len(found.ids) == len(set(found.ids))
    assert set(found.labels) <= set(found.ids)
    assert {reference.removeprefix("#") for reference in found.references} <= set(found.ids)
    assert [tag for tag, _ in found.tags].count("h1") == 1
    assert all("scope" in attributes for tag, attributes in found.tags if tag == "th")
    return found


def words(html: str) -> str:
    """The visible text, with single spaces."""
    return re.sub(r"\s+", " ", "".join(checked(html).text))
