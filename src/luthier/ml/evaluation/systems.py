"""What is evaluated: one system with the rows as it sees them, and the checks before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import SystemKind
from luthier.core.evaluation_plan import Prompting
from luthier.core.ports import Engine, Progress, ProgressTask, Prompt, Score
from luthier.ml.evaluation.metrics.protocol import MetricDefinition

if TYPE_CHECKING:
    from luthier.ml.evaluation.metrics.ranking import Ranked


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """One system and the held-out rows as it sees them; all sequences have one item a row, in the same order.

    prompts, references and prompt_texts are empty for plain text, which is only scored.

    Attributes:
        name: of the system, unique in an evaluation.
        model: its base model.
        adapter: its adapter; None for a model without one.
        num_few_shot: examples in its prompts.
        engine: writes and scores.
        prompts: what the engine answers.
        references: the rows' own answers.
        row_ids: id of each row.
        prompt_texts: the question as a person reads it, without few-shot examples.
        tokenised: prompt and answer with this system's own tokenizer; of preference pairs the chosen side.
        rejected: the other side of preference pairs; empty for other rows.
        num_bytes: UTF-8 bytes of the learned text.
        options: of each row the prompt with each answer to choose from, of which only the answer's own tokens are
            learned.
        option_texts: these answers.
        earlier: the other answers of conversations that are scored in a sequence for each answer, because the template
            rewrites earlier turns; empty where there are none.
        kind: a language model that writes, one with a task head, whose engine gives labels or numbers, or a baseline
            without a language model, whose engine gives the answers that it has predicted.
        seconds_before: wall time that it took before it was evaluated, such as that of fitting a baseline.
        rank: orders documents for the query of each row; None for what does not search.
        prompting: what its prompts contain besides the text of the rows; None for nothing.
        canonical: the one form of an answer that can be written in several ways, such as a set of labels; outputs and
            references are compared in it. None compares them as they are.
    """

    name: str
    model: str
    adapter: str | None
    num_few_shot: int
    engine: Engine
    prompts: tuple[Prompt, ...]
    references: tuple[str, ...]
    row_ids: tuple[str, ...]
    prompt_texts: tuple[str, ...]
    tokenised: tuple[TokenisedExample, ...]
    num_bytes: tuple[int, ...]
    rejected: tuple[TokenisedExample, ...] = ()
    options: tuple[tuple[TokenisedExample, ...], ...] = ()
    option_texts: tuple[tuple[str, ...], ...] = ()
    earlier: tuple[tuple[TokenisedExample, ...], ...] = ()
    kind: SystemKind = "model"
    seconds_before: float = 0.0
    rank: Callable[[Progress], Sequence[Ranked]] | None = None
    prompting: Prompting | None = None
    canonical: Callable[[str], str] | None = None

    def compared(self, texts: Sequence[str]) -> list[str]:
        """Answers or references in the form in which they are compared."""
        return list(texts) if self.canonical is None else list(map(self.canonical, texts))

    @property
    def prompt_tokens(self) -> list[int]:
        """Tokens of each row's prompt; none of a baseline without a language model."""
        return [num_prompt_tokens(one) for one in self.tokenised]

    def takes(self, metric: MetricDefinition) -> bool:
        """Whether it can be evaluated by a metric: only models that write have likelihoods of the rows' own answers."""
        if self.rank is not None:
            return metric.needs == "ranking"
        # The likelihoods of a model that answers with its likeliest label are those of the model itself.
        chooses = self.prompting is not None and self.prompting.kind == "label_likelihood"
        return metric.needs == "text" or (self.kind == "model" and not chooses)

    def scores(self, progress: Progress) -> list[Score]:
        """How well each row is predicted, all of its answers together."""
        more = list(chain.from_iterable(self.earlier))
        # One call for all, so that the engine can batch rows of similar length.
        found = self.engine.score([*self.tokenised, *more], progress)
        if not more:
            return found
        rest = iter(found[len(self.tokenised) :])
        return [_together([one, *islice(rest, len(rows))]) for one, rows in zip(found, self.earlier, strict=False)]


def num_prompt_tokens(tokenised: TokenisedExample) -> int:
    """Tokens before the last learned turn: where its part of the mask begins."""
    # loss_mask is bytes, [tokens], 0 or 1. The last 0->1 edge is where the last learned turn starts; rfind gives
    # -1 for a mask that is learned from its first token, which becomes 0.
    return tokenised.loss_mask.rfind(b"\x00\x01") + 1


def _together(scores: Sequence[Score]) -> Score:
    return Score(
        nll_nats=sum(score.nll_nats for score in scores),
        num_tokens=sum(score.num_tokens for score in scores),
        num_correct=sum(score.num_correct for score in scores),
    )


def check_systems(systems: Sequence[SystemUnderTest], metrics: Sequence[MetricDefinition]) -> None:
    """Check that systems can be evaluated by metrics, before anything is run.

    Raises:
        RequestError: no systems or metrics, two systems of one name, different rows, or a metric that needs what the
            rows do not have.
    """
    names = [system.name for system in systems]
    if not systems or not metrics or len(set(names)) < len(names):
        raise RequestError(
            f"systems {names}, {len(metrics)} metrics",
            expected="at least one system and one metric, and a different name for each system",
            do="name each system once, and ask for at least one metric",
        )
    first = systems[0]
    if not first.row_ids or len(set(first.row_ids)) < len(first.row_ids):
        raise RequestError(
            f"{len(first.row_ids)} rows with {len(set(first.row_ids))} different ids",
            expected="at least one row, and a different id for each",
            do="check the held-out file",
        )
    for system in systems:
        if system.row_ids != first.row_ids:
            raise RequestError(
                f"{system.name} was given other rows than {first.name}, or another order ({len(system.row_ids)} and "
                f"{len(first.row_ids)} rows)",
                expected="the same held-out rows in the same order for every system",
                do="build all systems from the same rows",
            )
        _check_rows(system, [metric for metric in metrics if system.takes(metric)])


def _check_rows(system: SystemUnderTest, metrics: Sequence[MetricDefinition]) -> None:
    num_rows = len(system.row_ids)
    texts = (system.prompts, system.references, system.prompt_texts)
    tokens = (system.tokenised, system.num_bytes)
    for columns in (texts, tokens, (system.rejected,), (system.options, system.option_texts), (system.earlier,)):
        lengths = [len(column) for column in columns]
        # Columns that belong together are all there or all empty.
        if set(lengths) not in ({0}, {num_rows}):
            raise RequestError(
                f"{system.name} has {lengths} values for {num_rows} rows",
                expected="one prompt, reference and text a row, or none; one tokenised example and size a row, or none",
                do="build the system from all rows",
            )
    for metric in metrics:
        there, missing = {
            "text": (system.prompts, "a prompt and an answer"),
            "likelihood": (system.tokenised, "tokens"),
            "pairs": (system.rejected, "two sides"),
            "options": (system.options, "answers to choose from"),
            "ranking": (system.rank, "a search among documents"),
        }[metric.needs]
        if not there:
            raise RequestError(
                f"metric {metric.name} on rows without {missing}",
                expected="rows with what the metric needs, or other metrics",
                do="for plain text ask for perplexity and bits_per_byte; only preference pairs have two sides; only "
                "models with a head of kind embed or rank order documents",
            )
    # A single option is always chosen, and one without its own token has no likelihood.
    for number, (options, words) in enumerate(zip(system.options, system.option_texts, strict=True)):
        if len(options) != len(words) or len(words) < 2 or any(option.num_trained_tokens == 0 for option in options):
            raise RequestError(
                f"{system.row_ids[number]} has {len(words)} answers to choose from, {len(options)} of them in tokens",
                expected="at least two in every row, each with its own token",
                do="check the options of this row",
            )
    if not {metric.needs for metric in metrics} & {"likelihood", "pairs"}:
        return  # an empty reference has no tokens to score
    for example, num_bytes in zip(system.tokenised, system.num_bytes, strict=True):
        if example.num_trained_tokens == 0 or num_bytes == 0:
            raise RequestError(
                f"{example.id} has {example.num_trained_tokens} learned tokens and {num_bytes} bytes of learned text",
                expected="at least one of each in every held-out row",
                do="take the row out of the held-out file, or give it an answer",
            )


class Titled:
    """Progress whose tasks name what they are for: a system, or a task of a suite."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """The bar with the name before its title."""
        return self._progress.task(f"{self._name}: {title[:1].lower()}{title[1:]}", total, unit, done)
