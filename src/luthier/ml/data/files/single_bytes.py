"""Which encoding with one byte a character a text has: Windows-1252 of Western or Windows-1250 of Central Europe.

Both give a meaning to nearly every byte, so only letters can decide. Read as Windows-1252, Polish and Slovak have signs
inside of words (`by³o`), Czech has `ì` and `ø` together, and Hungarian `õ` beside many `á` and `é`; no Western
language is written so. A text with signs inside of words in either reading is in neither, and one of long runs of
letters beyond ASCII is in another alphabet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

_UNDEFINED_1252: Final = bytes((0x81, 0x8D, 0x8F, 0x90, 0x9D))
_UNDEFINED_1250: Final = bytes((0x81, 0x83, 0x88, 0x90, 0x98))
_ASCII: Final = bytes(range(128))
_LETTERS: Final = re.compile(rb"[\xc0-\xff]+")
_LONG_RUN: Final = 3
"""This many consecutive letters beyond ASCII are rare in Western text, and usual in Cyrillic, Greek or Asian text."""
# A sign between two letters. Left out are those that words have: quotes, dashes, soft hyphens, spaces, `l·l`, `1ª`.
_SIGN_1252: Final = re.compile(
    rb"(?<=[A-Za-z\xc0-\xff])[\xa1-\xa3\xa5-\xa9\xac\xaf\xb1-\xb3\xb8\xb9\xbc-\xbf](?=[a-z\xc0-\xff])"
)
# Behind small letters the last ones are those of ISO 8859-2 (ą, ś, ź), which has most other letters in the same places.
_SIGN_1250: Final = re.compile(
    rb"(?<=[A-Za-z\xc0-\xff])[\xa1\xa2\xa4\xa6-\xa9\xac\xae\xb0\xb2\xb8\xbd](?=[a-z\xc0-\xff])"
    rb"|(?<=[a-z\xe0-\xff])[\xb1\xb6\xbc](?![A-Z])"
)
_FEWEST: Final = 3
_SIGN_SHARE: Final = 0.05
_LETTER_SHARE: Final = 0.03
_CZECH: Final = (0xEC, 0xF8)  # ě ř
_HUNGARIAN, _A_ACUTE, _E_ACUTE, _A_TILDE = 0xF5, 0xE1, 0xE9, 0xE3  # ő, which is õ in the West


def single_byte_encoding(lines: Iterable[bytes]) -> Literal["cp1252", "cp1250"] | None:
    """The encoding of a text that is not UTF-8; None where it is in neither, or some of its lines are UTF-8.

    Args:
        lines: all of them.
    """
    counts: Counter[int] = Counter()
    num_in_runs = num_signs_1252 = num_signs_1250 = 0
    for line in lines:
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return None  # some lines are UTF-8: the file mixes encodings
        counts.update(line.translate(None, _ASCII))
        num_in_runs += sum(len(run) for run in _LETTERS.findall(line) if len(run) >= _LONG_RUN)
        num_signs_1252 += len(_SIGN_1252.findall(line))
        num_signs_1250 += len(_SIGN_1250.findall(line))
    num_letters = sum(num for byte, num in counts.items() if byte >= 0xC0)
    # Long runs of high letters in most of the text mean another alphabet, which either encoding would garble.
    if num_in_runs * 2 > num_letters:
        return None
    is_defined = {"cp1252": not _has_any(counts, _UNDEFINED_1252), "cp1250": not _has_any(counts, _UNDEFINED_1250)}
    if _is_central_european(counts, num_letters, num_signs_1252):
        fits = is_defined["cp1250"] and not _are_many(num_signs_1250, num_letters)
        return "cp1250" if fits else None
    return "cp1252" if is_defined["cp1252"] else None


def _has_any(counts: Counter[int], some: bytes) -> bool:
    return any(counts[byte] for byte in some)


def _are_many(num_signs: int, num_letters: int) -> bool:
    return num_signs >= max(_FEWEST, _SIGN_SHARE * (num_letters + num_signs))


def _is_central_european(counts: Counter[int], num_letters: int, num_signs: int) -> bool:
    """Whether bytes are distributed as no Western language has them in Windows-1252."""
    least = max(_FEWEST, _LETTER_SHARE * num_letters)
    if _are_many(num_signs, num_letters) or all(counts[byte] >= least for byte in _CZECH):
        return True
    num_acute = counts[_A_ACUTE] + counts[_E_ACUTE]
    return counts[_HUNGARIAN] >= least and not counts[_A_TILDE] and num_acute * 3 >= num_letters
