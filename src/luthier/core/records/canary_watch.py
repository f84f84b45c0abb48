"""How a canary does beside the rest of its deployment, and when it is taken back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

CanaryState = Literal["too early", "holding", "worse"]


class CanaryRules(FrozenModel):
    """When a canary is rolled back.

    Attributes:
        error: the chance that one which is no worse than the rest is rolled back, over its whole life, all signals and
            all looks together.
        least_requests: expected of the canary before anything is said.
        rolls_back: whether the server rolls a worse canary back; if not, it only reports it.
        margin_failures: failed requests: a canary that is worse by less than this is kept, however sure it is. A
            fraction of all.
        margin_refusals: the same for refusals.
        margin_thumbs: the same for answers that people rate as bad.
        margin_score: the same for their mean score (0 to 1).
        margin_seconds_ratio: the same for seconds, as a ratio.
    """

    error: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    least_requests: Annotated[int, Field(ge=20)] = 50
    rolls_back: bool = True
    margin_failures: Annotated[float, Field(ge=0, lt=1)] = 0.01
    margin_refusals: Annotated[float, Field(ge=0, lt=1)] = 0.02
    margin_thumbs: Annotated[float, Field(ge=0, lt=1)] = 0.05
    margin_score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    margin_seconds_ratio: Annotated[float, Field(ge=1)] = 1.2


class CanarySignal(FrozenModel):
    """One thing in which the two are compared; more is worse.

    Attributes:
        name: for programs.
        title: for people.
        unit: of its values.
        canary: its value for the canary; None where there is none.
        rest: its value for the others; None where there is none.
        difference: canary minus rest, or their ratio where `is_ratio`.
        low: lower end of the plain 95% interval of this look.
        high: upper end of that interval.
        is_ratio: whether `difference` is a ratio.
        margin: what it has to be beyond.
        num_canary: exchanges of the canary that have such a value.
        num_rest: exchanges of the others that have such a value.
        num_canary_units: of how many users.
        p_value: one-sided, by randomisation over users.
        level: what it has to reach in this look.
        state: `too early` where it could not reach it, which `sentence` says.
        sentence: the finding.
    """

    name: str
    title: str
    unit: str
    canary: float | None = None
    rest: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    is_ratio: bool = False
    margin: float = 0.0
    num_canary: int = 0
    num_rest: int = 0
    num_canary_units: int = 0
    p_value: float | None = None
    level: float | None = None
    state: CanaryState = "too early"
    sentence: str = ""


class CanaryWatch(FrozenModel):
    """What was seen of a canary when it was last looked at.

    Attributes:
        project_id: the project.
        name: the name of the deployment.
        canary: the target that is tried.
        revision: of the deployment, since when it is tried as it is.
        at: when it was looked at, in seconds since 1970.
        since: since when the canary gets traffic as it is, in seconds since 1970.
        state: what the look has found.
        sentence: the finding.
        look: how many looks the traffic has come to; 0 before the first.
        num_canary: exchanges of the canary up to this look.
        num_rest: exchanges of the others up to this look.
        num_seen: of both up to now.
        next_at: the number of them that brings the next look.
        signals: what was compared.
        cautions: what the reader has to know.
        rolled_back_to: the revision that a rollback has made; None where none was.
        kept_because: why it was not rolled back although it is worse.
    """

    project_id: str
    name: str
    canary: str
    revision: int
    at: float
    since: float
    state: CanaryState
    sentence: str
    look: int = 0
    num_canary: int = 0
    num_rest: int = 0
    num_seen: int = 0
    next_at: int = 0
    signals: tuple[CanarySignal, ...] = ()
    cautions: tuple[str, ...] = ()
    rolled_back_to: int | None = None
    kept_because: str = ""
