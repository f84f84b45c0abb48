"""What a person wrote in a mail, without the mail that it answers and without the signature.

A reply repeats what it answers, mostly whole and below: in a row that has both mails the model would learn to repeat
the question. Quotations between parts of an answer stay, since the answer means nothing without them.
"""

from __future__ import annotations

import re
from typing import Final

_SEPARATOR: Final = re.compile(
    r"^\W*-{2,}\s*(original message|original appointment|forwarded message|ursprüngliche nachricht|"
    r"urspr\. nachricht|original-nachricht|originalnachricht|weitergeleitete nachricht|message d'origine|"
    r"message original|mensaje original|messaggio originale|oorspronkelijk bericht)\s*-{2,}\W*$",
    re.IGNORECASE,
)
"""The line above the mail that is answered, as Outlook and web mailers write it."""
_REPLY_ABOVE: Final = re.compile(r"^\s*#{2,}-.*-#{2,}\s*$")
"""The line of help desks above which a customer types the reply."""
_FROM: Final = re.compile(r"^\s*\**\s*(from|von|de|da|van)\s*:", re.IGNORECASE)
_SENT: Final = re.compile(r"^\s*\**\s*(sent|date|gesendet|datum|envoyé|enviado|inviato|verzonden)\s*:", re.IGNORECASE)
_SUBJECT: Final = re.compile(r"^\s*\**\s*(subject|betreff|objet|asunto|oggetto|onderwerp)\s*:", re.IGNORECASE)
_HEADER_LINES: Final = 8
"""A header above the answered mail (From, Sent, To, Cc, Subject) is not longer."""
_WROTE: Final = re.compile(
    r"\b(wrote|writes|schrieb|hat geschrieben|a écrit|escribió|ha scritto|schreef)\b.*:\s*\**\s*$", re.IGNORECASE
)
_DATED: Final = re.compile(r"\d:\d\d|\b\d{4}\b|\d[./]\d")
_INTRODUCED: Final = re.compile(r"^\s*\**\s*(on|am|le|el|il|op|den|\d|mo|di|mi|do|fr|sa|so)\b", re.IGNORECASE)
_WROTE_LINES: Final = 3
"""`On Monday, ... wrote:` is wrapped to so many lines at most."""
_MAX_LINE: Final = 1_000
"""Longer lines begin no other mail; the patterns would take the square of their length."""
_RULE: Final = re.compile(r"^\s*([_*-]\s*){3,}$")
_FOOTER: Final = re.compile(
    r"^(sent from my |sent from outlook|get outlook for |von meinem .{1,40} gesendet|"
    r"gesendet von (meinem|mail|outlook)|outlook für |diese nachricht wurde von meinem |envoyé de mon )",
    re.IGNORECASE,
)
"""The line of a telephone under a mail."""


def own_text(text: str) -> str:
    """What the author of a reply wrote.

    Args:
        text: of the mail, with lines of quotations that begin with `>`.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    end = _answered_from(lines)
    own = without_signature("\n".join(_without_last_quotation(lines[:end]))).split("\n")
    found = "\n".join(_without_first_quotation(own)).strip()
    if found or end == len(lines) or _REPLY_ABOVE.match(lines[end]):
        return found
    # A mail that was passed on without a word: the other mail is all that its author says.
    return without_signature(text).strip()


def without_signature(text: str) -> str:
    """A text up to the line of two hyphens that begins a signature, and without the footer of a telephone."""
    lines = text.replace("\r\n", "\n").split("\n")
    # Without its blank, which many programs strip, it is a signature only where little follows.
    for number, line in enumerate(lines):
        if line == "-- " or (line.rstrip() == "--" and len(lines) - number <= 20):
            lines = lines[:number]
            break
    lines = _without_blank_end(lines)
    while lines and _FOOTER.match(lines[-1].strip()):
        lines = _without_blank_end(lines[:-1])
    return "\n".join(lines)


def _answered_from(lines: list[str]) -> int:
    """The line where the answered mail begins that is not marked by `>`; the number of lines where there is none."""
    for number, line in enumerate(lines):
        if len(line) > _MAX_LINE:
            continue
        if _SEPARATOR.match(line) or _REPLY_ABOVE.match(line):
            return number
        if _FROM.match(line):
            header = lines[number : number + _HEADER_LINES]
            if any(map(_SENT.match, header)) and any(map(_SUBJECT.match, header)):
                return _above_rule(lines, number)
        if (first := _introduction(lines, number)) is not None:
            following = next((one for one in lines[number + 1 :] if one.strip()), ">")
            if not following.lstrip().startswith(">"):
                return first
    return len(lines)


def _above_rule(lines: list[str], number: int) -> int:
    before = number - 1
    while before >= 0 and not lines[before].strip():
        before -= 1
    is_rule = before >= 0 and len(lines[before]) <= _MAX_LINE and _RULE.match(lines[before])
    return before if is_rule else number


def _introduction(lines: list[str], last: int) -> int | None:
    """The first line of `On ... wrote:` whose last line is this one; None where it is none."""
    if len(lines[last]) > _MAX_LINE or not _WROTE.search(lines[last]):
        return None
    for first in range(last, max(-1, last - _WROTE_LINES), -1):
        if not lines[first].strip() or lines[first].startswith(">"):
            break
        if _INTRODUCED.match(lines[first]) and _DATED.search(" ".join(lines[first : last + 1])):
            return first
    # `Anna Berg <anna@example.org> schrieb am 3. Mai 2024 um 10:12:`
    return last if _DATED.search(lines[last]) or "@" in lines[last] else None


def _is_quoted(line: str) -> bool:
    return line.startswith(">")


def _without_last_quotation(lines: list[str]) -> list[str]:
    """Without the quotation at the end, and the signature below it."""
    end = len(without_signature("\n".join(lines)).split("\n"))
    rest = _without_blank_end(lines[:end])
    if not rest or not _is_quoted(rest[-1]):
        return lines
    first = len(rest)
    while first and (_is_quoted(rest[first - 1]) or not rest[first - 1].strip()):
        first -= 1
    kept = _without_blank_end(rest[:first])
    if kept and (begins := _introduction(kept, len(kept) - 1)) is not None:
        kept = kept[:begins]
    return _without_blank_end(kept)


def _without_first_quotation(lines: list[str]) -> list[str]:
    """Without a quotation above the whole answer; quotations between its parts stay."""
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    start = first
    for last in range(first, min(first + _WROTE_LINES, len(lines))):
        if _introduction(lines, last) == first:
            start = last + 1
            break
    while start < len(lines) and not lines[start].strip():
        start += 1
    if start >= len(lines) or not _is_quoted(lines[start]):
        return lines
    end = start
    while end < len(lines) and (_is_quoted(lines[end]) or not lines[end].strip()):
        end += 1
    return lines if any(map(_is_quoted, lines[end:])) else lines[end:]


def _without_blank_end(lines: list[str]) -> list[str]:
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    return lines[:end]
