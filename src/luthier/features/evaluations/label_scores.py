"""How likely the judged model finds each label of the rows, beside the probabilities of baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luthier.core.dataset import Example
from luthier.core.evaluation import LabelConfidence
from luthier.core.evaluation_plan import Bar
from luthier.core.ports import Progress
from luthier.features.generation.engines import EnginePool
from luthier.features.models.resolve import Candidate, TemplatedEngine
from luthier.features.recipes.checks import check_lengths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.ml.baselines.predict import BaselineSet
    from luthier.ml.evaluation.compare import SystemUnderTest


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows whose answers are labels.

    Attributes:
        labels: What the answers are; empty where they are no labels.
        examples: The judged rows.
        train: The rows that were trained on, as far as they are known.
        bar: What the judged model has to reach.
    """

    labels: tuple[str, ...]
    examples: tuple[Example, ...]
    train: Sequence[Example]
    bar: Bar | None


def label_confidence_of(
    rows: LabelledRows,
    candidate: Candidate,
    pool: EnginePool,
    judged: SystemUnderTest,
    baselines: BaselineSet,
    progress: Progress,
) -> tuple[tuple[LabelConfidence, ...], str]:
    """How sure the judged model and the baselines with probabilities are of each label; and why the model has none.

    Args:
        rows: What was judged.
        candidate: The judged model.
        pool: Has its engine.
        judged: The same as it was judged.
        baselines: Those that answered the same rows.
        progress: Shows the scoring.
    """
    if not rows.labels:
        return (), ""
    from luthier.ml.evaluation.label_confidence import (
        MIN_ROWS,
        arranged,
        label_confidence,
        trained_labels,
        why_left_out,
    )
    from luthier.ml.evaluation.metrics.calibration import softmax
    from luthier.ml.evaluation.metrics.classification import Labelling
    from luthier.ml.evaluation.systems import Titled

    labelling = Labelling(trained_labels(rows.labels, [e.reference for e in rows.train if e.reference is not None]))
    given = {
        one.name: arranged(one.classified.probabilities, one.classified.classes, labelling)
        for one in baselines.predictions
        if one.classified is not None and one.classified.probabilities is not None
    }
    is_head = judged.kind == "head"
    why = why_left_out(
        labelling.labels,
        len(rows.examples),
        # A head gives all classes in one reading of the prompt.
        0 if is_head else sum(row.num_tokens for row in judged.tokenised),
        has_thoughts=not is_head and any(one.thought for one in rows.examples),
    )
    titled = Titled(progress, judged.name)
    if is_head and not why:
        found, why = _of_head(candidate, pool, judged, titled)
        if found is not None:
            given[judged.name] = arranged(*found, labelling)
    elif not why:
        scores = _scores(candidate, pool.engine(candidate), rows.examples, labelling.labels, titled)
        given[judged.name] = softmax(scores)
    enough = len(rows.examples) >= MIN_ROWS and len(labelling.labels) > 1
    return tuple(
        label_confidence(name, probabilities, labelling, judged.references, rows.bar)
        for name, probabilities in (given.items() if enough else ())
    ), why


def _of_head(
    candidate: Candidate, pool: EnginePool, judged: SystemUnderTest, progress: Progress
) -> tuple[tuple[NDArray[np.float64], tuple[str, ...]] | None, str]:
    """The probabilities of a head, [rows, classes], and its classes; or why it has none."""
    from luthier.ml.inference.task_model import TaskAnswers

    # As the pool itself names the candidate, so that the model is not opened again.
    engine = pool.load(replace(candidate, template=candidate.chat_template().kind))
    if not isinstance(engine, TaskAnswers) or engine.model.head.kind != "classify":
        return None, "its head gives numbers, and no probability of each"
    if engine.model.head.is_multi_label:
        return None, "a row can have several labels, so their probabilities do not sum to 1"
    prompts = [one.conversation for one in judged.prompts if one.conversation is not None]
    return (engine.model.probabilities(prompts, progress).double().cpu().numpy(), tuple(engine.model.head.labels)), ""


def _scores(
    candidate: Candidate,
    engine: TemplatedEngine,
    examples: Sequence[Example],
    labels: Sequence[str],
    progress: Progress,
) -> NDArray[np.float64]:
    """How likely a model finds each label as the whole answer, in nats: [rows, labels].

    Args:
        candidate: The model, whose options of the template and rewritten turns hold; it has no examples in its prompt.
        engine: Scores.
        examples: The rows, each with a prompt and an answer, which is replaced.
        labels: Texts of the labels.
        progress: Shows the scoring.

    Raises:
        DataError: A label has no token, or holds the template's end-of-turn text.
        OverlongError: A row does not fit into the context with one of the labels.
    """
    import numpy as np

    from luthier.ml.data.tokenise.loss_mask import Learning, tokenise, with_answer
    from luthier.ml.inference.engine_prompts import rewritten_examples

    learning = Learning(reasoning=candidate.learn_reasoning)
    rows = rewritten_examples(candidate.opted_turns, examples, engine.template)
    # The end of the turn is scored too, so that no label is a part of another one. Earlier answers of a conversation
    # cost the same with every label.
    made = [tokenise(with_answer(row, label), engine.template, learning) for row in rows for label in labels]
    check_lengths(made, candidate.context_length_tokens, model=candidate.model_name)
    scores = engine.score(made, progress)
    return -np.array([score.nll_nats for score in scores], dtype=np.float64).reshape(len(rows), len(labels))
