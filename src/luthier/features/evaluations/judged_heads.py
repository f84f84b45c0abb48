"""Task heads among the evaluated systems: their engines, and metrics specific to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.dataset import Example
from luthier.core.evaluation import SystemResult
from luthier.core.ports import StopCheck
from luthier.features.models.resolve import Candidate, answers_key, open_judged

if TYPE_CHECKING:
    from luthier.ml.inference.kept_answers import AnswerFile
    from luthier.ml.inference.task_model import TaskAnswers
    from luthier.ml.inference.transformers_engine import TransformersEngine


class JudgedHeads:
    """Opens the engines of candidates, and keeps the outputs of task heads after their models are closed.

    Args:
        stop: asked between batches; a reason ends the evaluation with StoppedError.
        num_workers: as for `open_engine`.
        kept_answers: where generated answers are stored as they come; None stores none.

    Attributes:
        max_workers: the most processes that compute batches of an engine so far; None before the first one is open.
    """

    def __init__(
        self, stop: StopCheck | None, num_workers: int | None = None, kept_answers: AnswerFile | None = None
    ) -> None:
        self._stop, self._num_workers, self._kept_answers = stop, num_workers, kept_answers
        self._heads: dict[str, TaskAnswers] = {}
        self.max_workers: int | None = None

    def open(self, candidate: Candidate) -> TransformersEngine | TaskAnswers:
        """The engine of a candidate."""
        from luthier.ml.inference.transformers_engine import TransformersEngine

        engine = open_judged(candidate, stop=self._stop, num_workers=self._num_workers)
        if isinstance(engine, TransformersEngine):
            loaded = engine
            if self._kept_answers is not None:
                loaded.kept_answers = self._kept_answers.of_engine(answers_key(candidate))
        else:
            self._heads[candidate.name] = engine
            loaded = engine.model.engine
        self.max_workers = max(loaded.num_workers, self.max_workers or 0)
        return engine

    def with_figures(self, results: Sequence[SystemResult], examples: Sequence[Example]) -> tuple[SystemResult, ...]:
        """The results; those of task heads include ranking metrics of probabilities, or errors of numbers."""
        return tuple(self._with_figure(result, examples) for result in results)

    def _with_figure(self, result: SystemResult, examples: Sequence[Example]) -> SystemResult:
        from luthier.ml.data.tokenise.heads import class_matrix
        from luthier.ml.evaluation.task_head import absolute_error, area_under_curve

        head = self._heads.get(result.name)
        if head is None or head.model.head.kind not in ("classify", "regress"):
            return result
        references = [example.reference or "" for example in examples]
        if head.probabilities is not None:
            own = class_matrix(references, head.model.head)
            name, figure = "auroc", area_under_curve(head.probabilities.double().numpy(), own)
        else:
            outputs = [sample.output for sample in result.samples]
            name, figure = "absolute_error", absolute_error(outputs, references)
        return result if figure is None else result.model_copy(update={"metrics": result.metrics | {name: figure}})
