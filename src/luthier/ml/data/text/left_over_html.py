"""HTML that was left in a text by an export: entities and tags of running text, told from HTML that is meant.

HTML is meant where the text talks about it or is code: it names HTML, CSS, XML, a script language, markup or tags, or
has a code fence, backticks, or a document's head. It is left-over where tags of running text are closed (`</b>`) or
stand alone by nature (`<br>`, `<p>`), or where there are named or numbered entities.
"""

from __future__ import annotations

import html
import re
from typing import Final

_BLOCK: Final = (
    "p|br|hr|div|h[1-6]|ul|ol|li|dl|dt|dd|table|thead|tbody|tfoot|tr|blockquote|section|article|header|footer"
)
_INLINE: Final = "span|b|i|u|em|strong|a|font|small|big|sub|sup|center|td|th|img|strike|abbr|cite|mark"
_END: Final = r"(?:\s[^<>]*)?/?>"
_ENTITY: Final = (
    r"&(?:amp|lt|gt|quot|apos|nbsp|copy|reg|trade|hellip|mdash|ndash|lsquo|rsquo|ldquo|rdquo|laquo|raquo|bull|middot|"
    r"euro|pound|cent|deg|times|[aeiouyAEIOUY](?:acute|grave|circ|uml)|[aonAON]tilde|[cC]cedil|szlig|aring|oslash|aelig|"
    r"#\d{1,7}|#[xX][0-9a-fA-F]{1,6});"
)
_SURE_TAG: Final = rf"(?i:</(?:{_BLOCK}|{_INLINE})\s?>|<(?:br|hr|p|li)\s?/?>|<(?:p|div|span|a|img|font)\s[^<>]+>)"
_MEANT: Final = (
    r"(?i)`|<!doctype|<html|<head|<body|<script|<style|<\?xml|xmlns|"
    r"\b(?:x?html5?|css|xml|svg|markup|tags?|jsx|react|vue|angular|javascript|php|dom|bbcode|snippet)\b"
)
# A Rust regular expression understands it too, so that a table can be sifted by it.
HTML_SIFT: Final = f"{_SURE_TAG}|{_ENTITY}"

_SIFT_RE: Final = re.compile(HTML_SIFT)
_MEANT_RE: Final = re.compile(_MEANT)
_SURE_TAG_RE: Final = re.compile(_SURE_TAG)
_ENTITY_RE: Final = re.compile(_ENTITY)
_BLOCKS_RE: Final = re.compile(rf"(?:</?(?:{_BLOCK}){_END}[ \t]*\n?[ \t]*)+", re.IGNORECASE)
_TAG_RE: Final = re.compile(rf"</?(?:{_INLINE}){_END}", re.IGNORECASE)
_ESCAPED_AGAIN_RE: Final = re.compile(r"&(?:amp;)+(?=[a-zA-Z#])")


def has_left_over_html(text: str) -> bool:
    """Whether the text holds HTML that looks left over."""
    return left_over_at(text) >= 0


def left_over_at(text: str) -> int:
    """Where the first left-over tag or entity begins, in characters; -1 where there is none."""
    if "<" not in text and "&" not in text:
        return -1
    found = _SIFT_RE.search(text)
    return -1 if found is None or _MEANT_RE.search(text) is not None else found.start()


def strip_html(text: str) -> str:
    """The text once without left-over tags and entities: tags of blocks become a line break, others nothing.

    Text whose HTML looks meant comes back as it was.
    """
    if not has_left_over_html(text):
        return text
    if _SURE_TAG_RE.search(text):
        text = _BLOCKS_RE.sub(_line_break, text)
        text = _TAG_RE.sub("", text)
    # `&amp;amp;lt;` was escaped several times: all layers go at once, then the entity.
    return _ENTITY_RE.sub(_character, _ESCAPED_AGAIN_RE.sub("&", text) if "&amp;" in text else text)


def _line_break(found: re.Match[str]) -> str:
    return "\n" if found.start() and found.end() < len(found.string) else ""


def _character(found: re.Match[str]) -> str:
    return " " if found.group() in ("&nbsp;", "&#160;", "&#xa0;", "&#xA0;") else html.unescape(found.group())
