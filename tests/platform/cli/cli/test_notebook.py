"""The chart of the loss in a notebook, by IPython's own display."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.core.events import RunStarted, ValidationDone
from luthier.platform.cli import notebook
from luthier.testing.records import make_step


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Cell:
    """What a cell shows: IPython's `display` with an id, as a handle that can be updated."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def __call__(self, shown: Any, *, display_id: bool) -> Cell:
        assert display_id
        self.shown.append(shown)
        return self

    def update(self, shown: Any) -> None:
        self.shown.append(shown)


def chart() -> tuple[notebook.LiveChart, Cell, Clock]:
    cell, clock = Cell(), Clock()
    return notebook.LiveChart(cell, clock), cell, clock


def test_it_is_drawn_once_a_second_after_validations_and_at_the_end() -> None:
    live, cell, clock = chart()
    live.listen(RunStarted(from_step=0, num_steps=6))
    for step, now in ((1, 0.0), (2, 0.5), (3, 1.5), (4, 1.6)):
        clock.now = now
        live.listen(make_step(step, loss=1 / step))
    assert [repr(one).split(",")[0] for one in cell.shown] == ["step 1 of 6", "step 3 of 6"]
    live.listen(ValidationDone(step=4, loss=0.25, num_trained_tokens=9, is_best=True, seconds=1.0))
    live.listen(make_step(5))
    live.listen(make_step(6))
    assert [repr(one).split(",")[0] for one in cell.shown[2:]] == ["step 4 of 6", "step 6 of 6"]
    words = repr(cell.shown[2])
    assert words == (
        "step 4 of 6, epoch 0.80, training loss 0.25, validation loss 0.25, 400 tokens/s, about 0.5 s of training left"
    )
    page = cell.shown[2]._repr_html_()
    assert "<svg" in page
    assert f"<p>{words}</p>" in page


def test_steps_that_are_trained_again_are_drawn_once() -> None:
    live, cell, _ = chart()
    live.listen(RunStarted(from_step=0, num_steps=3))
    for step in (1, 2):
        live.listen(make_step(step))
    live.listen(RunStarted(from_step=1, num_steps=3))
    live.listen(make_step(2))
    assert [event.step for event in live._events] == [1, 2]  # type: ignore[union-attr]
    assert cell.shown


def test_a_cell_that_cannot_be_drawn_ends_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    live, cell, clock = chart()
    cell.update = lambda shown: 1 / 0  # type: ignore[method-assign]
    live.listen(RunStarted(from_step=0, num_steps=9))
    for step in (1, 2, 3):
        clock.now = 10.0 * step
        live.listen(make_step(step))
    assert len(cell.shown) == 1
    assert capsys.readouterr().err.count("the chart is no longer drawn (ZeroDivisionError") == 1


@pytest.fixture
def shell() -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell

    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_a_notebook_gets_one_output_that_is_replaced_and_a_terminal_none(shell: Any) -> None:
    from IPython.utils.capture import capture_output

    assert notebook.live_chart() is None, "a shell in a terminal"
    shell.kernel = object()
    listen = notebook.live_chart()
    assert listen is not None
    with capture_output() as captured:
        listen(RunStarted(from_step=0, num_steps=1))
        listen(make_step(1))
    (shown,) = captured.outputs
    assert "<svg" in shown.data["text/html"]
    assert shown.data["text/plain"].startswith("step 1 of 1")


def test_importing_it_loads_no_ipython() -> None:
    code = (
        "import luthier.platform.cli.notebook as n, sys; print(n.live_chart(), 'IPython' in sys.modules, "
        "'luthier.ml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None False False\n"
