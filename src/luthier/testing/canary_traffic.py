"""Made-up traffic of a deployment with a canary, to find out how often a test is wrong.

It is as real traffic is where that matters: a few users ask most of the time, some of them fail nearly always and some
always wait long, and the hours of the day differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

_EVERY: Final = 50


@dataclass(frozen=True, slots=True)
class CanaryWorld:
    """What is drawn from. All rates are fractions of the exchanges.

    Attributes:
        num_exchanges: exchanges of a trial.
        num_users: users that they are shared by.
        fraction: the canary's share of the users.
        failures: failed requests of the rest.
        more_failures: how many more the canary has.
        refusals: refusals of the rest.
        more_refusals: how many more the canary has.
        bad: bad ratings of the rest.
        more_bad: how many more the canary has.
        slower: how many times as long the canary takes.
        rated: exchanges that people rate.
    """

    num_exchanges: int = 5_000
    num_users: int = 600
    fraction: float = 0.1
    failures: float = 0.02
    more_failures: float = 0.0
    refusals: float = 0.03
    more_refusals: float = 0.0
    bad: float = 0.2
    more_bad: float = 0.0
    slower: float = 1.0
    rated: float = 0.1


def draw(world: CanaryWorld, seed: int) -> pl.DataFrame:
    """One trial, as the frame that `monitor.canary.compare` takes."""
    import polars as pl

    random = np.random.default_rng(seed)
    num, users = world.num_exchanges, world.num_users
    # [users]: weights with a heavy tail, so that a few users ask most of the time.
    busy = random.pareto(1.3, users) + 0.05
    # [num]: the user of each exchange. A user is in the canary with all of its exchanges, as `Deployment.chosen` does
    # it.
    unit = random.choice(users, num, p=busy / busy.sum())
    in_canary = random.random(users) < world.fraction
    is_canary = in_canary[unit]
    ended_at = np.sort(random.random(num)) * 86_400.0
    rush = 1 + 0.5 * np.sin(ended_at / 86_400 * 2 * np.pi)

    def happens(rate: float, more: float) -> NDArray[np.float64]:
        # Beta with mean `rate` and a small first shape: a few users often, most nearly never. [users] -> [num].
        own = random.beta(0.3, 0.3 * (1 - rate) / rate, users)[unit]
        return (random.random(num) < np.clip(own * rush + more * is_canary, 0, 1)).astype(float)

    # Log-normal times with an effect of the user: exchanges of one user are not independent.
    patience = random.normal(0, 0.5, users)[unit]
    seconds = np.exp(patience + random.normal(0, 0.6, num)) * rush * np.where(is_canary, world.slower, 1.0)
    is_rated = random.random(num) < world.rated
    bad = happens(world.bad, world.more_bad)
    mood = random.beta(4, 2, users)[unit]
    lacking = np.clip(1 - mood + random.normal(0, 0.1, num) + 0.5 * world.more_bad * is_canary, 0, 1)
    return pl.DataFrame(
        {
            "unit": [f"user {one}" for one in unit],
            "is_canary": is_canary,
            "ended_at": ended_at,
            "failed": happens(world.failures, world.more_failures),
            "seconds": seconds,
            "refused": happens(world.refusals, world.more_refusals),
            "bad": np.where(is_rated, bad, np.nan),
            "lacking": np.where(is_rated, lacking, np.nan),
            "rated_at": np.where(is_rated, ended_at + random.exponential(600, num), np.nan),
        }
        # NaN marked what was not rated; the comparison reads null.
    ).with_columns(pl.col("bad", "lacking", "rated_at").fill_nan(None))


def found_at(world: CanaryWorld, seed: int, *, error: float = 0.05) -> int | None:
    """Look again and again, as a server does; how many exchanges had come when it was called worse, None for never."""
    from luthier.core.records.canary_watch import CanaryRules
    from luthier.ml.drift.canary.compare import compare
    from luthier.ml.drift.canary.failure_streak import failing_streak

    rules, frame, next_at = CanaryRules(error=error), draw(world, seed), 0
    for num in range(_EVERY, frame.height + 1, _EVERY):
        seen = frame.head(num)
        if num < next_at:  # no new look: only what is found at once can have changed
            if failing_streak(seen) is not None:
                return num
            continue
        found = compare(seen, world.fraction, rules, seed=seed)
        if found.state == "worse":
            return num
        next_at = found.next_at
    return None
