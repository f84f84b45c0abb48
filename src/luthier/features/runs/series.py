"""Use cases: the curves of a run, whole for a first request, and what is new for a client that watches.

The events of a run are read once, a part at a time, and kept as a curve that is thinned as it grows. What is new since
a position comes straight from the store. So no answer reads, or holds, more than a bounded number of events, however
long the run and however many watch it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from luthier.core.events import (
    PLAIN_LOSS,
    REPLAY_LOSS,
    TASK_LOSS,
    Event,
    MachineSampled,
    RunStarted,
    StepDone,
    ValidationDone,
    comparable_loss,
)
from luthier.ml.charts.spec import Point, thinned
from luthier.platform.home.context import Context

MAX_POINTS: Final = 1_000
"""Of a series, for who sees it first."""
MAX_NEW_POINTS: Final = 100
"""Of a series, in an answer to who watches: of more steps than these the lows and highs are sent."""
_MAX_NEW_EVENTS: Final = 1_000
_AT_ONCE: Final = 2_000
_MAX_RUNS: Final = 32
_MAX_MEASURES: Final = 6

Key = tuple[str, str]
"""The chart and the series in it."""
TRAINING: Final[Key] = ("loss", "training")
MINIMISED: Final[Key] = ("loss", "minimised")
REPLAYED: Final[Key] = ("loss", "replayed rows")
VALIDATION: Final[Key] = ("loss", "validation")
LEARNING_RATE: Final[Key] = ("learning_rate", "learning rate")
GRADIENT_NORM: Final[Key] = ("gradient_norm", "gradient norm")
TOKENS_PER_SECOND: Final[Key] = ("tokens_per_second", "tokens a second")
LOSS_BY_SOURCE: Final = "loss_by_source"
"""The chart of the validation loss of each source, where the rows are of several."""
_MOST_WHOLE: Final = 8
"""So many series of that chart have as many points as other series."""
_SHARED: Final = 6
"""More of them share the points of so many: a page with 32 of them has as many bytes as one with 8."""
_FEWEST_POINTS: Final = 20
CLOCK: Final[Key] = ("clock", "seconds")
"""Seconds since 1970 by step: the axis of time."""
PROCESSOR, MEMORY = "machine_processor", "machine_memory"
GPU_UTILISATION, GPU_MEMORY, GPU_POWER = "machine_gpu_utilisation", "machine_gpu_memory", "machine_gpu_power"
MACHINE_CHARTS: Final = (PROCESSOR, MEMORY, GPU_UTILISATION, GPU_MEMORY, GPU_POWER)
OF_RUN, OF_MACHINE = "this run", "whole machine"
_GB: Final = 1e9
_OF_LOSS: Final = (PLAIN_LOSS, TASK_LOSS, REPLAY_LOSS)


@dataclass(slots=True)
class Curves:
    """Points (step, value) by chart and series, in the order of the steps.

    Attributes:
        points: By chart and series.
        from_step: Where the newest start began, if there was one: what was known of later steps is void.
        best: The last validation that was the best so far.
        is_more: Whether any event came that is neither a step nor a sample of the machine.
    """

    points: dict[Key, list[Point]] = field(default_factory=dict)
    from_step: int | None = None
    best: Point | None = None
    is_more: bool = False

    def take(self, events: Iterable[Event], *, most: int = MAX_POINTS) -> None:
        """Add events, in the order in which they were appended. Of a step reported twice the newer event counts.

        Args:
            events: Of one run.
            most: How many points a series is thinned to, once it has twice as many.
        """
        for event in events:
            if isinstance(event, StepDone):
                for key, value in values_of(event).items():
                    self._add(key, event.step, value, most)
                continue
            if isinstance(event, MachineSampled):
                for key, value in usage_of(event).items():
                    self._add(key, event.step, value, most)
                continue
            self.is_more = True
            if isinstance(event, RunStarted):
                self._begin(event.from_step)
            elif isinstance(event, ValidationDone):
                self._add(VALIDATION, event.step, event.loss, most)
                for name, value in _measures(event.measures).items():
                    self._add((name, "validation"), event.step, value, most)
                for name in sorted(event.loss_by_source):
                    self._add((LOSS_BY_SOURCE, name), event.step, event.loss_by_source[name], most)
                if event.is_best:
                    self.best = (event.step, event.loss)

    def downsampled(self, most: int) -> Curves:
        """The same with at most about that many points a series; fewer where there are many sources of rows."""
        num_sources = sum(chart == LOSS_BY_SOURCE for chart, _ in self.points)
        shared = most if num_sources <= _MOST_WHOLE else max(_FEWEST_POINTS, most * _SHARED // num_sources)
        points = {
            key: thinned(series, shared if key[0] == LOSS_BY_SOURCE else most) for key, series in self.points.items()
        }
        return Curves(points, self.from_step, self.best, self.is_more)

    def _add(self, key: Key, step: int, value: float, most: int) -> None:
        series = self.points.setdefault(key, [])
        # A step that is trained again after a crash replaces what was known from it on.
        while series and series[-1][0] >= step:
            series.pop()
        series.append((step, value))
        # Thinned at twice the size, not at every point: so the cost a point is constant on average.
        if len(series) >= 2 * most:
            series[:] = thinned(series, most)

    def _begin(self, from_step: int) -> None:
        self.from_step = from_step if self.from_step is None else min(from_step, self.from_step)
        for series in self.points.values():
            while series and series[-1][0] > from_step:
                series.pop()
        if self.best is not None and self.best[0] > from_step:
            self.best = None


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher is sent.

    Attributes:
        curves: The points.
        position: From which to continue next time.
        is_whole: Whether it replaces all that was sent before.
    """

    curves: Curves
    position: int
    is_whole: bool


class _Known:
    def __init__(self) -> None:
        self.curves, self.position, self.lock = Curves(), 0, Lock()


class RunSeries:
    """The curves of the runs of a home, for as many threads as ask."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = Lock()

    def news(self, run_id: str, after: int) -> News:
        """What is new since the position `after` of an earlier answer; all there is for 0, or where that is too much.

        The caller has checked that the run may be seen; a run that has not begun has none.
        """
        if after > 0:
            found, position = self._context.runs.appended(run_id, after, limit=_MAX_NEW_EVENTS)
            # Exactly the limit means that there may be more, so the whole is sent instead.
            if len(found) < _MAX_NEW_EVENTS:
                curves = Curves()
                curves.take(found, most=_MAX_NEW_EVENTS)
                return News(curves.downsampled(MAX_NEW_POINTS), position, is_whole=False)
        return self._whole(run_id)

    def first_look(self, run_id: str, last_step: int, most: int) -> Curves:
        """Curves to be painted immediately: of about `most` steps, evenly spread, and the newest validations.

        Reads these events alone, so that a page need not wait for those of a long run.
        """
        every = max(1, last_step / most)
        steps = sorted({last_step, *(round(every * n) for n in range(1, most + 1))}) if last_step else []
        runs, curves = self._context.runs, Curves()
        others = runs.of_kinds(run_id, ["validation", "machine"], limit=2 * most)
        events = [*runs.at_steps(run_id, steps), *others]
        curves.take(sorted(events, key=_step_of))
        return curves.downsampled(2 * most)

    def _whole(self, run_id: str) -> News:
        with self._lock:
            known = self._known.setdefault(run_id, _Known())
            self._known.move_to_end(run_id)
            while len(self._known) > _MAX_RUNS:
                self._known.popitem(last=False)
        # A lock a run: a long run that is read for the first time holds up no other.
        with known.lock:
            while True:
                found, known.position = self._context.runs.appended(run_id, known.position, limit=_AT_ONCE)
                known.curves.take(found)
                if len(found) < _AT_ONCE:
                    return News(known.curves.downsampled(MAX_POINTS), known.position, is_whole=True)


def _step_of(event: Event) -> int:
    return event.step if isinstance(event, StepDone | ValidationDone | MachineSampled) else 0


def usage_of(event: MachineSampled) -> dict[Key, float]:
    """What a sample of the machine adds to each series: percent of all cores, GB, percent and watts."""
    values: dict[Key, float] = {
        CLOCK: event.at,
        (MEMORY, OF_RUN): event.run_memory_bytes / _GB,
        (MEMORY, OF_MACHINE): event.machine_memory_bytes / _GB,
    }
    # The first sample has nothing before it to be a mean since.
    if event.machine_cores > 0:
        values[PROCESSOR, OF_RUN] = 100 * event.run_cores / event.num_cores
        values[PROCESSOR, OF_MACHINE] = 100 * event.machine_cores / event.num_cores
    for gpu in event.gpus:
        if gpu.utilisation is not None:
            values[GPU_UTILISATION, gpu.name] = 100 * gpu.utilisation
        if gpu.memory_bytes is not None:
            values[GPU_MEMORY, gpu.name] = gpu.memory_bytes / _GB
        if gpu.power_watts is not None:
            values[GPU_POWER, gpu.name] = gpu.power_watts
    return values


def values_of(event: StepDone) -> dict[Key, float]:
    """What a step adds to each series."""
    values = {
        TRAINING: comparable_loss(event),
        LEARNING_RATE: event.learning_rate,
        GRADIENT_NORM: event.gradient_norm,
        TOKENS_PER_SECOND: event.num_tokens / event.seconds if event.seconds > 0 else 0.0,
    }
    if values[TRAINING] != event.loss:
        values[MINIMISED] = event.loss
    if REPLAY_LOSS in event.measures:
        values[REPLAYED] = event.measures[REPLAY_LOSS]
    return values | {(name, "training"): value for name, value in _measures(event.measures).items()}


def _measures(measures: Mapping[str, float]) -> dict[str, float]:
    """The measures that have their own chart."""
    return {name: measures[name] for name in sorted(set(measures) - set(_OF_LOSS))[:_MAX_MEASURES]}
