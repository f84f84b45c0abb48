"""What there is to cite: all citations of a corpus, to be asked whether a citation is among them.

A citation is known where any document holds it: the cited document itself or one that cites it. Where writings differ
in what cannot be decided, a citation is taken as known: an answer is not accused on a doubt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from luthier.core.errors import DataError
from luthier.core.ports import Progress, SilentProgress
from luthier.core.results.suite import CitationForm
from luthier.ml.evaluation.grounding.cases import is_name_alone, reporter_of
from luthier.ml.evaluation.grounding.citation import Citation, CitationFinding
from luthier.ml.evaluation.grounding.clean import clean
from luthier.ml.evaluation.grounding.find import find_citations
from luthier.ml.evaluation.grounding.parties import Names, PartyIndex, joined, same_parties
from luthier.ml.evaluation.grounding.passages import Passages
from luthier.ml.evaluation.grounding.patterns import compiled
from luthier.ml.evaluation.grounding.statutes import code_of, codes_named, same_code, section_number

_SHOWN_DOCUMENTS: Final = 5
_STATUTES: Final = {"us_statute", "state_statute", "section"}


class Corpus:
    """Documents, read once for their citations, and cut into passages that claims are compared with.

    Args:
        documents: texts by name.
        forms: which forms of citations count.
        patterns: name -> regular expression of a user's own citations.
        progress: shows the reading.

    Raises:
        DataError: no document has any text.
        RequestError: a pattern is no regular expression.
    """

    def __init__(
        self,
        documents: Mapping[str, str],
        *,
        forms: Collection[CitationForm],
        patterns: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not any(text.strip() for text in documents.values()):
            raise DataError(
                f"a corpus of {len(documents):,} documents without any text",
                expected="the documents that answers may cite",
                do="check the path of `corpus` in the suite",
            )
        self._forms, self._patterns = tuple(forms), compiled(patterns or {})
        self._documents: dict[str, dict[str, None]] = {}
        self._codes: dict[str, dict[str, set[str]]] = {}
        self._codes_named: dict[str, set[str]] = {}
        self._names: dict[str, dict[Names, None]] = {}
        self._parties = PartyIndex()
        self._reporters: set[str] = set()
        with (progress or SilentProgress()).task("Reading the corpus", len(documents), "documents") as task:
            for name, text in documents.items():
                for citation in self.citations(text):
                    self._add(citation, name)
                self._codes_named[name] = codes_named(clean(text))
                task.advance()
        if not self._documents and not self._parties:
            raise DataError(
                f"a corpus of {len(documents):,} documents that holds no citation ({self._wanted})",
                expected="documents that are cited by what they hold: a section's number, a reporter, an id",
                do="add the form to `forms`, or a regular expression to `patterns`",
            )
        self.passages = Passages(documents)

    @property
    def _wanted(self) -> str:
        return ", ".join((*self._forms, *self._patterns))

    def citations(self, text: str) -> tuple[Citation, ...]:
        """The citations of a text that count here, in its order."""
        return find_citations(text, self._forms, self._patterns)

    def look_up(self, citation: Citation) -> CitationFinding:
        """What the documents know of a citation."""
        if citation.kind == "us_case":
            return self._decision(citation)
        if citation.kind in _STATUTES:
            found = self._statute(citation)
        else:
            found = list(self._documents.get(citation.normal, ()))
        return _finding(citation, found)

    def _add(self, citation: Citation, document: str) -> None:
        if citation.kind == "us_case":
            forms = () if is_name_alone(citation) else (citation.normal, *citation.parallel)
            for form in forms:
                self._reporters.add(reporter_of(form))
                self._documents.setdefault(form, {})[document] = None
                # The short form (`410 U.S. at`) of a volume that the corpus cites is known, too.
                self._documents.setdefault(f"{form.rpartition(' ')[0]} at", {})[document] = None
                if citation.names is not None:
                    self._names.setdefault(form, {})[citation.names] = None
            if citation.names is not None:
                self._parties.add(citation.names, document)
            return
        self._documents.setdefault(citation.normal, {})[document] = None
        if citation.kind in _STATUTES:
            number, code = section_number(citation.normal), code_of(citation.normal)
            self._codes.setdefault(number, {}).setdefault(code, set()).add(document)

    def _statute(self, citation: Citation) -> list[str]:
        """A section without a code is known under any; one with a code under the same or a shorter or longer name.

        A section that a document has on its own is one of each code that the document names.
        """
        number, code = section_number(citation.normal), code_of(citation.normal)
        found: set[str] = set()
        for there, documents in self._codes.get(number, {}).items():
            if code == "§" or same_code(code, there):
                found |= documents
            elif there == "§":
                named = self._codes_named
                found |= {one for one in documents if any(same_code(code, other) for other in named[one])}
        return sorted(found)

    def _decision(self, citation: Citation) -> CitationFinding:
        """In reporters that the corpus never cites nothing can be checked, if another form of the same is known."""
        if is_name_alone(citation):
            return _finding(citation, self._parties.find(citation.names) if citation.names else [])
        forms = (citation.normal, *citation.parallel)
        known = [form for form in forms if form in self._documents]
        # Unknown too where one of its forms is missing from a reporter that the corpus does cite: a real decision would
        # be in both.
        if not known or any(reporter_of(form) in self._reporters for form in forms if form not in known):
            return _finding(citation, [])
        there = [names for form in known for names in self._names.get(form, ())]
        documents = list(dict.fromkeys(name for form in known for name in self._documents[form]))
        if citation.names and there and not any(same_parties(citation.names, names) for names in there):
            return CitationFinding(citation, "misnamed", tuple(documents[:_SHOWN_DOCUMENTS]), joined(there[0]))
        return _finding(citation, documents)


def findings(output: str, corpus: Corpus) -> tuple[CitationFinding, ...]:
    """The citations of an answer with what the corpus knows of them, each normal form once, at its first occurrence."""
    once: dict[str, Citation] = {}
    for citation in corpus.citations(output):
        once.setdefault(citation.normal, citation)
    return tuple(corpus.look_up(citation) for citation in once.values())


def _finding(citation: Citation, documents: list[str]) -> CitationFinding:
    return CitationFinding(citation, "known" if documents else "unknown", tuple(documents[:_SHOWN_DOCUMENTS]))


def same_citation(one: Citation, other: Citation) -> bool:
    """Whether two citations may be of the same: known to the corpus through each other."""
    if {one.kind, other.kind} <= _STATUTES:
        codes = code_of(one.normal), code_of(other.normal)
        is_same = "§" in codes or same_code(*codes)
        return is_same and section_number(one.normal) == section_number(other.normal)
    if one.kind == other.kind == "us_case" and (is_name_alone(one) or is_name_alone(other)):
        return one.names is not None and other.names is not None and same_parties(one.names, other.names)
    return bool({one.normal, *one.parallel} & {other.normal, *other.parallel})
