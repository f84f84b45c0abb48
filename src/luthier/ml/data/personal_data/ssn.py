"""United States social security numbers (SSA: no area 000, 666 or 900-999, no group 00, no serial 0000).

Not covered: national identity numbers of other countries (NIR, codice fiscale, NIE, Steuer-ID, NINO and similar ones).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.cues import cue_before
from luthier.ml.data.personal_data.span import Span

_NUMBER: Final = re.compile(r"(?<![\w.\-/])(?<!\d )(\d{3})([ -]?)(\d{2})\2(\d{4})(?![ .\-/]?\d)(?!\w)")


def find_ssns(text: str) -> Iterator[Span]:
    """Each number: with hyphens by its form, with spaces or bare only after a word that says so. Reserved: area 9xx."""
    for match in _NUMBER.finditer(text):
        area, group, serial = match[1], match[3], match[4]
        cue = cue_before(text, match.start())
        if cue == "ssn" or (match[2] == "-" and cue != "other"):
            if area[0] == "9":
                yield Span(match.start(), match.end(), "ssn", match[0], is_reserved=True)
            elif area not in ("000", "666") and group != "00" and serial != "0000":
                yield Span(match.start(), match.end(), "ssn", match[0])
