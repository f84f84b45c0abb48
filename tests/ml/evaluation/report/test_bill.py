"""What a run has cost stands among the key figures of its report."""

from __future__ import annotations

from typing import Any

from tests.ml.evaluation.report.conftest import Documents

from luthier.core.estimate import Estimate
from luthier.core.events import BillUpdated
from luthier.core.run import Bill
from luthier.ml.charts.figures import Fact
from luthier.ml.evaluation.report.facts import key_figures


def bill(hours: float) -> Bill:
    price = Estimate(value=0.2, low=0.1, high=0.4)
    final = Estimate(value=hours, low=hours, high=hours)
    return Bill(
        hours=hours, tokens=10, usd=price.times(hours), energy_kwh=Estimate(value=0.5, low=0.5, high=0.5),
        interrupted_hours=0.0, final_hours=final, final_usd=final.by(price), final_energy_kwh=None,
    )  # fmt: skip


def spent(documents: Documents, **changes: Any) -> list[Fact]:
    with_changes = documents.but(**changes)
    found = key_figures(with_changes.record, with_changes.plan, with_changes.events)
    return [fact for fact in found if fact.name == "Spent in all"]


def test_the_bill_of_the_result_is_shown_with_its_range(documents: Documents) -> None:
    result = documents.record.result
    assert result is not None
    record = documents.record.model_copy(update={"result": result.model_copy(update={"bill": bill(2.0)})})
    (fact,) = spent(documents, record=record)
    assert fact.value.replace("\N{NO-BREAK SPACE}", " ") == "2 h 00 min"
    assert fact.note == "0.4 [0.2, 0.8] USD, 0.5 kWh"


def test_a_run_without_a_result_shows_its_last_bill_and_an_old_one_none(documents: Documents) -> None:
    record = documents.record.model_copy(update={"result": None, "status": "running"})
    events = (*documents.events, BillUpdated(step=9, bill=bill(0.5)), BillUpdated(step=18, bill=bill(1.0)))
    (fact,) = spent(documents, record=record, events=events)
    assert fact.value.replace("\N{NO-BREAK SPACE}", " ") == "1 h 00 min"
    assert spent(documents) == []
