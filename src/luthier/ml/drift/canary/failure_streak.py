"""A canary that has stopped working: found at once, without waiting for a look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import polars as pl

MIN_STREAK: Final = 20
MIN_USERS: Final = 2
MIN_OF_REST: Final = 5
MAX_FAILING_OF_REST: Final = 0.5


def failing_streak(frame: pl.DataFrame) -> str | None:
    """What to say where the canary's newest 20 answers have all failed, and the rest's of that time mostly not.

    At a failure rate of one in five, 20 in a row come once in 10^14 times. Two users are required, so that one alone
    cannot bring it about. Where fewer than 5 of the rest were asked meanwhile, an outage of everything would look the
    same, and nothing is said.

    Args:
        frame: as of `compare`, in the order of `ended_at`.
    """
    canary = frame.filter(frame["is_canary"])
    newest = canary.tail(MIN_STREAK)
    if newest.height < MIN_STREAK or not bool((newest["failed"].cast(float).fill_null(0.0) == 1.0).all()):
        return None
    num_users = newest["unit"].n_unique()
    if num_users < MIN_USERS:
        return None
    begin = float(newest["ended_at"].min())  # type: ignore[arg-type]
    rest = frame.filter(~frame["is_canary"] & (frame["ended_at"] >= begin))["failed"].cast(float).fill_null(0.0)
    # Nothing of the rest counts as failing, so that no streak is reported without a comparison.
    failing = float(np.mean(rest.to_numpy())) if rest.len() else 1.0
    if rest.len() < MIN_OF_REST or failing >= MAX_FAILING_OF_REST:
        return None
    return (
        f"the newest {MIN_STREAK} answers of the canary, of {num_users} users, have all failed, while of "
        f"{rest.len():,} of the rest in the same time {failing:.1%} did"
    )
