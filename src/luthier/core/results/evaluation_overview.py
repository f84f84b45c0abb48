"""What lists show of evaluations."""

from __future__ import annotations

from luthier.core.evaluation import Evaluation, VerdictWord
from luthier.core.frozen_model import FrozenModel


class EvaluationOverview(FrozenModel):
    """What a list shows of an evaluation.

    Attributes:
        evaluation_id: its id.
        created_at: UTC, ISO 8601.
        run_id: the run that was evaluated; None for models without one.
        held_out_file: the file of held-out rows.
        num_rows: rows that were evaluated.
        systems: their names, in order.
        models: what they were made of, each once.
        word: the verdict in a word; None where there is none.
        headline: the verdict in a sentence; empty where there is none.
    """

    evaluation_id: str
    created_at: str
    run_id: str | None
    held_out_file: str
    num_rows: int
    systems: tuple[str, ...]
    models: tuple[str, ...]
    word: VerdictWord | None
    headline: str

    @classmethod
    def of(cls, evaluation: Evaluation) -> EvaluationOverview:
        """Of a whole one."""
        verdict = evaluation.verdict
        return cls(
            evaluation_id=evaluation.evaluation_id,
            created_at=evaluation.created_at,
            run_id=evaluation.run_id,
            held_out_file=evaluation.held_out_file,
            num_rows=evaluation.num_rows,
            systems=tuple(system.name for system in evaluation.systems),
            # dict.fromkeys: each once, in the order of the systems; a set would have none.
            models=tuple(dict.fromkeys(system.model for system in evaluation.systems if system.is_model)),
            word=None if verdict is None else verdict.word,
            headline="" if verdict is None else verdict.headline,
        )
