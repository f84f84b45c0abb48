"""The quality of formats: rows in the source's tokens, and what each format made of them, judged like any systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.core.recipe import MetricName
from luthier.core.records.export import ExportSource
from luthier.core.records.format_table import SOURCE_LABEL
from luthier.features.recipes.evaluation_checks import check_lengths, have_text_answers

if TYPE_CHECKING:
    from luthier.ml.export.format_benchmark.asking import AskedRow, Quality, RowQuality
    from luthier.ml.inference.models.chat_template import ChatTemplate

NOTEWORTHY_FRACTION: Final = 0.02
"""Perplexity that is higher by less is no loss that a user would notice, however sure it is."""


@dataclass(frozen=True, slots=True)
class JudgedFormats:
    """The judgement of all formats.

    Attributes:
        metric: The metric that quality is about.
        results: The metrics of each format, by label.
        comparisons: Each format minus the source.
    """

    metric: str
    results: Mapping[str, SystemResult]
    comparisons: Sequence[Comparison]

    def of(self, label: str) -> tuple[SystemResult | None, tuple[Comparison, ...]]:
        """The figures of a format, and each minus the source's."""
        own = tuple(c for c in self.comparisons if c.candidate == label and c.baseline == SOURCE_LABEL)
        return self.results.get(label), own


def asked_rows(
    source: ExportSource, examples: Sequence[Example]
) -> tuple[tuple[TokenisedExample, ...], tuple[AskedRow, ...]]:
    """The rows in the source's tokens, as its training has written them.

    Raises OverlongError for one over its context, RequestError for pairs.
    """
    from luthier.ml.data.tokenise.loss_mask import tokenise
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.export.format_benchmark.asking import AskedRow
    from luthier.ml.inference.models.structure import context_length
    from luthier.ml.inference.opted_turns import rewritten_examples

    if any(example.rejected is not None for example in examples):
        raise RequestError(
            "preference pairs", expected="rows with an answer, or plain text", do="measure formats on other rows"
        )
    template = source_template(source)
    examples = rewritten_examples(source.opted_turns, examples, template)
    tokenised = tuple(tokenise(example, template) for example in examples)
    check_lengths(tokenised, context_length(str(source.base_path)), model=source.name)
    writes = have_text_answers(examples)
    rows = tuple(
        AskedRow(
            ids=tuple(one.input_ids),
            # Positions in `ids` (one row: [tokens]) whose token counts in the loss.
            learned=tuple(place for place, learned in enumerate(one.loss_mask) if learned),
            # 0 marks plain text: it is scored, and nothing is generated for it.
            num_prompt=one.num_prompt_tokens if writes else 0,
        )
        for one in tokenised
    )
    return tokenised, rows


def max_answer_tokens(source: ExportSource, examples: Sequence[Example], max_new_tokens: int) -> int:
    """How many tokens an answer may take, its thought included."""
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.inference.models.answer_lengths import limits_of

    # The runtimes of exports know one limit for all new tokens, so the two limits become their sum.
    answer, thought = limits_of(examples, source_template(source), max_new_tokens, None)
    return answer + (thought or 0)


def judge_formats(
    source: ExportSource,
    examples: Sequence[Example],
    tokenised: Sequence[TokenisedExample],
    qualities: Mapping[str, Quality],
    *,
    metrics: Sequence[MetricName],
    max_new_tokens: int,
    progress: Progress,
) -> JudgedFormats:
    """Metrics with intervals, and each format minus the source, paired over the rows."""
    from luthier.ml.data.tokenise.loss_mask import tokenise_sides
    from luthier.ml.evaluation.compare import SystemUnderTest, judge, primary_metric
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.inference.opted_turns import rewritten_examples

    template = source_template(source)
    examples = rewritten_examples(source.opted_turns, examples, template)
    writes = have_text_answers(examples)
    # of a row that must be cut the last answer alone is measured
    cut = [len(tokenise_sides(e, template)) > 1 for e in examples]
    num_bytes = tuple(
        (e.last_answer_only if is_cut else e).learned_bytes for e, is_cut in zip(examples, cut, strict=True)
    )
    systems = [
        SystemUnderTest(
            name=label,
            model=source.base_name,
            adapter=source.adapter_path,
            num_few_shot=0,
            engine=_RecordedEngine(label, found, template, tokenised),
            prompts=tuple(Prompt(conversation=e.prompt, max_new_tokens=max_new_tokens) for e in examples)
            if writes
            else (),
            references=tuple(e.reference or "" for e in examples) if writes else (),
            row_ids=tuple(e.id for e in examples),
            # Samples are dropped below, so nobody reads the prompts; the tuple only has to have one entry a row.
            prompt_texts=tuple("" for _ in examples) if writes else (),
            tokenised=tuple(tokenised),
            num_bytes=num_bytes,
        )
        for label, found in qualities.items()
    ]
    # A fixed seed: the same answers judged again have the same intervals.
    results, comparisons = judge(systems, metrics=metrics, seed=0, progress=progress)
    return JudgedFormats(
        primary_metric(metrics, [e.reference for e in examples]),
        # A table of formats has no page of samples; with them the document would grow by rows times formats.
        {result.name: result.model_copy(update={"samples": ()}) for result in results},
        [c for c in comparisons if c.baseline == SOURCE_LABEL],
    )


def losses_of(result: SystemResult, comparisons: Sequence[Comparison], metric: str) -> tuple[str, ...]:
    """What a format has lost beyond doubt, a sentence each: the metric that counts, or over 2% in perplexity."""
    from luthier.ml.charts.metric_titles import metric_title

    found = []
    for one in comparisons:
        if one.verdict != "worse" or one.metric not in (metric, "perplexity"):
            continue
        value = result.metrics[one.metric].value
        # `difference` is candidate minus source, so this is the value of the source.
        before = value - one.difference
        if one.metric == "perplexity" and one.difference < NOTEWORTHY_FRACTION * before:
            continue
        found.append(
            f"{metric_title(one.metric)} {value:.4g} instead of {before:.4g} "
            f"({one.difference:+.3g}, 95% interval {one.low:.3g} to {one.high:.3g})"
        )
    return tuple(found)


class _RecordedEngine:
    """An engine that replays what another process has measured."""

    def __init__(
        self, name: str, found: Quality, template: ChatTemplate, tokenised: Sequence[TokenisedExample]
    ) -> None:
        from luthier.ml.inference.thoughts import Thoughts

        self.name, self._found, self._thoughts, self._tokenised = name, found, Thoughts(template), tokenised

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The text that the format wrote to each prompt, thoughts apart."""
        return [self._generation(row, one) for row, one in zip(self._found.rows, self._tokenised, strict=True)]

    def _generation(self, row: RowQuality, one: TokenisedExample) -> Generation:
        # A template may end the prompt inside a thought; the text then starts there without an opening tag.
        is_open = self._thoughts.is_open(one.input_ids[: one.num_prompt_tokens])
        found, num_thinking = self._thoughts.split(row.written, is_open=is_open)
        return Generation(
            text=found.content,
            num_prompt_tokens=one.num_prompt_tokens,
            num_new_tokens=len(row.written),
            finish_reason="stop" if row.is_ended else "length",
            reasoning=found.reasoning,
            num_thinking_tokens=num_thinking,
            ends_in_thought=not found.is_closed,
        )

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """The likelihoods that the format gave."""
        return [
            Score(nll_nats=row.nll_nats, num_tokens=one.num_trained_tokens, num_correct=row.num_correct)
            for row, one in zip(self._found.rows, examples, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""
