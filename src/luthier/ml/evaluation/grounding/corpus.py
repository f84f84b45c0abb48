"""The corpus that answers may cite: its citations, and its passages with BM25 search.

A citation is known if any document contains it: the cited document itself or one that cites it. In ambiguous cases a
citation counts as known, to avoid false accusations.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import DataError
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.support import content_words
from luthier.core.results.suite import CitationForm
from luthier.core.text.sentences import sentence_spans
from luthier.ml.evaluation.grounding.cases import Names, PartyIndex, is_name_alone, joined, reporter_of, same_parties
from luthier.ml.evaluation.grounding.citation import Citation, CitationFinding, clean, compiled
from luthier.ml.evaluation.grounding.find import code_of, codes_named, find_citations, same_code, section_number

MAX_WORDS: Final = 120
_WORD: Final = re.compile(r"\S+")
_SATURATION, _LENGTH_SHARE = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class Passage:
    """A few consecutive sentences of a document.

    Attributes:
        document: name of the document.
        text: the sentences in one line.
    """

    document: str
    text: str


class Passages:
    """Passages of at most 120 words that end with a sentence, each starting with the last sentence of the previous one.

    Ranking: BM25 with k1 = 1.2 and b = 0.75, the non-negative inverse document frequency (Robertson and
    Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; Lucene's form of it).
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._passages = [one for name, text in documents.items() for one in _passages(name, text)]
        # The inverted index: word -> (passage, occurrences in it).
        self._holders: dict[str, list[tuple[int, int]]] = {}
        lengths = []
        for place, passage in enumerate(self._passages):
            counts = Counter(content_words(passage.text))
            lengths.append(counts.total())
            for word, count in counts.items():
                self._holders.setdefault(word, []).append((place, count))
        mean = sum(lengths) / max(1, len(lengths))
        # The part of BM25's denominator that depends only on the passage, computed once.
        self._damping = [_SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * one / max(1.0, mean)) for one in lengths]

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages)

    def scores(self, text: str) -> dict[int, float]:
        """The score of each passage that shares a word with the text, by index."""
        found: dict[int, float] = {}
        # Sorted: floating-point sums depend on their order, and the order of a set differs from process to process.
        for word in sorted(set(content_words(text))):
            holders = self._holders.get(word, [])
            # log1p(x) is log(1 + x) without rounding away a small x. The 1 keeps the weight of a word in most passages
            # above 0.
            weight = math.log1p((len(self._passages) - len(holders) + 0.5) / (len(holders) + 0.5))
            for place, count in holders:
                found[place] = found.get(place, 0.0) + weight * count / (count + self._damping[place])
        return found

    def nearest(self, text: str, num: int) -> list[Passage]:
        """At most `num` passages that share words with the text, best first; ties go to the earlier one."""
        scores = self.scores(text)
        # A heap instead of a full sort: a corpus may have 100,000 passages, of which a few are needed.
        best = heapq.nlargest(num, scores, key=lambda place: (scores[place], -place))
        return [self._passages[place] for place in best]


def _passages(document: str, text: str) -> Iterator[Passage]:
    held: list[tuple[int, int, int]] = []
    for start, end, length in _pieces(text):
        if held and sum(one[2] for one in held) + length > MAX_WORDS:
            yield _passage(document, text, held)
            # The last sentence is repeated, so that a claim over two sentences is whole in at least one passage.
            held = held[-1:] if held[-1][2] + length <= MAX_WORDS else []
        held.append((start, end, length))
    if held:
        yield _passage(document, text, held)


def _pieces(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, words) of each sentence; sentences of more than 120 words are split."""
    for start, end in sentence_spans(text):
        # Ends of words, counted from the start of the document: the text of a passage is cut out of it unchanged.
        found = [start + word.end() for word in _WORD.finditer(text[start:end])]
        begin = start
        for place in range(0, len(found), MAX_WORDS):
            last = found[place : place + MAX_WORDS]
            yield begin, last[-1], len(last)
            begin = last[-1]


def _passage(document: str, text: str, held: list[tuple[int, int, int]]) -> Passage:
    return Passage(document, " ".join(text[held[0][0] : held[-1][1]].split()))


_SHOWN_DOCUMENTS: Final = 5
_STATUTES: Final = {"us_statute", "state_statute", "section"}


class Corpus:
    """Documents, indexed once by citations and by passages.

    Args:
        documents: texts by name.
        forms: which forms of citations count.
        patterns: name -> regular expression of a user's own citations.
        progress: shows the reading.

    Raises:
        DataError: no document has any text.
        RequestError: a pattern is not a regular expression.
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
        # Dictionaries with empty values are sets that keep their order: findings list documents in reading order.
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
                expected="documents that are cited by their content: a section's number, a reporter, an id",
                do="add the form to `forms`, or a regular expression to `patterns`",
            )
        self.passages = Passages(documents)

    @property
    def _wanted(self) -> str:
        return ", ".join((*self._forms, *self._patterns))

    def citations(self, text: str) -> tuple[Citation, ...]:
        """The relevant citations of a text, in order."""
        return find_citations(text, self._forms, self._patterns)

    def look_up(self, citation: Citation) -> CitationFinding:
        """The documents that contain a citation."""
        if citation.kind == "us_case":
            return self._decision(citation)
        if citation.kind in _STATUTES:
            found = self._statute(citation)
        else:
            found = list(self._documents.get(citation.normal, ()))
        return _finding(citation, found)

    def _add(self, citation: Citation, document: str) -> None:
        if citation.kind == "us_case":
            # A parallel citation names the same decision in another reporter; each form finds it.
            forms = () if is_name_alone(citation) else (citation.normal, *citation.parallel)
            for form in forms:
                self._reporters.add(reporter_of(form))
                self._documents.setdefault(form, {})[document] = None
                # The short form (`410 U.S. at`) of a volume that the corpus cites is also known.
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
        """A section without a code matches any code; one with a code matches the same or a shorter or longer name.

        A section without a code in a document counts for each code that the document names.
        """
        number, code = section_number(citation.normal), code_of(citation.normal)
        found: set[str] = set()
        for there, documents in self._codes.get(number, {}).items():
            # "§" alone means a section whose code the text leaves out.
            if code == "§" or same_code(code, there):
                found |= documents
            elif there == "§":
                named = self._codes_named
                found |= {one for one in documents if any(same_code(code, other) for other in named[one])}
        return sorted(found)

    def _decision(self, citation: Citation) -> CitationFinding:
        """Reporters that the corpus never cites cannot be checked, if a parallel citation is known."""
        if is_name_alone(citation):
            return _finding(citation, self._parties.find(citation.names) if citation.names else [])
        forms = (citation.normal, *citation.parallel)
        known = [form for form in forms if form in self._documents]
        # Also unknown if a parallel citation is missing from a reporter that the corpus cites: a real decision would be
        # in both.
        if not known or any(reporter_of(form) in self._reporters for form in forms if form not in known):
            return _finding(citation, [])
        there = [names for form in known for names in self._names.get(form, ())]
        documents = list(dict.fromkeys(name for form in known for name in self._documents[form]))
        if citation.names and there and not any(same_parties(citation.names, names) for names in there):
            return CitationFinding(citation, "misnamed", tuple(documents[:_SHOWN_DOCUMENTS]), joined(there[0]))
        return _finding(citation, documents)


def findings(output: str, corpus: Corpus) -> tuple[CitationFinding, ...]:
    """The citations of an answer with their status in the corpus, each normal form once, at its first occurrence."""
    once: dict[str, Citation] = {}
    for citation in corpus.citations(output):
        once.setdefault(citation.normal, citation)
    return tuple(corpus.look_up(citation) for citation in once.values())


def _finding(citation: Citation, documents: list[str]) -> CitationFinding:
    return CitationFinding(citation, "known" if documents else "unknown", tuple(documents[:_SHOWN_DOCUMENTS]))


def same_citation(one: Citation, other: Citation) -> bool:
    """Whether two citations may refer to the same decision according to the corpus."""
    if {one.kind, other.kind} <= _STATUTES:
        codes = code_of(one.normal), code_of(other.normal)
        is_same = "§" in codes or same_code(*codes)
        return is_same and section_number(one.normal) == section_number(other.normal)
    if one.kind == other.kind == "us_case" and (is_name_alone(one) or is_name_alone(other)):
        return one.names is not None and other.names is not None and same_parties(one.names, other.names)
    return bool({one.normal, *one.parallel} & {other.normal, *other.parallel})
