"""A baseline as a system under evaluation: the same metrics and the same rows as for the models next to it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.ml.baselines.predict import Predictions
from luthier.ml.evaluation.systems import SystemUnderTest


def as_system(predictions: Predictions, beside: SystemUnderTest) -> SystemUnderTest:
    """A system that answers with these predictions.

    Args:
        predictions: one answer for each row.
        beside: a model that is evaluated on the same rows.

    Raises:
        RequestError: another number of predictions than of rows.
    """
    if len(predictions.outputs) != len(beside.row_ids):
        raise RequestError(
            f"{predictions.name} has {len(predictions.outputs):,} answers for {len(beside.row_ids):,} rows",
            expected="one answer for each row",
            do="let the baseline answer the rows that are evaluated",
        )
    return SystemUnderTest(
        name=predictions.name,
        kind=predictions.kind,
        seconds_before=predictions.seconds,
        model="",
        adapter=None,
        num_few_shot=0,
        engine=_Answers(predictions),
        prompts=beside.prompts,
        references=beside.references,
        row_ids=beside.row_ids,
        prompt_texts=beside.prompt_texts,
        tokenised=(),
        num_bytes=(),
    )


class _Answers:
    """An engine that has its answers already."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions

    @property
    def name(self) -> str:
        return self._predictions.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The predictions, in the order of the rows that they were made for."""
        return [
            Generation(text=text, num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop")
            for text in self._predictions.outputs
        ]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Nothing: such a baseline has no likelihoods, and no metric requests them (`SystemUnderTest.takes`)."""
        return []

    def close(self) -> None:
        """Nothing to free."""
