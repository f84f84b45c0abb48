"""What rows can be judged by. Asked before anything is trained, so that no run fails of it hours later."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import OverlongError, RequestError
from luthier.core.recipe import MetricName

_MARKS = {True: "wanted", False: "not wanted"}


def have_text_answers(examples: Sequence[Example]) -> bool:
    """Whether outputs can be compared with the rows: each has a prompt and an answer in words."""
    return all(example.prompt is not None and example.reference is not None for example in examples)


def are_pairs(examples: Sequence[Example]) -> bool:
    """Whether all rows are preference pairs, so that it can be asked which side a model finds likelier."""
    return all(example.rejected is not None for example in examples)


def usual_metrics(examples: Sequence[Example]) -> tuple[MetricName, ...]:
    """What is measured where nobody named metrics: text and likelihood, or likelihood alone (see have_text_answers).

    Of preference pairs, which side is likelier.
    """
    from luthier.ml.planning import defaults

    if are_pairs(examples):
        return defaults.PREFERENCE_METRICS[0]
    return (defaults.METRICS if have_text_answers(examples) else defaults.LIKELIHOOD_METRICS)[0]


def check_metrics(metrics: Sequence[MetricName], examples: Sequence[Example]) -> None:
    """Raises RequestError for metrics that look at what the rows do not have, naming the first such row.

    Unpaired rows cannot be judged at all: an answer that is marked as not wanted is none to be near to.
    """
    from luthier.ml.evaluation.metrics.registry import load_metrics

    if (unpaired := next((e for e in examples if e.is_wanted is not None), None)) is not None:
        raise RequestError(
            f"held-out rows such as {unpaired.id}, a single answer marked as {_MARKS[bool(unpaired.is_wanted)]}",
            expected="preference pairs (chosen and rejected), or rows whose answers are all good ones",
            do="name a file of pairs as data.held_out; data.validation takes unpaired rows",
        )
    paired = sorted({m for m in metrics if any(d.needs == "pairs" for d in load_metrics([m]))})
    if paired and (single := next((e for e in examples if e.rejected is None), None)) is not None:
        raise RequestError(
            f"{', '.join(paired)} asked for, but {single.id} has no rejected side",
            expected="held-out rows that are preference pairs",
            do="ask for other metrics, or judge on pairs",
        )
    without = next((e for e in examples if e.prompt is None or e.reference is None), None)
    refused = sorted({m for m in metrics if any(d.needs == "text" for d in load_metrics([m]))})
    if without is None or not refused:
        return
    kind = "plain text" if without.conversation is None else "a row whose answer is only tool calls"
    raise RequestError(
        f"{', '.join(refused)} asked for, but {without.id} is {kind}",
        expected="held-out rows with a prompt and an answer in words, or metrics of likelihood only",
        do="ask for perplexity and bits_per_byte, or name no metrics",
    )


def check_few_shot(num: int, pool: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Raises RequestError where the pool has too few rows to show, or the held-out rows have no place for them."""
    from luthier.ml.evaluation.few_shot import choose_shots

    plain = next((e for e in held_out if e.conversation is None), None)
    if num and plain is not None:
        raise RequestError(
            f"{num} few-shot examples asked for, but {plain.id} is plain text",
            expected="held-out rows with a prompt to put examples before",
            do="leave few-shot examples out for plain text",
        )
    choose_shots(pool, num, seed=0, held_out=held_out)


def check_lengths(examples: Sequence[TokenisedExample], context_length_tokens: int, *, model: str) -> None:
    """Raises OverlongError for held-out rows that the model cannot see whole."""
    too_long = [e for e in examples if e.num_tokens > context_length_tokens]
    if not too_long:
        return
    from luthier.ml.data.tokenise.row_problem import problem_of

    reason = f"is longer than the context of {context_length_tokens:,} tokens"
    raise OverlongError(
        f"{len(too_long):,} of {len(examples):,} held-out rows do not fit into the context of {model}",
        expected=f"at most {context_length_tokens:,} tokens a row",
        do="take these rows out, or judge models with a longer context",
        problems=[problem_of(e.id, value=f"{e.num_tokens:,} tokens", reason=reason) for e in too_long],
    )
