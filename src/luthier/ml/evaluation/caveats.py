"""What a verdict rests on, and what it does not show."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, SystemResult
from luthier.ml.charts.metric_titles import metric_title
from luthier.ml.charts.thinking import thinking_sentence
from luthier.ml.evaluation.names import held_out_rows

FEW_ROWS = 30


def caveats(
    judged: SystemResult,
    results: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    metric: str,
    *,
    num_leaked: int,
    num_same_prompt: int,
    num_rows_in_file: int | None,
) -> tuple[str, ...]:
    """Everything a reader should know before acting on the verdict, the gravest first.

    Args:
        judged: the system that the verdict is about.
        results: all systems.
        comparisons: those of the judged system, of all metrics.
        metric: the one that the verdict is about.
        num_leaked: held-out rows that are also in the training rows.
        num_same_prompt: held-out rows whose prompt is also in the training rows, with another answer.
        num_rows_in_file: rows of the held-out file; None where it is not known.
    """
    num_rows = judged.num_samples
    found = []
    if num_leaked:
        stand = "stands" if num_leaked == 1 else "stand"
        found.append(
            f"{held_out_rows(num_leaked)} also {stand} in the training rows: the tuned model has seen the answers, "
            "so its figures are too good."
        )
    if num_same_prompt:
        asks = "asks" if num_same_prompt == 1 else "ask"
        found.append(f"{held_out_rows(num_same_prompt)} {asks} what a training row asks, with another answer.")
    if num_rows == 1:
        found.append("There is one held-out row: no interval can be estimated from it.")
    elif num_rows < FEW_ROWS:
        found.append(
            f"There are only {num_rows} held-out rows: their intervals are wide, and one row that is unlike the others "
            "moves them far."
        )
    if num_rows_in_file is not None and num_rows_in_file > num_rows:
        found.append(f"{num_rows:,} of the {num_rows_in_file:,} held-out rows were judged.")
    found += _cut_off(results)
    found += _disagreement(comparisons)
    if shown := max((r.num_few_shot for r in results), default=0):
        examples = "example in the prompt is" if shown == 1 else f"{shown} examples in the prompt are"
        found.append(
            f"The {examples} one draw from the training rows: others can do better or worse, and no interval here "
            "speaks of that."
        )
    elif judged.adapter is not None and judged.samples:
        found.append("The base model was not tried with few-shot examples, the cheap alternative to training.")
    metrics = dict.fromkeys(comparison.metric for comparison in comparisons)
    if missing := [name for name in judged.metrics if name not in metrics]:
        found.append(f"Not compared, because the systems cut text into different tokens: {', '.join(missing)}.")
    if len(metrics) > 1:
        found.append(
            f"{len(metrics)} metrics were looked at. The verdict is about {metric_title(metric)}, chosen by rule "
            "beforehand; each of the others looks different by mere luck 1 time in 20."
        )
    return tuple(found)


def _cut_off(results: Sequence[SystemResult]) -> list[str]:
    told = [sentence for r in results if (sentence := thinking_sentence(r)) is not None]
    # Cut off within a thought is in `thinking_sentence`; here only the rest.
    in_answer = [(r, r.num_cut_off - (r.thinking.num_cut_off if r.thinking else 0)) for r in results]
    parts = [f"{number} of {r.name}" for r, number in in_answer if number]
    if not parts:
        return told
    return [
        *told,
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
