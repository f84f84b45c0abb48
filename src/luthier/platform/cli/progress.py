"""Progress on stderr: bars on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from luthier.core.ports import Progress, ProgressTask
from luthier.core.text.counted import plural_unit
from luthier.platform.cli import figures
from luthier.platform.cli.console import is_terminal, stderr_console

_SECONDS_BETWEEN_LINES = 10.0
_WIDE_COLUMNS = 120


def make_progress() -> Progress:
    """Bars where a person watches stderr, lines where stderr goes into a file."""
    console = stderr_console()
    return BarProgress(console) if is_terminal(console) else LineProgress(console)


class BarProgress:
    """Bars. A task within another one goes away when it is done, the outermost stays to be read."""

    def __init__(self, console: Console) -> None:
        is_wide = console.width >= _WIDE_COLUMNS
        columns = [
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=30 if is_wide else 10),
            _AmountColumn(table_column=Column(no_wrap=True)),
            *([TimeElapsedColumn()] if is_wide else []),
            _RemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                style="cyan",
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
        ]
        self._bars = RichProgress(*columns, console=console, expand=True)
        self._num_open = 0

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A bar."""
        return _Bar(self, title, total, unit, done)

    def open(self, title: str, total: float | None, unit: str, done: float) -> TaskID:
        """Show one more bar."""
        if self._num_open == 0:
            for task in self._bars.tasks:  # what the last display showed is above already
                self._bars.remove_task(task.id)
            self._bars.start()
        self._num_open += 1
        bar = self._bars.add_task(title, total=total, unit=unit, note="", begun_at=done)
        # A resumed task starts where it was; rates count only what was done since (`begun_at`).
        self._bars.update(bar, completed=done)
        return bar

    def change(self, bar: TaskID, *, advance: float | None = None, note: str | None = None) -> None:
        """Advance a bar, or change the text next to it."""
        if note is None:
            self._bars.update(bar, advance=advance)
        else:
            self._bars.update(bar, note=note)

    def close(self, bar: TaskID, *, is_done: bool) -> None:
        """Take a bar away, or leave it as the last word."""
        self._num_open -= 1
        if self._num_open:
            self._bars.remove_task(bar)
            return
        task = next(task for task in self._bars.tasks if task.id == bar)
        # Without a total the bar would pulse forever in the last picture.
        if is_done and task.total is None:
            self._bars.update(bar, total=max(task.completed, 1), completed=max(task.completed, 1))
        self._bars.stop()


class _Bar:
    def __init__(self, display: BarProgress, title: str, total: float | None, unit: str, done: float) -> None:
        self._display, self._asked, self._bar = display, (title, total, unit, done), TaskID(-1)

    def __enter__(self) -> Self:
        self._bar = self._display.open(*self._asked)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._display.close(self._bar, is_done=error is None)

    def advance(self, amount: float = 1) -> None:
        self._display.change(self._bar, advance=amount)

    def note(self, text: str) -> None:
        self._display.change(self._bar, note=text)


class _AmountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(amount(task.completed, task.total, task.fields["unit"], _rate(task)))


class _RemainingColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = _rate(task)
        if task.finished or task.total is None or not rate:
            return Text("")
        return Text(f"{figures.duration((task.total - task.completed) / rate)} left", style="dim")


def _rate(task: Task) -> float | None:
    """Units a second since the bar began: steadier than the last few moments, where steps differ in length."""
    # After the end rich continues to count `elapsed`.
    elapsed = task.finished_time if task.finished else task.elapsed
    made = task.completed - task.fields["begun_at"]
    return made / elapsed if elapsed and made else None


class LineProgress:
    """Lines: the first, one every few seconds, and the last. A task within another is reported only if it is long."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock, self.num_open = console, clock, 0

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A task that is reported in lines."""
        return _Lines(self, title, total, unit, done)


class _Lines:
    def __init__(self, display: LineProgress, title: str, total: float | None, unit: str, done: float) -> None:
        self._display, self._title, self._total, self._unit = display, title, total, unit
        self._done = self._begun_at = done
        self._note, self._is_told = "", True
        self._start = self._last = 0.0

    def __enter__(self) -> Self:
        self._start = self._last = self._display.clock()
        self._is_told = self._display.num_open == 0
        self._display.num_open += 1
        if self._is_told:
            self._write("")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._display.num_open -= 1
        seconds = self._display.clock() - self._start
        if self._is_told:
            self._write(f", {'done' if error is None else 'stopped'} after {figures.duration(seconds)}")

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = self._display.clock()
        # A task within another is reported only once it has taken that long.
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last, self._is_told = now, True
            rate = self._rate()
            left = (self._total - self._done) / rate if self._total is not None and rate else None
            self._write(f", {figures.duration(left)} left" if left is not None and left > 0 else "")

    def note(self, text: str) -> None:
        self._note = text

    def _rate(self) -> float | None:
        seconds, made = self._display.clock() - self._start, self._done - self._begun_at
        return made / seconds if seconds > 0 and made else None

    def _write(self, end: str) -> None:
        note = f"  {self._note}" if self._note else ""
        self._display.console.print(
            f"{self._title}: {amount(self._done, self._total, self._unit, self._rate())}{end}{note}", soft_wrap=True
        )


def amount(done: float, total: float | None, unit: str, rate: float | None) -> str:
    """`120/400 steps (30%), 2.1 steps/s`; sizes and rates of bytes in their own units."""
    is_bytes = unit in ("byte", "bytes", "B")
    name = "" if is_bytes else f" {plural_unit(unit)}"

    def show(value: float) -> str:
        return figures.size(int(value), total) if is_bytes else figures.count(value)

    text = f"{show(done)}{name}" if total is None else f"{show(done)}/{show(total)}{name}"
    if total:
        text += f" ({done / total:.0%})"
    if rate is not None:
        text += f", {figures.size(int(rate), total) if is_bytes else figures.number(rate)}{name}/s"
    return text
