"""The figures at the top of a report."""

from __future__ import annotations

import pytest

from luthier.core.events import PLAIN_LOSS, TASK_LOSS
from luthier.ml.evaluation.report.facts import key_figures
from luthier.testing.records import make_plan, make_record, make_result, make_step


@pytest.mark.parametrize("measures", [{PLAIN_LOSS: 0.75}, {PLAIN_LOSS: 0.9, TASK_LOSS: 0.75}])
def test_the_training_loss_is_without_regularisation_before_and_after_the_end(measures: dict[str, float]) -> None:
    step = make_step(4, loss=1.5).model_copy(update={"measures": measures})
    result = make_result(train_loss=1.5).model_copy(update={"plain_train_loss": 0.75, "best_validation_loss": None})
    for record in (make_record(status="running"), make_record(status="succeeded", result=result)):
        facts = {fact.name: fact.value for fact in key_figures(record, make_plan(), [step])}
        assert facts["Training loss"] == "0.750", record.status
