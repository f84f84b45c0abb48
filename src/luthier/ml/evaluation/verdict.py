"""The answer: is the candidate better than what costs less, by how much, how sure, and is it good enough?

What costs less is the base model, unchanged and prompted in several ways (`luthier.ml.prompting`), and every
alternative without a language model (`luthier.ml.baselines`). Where answers are labels, the base's likeliest label is
another way to prompt it. Ways to prompt are one question, as alternatives without a language model are: which of them
is the best is only seen on the evaluated rows.

"Better than the best alternative" is an intersection-union test: the model has to be better than each alternative at
the 5% level, which claims too much in at most 5% of studies without any correction, whichever alternative is the best
in truth. "Worse" is stated about one alternative that was picked among several by its figure, so its p-value is
multiplied by their number (Bonferroni).

Source: Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, Literal

from luthier.core.errors import RequestError
from luthier.core.evaluation import (
    ALTERNATIVE_WORDS,
    NOT_DISTINGUISHABLE,
    Alternative,
    AlternativeKind,
    AlternativeWord,
    Comparison,
    LabelConfidence,
    SystemResult,
    Verdict,
    VerdictWord,
)
from luthier.core.evaluation_plan import Bar
from luthier.core.ids import is_id
from luthier.core.records.bounds import UNIT
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_title, start
from luthier.ml.evaluation.label_confidence import confidence_details, coverage_sentence
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import FAMILIES
from luthier.ml.evaluation.metrics.scripts import num_words, text_metrics_in_order
from luthier.ml.evaluation.statistics.intervals import LEVEL, TAIL, paired_bootstrap
from luthier.ml.evaluation.statistics.resampling import share_ends
from luthier.ml.evaluation.verdict_text import (
    TRIVIAL,
    caveats,
    further_details,
    headline,
    listed,
    primary_details,
    system_title,
)

SHORT_REFERENCE_WORDS = 5
_WORDS: Final[dict[AlternativeWord, VerdictWord]] = {short: word for word, short in ALTERNATIVE_WORDS.items()}
_PAIRS = ("reward_accuracy", "preference_accuracy", "preference_margin")


def alternatives_of(
    judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[Alternative, ...]:
    """The alternatives among the systems that the evaluated one is compared with.

    Args:
        judged: the system that the verdict is about.
        found: its comparisons by the verdict's metric.
        results: all systems.
    """
    by_name = {result.name: result for result in results}
    alternatives = []
    for comparison in found:
        system = by_name[comparison.baseline]
        kind = _kind(system)
        if kind is None or comparison.candidate != judged.name:
            continue
        figure = system.metrics[comparison.metric]
        alternatives.append(
            Alternative(
                name=system.name,
                kind=kind,
                metric=comparison.metric,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                # Several draws were only made to see how much draws differ: using it takes one of them.
                seconds=system.seconds / (system.prompting.num_draws if system.prompting else 1),
                extra_prompt_tokens=system.prompting.extra_prompt_tokens if system.prompting else None,
            )
        )
    return tuple(alternatives)


def _kind(system: SystemResult) -> AlternativeKind | None:
    if system.kind != "model":
        return system.kind
    if system.prompting is not None:
        return system.prompting.kind
    if system.num_few_shot:
        return "few_shot"
    return "run" if is_id(system.name, "run") else None


def _chooses_label(system: SystemResult) -> bool:
    return system.prompting is not None and system.prompting.kind == "label_likelihood"


def best_of(alternatives: Sequence[Alternative], higher_is_better: bool) -> str | None:
    """The name of the one with the best figure; of equal ones the first. None where there are none."""
    if not alternatives:
        return None
    best = max if higher_is_better else min
    return best(alternatives, key=lambda one: one.value).name


def against_all(found: Sequence[Comparison], higher_is_better: bool, *, num_candidates: int = 1) -> AlternativeWord:
    """Whether the evaluated system is better than all, or worse than the best, of those that it is compared with.

    Args:
        found: one comparison for each, by the same metric; not empty.
        higher_is_better: the metric's direction.
        num_candidates: systems that the evaluated one was chosen from by the same rows. The best of several equal ones
            is ahead by luck, so p-values are multiplied by their number before it is called better (Bonferroni).
    """
    if not _not_won(found, num_candidates):
        return "better"
    nearest = hardest(found, higher_is_better)
    if nearest.verdict == "worse" and nearest.p_value * len(found) < 1 - LEVEL:
        return "worse"
    return "not_distinguishable"


def _not_won(found: Sequence[Comparison], num_candidates: int) -> list[Comparison]:
    """The comparisons that do not show the evaluated system to be better."""
    return [
        one
        for one in found
        if one.verdict != "better" or (num_candidates > 1 and one.p_value * num_candidates >= 1 - LEVEL)
    ]


def rival_among(found: Sequence[Comparison], higher_is_better: bool, *, num_candidates: int = 1) -> Comparison:
    """The comparison behind the word of `against_all`: of those that are not won, else of all, the hardest.

    The best baseline may be beaten where another one, whose rows differ more, is not: the latter keeps the evaluated
    system from being better.

    Args:
        found: as in `against_all`.
        higher_is_better: the metric's direction.
        num_candidates: as in `against_all`.
    """
    return hardest(_not_won(found, num_candidates) or found, higher_is_better)


def hardest(found: Sequence[Comparison], higher_is_better: bool) -> Comparison:
    """The comparison with the best of the baselines: the difference that favours the evaluated system least."""
    return (min if higher_is_better else max)(found, key=lambda one: one.difference)


def simple_details(
    judged: SystemResult, simple: Sequence[Comparison], results: Sequence[SystemResult], *, num_candidates: int = 1
) -> tuple[str, ...]:
    """The best baseline without a language model with its difference, and the figures of the others in one sentence.

    Where `simple_sentence` names another one, that one has its difference, too.

    Args:
        judged: the system that the verdict is about.
        simple: its comparisons with these baselines.
        results: all systems.
        num_candidates: as in `against_all`.
    """
    if not simple:
        return ()
    by_name = {result.name: result for result in results}
    metric = simple[0].metric
    higher = judged.metrics[metric].higher_is_better
    best, rival = hardest(simple, higher), rival_among(simple, higher, num_candidates=num_candidates)
    shown = [best] if rival is best else [best, rival]
    others = [by_name[one.baseline] for one in simple if one not in shown]
    details = primary_details(judged, shown, results)
    if not others:
        return details
    figures = listed([f"{one.name} {one.metrics[metric].value:.3g}" for one in others])
    return (*details, f"Other baselines without a language model: {figures} ({metric_title(metric)}).")


def simple_sentence(
    judged: SystemResult,
    models: Sequence[Comparison],
    simple: Sequence[Comparison],
    results: Sequence[SystemResult],
    *,
    num_candidates: int = 1,
) -> str:
    """What the baselines without a language model mean for the verdict, in a sentence; empty where there are none.

    Args:
        judged: the system that the verdict is about.
        models: its comparisons with other models.
        simple: its comparisons with these baselines.
        results: all systems.
        num_candidates: as in `against_all`.
    """
    if not simple:
        return ""
    by_name = {result.name: result for result in results}
    higher = judged.metrics[simple[0].metric].higher_is_better
    system = by_name[rival_among(simple, higher, num_candidates=num_candidates).baseline]
    name, took = system_title(system, results), figures.with_spaces(figures.duration(system.seconds))
    word = against_all(simple, higher, num_candidates=num_candidates)
    is_best = f"the best of {len(simple)} baselines" if len(simple) > 1 else "the one baseline"
    if word == "better":
        also = "also " if models else ""
        return f"It is {also}better than {is_best} without a language model: {name}."
    opening = "But it" if all(one.verdict == "better" for one in models) and models else "It"
    relation = "worse than" if word == "worse" else "not shown to be better than"
    if system.kind in TRIVIAL:
        # Nobody would use that: it shows how little the evaluated system has learned.
        return f"{opening} is {relation} {name}, which takes {took} and no understanding of a row."
    return f"{opening} is {relation} {name}, which takes {took}: use that instead."


def bar_of_agreement(metric: str, column: str, agreed: Mapping[str, bool]) -> Bar:
    """The share of rows on which two people agree, with Wilson's 95% interval, as a bar.

    Args:
        metric: by which a model's answers are right.
        column: of the second person's answers.
        agreed: by row, whether they agree; not empty.
    """
    num_rows, num_agreed = len(agreed), sum(agreed.values())
    low, high = share_ends(num_agreed, num_rows, TAIL)
    return Bar(metric=metric, value=num_agreed / num_rows, agreement=column, low=low, high=high, num_rows=num_rows)


def _held_against_people(
    bar: Bar, judged: SystemResult, people: Mapping[str, bool], groups: Mapping[str, Hashable] | None
) -> tuple[Literal["yes", "no"], str]:
    """The evaluated system against a second person, both by the rows' answers: paired, on the rows that both answered.

    The agreement of people is an estimate as well, so the interval is that of the difference.
    """
    own = {one.row_id: one.scores[bar.metric] for one in judged.samples if bar.metric in one.scores}
    rows = [row for row in people if row in own]
    if not rows or bar.low is None or bar.high is None or bar.num_rows is None:
        return "no", f"No evaluated row has a second answer in column {bar.agreement}, so nothing is shown."
    model, person = (mean_statistics([scores[row] for row in rows]) for scores in (own, people))
    clusters = None if groups is None else [groups.get(row, row) for row in rows]
    found = paired_bootstrap(model, person, mean_of_sums, bounds=UNIT, seed=0, clusters=clusters)
    # An interval that its p-value has moved to 0 shows nothing: five rows that only the model has right are chance.
    is_reached = found.low >= 0 and found.p_value < 1 - LEVEL
    word = "reaches" if is_reached else "misses" if found.high < 0 else "is not shown to reach"
    agree = f"people agree on {100 * bar.value:.0f}% [{100 * bar.low:.0f}%, {100 * bar.high:.0f}%]"
    of_rows = f"{bar.num_rows:,} {'row' if bar.num_rows == 1 else 'rows'}"
    return "yes" if is_reached else "no", (
        f"It {word} the agreement of two people: {agree} of {of_rows}, and it is right in "
        f"{100 * model[:, 0].mean():.0f}% of them ({found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}])."
    )


def held_against(
    bar: Bar | None,
    judged: SystemResult,
    people: Mapping[str, bool] | None = None,
    groups: Mapping[str, Hashable] | None = None,
) -> tuple[Literal["yes", "no", "not_asked"], str]:
    """Whether the evaluated system is good enough, and the sentence for it.

    "yes" needs the whole 95% interval to reach the bar: a figure above it that could as well be below is no proof.

    Args:
        bar: the required figure.
        judged: the system.
        people: of a bar that is the agreement of two people, by row whether they agree.
        groups: of rows that count together, by row; None where every row counts by itself.
    """
    if bar is None:
        return "not_asked", ""
    figure, title = judged.metrics.get(bar.metric), metric_title(bar.metric)
    if figure is None:
        return "no", f"It was not evaluated by {title}, so the {bar.value:g} asked for is not shown."
    if bar.agreement is not None:
        return _held_against_people(bar, judged, people or {}, groups)
    shown = f"{title} {figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"
    # Negated where less is better, so that one comparison serves both directions.
    least, most = (figure.low, figure.high) if figure.higher_is_better else (-figure.high, -figure.low)
    asked = bar.value if figure.higher_is_better else -bar.value
    if least >= asked:
        return "yes", f"It reaches the {bar.value:g} asked for: {shown}."
    if most < asked:
        return "no", f"It misses the {bar.value:g} asked for: {shown}."
    return "no", f"It is not shown to reach the {bar.value:g} asked for: {shown}."


def primary_metric(metrics: Sequence[str], references: Sequence[str | None]) -> str:
    """The one figure that the verdict is about, fixed by this rule before any result is seen.

    1. Rows without answers (plain text): perplexity if asked for, else bits per byte.
    2. reward_accuracy, preference_accuracy or preference_margin, the first that was requested: rows are pairs then.
    3. label_accuracy or nmae, if asked for: they are only asked for where answers are labels, or numbers.
    4. exact_match, if asked for and the answers are short (median of at most five words, or as many signs as usually
       make them): then equal is what counts.
    5. ROUGE-L, chrF, BLEU, token F1, exact match, perplexity, bits per byte: the first that was requested. Where most
       letters are none of a-z, ROUGE-L is the last; where words have no spaces between them, metrics of words are.

    Raises:
        RequestError: no metric, or plain text and neither perplexity nor bits_per_byte among them.
    """
    asked = [figure for name in metrics for figure in FAMILIES.get(name, (name,))]
    known = [reference for reference in references if reference is not None]
    order: tuple[str, ...]
    if not known:
        order = (*_PAIRS, "perplexity", "bits_per_byte")
    else:
        # The median: a few long answers among labels do not make the task one of long texts.
        are_short = statistics.median(map(num_words, known)) <= SHORT_REFERENCE_WORDS
        of_texts = (*(("exact_match",) if are_short else ()), *text_metrics_in_order(known))
        order = (*_PAIRS, "label_accuracy", "nmae", *of_texts, *asked)
    for name in order:
        if name in asked:
            return name
    raise RequestError(
        f"metrics {list(metrics)}",
        expected="at least one metric that these rows can be evaluated by",
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
    people: Mapping[str, bool] | None = None,
    groups: Mapping[str, Hashable] | None = None,
    are_labels: bool = False,
    confidence: Sequence[LabelConfidence] = (),
) -> Verdict:
    """Put the comparisons of one candidate (by default the last system) into words.

    "better": distinguishable and better than every baseline: few-shot too, since showing examples costs less than
    training, and those without a language model (`luthier.ml.baselines`). "worse": distinguishable and worse than at
    least one, where those without a language model count as one question. Else "not distinguishable". Where `primary`
    could not be compared with each of them (perplexity of different tokenizers), bits per byte decides instead.

    Args:
        results: all systems.
        comparisons: of all of them.
        primary: the metric that decides (`primary_metric`).
        candidate: name of the system that is evaluated.
        num_leaked: held-out rows that are also in the training rows.
        num_same_prompt: held-out rows whose prompt alone is in the training rows.
        num_rows_in_file: rows of the held-out file, where not all were evaluated.
        bar: what the candidate has to reach to be good enough; None where nothing is required.
        people: of a bar that is the agreement of two people, by row whether they agree.
        groups: of rows that count together, by row; None where every row counts by itself.
        are_labels: the rows' answers are labels.
        confidence: how sure systems are of their labels.

    Raises:
        RequestError: there is nothing to compare the candidate with.
    """
    by_name = {result.name: result for result in results}
    judged = by_name.get(candidate) if candidate is not None else (results[-1] if results else None)
    own = [c for c in comparisons if judged is not None and c.candidate == judged.name]
    compared, by_bytes = ({c.baseline for c in own if c.metric == name} for name in (primary, "bits_per_byte"))
    # Perplexity of different tokenizers is never compared, and no baseline may be left out for it.
    leaves_out = primary == "perplexity" and not by_bytes <= compared
    metric = primary if compared and not leaves_out else "bits_per_byte"
    found = [c for c in own if c.metric == metric]
    if judged is None or not found:
        raise RequestError(
            f"candidate {candidate or 'none'}, metric {primary}, {len(own)} comparisons",
            expected="a candidate among the systems, with an earlier system that can be compared by this metric",
            do="name a baseline; for models with different tokenizers ask for bits_per_byte or a text metric",
        )
    notes = caveats(
        judged,
        results,
        own,
        metric,
        num_leaked=num_leaked,
        num_same_prompt=num_same_prompt,
        num_rows_in_file=num_rows_in_file,
        are_labels=are_labels,
    )
    words = _verdict(judged, own, found, results, notes, (bar, *held_against(bar, judged, people, groups)))
    words = words.model_copy(update={"num_leaked": num_leaked})
    known = {one.system: one for one in confidence}
    return words if judged.name not in known else _with_confidence(words, known.pop(judged.name), list(known.values()))


def _with_confidence(words: Verdict, own: LabelConfidence, others: Sequence[LabelConfidence]) -> Verdict:
    """The verdict with what the evaluated system's confidence is good for, next to that of the best of the others."""
    headline, details = words.headline, confidence_details(own)
    if own.coverage is not None:
        headline = f"{headline} {coverage_sentence(own.coverage)}"
        shown = [one for one in others if one.coverage is not None and one.coverage.is_shown]
        best = max(shown, key=lambda one: one.coverage.share if one.coverage else 0.0, default=None)
        if best is not None and best.coverage is not None:
            details = (*details, coverage_sentence(best.coverage, start(best.system)))
    return words.model_copy(
        update={"headline": headline, "details": (*words.details, *details), "coverage": own.coverage}
    )


def _verdict(
    judged: SystemResult,
    own: Sequence[Comparison],
    found: Sequence[Comparison],
    results: Sequence[SystemResult],
    notes: tuple[str, ...],
    held: tuple[Bar | None, Literal["yes", "no", "not_asked"], str],
) -> Verdict:
    """The verdict where there is something to compare with.

    Args:
        judged: the evaluated system.
        own: its comparisons.
        found: those of them by the metric that decides.
        results: of all systems.
        notes: caveats that are known already.
        held: the bar, whether it is reached, and the sentence for it.
    """
    by_name, metric = {result.name: result for result in results}, found[0].metric
    models = [c for c in found if by_name[c.baseline].is_model]
    simple = [c for c in found if not by_name[c.baseline].is_model]
    figures = (*primary_details(judged, models, results), *simple_details(judged, simple, results))
    # A model that answers with its likeliest label has no likelihood of text, and would differ in every sentence.
    written = [c for c in own if by_name[c.baseline].is_model and not _chooses_label(by_name[c.baseline])]
    primary = [c for c in written if c.metric == metric]
    further = further_details(written, primary, results) if primary else ()
    higher = judged.metrics[metric].higher_is_better
    plain, shown = deciding([c for c in models if by_name[c.baseline].prompting], models, higher)
    alternatives = alternatives_of(judged, found, results)
    names = {one.name for one in alternatives}
    bar, good_enough, sentence = held
    sentences = (
        headline(judged, plain, results) if plain else "",
        simple_sentence(judged, models, simple, results),
        sentence,
    )
    return Verdict(
        word=_overall([c for c in models if c not in shown], shown, simple, higher),
        metric=metric,
        headline=" ".join(filter(None, sentences)),
        details=(*figures, *further),
        num_primary_details=len(figures),
        caveats=notes,
        alternatives=alternatives,
        best_alternative=best_of(alternatives, higher),
        better_than_best_alternative=(
            against_all([c for c in found if c.baseline in names], higher) if alternatives else None
        ),
        good_enough=good_enough,
        bar=bar,
    )


def deciding(
    shown: Sequence[Comparison], models: Sequence[Comparison], higher_is_better: bool
) -> tuple[list[Comparison], list[Comparison]]:
    """The comparisons that a headline names, and those with ways to prompt, which are one question.

    Of several ways to prompt a headline names the one that decides: the hardest of those that are the answer.

    Args:
        shown: those of the models whose prompts contain more than the rows' text.
        models: with all models.
        higher_is_better: the metric's direction.
    """
    if len(shown) < 2:
        return list(models), list(shown)
    word = _WORDS[against_all(shown, higher_is_better)]
    # One that is beaten does not decide where another one, less sure, is not.
    decides = hardest([c for c in shown if word == "better" or c.verdict != "better"], higher_is_better)
    # Worse by itself, but not as one of several: the headline has the word of all of them.
    named = decides.model_copy(update={"verdict": word})
    kept = (c for c in models if c not in shown or c is decides)
    return [named if c is decides else c for c in kept], list(shown)


def _overall(
    models: Sequence[Comparison], shown: Sequence[Comparison], simple: Sequence[Comparison], higher_is_better: bool
) -> VerdictWord:
    words = {comparison.verdict for comparison in models}
    # Each group counts as one question, so that many easy baselines do not make a false "worse" likelier.
    words |= {_WORDS[against_all(some, higher_is_better)] for some in (shown, simple) if some}
    # One baseline that is better is enough: a user who acts on the verdict would take that one.
    if "worse" in words:
        return "worse"
    return "better" if words == {"better"} else NOT_DISTINGUISHABLE
