"""A text without what an export left in it: mojibake, control characters, HTML. Clean text comes back as it was."""

from __future__ import annotations

import re
from typing import Final

from luthier.ml.data.text.left_over_html import strip_html
from luthier.ml.data.text.mojibake import undo_mojibake

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
    it is idempotent; a text that is not done after eight rounds is built to be so and comes back as it was. Form feeds,
    vertical tabs and NEL become line breaks, colour codes of terminals go as a whole. Characters that were lost
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
