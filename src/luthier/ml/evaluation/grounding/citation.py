"""The words of grounding: a citation, and what the corpus knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["known", "misnamed", "unknown"]
"""In the corpus; in the corpus, but with other parties; nowhere in it."""


@dataclass(frozen=True, slots=True)
class Citation:
    """One citation as written in a text.

    Attributes:
        text: as written, in one line.
        kind: a form of `core.suite.CitationForm`, or the name of a user's pattern.
        normal: the form in which two writings of the same citation meet.
        pin: the page, or the subsection, within what is cited; it is not checked.
        names: plaintiff and defendant, where they are given with it.
        parallel: the same decision in other reporters, as normal forms.
        sentence: the one that holds it.
        start: first character in the text as `clean` returns it.
        end: behind its last character.
    """

    text: str
    kind: str
    normal: str
    start: int
    end: int
    pin: str = ""
    names: tuple[str, str] | None = None
    parallel: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class CitationFinding:
    """A citation of an answer, looked up in the corpus.

    Attributes:
        citation: the citation.
        status: whether the corpus has it.
        documents: some that hold it.
        named_there: the parties that the corpus gives it, where the answer's are others.
    """

    citation: Citation
    status: Status
    documents: tuple[str, ...] = ()
    named_there: str | None = None
