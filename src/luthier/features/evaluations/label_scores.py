"""Label probabilities of models, next to those of baselines.

The likelihoods of the evaluated model show how well its confidence is calibrated. Those of the base model are also a
way to use it without training: it answers with its likeliest label instead of generating one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import LabelConfidence
from luthier.core.evaluation_plan import Bar, Prompting
from luthier.core.ids import is_trained_name
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.generation.engines import EnginePool
from luthier.features.models.resolve import Candidate, TemplatedEngine
from luthier.features.recipes.checks import check_lengths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.ml.baselines.predict import BaselineSet
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.metrics.classification import Labelling
    from luthier.ml.evaluation.row_groups import RowGroups

LIKELIEST_LABEL: Final = "likeliest label"
"""Suffix of the name of a model that answers with its likeliest label."""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The evaluated rows and the labels of their answers.

    Attributes:
        labels: The labels of the answers; empty if the answers are not labels.
        examples: The evaluated rows.
        train: The training rows, if known.
        bar: The bar for the evaluated model.
        validation: Rows neither trained on nor evaluated, for choosing a confidence threshold.
        groups: Groups that rows share, which intervals and tests count; None where no two rows share one.
    """

    labels: tuple[str, ...]
    examples: tuple[Example, ...]
    train: Sequence[Example]
    bar: Bar | None
    validation: Sequence[Example] = ()
    groups: RowGroups | None = None

    @property
    def labelling(self) -> Labelling:
        """The labels of the training rows: those with a probability."""
        from luthier.ml.evaluation.label_confidence import trained_labels
        from luthier.ml.evaluation.metrics.classification import Labelling

        return Labelling(trained_labels(self.labels, [e.reference for e in self.train if e.reference is not None]))

    def why_not_scored(self, num_tokens: int) -> str:
        """Why label likelihoods are not computed; empty if they are.

        Args:
            num_tokens: of all evaluated rows with their answers; 0 for a task head, which reads a prompt once.
        """
        from luthier.ml.evaluation.label_confidence import why_left_out

        has_thoughts = bool(num_tokens) and any(one.thought for one in self.examples)
        return why_left_out(self.labelling.labels, len(self.examples), num_tokens, has_thoughts=has_thoughts)


class LabelChoice:
    """An engine that answers with the model's likeliest label; ties go to the first.

    Args:
        engine: Of the model.
        rows: Each row with each label as its answer, row by row.
        labels: The labels.
    """

    def __init__(self, engine: Engine, rows: Sequence[TokenisedExample], labels: Sequence[str]) -> None:
        self._engine, self._rows, self._labels = engine, rows, labels
        self.probabilities: NDArray[np.float64] | None = None
        """[rows, labels], available after answering."""

    @property
    def name(self) -> str:
        return self._engine.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The likeliest label of each of its rows."""
        from luthier.ml.evaluation.metrics.calibration import softmax

        # [rows, labels], in nats.
        scores = _log_likelihoods(self._engine, self._rows, len(self._labels), progress)
        self.probabilities = softmax(scores)
        return [
            Generation(text=self._labels[place], num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop")
            # argmax takes the first of equal values, and labels are in a fixed order.
            for place in scores.argmax(axis=1).tolist()
        ]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Nothing: no metric requests its likelihoods (`SystemUnderTest.takes`)."""
        return []

    def close(self) -> None:
        """Nothing: the model belongs to its pool."""


def untrained_base(candidates: Sequence[Candidate]) -> int | None:
    """The index of the first model before the evaluated one that is neither trained nor prompted; None without one."""
    return next(
        (
            place
            for place, one in enumerate(candidates[:-1])
            if not (one.is_prompted or one.adapter_path or one.has_task_head or is_trained_name(one.name))
        ),
        None,
    )


def likeliest_label(
    rows: LabelledRows, base: Candidate, engine: TemplatedEngine, beside: SystemUnderTest
) -> tuple[SystemUnderTest | None, str]:
    """A base model that answers with its likeliest label, as a system; or why there is none.

    Args:
        rows: The evaluated rows, whose answers are labels.
        base: The model, without examples in its prompt.
        engine: Scores.
        beside: The same model, evaluated by its generated answers.
    """
    if why := rows.why_not_scored(sum(row.num_tokens for row in beside.tokenised)):
        return None, why
    try:
        return label_choice(rows, base, engine, beside), ""
    except RequestError as error:
        return None, error.came


def label_choice(
    rows: LabelledRows, base: Candidate, engine: TemplatedEngine, beside: SystemUnderTest
) -> SystemUnderTest:
    """The system of `likeliest_label`, at any cost.

    Args:
        rows: the evaluated rows with their labels.
        base: the model.
        engine: of the model.
        beside: the same model, evaluated by its generated answers.

    Raises:
        DataError: A label has no token, or holds the template's end-of-turn text.
        OverlongError: A row does not fit into the context with one of the labels.
    """
    from luthier.ml.evaluation.systems import num_prompt_tokens

    labels = rows.labelling.labels
    made = _with_each_label(base, engine, rows.examples, labels)
    # Every label reads the prompt again, which is what this way to answer costs.
    read, plain = sum(row.num_tokens for row in made), sum(map(num_prompt_tokens, beside.tokenised))
    return replace(
        beside,
        name=f"{base.name}, {LIKELIEST_LABEL}",
        engine=LabelChoice(engine, made, labels),
        tokenised=(),
        num_bytes=(),
        earlier=(),
        prompting=Prompting(kind="label_likelihood", extra_prompt_tokens=(read - plain) / len(rows.examples)),
    )


def label_confidence_of(
    rows: LabelledRows,
    candidate: Candidate,
    pool: EnginePool,
    systems: Sequence[SystemUnderTest],
    baselines: BaselineSet,
    progress: Progress,
) -> tuple[tuple[LabelConfidence, ...], str]:
    """Label confidence of the evaluated model and other systems with probabilities; or why the model has none.

    Args:
        rows: The evaluated rows.
        candidate: The evaluated model.
        pool: Has its engine.
        systems: All evaluated systems, that model last.
        baselines: Those that answered the same rows.
        progress: Shows the scoring.
    """
    if not rows.labels:
        return (), ""
    from luthier.ml.evaluation.label_confidence import MIN_ROWS, arranged, label_confidence

    labelling, judged = rows.labelling, systems[-1]
    given = {
        one.name: arranged(one.classified.probabilities, one.classified.classes, labelling)
        for one in baselines.predictions
        if one.classified is not None and one.classified.probabilities is not None
    }
    for one in systems:
        if isinstance(one.engine, LabelChoice) and one.engine.probabilities is not None:
            given[one.name] = one.engine.probabilities
    own = _Judged(rows, candidate, pool, judged, labelling, progress)
    found, why = own.probabilities()
    if found is not None:
        given[judged.name] = found
    other = own.validation() if found is not None else None
    clusters = None if rows.groups is None else rows.groups.clusters(judged.row_ids)
    enough = len(rows.examples) >= MIN_ROWS and len(labelling.labels) > 1
    return tuple(
        label_confidence(
            name,
            probabilities,
            labelling,
            judged.references,
            rows.bar,
            validation=other if name == judged.name else None,
            clusters=clusters,
        )
        for name, probabilities in (given.items() if enough else ())
    ), why


@dataclass(frozen=True, slots=True)
class _Judged:
    """The evaluated model and its probabilities: those of a head, or the softmax of label likelihoods."""

    rows: LabelledRows
    candidate: Candidate
    pool: EnginePool
    system: SystemUnderTest
    labelling: Labelling
    progress: Progress

    def probabilities(self) -> tuple[NDArray[np.float64] | None, str]:
        """Probabilities of the evaluated rows, [rows, labels]; or why there are none."""
        is_head = self.system.kind == "head"
        # A head returns all classes in one pass over the prompt.
        why = self.rows.why_not_scored(0 if is_head else sum(row.num_tokens for row in self.system.tokenised))
        return (None, why) if why else self._of(self.rows.examples)

    def validation(self) -> tuple[NDArray[np.float64], list[str]] | None:
        """Probabilities of the validation rows, with their answers; None if they do not choose a threshold."""
        from luthier.ml.evaluation.label_confidence import MAX_TOKENS, MIN_ROWS, is_accuracy

        rows = [one for one in self.rows.validation if one.reference is not None and one.prompt is not None]
        if not is_accuracy(self.rows.bar) or len(rows) < MIN_ROWS:
            return None
        num_tokens = sum(row.num_tokens for row in self.system.tokenised) / len(self.system.row_ids) * len(rows)
        if self.system.kind != "head" and num_tokens * len(self.labelling.labels) > MAX_TOKENS:
            return None
        found, _ = self._of(rows)
        return None if found is None else (found, [one.reference or "" for one in rows])

    def _of(self, examples: Sequence[Example]) -> tuple[NDArray[np.float64] | None, str]:
        from luthier.ml.evaluation.label_confidence import arranged
        from luthier.ml.evaluation.metrics.calibration import softmax
        from luthier.ml.evaluation.systems import Titled

        titled, labels = Titled(self.progress, self.system.name), self.labelling.labels
        if self.system.kind == "head":
            found, why = _of_head(self.candidate, self.pool, examples, titled)
            return (None if found is None else arranged(*found, self.labelling)), why
        engine = self.pool.engine(self.candidate)
        try:
            made = _with_each_label(self.candidate, engine, examples, labels)
        except RequestError as error:
            return None, error.came
        return softmax(_log_likelihoods(engine, made, len(labels), titled)), ""


def _of_head(
    candidate: Candidate, pool: EnginePool, examples: Sequence[Example], progress: Progress
) -> tuple[tuple[NDArray[np.float64], tuple[str, ...]] | None, str]:
    """The probabilities of a head, [rows, classes], and its classes; or why it has none."""
    from luthier.ml.inference.engine_prompts import rewritten_examples
    from luthier.ml.inference.task_model import TaskAnswers

    # The same name as in the pool, so that the model is not opened again.
    template = candidate.chat_template()
    engine = pool.load(replace(candidate, template=template.kind))
    if not isinstance(engine, TaskAnswers) or engine.model.head.kind != "classify":
        return None, "its head gives numbers, and no probability of each"
    if engine.model.head.is_multi_label:
        return None, "a row can have several labels, so their probabilities do not sum to 1"
    rows = rewritten_examples(candidate.opted_turns, examples, template)
    prompts = [row.prompt for row in rows if row.prompt is not None]
    return (engine.model.probabilities(prompts, progress).double().cpu().numpy(), tuple(engine.model.head.labels)), ""


def _with_each_label(
    candidate: Candidate, engine: TemplatedEngine, examples: Sequence[Example], labels: Sequence[str]
) -> list[TokenisedExample]:
    """Each row with each label as its whole answer, row by row.

    Args:
        candidate: The model, with its template options and rewritten turns; it has no examples in its prompt.
        engine: Of that model.
        examples: The rows, each with a prompt and an answer; the answer is replaced.
        labels: Texts of the labels.

    Raises:
        DataError: A label has no token, or contains the template's end-of-turn text.
        OverlongError: A row does not fit into the context with one of the labels.
    """
    from luthier.ml.data.tokenise.loss_mask import Learning, tokenise, with_answer
    from luthier.ml.inference.engine_prompts import rewritten_examples

    learning = Learning(reasoning=candidate.learn_reasoning)
    rows = rewritten_examples(candidate.opted_turns, examples, engine.template)
    # The end of the turn is scored as well, so that no label is a prefix of another. Earlier answers of a conversation
    # cost the same with every label.
    made = [tokenise(with_answer(row, label), engine.template, learning) for row in rows for label in labels]
    check_lengths(made, candidate.context_length_tokens, model=candidate.model_name)
    return made


def _log_likelihoods(
    engine: Engine, rows: Sequence[TokenisedExample], num_labels: int, progress: Progress
) -> NDArray[np.float64]:
    """The log-likelihood of each label as the whole answer, in nats: [rows, labels]."""
    import numpy as np

    scores = engine.score(rows, progress)
    return -np.array([score.nll_nats for score in scores], dtype=np.float64).reshape(-1, num_labels)
