"""The figures of grounding, each a function of sums over the answers.

A share of nothing is 0: where no answer cites, none of the citations is invented. `citations_per_answer` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from luthier.core.errors import WorkError
from luthier.ml.evaluation.grounding.citation import CitationFinding
from luthier.ml.evaluation.grounding.claims import claim_findings
from luthier.ml.evaluation.grounding.corpus import Corpus, findings, same_citation
from luthier.ml.evaluation.grounding.entailment import Entailment
from luthier.ml.evaluation.metrics.fraction import ratio
from luthier.ml.evaluation.metrics.protocol import Array, Needs, Observations


class _Share:
    """A sum over another, 0 where the other is; what all figures here have in common."""

    name = ""
    title = ""
    unit = "fraction"
    lower, upper = 0.0, 1.0
    higher_is_better = False
    needs: Needs = "text"
    has_sample_values = True

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1])


class Findings:
    """What was found of each answer, looked for once by all the metrics that count it."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._found: dict[str, tuple[CitationFinding, ...]] = {}

    def of(self, output: str) -> tuple[CitationFinding, ...]:
        """As `findings` gives them."""
        # By text: several metrics ask for the same outputs, and systems often write the same.
        if output not in self._found:
            self._found[output] = findings(output, self._corpus)
        return self._found[output]


class _OfCitations(_Share):
    def __init__(self, found: Findings) -> None:
        self._found = found

    def _counted(self, observed: Observations, count: Callable[[Sequence[CitationFinding]], tuple[int, int]]) -> Array:
        return _pairs([count(self._found.of(output)) for output in observed.outputs])


class _OfStatus(_OfCitations):
    """Share of all citations that have a status: those over all, so that one answer can weigh more."""

    status = ""
    has_sample_values = False

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: those of the status, all."""
        return self._counted(observed, lambda found: (sum(one.status == self.status for one in found), len(found)))


class InventedCitations(_OfStatus):
    """Share of all citations that are nowhere in the corpus."""

    name = "invented_citations"
    title = "invented citations"
    status = "unknown"


class AnswersWithInvented(_OfCitations):
    """Share of answers with at least one citation that is nowhere in the corpus."""

    name = "answers_with_invented"
    title = "answers with an invented citation"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where there is one, one."""
        return self._counted(observed, lambda found: (int(any(one.status == "unknown" for one in found)), 1))


class MisnamedCitations(_OfStatus):
    """Share of all citations that the corpus has with other parties."""

    name = "misnamed_citations"
    title = "citations with other parties"
    status = "misnamed"


class CitationsPerAnswer(_OfCitations):
    """Mean number of different citations of an answer: an answer without any is no answer that can be checked."""

    name = "citations_per_answer"
    title = "citations an answer"
    unit = "citations"
    upper = math.inf
    higher_is_better = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: citations, one."""
        return self._counted(observed, lambda found: (len(found), 1))


class ExpectedCitations(_Share):
    """Share of the citations of the rows' own answers that the answers have too: in the corpus is not yet right."""

    name = "expected_citations"
    title = "expected citations given"
    higher_is_better = True
    has_sample_values = False

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: expected ones that were given, all expected."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return _pairs([self._counts(output, reference) for output, reference in pairs])

    def _counts(self, output: str, reference: str) -> tuple[int, int]:
        # Each expected citation counts once, however often the reference repeats it.
        expected = {one.normal: one for one in self._corpus.citations(reference)}.values()
        given = self._corpus.citations(output)
        return sum(any(same_citation(one, other) for other in given) for one in expected), len(expected)


class GroundedClaims(_Share):
    """Share of the answers' sentences whose words and numbers occur in one passage of the corpus."""

    name = "grounded_claims"
    title = "grounded claims"
    higher_is_better = True
    has_sample_values = False

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: supported sentences, all that claim something."""
        found = [claim_findings(output, self._corpus) for output in observed.outputs]
        return _pairs([(sum(one.is_supported for one in several), len(several)) for several in found])


class EntailedClaims(_Share):
    """Share of the claims that a judge found supported, of those it gave a usable verdict on."""

    name = "entailed_claims"
    title = "claims that a judge found supported"
    higher_is_better = True
    has_sample_values = False

    def __init__(self, entailment: Entailment) -> None:
        self._entailment, self.judge_name = entailment, entailment.judge_name

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: supported claims, claims with a verdict.

        Raises:
            WorkError: no verdict is usable.
        """
        said = self._entailment.verdicts(observed.outputs)
        num_claims = sum(map(len, said))
        # Without any verdict the share would be one of nothing, and shown as 0.
        if num_claims and all(one is None for several in said for one in several):
            raise WorkError(
                f"the judge gave no usable verdict on any of {num_claims:,} claims",
                expected='{"supported": true} or {"supported": false}',
                do="take a judge that follows instructions, or turn `entailment` off",
            )
        return _pairs([(several.count(True), len(several) - several.count(None)) for several in said])


class UnusableVerdicts(_Share):
    """Share of the claims that the judge gave no usable verdict on; they count in no other figure."""

    name = "unusable_verdicts"
    title = "claims without a usable verdict"
    has_sample_values = False

    def __init__(self, entailment: Entailment) -> None:
        self._entailment, self.judge_name = entailment, entailment.judge_name

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: claims without a verdict, all claims."""
        said = self._entailment.verdicts(observed.outputs)
        return _pairs([(several.count(None), len(several)) for several in said])


def _pairs(counts: Sequence[tuple[int, int]]) -> Array:
    return np.asarray(counts, dtype=np.float64).reshape(-1, 2)
