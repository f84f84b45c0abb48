"""Monitoring of a deployed model: alerts with their rules, and the settings of an operator.

An alert is a signal that has changed, from when it is reported until it is back to normal.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.signal import Signal

AlertStatus = Literal["open", "closed"]


class Alert(FrozenModel):
    """What is reported.

    Attributes:
        alert_id: its id.
        project_id: the project.
        model: the model, by the name it is requested under.
        signal: its state at the last look.
        status: closed once the signal is well again.
        opened_at: seconds since 1970.
        closed_at: seconds since 1970; None while it is open.
    """

    alert_id: str
    project_id: str
    model: str
    signal: Signal
    status: AlertStatus = "open"
    opened_at: float = 0.0
    closed_at: float | None = None


class AlertRule(FrozenModel):
    """How many looks in a row open and close an alert, the first time in a week.

    Attributes:
        open_after: looks at which the signal has changed.
        close_after: looks at which it has not.
    """

    open_after: Annotated[int, Field(ge=1, le=24)] = 1
    close_after: Annotated[int, Field(ge=1, le=24)] = 3


class AlertSettings(FrozenModel):
    """What is monitored for a project, and who is notified.

    Attributes:
        is_on: whether the server looks at all.
        every_minutes: how often.
        window_hours: what a look is about, up to now.
        models: monitored in addition to all deployments.
        left_out: deployments that are not.
        emails: who is sent a mail.
        rule: when alerts open and close.
    """

    is_on: bool = True
    every_minutes: Annotated[int, Field(ge=5, le=24 * 60)] = 60
    window_hours: Annotated[int, Field(ge=1, le=24 * 31)] = 24
    models: Annotated[tuple[str, ...], Field(max_length=50)] = ()
    left_out: Annotated[tuple[str, ...], Field(max_length=500)] = ()
    emails: Annotated[tuple[str, ...], Field(max_length=20)] = ()
    rule: AlertRule = AlertRule()


SETTINGS_KIND: Final = "signals"
"""The kind of the documents of `watches` that hold the settings of a model."""


class WatchSettings(FrozenModel):
    """Kept for each model of a project.

    Attributes:
        groups: names of groups of people, and the regular expressions (of either case) that identify a prompt as
            of them.
        corpus: documents that answers may cite, absolute.
        data: rows like those that it was trained on, absolute; None takes those of its run.
        normal_since: seconds since 1970; what was before is not to be compared with.
        judge: a model that scores samples of its answers, as `luthier eval --judge` names it; None evaluates none.
        num_judged: answers of the window, and as many of the time before.
        suite: a suite that judges it again and again, absolute; None has none.
        suite_every_hours: from one beginning to the next.
    """

    groups: dict[str, str] = Field(default_factory=dict)
    corpus: str | None = None
    data: str | None = None
    normal_since: float = 0.0
    judge: str | None = None
    num_judged: Annotated[int, Field(ge=20, le=1000)] = 60
    suite: str | None = None
    suite_every_hours: Annotated[float, Field(ge=1, le=24 * 366)] = 24.0
