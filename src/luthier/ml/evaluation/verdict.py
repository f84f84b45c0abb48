"""The answer as text: is the candidate better than what costs less, by how much, how sure, and resting on what."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.evaluation import (
    NOT_DISTINGUISHABLE,
    AlternativeWord,
    Bar,
    Comparison,
    SystemResult,
    Verdict,
    VerdictWord,
)
from luthier.ml.evaluation.alternatives import (
    against_all,
    alternatives_of,
    best_of,
    held_against,
    simple_details,
    simple_sentence,
)
from luthier.ml.evaluation.caveats import caveats
from luthier.ml.evaluation.details import further_details, primary_details
from luthier.ml.evaluation.headline import headline
from luthier.ml.evaluation.metrics.registry import FAMILIES

SHORT_REFERENCE_WORDS = 5
_WORDS: Final[dict[AlternativeWord, VerdictWord]] = {
    "better": "better",
    "worse": "worse",
    "not_distinguishable": NOT_DISTINGUISHABLE,
}
_PAIRS = ("reward_accuracy", "preference_accuracy", "preference_margin")
# What to judge by where nothing speaks for an exact comparison: from the most to the least telling for free text.
_PREFERENCE = (
    *("rouge_l", "chrf", "bleu", "token_f1", "exact_match", "exact_match_ignoring_case"),
    *("perplexity", "bits_per_byte"),
)


def primary_metric(metrics: Sequence[str], references: Sequence[str | None]) -> str:
    """The one figure that the verdict is about, fixed by this rule before any result is seen.

    1. Rows without answers (plain text): perplexity if asked for, else bits per byte.
    2. reward_accuracy, preference_accuracy or preference_margin, the first that was requested: rows are pairs then.
    3. label_accuracy, if asked for: it is only asked for where answers are labels.
    4. exact_match, if asked for and the answers are short (median of at most five words): then equal is what counts.
    5. ROUGE-L, chrF, BLEU, token F1, exact match, perplexity, bits per byte: the first that was requested.

    Raises:
        RequestError: no metric, or plain text and neither perplexity nor bits_per_byte among them.
    """
    asked = [figure for name in metrics for figure in FAMILIES.get(name, (name,))]
    known = [reference for reference in references if reference is not None]
    order: tuple[str, ...]
    if not known:
        order = (*_PAIRS, "perplexity", "bits_per_byte")
    else:
        are_short = statistics.median(len(text.split()) for text in known) <= SHORT_REFERENCE_WORDS
        order = (*_PAIRS, "label_accuracy", *(("exact_match",) if are_short else ()), *_PREFERENCE, *asked)
    for name in order:
        if name in asked:
            return name
    raise RequestError(
        f"metrics {list(metrics)}",
        expected="at least one metric that these rows can be judged by",
        do="for plain text ask for perplexity or bits_per_byte",
    )


def verdict(
    results: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    *,
    primary: str,
    candidate: str | None = None,
    num_leaked: int = 0,
    num_same_prompt: int = 0,
    num_rows_in_file: int | None = None,
    bar: Bar | None = None,
) -> Verdict:
    """Put the comparisons of one candidate (by default the last system) into words.

    "better": distinguishable and better than every baseline: few-shot too, since showing examples costs less than
    training, and those without a language model (`luthier.ml.baselines`). "worse": distinguishable and worse than at
    least one, where those without a language model count as one question. Else "not distinguishable". Where `primary`
    could not be compared (perplexity of different tokenizers), bits per byte is judged by instead.

    Args:
        results: all systems.
        comparisons: of all of them.
        primary: the metric that decides (`primary_metric`).
        candidate: name of the system that is judged.
        num_leaked: held-out rows that are also in the training rows.
        num_same_prompt: held-out rows whose prompt alone is in the training rows.
        num_rows_in_file: rows of the held-out file, where not all were judged.
        bar: what the candidate has to reach to be good enough; None where nothing was asked.

    Raises:
        RequestError: there is nothing to compare the candidate with.
    """
    by_name = {result.name: result for result in results}
    judged = by_name.get(candidate) if candidate is not None else (results[-1] if results else None)
    own = [c for c in comparisons if judged is not None and c.candidate == judged.name]
    compared = {c.metric for c in own}
    # Perplexity of different tokenizers is never compared.
    metric = primary if primary in compared else "bits_per_byte"
    found = [c for c in own if c.metric == metric]
    if judged is None or not found:
        raise RequestError(
            f"candidate {candidate or 'none'}, metric {primary}, {len(own)} comparisons",
            expected="a candidate among the systems, with an earlier system that can be compared by this metric",
            do="name a baseline; for models with different tokenizers ask for bits_per_byte or a text metric",
        )
    models = [c for c in found if by_name[c.baseline].kind == "model"]
    simple = [c for c in found if by_name[c.baseline].kind != "model"]
    words = [comparison.verdict for comparison in models]
    if simple:
        words.append(_WORDS[against_all(simple, judged.metrics[metric].higher_is_better)])
    alternatives = alternatives_of(judged, found, results)
    shown = [c for c in found if c.baseline in {one.name for one in alternatives}]
    figures = (*primary_details(judged, models, results), *simple_details(judged, simple, results))
    of_models = [c for c in own if by_name[c.baseline].kind == "model"]
    good_enough, sentence = held_against(bar, judged)
    return Verdict(
        word=_overall(words),
        metric=metric,
        headline=" ".join(
            part
            for part in (
                headline(judged, models, results) if models else "",
                simple_sentence(judged, models, simple, results),
                sentence,
            )
            if part
        ),
        details=(*figures, *(further_details(of_models, models, results) if models else ())),
        alternatives=alternatives,
        best_alternative=best_of(alternatives, judged.metrics[metric].higher_is_better),
        better_than_best_alternative=(
            against_all(shown, judged.metrics[metric].higher_is_better) if alternatives else None
        ),
        good_enough=good_enough,
        bar=bar,
        num_primary_details=len(figures),
        caveats=caveats(
            judged,
            results,
            own,
            metric,
            num_leaked=num_leaked,
            num_same_prompt=num_same_prompt,
            num_rows_in_file=num_rows_in_file,
        ),
    )


def _overall(words: Sequence[VerdictWord]) -> VerdictWord:
    # One baseline that is better is enough: whoever acts on the verdict would take that one.
    if "worse" in words:
        return "worse"
    return "better" if set(words) == {"better"} else NOT_DISTINGUISHABLE
