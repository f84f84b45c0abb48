"""Progress for people and for log files."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.clock import Clock

from luthier.platform.cli.progress import BarProgress, LineProgress, amount


def test_a_log_file_gets_the_first_line_one_now_and_then_and_the_last() -> None:
    out, clock = io.StringIO(), Clock(0.0)
    progress = LineProgress(Console(file=out, width=200, markup=False), clock)
    with progress.task("Training", total=100, unit="steps") as task:
        for number in range(100):
            clock.now += 1
            task.note(f"loss {number}")
            task.advance()
    lines = out.getvalue().splitlines()
    assert lines[0] == "Training: 0/100 steps (0%)"
    assert lines[1] == "Training: 10/100 steps (10%), 1 steps/s, 1 min 30 s left  loss 9"
    assert lines[-1] == "Training: 100/100 steps (100%), 1 steps/s, done after 1 min 40 s  loss 99"
    assert len(lines) == 12


def test_a_task_that_goes_on_counts_its_rate_from_where_it_began() -> None:
    out, clock = io.StringIO(), Clock(0.0)
    with LineProgress(Console(file=out, width=200), clock).task("Training", 100, "steps", done=50) as task:
        clock.now += 10
        task.advance(5)
    assert "55/100 steps (55%), 0.5 steps/s, 1 min 30 s left" in out.getvalue()


def test_a_task_that_fails_is_not_said_to_be_done() -> None:
    out = io.StringIO()

    def fail() -> None:
        with LineProgress(Console(file=out, width=200), Clock(0.0)).task("Pulling", None, "bytes"):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own, without words
        fail()
    assert out.getvalue().splitlines()[-1].startswith("Pulling: 0 B, stopped")


def test_a_short_task_within_another_is_not_told_a_long_one_is() -> None:
    out, clock = io.StringIO(), Clock(0.0)
    progress = LineProgress(Console(file=out, width=200), clock)
    with progress.task("Training", 2, "steps"):
        with progress.task("Validating", 2, "batches") as short:
            clock.now += 1
            short.advance()
        with progress.task("Judging", 2, "rows") as long:
            clock.now += 11
            long.advance()
    titles = [line.partition(":")[0] for line in out.getvalue().splitlines()]
    assert titles == ["Training", "Judging", "Judging", "Training"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((120, 400, "steps", 2.125), "120/400 steps (30%), 2.125 steps/s"),
        ((5, None, "rows", None), "5 rows"),
        ((5, None, "batch", None), "5 batches"),
        ((5, None, "step", None), "5 steps"),
        ((1 << 20, 4 << 20, "bytes", 1 << 19), "1 MiB/4 MiB (25%), 512 KiB/s"),
        ((0, 0, "rows", None), "0/0 rows"),
    ],
)
def test_amounts(arguments: tuple[float, float | None, str, float | None], text: str) -> None:
    assert amount(*arguments) == text


@pytest.mark.parametrize("width", [80, 200])
def test_a_bar_is_one_line_whatever_the_width(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, markup=False, _environ={"TERM": "xterm"})
    with BarProgress(console).task("Training", total=1000, unit="step", done=100) as task:
        task.note("loss 6.3701  9,733 tokens/s, and more that does not fit where there is little room")
        task.advance(100)
    lines = [line for line in out.getvalue().splitlines() if "200/1,000 steps (20%)" in line]
    assert "/s" in lines[-1]
    assert "left" in lines[-1]


def test_bars_nest_and_the_outermost_stays() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, markup=False, _environ={"TERM": "xterm"})
    progress = BarProgress(console)
    with progress.task("Training", total=2, unit="steps", done=1) as outer:
        with progress.task("Validating", total=None, unit="batches") as inner:
            inner.advance()
        outer.note("loss [1.5]")
        outer.advance()
    last = next(line for line in reversed(out.getvalue().splitlines()) if "Training" in line)
    assert "2/2 steps (100%)" in last
    assert "loss [1.5]" in last
    assert "Validating" in out.getvalue()
    assert "Validating" not in out.getvalue()[out.getvalue().rindex("Training") :]
    with progress.task("Judging", total=None, unit="rows") as next_one:
        next_one.advance(3)
    assert "Judging" in out.getvalue()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 2  # the cursor comes back
