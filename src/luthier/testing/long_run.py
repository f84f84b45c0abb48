"""Runs of many steps, with curves as a training has them, for tests of live pages; nothing was trained for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from luthier.core.budget import Bill
from luthier.core.cost import Estimate
from luthier.core.events import BillUpdated, CheckpointSaved, Event, RunStarted, StepDone, ValidationDone

if TYPE_CHECKING:
    from luthier.platform.home.context import Context


def events_of(first: int, last: int, num_steps: int, *, validate_every_steps: int = 500) -> Iterator[Event]:
    """Events of a run from step `first` to `last` of `num_steps`; the same each time."""
    if first <= 1:
        yield RunStarted(from_step=0, num_steps=num_steps)
    for step in range(first, last + 1):
        # A hash by sine, as shaders use it: looks random, and is the same for a step whatever range is made.
        noise = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
        share = step / num_steps
        yield StepDone(
            step=step,
            epoch=3 * share,
            loss=0.6 + 2.2 / (1 + 12 * share) + 0.25 * noise,
            learning_rate=2e-4 * min(1.0, 20 * share) * (0.5 + 0.5 * math.cos(math.pi * share)),
            gradient_norm=0.4 + 0.8 / (1 + 30 * share) + 0.2 * abs(noise),
            num_tokens=2000 + round(300 * noise),
            num_trained_tokens=800,
            seconds=0.5 + 0.05 * noise,
            measures={"token_accuracy": 0.85 - 0.5 / (1 + 9 * share) + 0.05 * noise},
        )
        if step % validate_every_steps == 0:
            loss = 0.75 + 2.1 / (1 + 12 * share) + 0.3 * max(0.0, share - 0.7) ** 2
            yield ValidationDone(
                step=step, loss=loss, num_trained_tokens=4000, is_best=share <= 0.7, seconds=2.0, measures={}
            )
            yield CheckpointSaved(step=step, path=f"/checkpoints/step-{step}", num_bytes=4_200_000)
        if step % max(1, num_steps // 20) == 0:
            yield BillUpdated(step=step, bill=bill_at(step, num_steps))


def bill_at(step: int, num_steps: int) -> Bill:
    """What a run has cost after a step: half a second and 2,000 tokens each, 0.60 USD an hour."""

    def spread(value: float) -> Estimate:
        return Estimate(value=value, low=value * 0.8, high=value * 1.3)

    hours, final = step * 0.5 / 3600, num_steps * 0.5 / 3600
    return Bill(
        hours=hours,
        tokens=2000 * step,
        usd=spread(0.6 * hours),
        energy_kwh=spread(0.02 * hours),
        interrupted_hours=0.0,
        final_hours=spread(final),
        final_usd=spread(0.6 * final),
        final_energy_kwh=spread(0.02 * final),
    )


def tell(context: Context, run_id: str, events: Iterable[Event]) -> None:
    """Write events of a run all at once, none of them written before, and the run's progress."""
    from sqlalchemy import insert, update

    from luthier.platform.db.tables import events as event_rows
    from luthier.platform.db.tables import runs

    told = list(events)
    rows = [
        {
            "run_id": run_id,
            "kind": event.kind,
            "step": event.from_step if isinstance(event, RunStarted) else event.step,
            "code": "",
            "document": event.model_dump_json(),
        }
        for event in told
    ]
    last = max((event.step for event in told if isinstance(event, StepDone)), default=0)
    # One transaction for all: event by event, thousands of steps would take minutes.
    with context.database.write() as connection:
        connection.execute(insert(event_rows), rows)
        connection.execute(update(runs).where(runs.c.run_id == run_id).values(step=last, status="running"))
