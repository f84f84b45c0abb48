"""A deployment: a name under which models answer, its revisions, and its canary release.

Requests by the name go to the shares of its newest revision. Revisions are added and never changed: a rollback
adds one that is like the one before. A canary is compared with the rest of its deployment, and rolled back by rule.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from luthier.core.errors import ConflictError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.release_gate import GatePassage

MAX_SHARES: Final = 16
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_CLOSE: Final = 1e-6
_NUM_POINTS: Final = 1 << 53

RevisionKind = Literal["deploy", "canary", "split", "promote", "rollback"]


class Share(FrozenModel):
    """A target and the part of the traffic that it gets.

    Attributes:
        target: a run id, the name of a tuned or base model, or `export:FOLDER`, numbered where the project has deployed
            another folder of that name.
        fraction: its part of all users, above 0 to 1.
        folder: the folder of such an export.
        weights_sha256: digest of its weights when it got its share; None for other targets, and in earlier revisions.
    """

    target: str = Field(min_length=1, max_length=1024)
    fraction: float = Field(gt=0, le=1)
    folder: str | None = None
    weights_sha256: str | None = None


class Revision(FrozenModel):
    """Who gets what from one change to the next.

    Attributes:
        number: 1, 2, 3 ... within the deployment.
        kind: what made it.
        shares: the targets and their parts; a canary is the last one.
        canary: the target that is being tried, None where none is.
        before: the revision that a rollback goes back to, None for the first.
        created_at: seconds since 1970.
        gate: the result of the gates for its targets; None where none applied, and for a rollback, which no gate
            blocks.
        unjudged: targets without an evaluation when they were given their share.
    """

    number: int = Field(ge=1)
    kind: RevisionKind
    shares: tuple[Share, ...] = Field(min_length=1, max_length=MAX_SHARES)
    canary: str | None = None
    before: int | None = None
    created_at: float = 0.0
    gate: GatePassage | None = None
    unjudged: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        targets = [share.target for share in self.shares]
        if len(set(targets)) < len(targets):
            raise ValueError("a target has two shares")
        if not math.isclose(sum(share.fraction for share in self.shares), 1, abs_tol=_CLOSE):
            raise ValueError("the shares do not add up to 1")
        # `Deployment.chosen` starts at the last share: only there a larger canary takes users equally from all others.
        if self.canary is not None and targets[-1] != self.canary:
            raise ValueError("the canary is not the last share")
        return self

    @property
    def main_share(self) -> Share:
        """The target that most users get; never the canary, which is only ever added to others."""
        return max((one for one in self.shares if one.target != self.canary), key=lambda one: one.fraction)

    def share_of(self, target: str) -> Share | None:
        """The share of a target; None where it gets nothing."""
        return next((share for share in self.shares if share.target == target), None)


class Deployment(FrozenModel):
    """A name with its newest revision.

    Attributes:
        deployment_id: never used again, also what users are drawn by.
        project_id: the project.
        name: the name under which models are requested.
        revision: the newest one.
        created_at: seconds since 1970.
    """

    deployment_id: str
    project_id: str
    name: str
    revision: Revision
    created_at: float = 0.0

    def chosen(self, user: str) -> Share:
        """The share that a user belongs to: the same one for as long as the shares do not change.

        The shares are gone through from the last to the first, and each keeps the users whose own point for this
        target, from a hash, is below its part of what is left. So a canary that is raised takes users over from the
        others, and none changes in another way; a lowered one gives back those that came last. Of each new target the
        points are new: it is not the same people on whom all is tried.
        """
        # left: the fraction of all users that the shares already passed have not taken.
        shares, left = self.revision.shares, 1.0
        for share in reversed(shares[1:]):
            if _point(self.deployment_id, share.target, user) * left < share.fraction:
                return share
            left -= share.fraction
        return shares[0]


def first(share: Share) -> Revision:
    """The first revision: all for one target."""
    return Revision(number=1, kind="deploy", shares=(_whole(share),))


def split(shares: Sequence[Share], current: Revision | None) -> Revision:
    """The revision that shares traffic out as given, without a canary.

    Raises:
        RequestError: there are too few or too many targets, a target is named twice, or the fractions do not add up to
            1.
    """
    total = sum(share.fraction for share in shares)
    targets = [share.target for share in shares]
    if not 2 <= len(shares) <= MAX_SHARES or len(set(targets)) < len(targets):
        raise RequestError(
            f"a split over {', '.join(targets) or 'nothing'}",
            expected=f"2 to {MAX_SHARES} different targets",
            do="correct --split",
        )
    if not math.isclose(total, 1, abs_tol=1e-3):
        raise RequestError(
            f"the fractions of the split add up to {total:g}", expected="fractions that add up to 1", do="correct them"
        )
    # Scaled to 1: people type 0.33, 0.33, 0.33.
    exact = tuple(share.model_copy(update={"fraction": share.fraction / total}) for share in shares)
    return _next(current, "split", exact)


def replace(share: Share, current: Revision) -> Revision:
    """The revision that gives all to another target."""
    return _next(current, "deploy", (_whole(share),))


def with_canary(share: Share, current: Revision) -> Revision:
    """The revision that gives a fraction to a new target, and what is left to the others as they had it.

    Where the target is the canary already, its fraction is changed.

    Raises:
        RequestError: a fraction that is no part.
        ConflictError: another canary is being tried, or the target gets traffic already.
    """
    if not 0 < share.fraction < 1:
        raise RequestError(
            f"a canary of {share.fraction:g}",
            expected="a fraction between 0 and 1, such as 0.1",
            do="correct it; to give it all, leave it out",
        )
    if current.canary not in (None, share.target):
        raise ConflictError(
            f"{current.canary} is being tried as a canary already",
            expected="one canary at a time",
            do="promote it or roll it back first",
        )
    others = [one for one in current.shares if one.target != current.canary]
    if any(one.target == share.target for one in others):
        raise ConflictError(
            f"{share.target} gets traffic already",
            expected="a canary that is not one of the targets",
            do="share traffic out with --split, or give it all without --canary",
        )
    total = sum(one.fraction for one in others)
    # In proportion: the others keep their ratios to each other.
    rest = tuple(one.model_copy(update={"fraction": one.fraction / total * (1 - share.fraction)}) for one in others)
    made = _next(current, "canary", (*rest, share), canary=share.target)
    return made.model_copy(update={"unjudged": tuple(one.target for one in rest if one.target in current.unjudged)})


def promoted(current: Revision, target: str | None = None) -> Revision:
    """The revision that gives all traffic to one target.

    Args:
        current: The newest revision.
        target: One of its targets; None for its canary.

    Raises:
        ConflictError: There is no canary or no such target, or it has all traffic already.
    """
    chosen = current.canary if target is None else target
    share = None if chosen is None else current.share_of(chosen)
    if share is None:
        what = "there is no canary" if target is None else f"{target} gets no traffic"
        raise ConflictError(
            f"{what}: revision {current.number} goes to {', '.join(one.target for one in current.shares)}",
            expected="a canary, or one of these targets" if len(current.shares) > 1 else "a canary",
            do="name one of them" if len(current.shares) > 1 else "deploy another target with --canary first",
        )
    if len(current.shares) == 1:
        raise ConflictError(
            f"{share.target} gets all traffic already", expected="several targets", do="nothing needs to be done"
        )
    return _next(current, "promote", (_whole(share),))


def rolled_back(current: Revision, earlier: Revision) -> Revision:
    """The revision that is as an earlier one was; the next rollback goes to what came before that."""
    made = _next(current, "rollback", earlier.shares, canary=earlier.canary)
    # Otherwise a second rollback would return to the revision that the first one left.
    return made.model_copy(update={"before": earlier.before, "unjudged": earlier.unjudged})


def _next(
    current: Revision | None, kind: RevisionKind, shares: tuple[Share, ...], *, canary: str | None = None
) -> Revision:
    number = 0 if current is None else current.number
    return Revision(number=number + 1, kind=kind, shares=shares, canary=canary, before=number or None)


def _whole(share: Share) -> Share:
    return share.model_copy(update={"fraction": 1.0})


def _point(deployment_id: str, target: str, user: str) -> float:
    """A number in [0, 1) that looks random and is the same each time."""
    # A separator that no part contains: "a" + "bc" and "ab" + "c" must differ.
    words = "\0".join((deployment_id, target, user)).encode("utf-8", "surrogatepass")
    # 53 bits, all that a double holds: dividing 64 bits could round up to 1.0.
    return (int.from_bytes(hashlib.sha256(words).digest()[:8]) >> 11) / _NUM_POINTS


CanaryState = Literal["too early", "holding", "worse"]


class CanaryRules(FrozenModel):
    """When a canary is rolled back.

    Attributes:
        error: the chance that one which is no worse than the rest is rolled back, over its whole life, all signals and
            all looks together.
        least_requests: expected of the canary before any result.
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


CanaryFinding = Literal["better", "worse", "not distinguishable", "too few"]


class SideValue(FrozenModel):
    """A figure of one side of a canary release, with its 95% interval over users.

    Attributes:
        value: in the unit of the measure.
        low: lower end.
        high: upper end.
        num: answers that it is about.
        num_users: of how many users; who is not named counts by conversation or by answer.
    """

    value: float
    low: float
    high: float
    num: int
    num_users: int


class CanaryMeasure(FrozenModel):
    """One figure of both sides, up to now. The rules of the sequential test decide about a rollback, not this.

    Attributes:
        name: for programs.
        title: for people.
        unit: of the values.
        is_better_high: whether high values are the good ones.
        canary: the canary's; None where it has none.
        rest: that of the others; None where they have none.
        difference: canary minus rest; None without both.
        low: lower end of its 95% interval.
        high: upper end.
        finding: what follows at 95% for all measures together.
        missing: what is missing for a conclusion; empty where there is one.
    """

    name: str
    title: str
    unit: str
    is_better_high: bool = False
    canary: SideValue | None = None
    rest: SideValue | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    finding: CanaryFinding = "too few"
    missing: str = ""


class CanaryWatch(FrozenModel):
    """What was seen of a canary when it was last looked at.

    Attributes:
        project_id: the project.
        name: the name of the deployment.
        canary: the target that is tried.
        revision: of the deployment, since which it is tried unchanged.
        at: when it was looked at, in seconds since 1970.
        since: since when the canary gets its traffic unchanged, in seconds since 1970.
        state: what the look has found.
        sentence: the finding.
        look: how many looks there have been; 0 before the first.
        looks_before: how many there were at the same canary while it had other fractions.
        num_canary: exchanges of the canary up to this look.
        num_rest: exchanges of the others up to this look.
        num_seen: of both up to now.
        next_at: the number of them that brings the next look.
        signals: what was compared.
        cautions: what the reader has to know.
        rolled_back_to: the revision that a rollback has made; None where none was.
        kept_because: why it was not rolled back although it is worse.
        measures: both sides beside each other, up to now.
        summary: whether they can be distinguished, in words; empty before the first comparison.
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
    looks_before: int = 0
    num_canary: int = 0
    num_rest: int = 0
    num_seen: int = 0
    next_at: int = 0
    signals: tuple[CanarySignal, ...] = ()
    cautions: tuple[str, ...] = ()
    rolled_back_to: int | None = None
    kept_because: str = ""
    measures: tuple[CanaryMeasure, ...] = ()
    summary: str = ""
