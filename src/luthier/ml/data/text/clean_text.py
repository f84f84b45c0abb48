"""A text without what an export left in it: mojibake, control characters, HTML. Clean text comes back unchanged.

Mojibake is UTF-8 that was read as Windows-1252 or Latin-1: "CafÃ©" is "Café". A sequence of characters is taken for it
where their bytes in Windows-1252 are one UTF-8 character of a script in use, and where its neighbours make it unlikely
that a person wrote it. Where there is such a sequence and the whole text can be turned back, it is; else each sequence
alone, so that a text which mixes mojibake with other scripts is repaired too. Both are exact: reading the result
wrongly again gives what was there. Quotes, dashes and the no-break space follow capitals in real text ("MANHÃ”",
"Spaß“"), so they count only inside words. Not seen: other pairs of encodings, and mojibake whose bytes were lost on the
way.

HTML is intended where the text talks about it or is code: it names HTML, CSS, XML, a script language, markup or tags,
or has a code fence, backticks, or a document's head. It is left over where tags of running text are closed (`</b>`) or
are single by nature (`<br>`, `<p>`), or where there are named or numbered entities.
"""

from __future__ import annotations

import html
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

    Text whose HTML looks intended is returned unchanged.
    """
    if not has_left_over_html(text):
        return text
    if _SURE_TAG_RE.search(text):
        text = _BLOCKS_RE.sub(_line_break, text)
        text = _TAG_RE.sub("", text)
    # `&amp;amp;lt;` was escaped several times: all layers are removed together, then the entity.
    return _ENTITY_RE.sub(_character, _ESCAPED_AGAIN_RE.sub("&", text) if "&amp;" in text else text)


def _line_break(found: re.Match[str]) -> str:
    return "\n" if found.start() and found.end() < len(found.string) else ""


def _character(found: re.Match[str]) -> str:
    return " " if found.group() in ("&nbsp;", "&#160;", "&#xa0;", "&#xA0;") else html.unescape(found.group())


# Control characters (C0 but tab and line breaks, DEL, C1), soft hyphen, zero-width space, word joiner, byte order mark,
# marks that override the direction of writing. Not: joiners (emoji, Persian, Indic), left-to-right marks and isolates.
CONTROL: Final = "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x{9f}\\x{ad}\\x{200b}\\x{2060}\\x{feff}\\x{202a}-\\x{202e}]"
_CONTROL_RE: Final = re.compile(re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), CONTROL) + "+")
_BREAKS_RE: Final = re.compile("[\\x0b\\x0c\\x85]+")
_TERMINAL_RE: Final = re.compile(r"\x1b\[[0-9;?]{0,64}[ -/]{0,8}[@-~]")
_MAX_PASSES: Final = 8

MOJIBAKE_UNDONE: Final = "mojibake undone"
CONTROL_REMOVED: Final = "control characters removed"
HTML_STRIPPED: Final = "HTML stripped"


def has_control(text: str) -> bool:
    """Whether the text holds control or invisible characters that `clean_text` would remove."""
    return not text.isprintable() and _CONTROL_RE.search(text) is not None


def clean_text(text: str) -> tuple[str, tuple[str, ...]]:
    """The text cleaned, and what was done: of "mojibake undone", "control characters removed", "HTML stripped".

    () and the same text where there was nothing to do. Cleaning is repeated until nothing changes (double escapes), so
    it is idempotent; a text that is not done after eight rounds is built that way and is returned unchanged. Form
    feeds, vertical tabs and NEL become line breaks, colour codes of terminals go as a whole. Characters that were lost
    (U+FFFD) cannot be brought back and stay.
    """
    cleaned, done = text, dict[str, None]()
    for _ in range(_MAX_PASSES):
        before = cleaned
        # Mojibake first: its bytes 0x80 to 0x9F are control characters, which the next step would remove.
        for what, clean in ((MOJIBAKE_UNDONE, _undone), (CONTROL_REMOVED, _plain), (HTML_STRIPPED, strip_html)):
            changed = clean(cleaned)
            if changed != cleaned:
                cleaned, done[what] = changed, None
        if cleaned == before:
            return cleaned, tuple(done)
    return text, ()


def _undone(text: str) -> str:
    """Turned back until nothing changes, before anything is removed; each round at least halves what it turns back."""
    while (changed := undo_mojibake(text)) != text:
        text = changed
    return text


def _plain(text: str) -> str:
    if not has_control(text):
        return text
    return _CONTROL_RE.sub("", _BREAKS_RE.sub("\n", _TERMINAL_RE.sub("", text)))
