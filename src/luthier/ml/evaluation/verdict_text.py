"""The sentences of a verdict: names of systems, the headline, the figures behind it, and caveats.

The headline has no figures. Details give the figures of each baseline with the difference, its interval and p-value,
then what the other metrics say. Caveats say what the verdict rests on and what it does not show, most severe first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, SystemResult
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
from luthier.core.ids import is_trained_name
from luthier.ml.charts.judged_rows import metric_title, on_scale, start, thinking_sentence
from luthier.ml.evaluation.metrics.classification import label, num_other_spellings
from luthier.ml.evaluation.metrics.registry import reads_order
from luthier.ml.evaluation.metrics.scripts import NOT_SEEN, is_seen_by_rouge

_IN_PROSE = {"base": "the base model", "tuned": "the tuned model"}
_BASELINES = {
    "majority": "the commonest answer",
    "popularity": "the most popular of the answers offered",
    "nearest": "the answer of the nearest training row",
    "linear": "a linear classifier",
    "ridge": "ridge regression",
    "copy": "rules that copy from the prompt",
}
# Baselines whose kind has others, too: those that order documents, and the text as it is.
_BY_NAME = {
    "unchanged text": "the unchanged text",
    "BM25": "BM25",
    "most popular documents": "the order of the most popular documents",
    "random order": "a random order",
}
_LIKELIEST_LABEL = "its likeliest label"
TRIVIAL = ("majority", "popularity")
"""Kinds of baselines that answer without a look at the row: no one would use them."""


def system_title(system: SystemResult, results: Sequence[SystemResult]) -> str:
    """What a system is called in a sentence: the base model with 4 examples in its prompt.

    Args:
        system: the one to name.
        results: all systems of the evaluation; a few-shot one is named after the same model without examples among
            them.
    """
    if system.name in _BY_NAME:
        return _BY_NAME[system.name]
    if not system.is_model:
        # Two ways to find the nearest row have one kind: the name says which, in brackets.
        _, bracket, way = system.name.partition(" (")
        return f"{_BASELINES[system.kind]}{bracket}{way}"
    bare = without_prompting(system, results)
    if bare is None:
        return _IN_PROSE.get(system.name, system.name)
    return f"{system_title(bare, results)} with {prompt_of(system, ' in its prompt')}"


def is_tuned(system: SystemResult) -> bool:
    """Whether training made it. An adapter alone does not tell: full fine-tuning makes a whole model."""
    return system.adapter is not None or system.name == "tuned" or is_trained_name(system.name)


def without_prompting(system: SystemResult, results: Sequence[SystemResult]) -> SystemResult | None:
    """The same model with nothing but the rows' text in its prompt; None where it was not evaluated, or is `system`."""
    if not system.is_prompted:
        return None
    same = [r for r in results if not r.is_prompted and (r.model, r.adapter) == (system.model, system.adapter)]
    return next((r for r in same if system.name.startswith(r.name)), None)


def prompt_of(system: SystemResult, where: str = "") -> str:
    """What is in a prompt besides the rows' text: `4 examples`, `an instruction and the 4 nearest training rows`.

    Args:
        system: with something in its prompt.
        where: follows it, where it is not the prompt as a whole: ` in the prompt`.
    """
    own, num = system.prompting, system.num_few_shot
    if own is not None and own.kind == "optimised_prompt":
        return "an optimised prompt"
    if own is not None and own.kind == "label_likelihood":
        return _LIKELIEST_LABEL
    parts = ["an instruction"] if own is not None and own.instruction else []
    if own is not None and own.examples == "nearest":
        parts.append("the nearest training row" if num == 1 else f"the {num:,} nearest training rows")
    elif num or not parts:
        parts.append("1 example" if num == 1 else f"{num:,} examples")
    return f"{listed(parts)}{where}"


def held_out_rows(number: int) -> str:
    """`1 held-out row`, `1,200 held-out rows`."""
    return "1 held-out row" if number == 1 else f"{number:,} held-out rows"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])


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
    """How the evaluated system compares with every baseline by one metric; none is left out.

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
        verb = "does" if judged.num_samples == 1 else "do"
        return f"By {title}, {rows} {verb} not show a difference between {subject} and {' or '.join(names)}."
    if words == {"equal"} and len(found) == 1:
        return f"By {title}, {subject} and {names[0]} are equal on {rows}."
    text = f"{_subject(judged, results)} is {relation(found[0])} {names[0]}"
    for before, comparison, name in zip(found, found[1:], names[1:], strict=False):
        joint = " and" if relation(before) == relation(comparison) else ", but"
        text += f"{joint} {relation(comparison)} {name}"
    return f"{text}, by {title}."


def short_names(found: Sequence[Comparison], results: Sequence[SystemResult], where: str) -> list[str]:
    """The baselines; right behind the model itself a prompted one is "it with 4 examples" and `where`."""
    by_name = {result.name: result for result in results}
    names, before = [], ""
    for system in (by_name[comparison.baseline] for comparison in found):
        bare, prompt = without_prompting(system, results), prompt_of(system, where)
        own = "that model's likeliest label" if prompt == _LIKELIEST_LABEL else f"it with {prompt}"
        # "it" only refers to the system that was named just before.
        names.append(own if bare is not None and bare.name == before else system_title(system, results))
        before = system.name
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
    """The evaluated system at the start of the sentence; a name that a person or a program gave is not changed."""
    title = system_title(judged, results)
    return start(title) if title.startswith("the ") else title


_OPENINGS = {
    "better": "Better than",
    "worse": "Worse than",
    NOT_DISTINGUISHABLE: "Not distinguishable from",
    "equal": "Equal to",
}


def primary_details(
    judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[str, ...]:
    """One sentence a baseline: both values, the difference with its interval and p-value, and from how many rows.

    Where the two are not distinguishable it also says how many rows would settle it, or that this is not known.
    """
    by_name = {result.name: result for result in results}
    return tuple(_primary(judged, comparison, by_name[comparison.baseline], results) for comparison in found)


def further_details(
    comparisons: Sequence[Comparison], found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[str, ...]:
    """What the other metrics say: those that agree with the primary one in one sentence, then one for each finding.

    Args:
        comparisons: those of the evaluated system, of all metrics.
        found: those of the primary metric.
        results: all systems.
    """
    by_metric: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_metric.setdefault(comparison.metric, []).append(comparison)
    primary = _pattern(found)
    # What agrees with the primary metric comes first, even where others were found before.
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {primary: []}
    for name, own in by_metric.items():
        if name != found[0].metric:
            alike.setdefault(_pattern(own), []).append(name)
    texts = []
    for pattern, names in alike.items():
        if not names:
            continue
        titles = start(listed([metric_title(name) for name in names]))
        if pattern == primary:
            texts.append(f"{titles} {'says' if len(names) == 1 else 'say'} the same.")
        else:
            texts.append(f"{titles}: {_against_all(by_metric[names[0]], len(found), results)}.")
    return tuple(texts)


def _pattern(comparisons: Sequence[Comparison]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((comparison.baseline, finding(comparison)) for comparison in comparisons))


def _against_all(own: Sequence[Comparison], num_baselines: int, results: Sequence[SystemResult]) -> str:
    words = {finding(comparison) for comparison in own}
    if len(words) == 1 and len(own) == num_baselines > 1:
        which = "both" if num_baselines == 2 else f"all {num_baselines:,}"
        return f"{relation(own[0])} {which}"
    names = short_names(own, results, " in the prompt")
    return ", ".join(f"{relation(c)} {name}" for c, name in zip(own, names, strict=True))


def _primary(
    judged: SystemResult, comparison: Comparison, baseline: SystemResult, results: Sequence[SystemResult]
) -> str:
    # Two significant digits of the largest number that is shown, with 1 to 4 decimals.
    largest = max(abs(comparison.difference), abs(comparison.low), abs(comparison.high))
    decimals = min(4, max(1, 1 - math.floor(math.log10(largest)))) if largest > 0 else 2
    metric = judged.metrics[comparison.metric]
    against, which = baseline.metrics[comparison.metric].value, ""
    if comparison.test == "strongest_draw" and baseline.prompting is not None:
        against = metric.value - comparison.difference
        which = f" of the strongest of {baseline.prompting.num_draws} draws"
    opening = f"{_OPENINGS[finding(comparison)]} {system_title(baseline, results)}"
    values = f"{metric_title(comparison.metric)} {metric.value:.{decimals}f} against {against:.{decimals}f}{which}"
    rows = held_out_rows(judged.num_samples)
    if finding(comparison) == "equal":
        return f"{opening}: {values} on {rows}; no number of rows can be named for a difference of 0."
    scale = on_scale(metric.unit).strip(" ()")
    direction = f"{scale}; " if scale else ""
    direction += "" if metric.higher_is_better else "lower is better; "
    figures = (
        f"{comparison.difference:+.{decimals}f}, 95% interval {comparison.low:.{decimals}f} to "
        f"{comparison.high:.{decimals}f}, {_p_value(comparison.p_value)}; {rows}"
    )
    return f"{opening}: {values} ({direction}{figures}){_rows_needed(comparison, decimals)}."


def _rows_needed(comparison: Comparison, decimals: int) -> str:
    if comparison.verdict != NOT_DISTINGUISHABLE:
        return ""
    # Of a difference that is shown as 0.00, a number of rows would look absurd.
    if float(f"{comparison.difference:.{decimals}f}") == 0:
        return "; equal as far as these decimals go, so no number of rows that would settle it can be named"
    if comparison.test in ("seeds", "draws"):
        return f"; other {comparison.test} count as well as rows here, so it is unknown how many would settle it"
    if comparison.rows_needed is None:
        return "; with so few it is unknown how many rows would settle it"
    return f"; about {rounded_up(comparison.rows_needed)} held-out rows would settle a difference of this size"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def rounded_up(number: int) -> str:
    """Such an estimate is not more precise than two digits."""
    digits = max(0, len(str(number)) - 2)
    return f"{math.ceil(number / 10**digits) * 10**digits:,}"


FEW_ROWS = 30
LEAKED = "also in the training rows"


def caveats(
    judged: SystemResult,
    results: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    metric: str,
    *,
    num_leaked: int,
    num_same_prompt: int,
    num_rows_in_file: int | None,
    are_labels: bool = False,
) -> tuple[str, ...]:
    """Everything a reader should know before acting on the verdict, most severe first.

    Args:
        judged: the system that the verdict is about.
        results: all systems.
        comparisons: those of the evaluated system, of all metrics.
        metric: the one that the verdict is about.
        num_leaked: held-out rows that are also in the training rows.
        num_same_prompt: held-out rows whose prompt is also in the training rows, with another answer.
        num_rows_in_file: rows of the held-out file; None where it is not known.
        are_labels: the rows' answers are labels.
    """
    num_rows = judged.num_samples
    found = []
    if num_leaked:
        are = "is" if num_leaked == 1 else "are"
        found.append(
            f"{held_out_rows(num_leaked)} {are} {LEAKED}: the tuned model was trained on these answers, so its figures "
            "are too good."
        )
    if num_same_prompt:
        asks = "asks" if num_same_prompt == 1 else "ask"
        found.append(f"{held_out_rows(num_same_prompt)} {asks} the same as a training row, with another answer.")
    if num_rows == 1:
        found.append("There is one held-out row: its intervals say nothing about other rows.")
    elif num_rows < FEW_ROWS:
        found.append(
            f"There are only {num_rows} held-out rows: their intervals are wide, and one row that is unlike the others "
            "moves them far."
        )
    if num_rows_in_file is not None and num_rows_in_file > num_rows:
        found.append(f"{num_rows:,} of the {num_rows_in_file:,} held-out rows were evaluated.")
    found += _nearer_numbers(comparisons, metric, results)
    found += _other_spellings(judged, results, metric) if are_labels else ()
    found += constant_answers(results) if are_labels else ()
    found += _not_seen_by_rouge(judged)
    found += _cut_off(results)
    found += _disagreement(comparisons)
    found += _draws(results)
    has_shots = any(r.num_few_shot for r in results)
    if is_tuned(judged) and judged.samples and not has_shots and not reads_order(metric):
        found.append("The base model was not tried with few-shot examples, the inexpensive alternative to training.")
    metrics = dict.fromkeys(comparison.metric for comparison in comparisons)
    if missing := [name for name in judged.metrics if name not in metrics]:
        found.append(f"Not compared, because the systems cut text into different tokens: {', '.join(missing)}.")
    if others := _of_other_tokens(judged, results, comparisons):
        found.append(
            f"Perplexity is not compared with that of {listed(others)}, because the systems cut text into different "
            "tokens."
        )
    if len(metrics) > 1:
        found.append(
            f"{len(metrics)} metrics were compared. The verdict is about {metric_title(metric)}, chosen by rule "
            "beforehand; each of the others shows a difference by chance 1 time in 20."
        )
    return tuple(found)


def _nearer_numbers(comparisons: Sequence[Comparison], metric: str, results: Sequence[SystemResult]) -> list[str]:
    """Baselines that are beaten by a share of right answers, and not by how far their numbers are off."""
    by_name = {result.name: result for result in results}
    beaten = {c.baseline for c in comparisons if c.metric == metric and c.verdict == "better"}
    near = [
        c.baseline
        for c in comparisons
        if c.metric == "nmae" and c.baseline in beaten and c.verdict != "better" and not by_name[c.baseline].is_model
    ]
    if metric not in SHARES_OF_CORRECT or not near:
        return []
    return [
        f"Answers are numbers, and {metric_title(metric)} counts a near miss as wrong: its numbers are not shown to be "
        f"nearer than those of {listed([system_title(by_name[name], results) for name in near])} "
        f"({metric_title('nmae')}). If near is good enough: "
        "--metrics nmae,exact_match, or evaluation.metrics in the recipe."
    ]


def _other_spellings(judged: SystemResult, results: Sequence[SystemResult], metric: str) -> list[str]:
    """A sentence for each model whose answers name the right label and are not equal to it."""
    found = []
    for system in results if metric in ("exact_match", "exact_match_ignoring_case") else ():
        num = num_other_spellings([(one.output, one.reference) for one in system.samples], metric)
        if num and system.kind == "model" and (system is judged or not system.is_prompted):
            answers, them, are = (("answers that are", "them", "they are"), ("answer that is", "it", "it is"))[num == 1]
            found.append(
                f"{_subject(system, results)} names the right label in {num:,} {answers} not equal to it: "
                f"{metric_title(metric)} counts {them} as wrong, label accuracy as right. If {are} right enough: "
                "--metrics label_accuracy, or evaluation.metrics in the recipe."
            )
    return found


def _not_seen_by_rouge(judged: SystemResult) -> list[str]:
    """That ROUGE does not see the answers, where it was computed and most of their letters are none of a-z."""
    is_computed = any(name.startswith("rouge_") for name in judged.metrics)
    return [NOT_SEEN] if is_computed and not is_seen_by_rouge([one.reference for one in judged.samples]) else []


def _of_other_tokens(
    judged: SystemResult, results: Sequence[SystemResult], comparisons: Sequence[Comparison]
) -> list[str]:
    """The models before the evaluated one whose perplexity is not compared; a teacher is no baseline."""
    known = {one.baseline for one in comparisons if one.metric == "perplexity"}
    before = results[: [one.name for one in results].index(judged.name)]
    models = [one.name for one in before if one.is_model and "perplexity" in one.metrics] if known else []
    return [name for name in models if name not in known and name.split(" ")[0] != "teacher"]


def _draws(results: Sequence[SystemResult]) -> list[str]:
    """What intervals of models with drawn examples in their prompts do not cover."""
    drawn = [r for r in results if r.num_few_shot and (r.prompting is None or r.prompting.examples == "drawn")]
    # The examples of an optimised prompt were chosen, not drawn.
    single = [
        r.num_few_shot
        for r in drawn
        if r.prompting is None or (r.prompting.num_draws == 1 and r.prompting.kind != "optimised_prompt")
    ]
    if not single:
        return []
    num = max(single)
    examples = "example in the prompt is" if num == 1 else f"{num} examples in the prompt are"
    return [
        f"The {examples} one draw from the training rows: other draws can do better or worse, and no interval here "
        "covers that."
    ]


CONSTANT_SHARE = 0.9


def constant_answers(results: Sequence[SystemResult]) -> list[str]:
    """A sentence for each model that answers the same label in 90% of rows or more, where the references do not."""
    found = []
    for system in results:
        if system.kind != "model" or not system.samples:
            continue
        given, share = _commonest_label([sample.output for sample in system.samples])
        _, share_of_references = _commonest_label([sample.reference for sample in system.samples])
        if share >= CONSTANT_SHARE > share_of_references:
            what = f'"{given[:60]}"' if given else "no text"
            found.append(
                f"{_subject(system, results)} gives the same answer in {share:.0%} of rows: {what}. Of the "
                f"references, {share_of_references:.0%} are that answer. Use macro-F1 and the confusion table, not "
                "accuracy."
            )
    return found


def _commonest_label(texts: Sequence[str]) -> tuple[str, float]:
    """The most common label of these answers, normalised as in the comparison, and the share of them that have it."""
    key, number = Counter(map(label, texts)).most_common(1)[0]
    return key, number / len(texts)


def _cut_off(results: Sequence[SystemResult]) -> list[str]:
    thoughts = [sentence for r in results if (sentence := thinking_sentence(r)) is not None]
    # Cut off within a thought is in `thinking_sentence`; here only the rest.
    in_answer = [(r, r.num_cut_off - (r.thinking.num_cut_off if r.thinking else 0)) for r in results]
    parts = [f"{number} of {r.name}" for r, number in in_answer if number]
    if not parts:
        return thoughts
    return [
        *thoughts,
        f"Answers cut off at max_new_tokens: {', '.join(parts)}. Where references are longer than that, raise it; "
        "where they are not, the system does not know when to stop, and that counts against it.",
    ]


def _disagreement(comparisons: Sequence[Comparison]) -> list[str]:
    """Where likelihood and text point to opposite sides against the same baseline."""
    found = []
    for likely in comparisons:
        if likely.metric != "perplexity" or likely.verdict == NOT_DISTINGUISHABLE:
            continue
        opposite = "worse" if likely.verdict == "better" else "better"
        same = [c for c in comparisons if c.baseline == likely.baseline]
        others = [metric_title(c.metric) for c in same if c.verdict == opposite]
        if others:
            found.append(
                f"Against {likely.baseline} perplexity is {likely.verdict} but {', '.join(others)} {opposite}: "
                "the model finds the references likelier and writes less like them, or the other way round. "
                "Read the samples."
            )
    return found
