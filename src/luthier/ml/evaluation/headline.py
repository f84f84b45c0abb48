"""The verdict in one short sentence, without figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, SystemResult
from luthier.ml.charts.metric_titles import metric_title, start
from luthier.ml.evaluation.names import examples, held_out_rows, listed, system_title, without_examples

LONGEST = 130
_RELATIONS = {
    "better": "better than",
    "worse": "worse than",
    NOT_DISTINGUISHABLE: "not clearly different from",
    "equal": "equal to",
}


def finding(comparison: Comparison) -> str:
    """The word of a comparison, and a fourth one: "equal" where not even a resample of the rows shows a difference."""
    nothing = comparison.difference == comparison.low == comparison.high == 0
    return "equal" if nothing and comparison.verdict == NOT_DISTINGUISHABLE else comparison.verdict


def relation(comparison: Comparison) -> str:
    """`better than`, `worse than`, `not clearly different from`, `equal to`."""
    return _RELATIONS[finding(comparison)]


def headline(judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]) -> str:
    """How the judged system compares with every baseline by one metric; none is left unsaid.

    Of several ways to say it, the first that is short enough is taken: every baseline named in full, in short, and
    counted; long names can make even the last one long.

    Args:
        judged: the system that the verdict is about.
        found: its comparisons by that metric.
        results: all systems, for their names.
    """
    ways = [_named(judged, found, results, where) for where in (" in the prompt", "")]
    if len(found) > 1:
        ways.append(_counted(judged, found, results))
    return next((text for text in ways if len(text) <= LONGEST), ways[-1])


def _named(judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult], where: str) -> str:
    title, subject = metric_title(found[0].metric), system_title(judged, results)
    rows = held_out_rows(judged.num_samples)
    words, names = {finding(comparison) for comparison in found}, short_names(found, results, where)
    if words == {NOT_DISTINGUISHABLE} and len(found) == 2 and names[1].startswith("it with "):
        both = f"{names[0]}, with or without {names[1].removeprefix('it with ')}"
        return f"{_subject(judged, results)} is {relation(found[0])} {both}, by {title}."
    if words == {NOT_DISTINGUISHABLE}:
        return f"By {title}, no difference between {subject} and {' or '.join(names)} can be told from {rows}."
    if words == {"equal"} and len(found) == 1:
        return f"By {title}, {subject} and {names[0]} are equal on {rows}."
    text = f"{_subject(judged, results)} is {relation(found[0])} {names[0]}"
    for before, comparison, name in zip(found, found[1:], names[1:], strict=False):
        joint = " and" if relation(before) == relation(comparison) else ", but"
        text += f"{joint} {relation(comparison)} {name}"
    return f"{text}, by {title}."


def short_names(found: Sequence[Comparison], results: Sequence[SystemResult], where: str) -> list[str]:
    """The baselines; a model with examples, right behind the model itself, is "it with 4 examples" and `where`."""
    by_name = {result.name: result for result in results}
    names, before = [], ""
    for comparison in found:
        system = by_name[comparison.baseline]
        bare = without_examples(system, results)
        # "it" only refers to the system that was named just before.
        is_same = bare is not None and bare.name == before
        names.append(f"it with {examples(system)}{where}" if is_same else system_title(system, results))
        before = comparison.baseline
    return names


def _counted(judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]) -> str:
    counts = Counter(relation(comparison) for comparison in found)
    title, subject, num = metric_title(found[0].metric), system_title(judged, results), f"{len(found):,}"
    if len(counts) > 1:
        parts = listed([f"{words} {number:,}" for words, number in counts.items()])
        return f"Of {num} other systems, {subject} is {parts}, by {title}."
    every = f"any of the {num}" if finding(found[0]) == NOT_DISTINGUISHABLE else f"each of the {num}"
    return f"{_subject(judged, results)} is {relation(found[0])} {every} other systems, by {title}."


def _subject(judged: SystemResult, results: Sequence[SystemResult]) -> str:
    """The judged system at the start of the sentence; a name that a person or a program gave stays as it is."""
    title = system_title(judged, results)
    return start(title) if title.startswith("the ") else title
