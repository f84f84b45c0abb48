"""UTF-8 text that was read as Windows-1252 or Latin-1, found and turned back: "CafÃ©" is "Café".

A sequence of characters is taken for mojibake where their bytes in Windows-1252 are one UTF-8 character of a script in
use, and where its neighbours make it unlikely that a person wrote it. Where there is such a sequence and the whole text
can be turned back, it is; else each sequence alone, so that a text which mixes mojibake with other scripts is repaired
too. Both are exact: reading the result wrongly again gives what was there. Quotes, dashes and the no-break space follow
capitals in real text ("MANHÃ”", "Spaß“"), so they count only inside words. Not seen: other pairs of encodings, and
mojibake whose bytes were lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# What Windows-1252 shows for the bytes 0x80 to 0x9F; the five bytes that it leaves open are control characters.
_WINDOWS_1252: Final = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ"
_BYTE_OF: Final = {ord(character): 0x80 + place for place, character in enumerate(_WINDOWS_1252)}
# Second and later bytes of UTF-8, 0x80 to 0xBF, as Windows-1252 or Latin-1 shows them.
_CONTINUED: Final = "\u0080-\u00bf" + "".join(sorted(set(_WINDOWS_1252) - {chr(code) for code in range(0x80, 0xA0)}))
# Of these, what follows a letter in real text: closing quotes, dashes, marks and the no-break space.
# A capital before one of these is ordinary writing, so they prove nothing by themselves.
_COMMON: Final = frozenset("‘’“”‚„‹›«»…–—•™®°²³ªº\u00a0")
_BEYOND_ASCII: Final = re.compile("[^\\x00-\\x7f]{2,}")
_SEQUENCE: Final = re.compile(
    f"(?P<latin>[ÂÃÄÅ][{_CONTINUED}])"
    f"|(?P<script>(?:[ÎÏ][{_CONTINUED}]){{2,}}|(?:[ÐÑ][{_CONTINUED}]){{2,}}|(?:[Ö×][{_CONTINUED}]){{2,}}"
    f"|(?:[ØÙÚÛ][{_CONTINUED}]){{2,}})"
    f"|(?P<mark>[âáï][{_CONTINUED}]{{2}})"
    f"|(?P<run>(?:[àãäåæçèéêëìí][{_CONTINUED}]{{2}}){{2,}})"
    f"|(?P<emoji>ð[Ÿ\x9f][{_CONTINUED}]{{2}})"
)
# As wide as _SEQUENCE or wider, without look-around: what a Rust regular expression can sift a table by.
MOJIBAKE_SIFT: Final = f"[ÂÃÄÅÎÏÐÑÖ×ØÙÚÛ][{_CONTINUED}]|[à-ï][{_CONTINUED}]{{2}}|ð[Ÿ\x9f]"
_MARKS: Final = ((0x2000, 0x2BFF), (0x1E00, 0x1EFF), (0xFB00, 0xFB06), (0xFEFF, 0xFEFF), (0xFF00, 0xFFFD))


def undo_mojibake(text: str) -> str:
    """The text with every plausible sequence turned back once; what was read wrongly twice needs a second call."""
    if not has_mojibake(text):
        return text
    try:
        return _read_again(text)
    except UnicodeError:  # parts of the text were always right
        return _repair_each_sequence(text)


def has_mojibake(text: str) -> bool:
    """Whether `undo_mojibake` would change the text."""
    return mojibake_at(text) >= 0


def mojibake_at(text: str) -> int:
    """Where the first plausible sequence begins, in characters; -1 where there is none."""
    return next((each.start() for each in _sequences(text) if _repaired(each) != each.group()), -1)


def _sequences(text: str) -> Iterator[re.Match[str]]:
    """Everything that may be mojibake; only runs of characters beyond ASCII are searched, since these are rare."""
    if not text.isascii():
        for run in _BEYOND_ASCII.finditer(text):
            yield from _SEQUENCE.finditer(text, run.start(), run.end())


def _repair_each_sequence(text: str) -> str:
    parts, done = [], 0
    for found in _sequences(text):
        parts += [text[done : found.start()], _repaired(found)]
        done = found.end()
    return "".join([*parts, text[done:]])


def _read_again(text: str) -> str:
    """The bytes behind the characters, read as UTF-8.

    Raises:
        UnicodeError: they are none.
    """
    return text.translate(_BYTE_OF).encode("latin-1").decode()


def _repaired(found: re.Match[str]) -> str:
    sequence = found.group()
    try:
        meant = _read_again(sequence)
    except UnicodeError:  # no UTF-8, so no mojibake
        return sequence
    return meant if _is_plausible(found, sequence, meant) else sequence


def _is_plausible(found: re.Match[str], sequence: str, meant: str) -> bool:
    if found.lastgroup == "latin":
        return _is_plausible_latin(found, sequence)
    continued = [character for character in sequence if character not in "âáïàãäåæçèéêëìíÎÏÐÑÖ×ØÙÚÛ"]
    if all(character in _COMMON for character in continued):
        return False
    if found.lastgroup == "mark":
        return any(first <= ord(meant) <= last for first, last in _MARKS)
    return True


def _is_plausible_latin(found: re.Match[str], sequence: str) -> bool:
    """À to ſ and the Latin-1 signs. Next to a small letter no one writes Ã, Â, Ä or Å and then a sign."""
    lead, sign = sequence[0], sequence[1]
    before = found.string[found.start() - 1] if found.start() else " "
    after = found.string[found.end()] if found.end() < len(found.string) else " "
    if sign == "\u00a0" and lead in "ÂÃ":
        return not before.isupper()
    if (lead in "ÂÃ" and sign not in _COMMON) or (lead == "Â" and sign in "®°²³ªº«"):
        return True
    return before.islower() or after.islower()
