"""Citations of US law as eyecite finds them (Free Law Project; extra `law`).

It knows the reporters and codes of the United States, so that a decision without parties and without a year is found,
short forms (`410 U.S. at 120`), and laws in their own forms (`124 Stat. 119`).
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from typing import Final

from luthier.ml.evaluation.grounding.cases import decision
from luthier.ml.evaluation.grounding.citation import Citation
from luthier.ml.evaluation.grounding.clean import blocks, squash
from luthier.ml.evaluation.grounding.statutes import code_named

_DIGIT: Final = re.compile(r"\d")
_FEDERAL: Final = ("Stat.", "Pub. L.", "Fed. Reg.")


def has_eyecite() -> bool:
    """Whether the extra `law` is installed."""
    return find_spec("eyecite") is not None


def find_us_law(text: str) -> tuple[list[Citation], list[Citation]]:
    """(decisions, statutes) in a cleaned text; none where eyecite is not installed.

    The normal form of a short form ends in ` at`, in place of a page.
    """
    if not has_eyecite():
        return [], []
    from eyecite import get_citations
    from eyecite.models import FullCaseCitation, FullLawCitation, ShortCaseCitation

    logging.getLogger("eyecite").setLevel(logging.ERROR)  # it logs overlaps, with the text, to the terminal
    cases: list[Citation] = []
    laws: list[Citation] = []
    # In blocks: eyecite's time grows faster than the length of a text.
    for offset, part in blocks(text):
        if _DIGIT.search(part) is None:  # nothing to find, and an empty text it refuses
            continue
        for found in get_citations(part):
            groups = {name: value for name, value in found.groups.items() if value}
            start, end = found.token.start + offset, found.token.end + offset
            shown = " ".join(text[start:end].split())
            if isinstance(found, FullLawCitation) and len(groups) > 1:
                *code, number = {**groups, "reporter": found.corrected_reporter()}.values()
                kind = "us_statute" if groups.get("reporter") in _FEDERAL else "state_statute"
                laws.append(Citation(shown, kind, f"{code_named(' '.join(code))} {number.casefold()}", start, end))
            elif isinstance(found, ShortCaseCitation) and "volume" in groups:
                volume = f"{groups['volume']} {squash(found.corrected_reporter())}"
                cases.append(Citation(shown, "us_case", f"{volume} at", start, end))
            elif isinstance(found, FullCaseCitation) and {"volume", "page"} <= groups.keys():
                cases.append(decision(text, (start, end), groups["volume"], found.corrected_reporter(), groups["page"]))
    return cases, laws
