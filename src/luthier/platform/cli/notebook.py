"""The loss of a run as a chart in a notebook, drawn again while it trains.

Nothing is installed or imported for it: a notebook has loaded IPython already. Elsewhere, in a terminal too, progress
is shown as text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, Final

from luthier.core.events import Event, RunStarted, StepDone, ValidationDone, comparable_loss
from luthier.core.ports import EventSink
from luthier.platform.cli import figures

_FEWEST_SECONDS: Final = 1.0
_SHARE: Final = 20
"""Drawing takes at most one part in this many of the time."""


def live_chart() -> EventSink | None:
    """A listener of events that draws them below the current cell; None outside of a notebook."""
    # Looked up, not imported: a program that has not loaded IPython is no notebook.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    # A shell in a terminal has no kernel, and shows no pictures.
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display

    return LiveChart(display).listen


class LiveChart:
    """One output of a cell that is replaced while events come in.

    Args:
        display: IPython's function of this name.
        clock: Seconds that only grow.
    """

    def __init__(self, display: Callable[..., Any], clock: Callable[[], float] = time.perf_counter) -> None:
        self._display, self._clock = display, clock
        self._handle: Any = None
        self._events: list[Event] = []
        self._num_steps = 0
        self._next = float("-inf")
        self._has_failed = False

    def listen(self, event: Event) -> None:
        """Take an event; draw if the last drawing is old enough, and after each validation and the last step."""
        if isinstance(event, RunStarted):
            # Steps behind the checkpoint are trained again.
            self._events = [one for one in self._events if one.step <= event.from_step]  # type: ignore[union-attr]
            self._num_steps = event.num_steps
            return
        if self._has_failed or not isinstance(event, StepDone | ValidationDone):
            return
        self._events.append(event)
        is_last = event.step >= self._num_steps
        if is_last or isinstance(event, ValidationDone) or self._clock() >= self._next:
            self._draw()

    def _draw(self) -> None:
        began = self._clock()
        try:
            shown = _Shown(self._words(), self._chart())
            if self._handle is None:
                self._handle = self._display(shown, display_id=True)
            else:
                self._handle.update(shown)
        except Exception as error:  # noqa: BLE001 - a page that cannot be drawn must not end a training
            self._has_failed = True
            sys.stderr.write(f"the chart is no longer drawn ({type(error).__name__}: {error}); training continues\n")
        now = self._clock()
        self._next = now + max(_FEWEST_SECONDS, _SHARE * (now - began))

    def _chart(self) -> str:
        from luthier.ml.charts.svg import svg_alone
        from luthier.ml.evaluation.report.charts import curves, loss_plot

        return str(svg_alone(loss_plot(curves(self._events))))

    def _words(self) -> str:
        steps = [event for event in self._events if isinstance(event, StepDone)]
        validations = [event for event in self._events if isinstance(event, ValidationDone)]
        parts = []
        if steps:
            last = steps[-1]
            parts = [
                f"step {last.step:,} of {self._num_steps:,}",
                *([] if last.epoch is None else [f"epoch {last.epoch:.2f}"]),
                f"training loss {comparable_loss(last):.4g}",
            ]
        if validations:
            parts.append(f"validation loss {validations[-1].loss:.4g}")
        # Of the last steps: the first ones of a process are slower.
        recent = steps[-50:]
        seconds = sum(event.seconds for event in recent)
        if seconds > 0:
            parts.append(f"{sum(event.num_tokens for event in recent) / seconds:,.0f} tokens/s")
            left = (self._num_steps - recent[-1].step) * seconds / len(recent)
            parts += [f"about {figures.duration(left)} of training left"] if left > 0 else []
        return ", ".join(parts)


class _Shown:
    """What a cell shows: a chart, or its words where only text can be shown."""

    def __init__(self, words: str, chart: str) -> None:
        self._words, self._chart = words, chart

    def __repr__(self) -> str:
        return self._words

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._words)}</p>{self._chart}"
