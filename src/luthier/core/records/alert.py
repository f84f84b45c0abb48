"""An alert: a signal of a deployed model that has changed, from when it is reported until it is well again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.signal import Signal

AlertStatus = Literal["open", "closed"]


class Alert(FrozenModel):
    """What is reported.

    Attributes:
        alert_id: its id.
        project_id: the project.
        model: the model, by the name it is asked for.
        signal: as it was when it was last looked at.
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
    """What a project wants looked at, and who is notified.

    Attributes:
        is_on: whether the server looks at all.
        every_minutes: how often.
        window_hours: what a look is about, up to now.
        models: looked at besides all deployments.
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
