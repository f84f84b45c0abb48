"""Before a run: a warning where other programs hold the memory that it is expected to need."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.events import Event, WarningRaised
from luthier.core.plan import Plan, ValueSource
from luthier.core.system import machine_memory, process_memory
from luthier.features.training.preparation import warn_of_memory
from luthier.testing.records import make_plan


@pytest.fixture
def plan(tiny_model: Path) -> Plan:
    plan = make_plan()
    sources = plan.sources | {"training.micro_batch_tokens": ValueSource(source="asked", why="in the recipe")}
    base = plan.base_model.model_copy(update={"path": str(tiny_model)})
    return plan.model_copy(update={"base_model": base, "sources": sources})


def warned(plan: Plan) -> list[WarningRaised]:
    events: list[Event] = []
    warn_of_memory(plan, events.append)
    return [event for event in events if isinstance(event, WarningRaised)]


def test_what_others_hold_is_missed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run takes 0.6 GB for libraries alone."""
    monkeypatch.setattr(process_memory, "resident_bytes", lambda: 100_000_000)
    monkeypatch.setattr(machine_memory, "memory_bytes", lambda: (16_000_000_000, 50_000_000))
    (warning,) = warned(plan)
    assert (warning.step, warning.code) == (0, "memory_is_short")
    assert "150 MB are free" in warning.message
    assert "luthier train --resume" in warning.message


def test_what_the_process_has_already_is_not_missed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "memory_bytes", lambda: (16_000_000_000, 50_000_000))
    monkeypatch.setattr(process_memory, "resident_bytes", lambda: 4_000_000_000)
    assert warned(plan) == []


def test_the_memory_of_an_accelerator_is_its_own(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "memory_bytes", lambda: (16_000_000_000, 50_000_000))
    assert warned(plan.model_copy(update={"training": plan.training.model_copy(update={"device": "cuda"})})) == []
