"""Where sentences begin and end, by rules: no model, any language that ends sentences with a mark.

When in doubt two sentences stay together: a long piece does less harm than half a sentence.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise

_CLOSING = "\"'”’»)\\]」』）】"
# A mark with what closes after it and then space; marks of Chinese and Japanese need no space.
_END = re.compile(
    rf"(?<![.!?…।؟])[.!?…।؟]++[{_CLOSING}]*+(?=\s)|(?<![。！？｡])[。！？｡]++[{_CLOSING}]*+"  # linear in runs of marks
)
_BLANK_LINE = re.compile(r"\n[ \t\r\f\v\u00a0]*\n\s*")
# A line that represents itself: a list item, a table row, a heading, a quotation, a fence, indented code.
_OWN_LINE = re.compile(r"(?:[-*+•‣◦–]\s|\(?\d{1,3}[.)]\s|\(?[a-zA-Z][.)]\s|\||#{1,6}\s|>|```|~~~|\t|    )")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_LAST_WORD = re.compile(r"[\w.\-]+$")
_NEVER_LAST = (
    " mr mrs ms dr prof st mt v vs fig figs eq eqs no nos vol pp p ch sec art cf viz e.g i.e z.b d.h bzw ca nr abb tab "
    "bd hrsg vgl evtl ggf sog max min approx est dept gen col capt lt sgt sen rep gov rev hon messrs mme mlle m "
)
# May end a sentence; then the next word has a capital, and that is taken as its beginning.
_MAY_BE_LAST = " etc al inc ltd co corp jr sr usw u.a a.m p.m u.s u.k ph.d b.sc m.sc "


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, in order; blanks around them belong to none, all else to exactly one.

    Paragraphs end sentences, as do lines of a list, of a table and of a fenced block of code.
    """
    spans: list[tuple[int, int]] = []
    start, is_fenced = 0, False
    for gap in [*_BLANK_LINE.finditer(text), None]:
        end = len(text) if gap is None else gap.start()
        is_fenced = _add_paragraph(text, start, end, is_fenced, spans)
        start = end if gap is None else gap.end()
    return spans


def _add_paragraph(text: str, start: int, end: int, is_fenced: bool, spans: list[tuple[int, int]]) -> bool:
    """Append the sentences of one paragraph; returns whether a fenced block is open at its end."""
    cuts = {start, end}
    line, was_fence = start, False
    code: list[tuple[int, int]] = []
    while line < end:
        newline = text.find("\n", line, end)
        stop = end if newline < 0 else newline
        is_fence = _FENCE.match(text, line, stop) is not None
        # Each line of a fenced block is cut off, and so is the line behind it.
        if line > start and (is_fenced or is_fence or was_fence or _OWN_LINE.match(text, line, stop)):
            cuts.add(line)
        if is_fenced or is_fence:
            code.append((line, stop))
        # A fence opens a block or closes the one that is open.
        is_fenced, was_fence = is_fenced ^ is_fence, is_fence
        line = stop + 1
    for match in _END.finditer(text, start, end):
        if match.end() < end and _ends_sentence(text, match) and not _is_within(match.end(), code):
            cuts.add(match.end())
    for left, right in pairwise(sorted(cuts)):
        piece = text[left:right]
        if stripped := piece.strip():
            offset = left + len(piece) - len(piece.lstrip())
            spans.append((offset, offset + len(stripped)))
    return is_fenced


def _is_within(at: int, lines: list[tuple[int, int]]) -> bool:
    # Lines are sorted and disjoint: the last one that begins before `at` is the only one that can hold it.
    place = bisect_right(lines, (at, at)) - 1
    return place >= 0 and lines[place][0] < at < lines[place][1]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match.group()
    if mark[0] in "。！？｡":
        return True
    # 80 characters are enough to see the next word, and keep long texts linear.
    after = text[match.end() : match.end() + 80].lstrip().lstrip("\"'“‘«([„¿¡-–— ")
    if after[:1].islower() or after[:1] == "§":  # "O.C.G.A. § 34-9-1"
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    # No abbreviation is longer than 40 characters.
    word = _LAST_WORD.search(text, max(0, match.start() - 40), match.start())
    if word is None:
        return True
    last = word.group()
    if last.isdigit() and len(last) <= 2:  # "on the 3. May", "1. First": too long is better than cut
        return False
    if len(last) == 1 and last.isupper() and last != "I":  # an initial
        return False
    plain = last.lower()
    if f" {plain} " in _MAY_BE_LAST:
        return after[:1].isupper()
    return f" {plain} " not in _NEVER_LAST
