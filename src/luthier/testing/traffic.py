"""Made-up traffic of a deployed model: steady, with a change at a known exchange, or with a canary.

Steady does not mean flat: there are busy and quiet hours and weekends, an answer is slower when there is more to do
and when the hour before was slow, users write several turns on one topic, and topics are asked for unequally often.

Traffic with a canary shows how often a test is wrong. A few users ask most of the time, some of them fail nearly
always and some always wait long, and the hours of the day differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUM_TOPICS = 8
_WORDS_A_TOPIC = 40
_NUM_COMMON = 150
BEGINS = 20_048 * 86_400.0  # 2024-11-21, a Thursday, on which a stretch of the signals begins


@dataclass(frozen=True, slots=True)
class Change:
    """What changes from one exchange on.

    Attributes:
        at: the number of that exchange.
        moved: the share of the exchanges after it that change.
        topic: whether they ask about a new topic.
        refusals: whether they are refused.
        slower: how many times as long all answers take.
    """

    at: int
    moved: float = 0.0
    topic: bool = False
    refusals: bool = False
    slower: float = 1.0


def made_traffic(days: float, exchanges_an_hour: float, *, seed: int, change: Change | None = None) -> pl.DataFrame:
    """Exchanges from `BEGINS` on, oldest first, with the columns that the signals read. Equal seeds, equal rows.

    Args:
        days: The length of the stretch.
        exchanges_an_hour: On average over a weekday; about half of it at weekends, a fifth of it by night.
        seed: Of all draws.
        change: What changes at some exchange; None for steady traffic.
    """
    generator = np.random.default_rng(seed)
    at, load = _times(days, exchanges_an_hour, generator)
    num = len(at)
    # [num] bool: without a change the index is behind the last exchange.
    is_after = np.arange(num) >= (num if change is None else change.at)
    is_moved = is_after & (generator.random(num) < (0.0 if change is None else change.moved))
    first = _first_turns(num, generator)
    # [topics]: about Zipf, as topics are asked for unequally often.
    odds = 1 / (2 + np.arange(_NUM_TOPICS))
    topics = generator.choice(_NUM_TOPICS, size=num, p=odds / odds.sum())
    if change is not None and change.topic:
        topics[is_moved] = _NUM_TOPICS
    # Indexing by the first turn copies its topic to all exchanges of the same user. [num]
    topics = topics[first]  # the next turn stays with the topic
    prompts = [_prompt(int(topic), generator) for topic in topics]
    refused = generator.random(num) < 0.02
    if change is not None and change.refusals:
        refused |= is_moved
    answers = ["I'm sorry, but I cannot help with that." if one else _answer(generator) for one in refused]
    seconds = generator.lognormal(0.0, 0.4, num) * load
    if change is not None:
        seconds[is_after] *= change.slower
    is_error = generator.random(num) < 0.004
    return pl.DataFrame(
        {
            "exchange_id": [f"chatcmpl-{seed}-{place}" for place in range(num)],
            "at": at,
            "user_digest": [f"user-{place}" for place in first],
            "status": np.where(is_error, 500, 200),
            "finish_reason": np.where(generator.random(num) < 0.05, "length", "stop"),
            "num_prompt_tokens": [len(prompt.split()) + 12 for prompt in prompts],
            "num_new_tokens": [len(answer.split()) for answer in answers],
            "seconds": seconds,
            "first_token_seconds": seconds * 0.1,
            "cost_usd": np.full(num, None, dtype=object),
            "messages": [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts],
            "answer": answers,
        },
        schema_overrides={"cost_usd": pl.Float64},
    )


def _times(days: float, an_hour: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Times, and how much longer than usual an answer takes then."""
    hours = np.arange(round(days * 24))
    # [hours]: least at 3 in the night, most at 15.
    rhythm = 1 - 0.8 * np.cos(2 * np.pi * (hours % 24 - 3) / 24)
    # Day 0 is a Thursday (3 from Monday): 5 and 6 are the weekend.
    volume = rhythm * np.where((hours // 24 + 3) % 7 >= 5, 0.5, 1.0)
    counts = generator.poisson(an_hour * volume)
    # An AR(1) process: an hour is slow more often after a slow one, so hours are not independent.
    wander = np.zeros(len(hours))
    for hour in range(1, len(hours)):
        wander[hour] = 0.5 * wander[hour - 1] + generator.normal(0.0, 0.1)
    of_hour = np.repeat(hours, counts)
    at = BEGINS + 3_600 * (of_hour + generator.random(len(of_hour)))
    order = np.argsort(at, kind="stable")
    load = (1 + 0.5 * volume) * np.exp(wander)
    return at[order], load[of_hour][order]


def _first_turns(num: int, generator: np.random.Generator) -> np.ndarray:
    """For each exchange the one that its user began with: a third of them continue with what was asked just before."""
    goes_on = generator.random(num) < 1 / 3
    # Who begins has its own index, who continues 0: the running maximum carries the last beginning forward. [num]
    found: np.ndarray = np.maximum.accumulate(np.where(goes_on, 0, np.arange(num)))
    return found


def _prompt(topic: int, generator: np.random.Generator) -> str:
    """Words of a topic among common ones."""
    size = int(generator.integers(6, 20))
    # Zipf has no upper end: what is beyond the vocabulary becomes its last word.
    own = np.minimum(generator.zipf(1.4, size) - 1, _WORDS_A_TOPIC - 1)
    common = np.minimum(generator.zipf(1.3, size) - 1, _NUM_COMMON - 1)
    is_own = generator.random(size) < 0.4
    return " ".join(
        f"{_letters(topic)}{_letters(int(one))}" if mine else f"c{_letters(int(other))}"
        for mine, one, other in zip(is_own, own, common, strict=True)
    )


def _answer(generator: np.random.Generator) -> str:
    return " ".join(["Here is what you asked for."] * int(generator.integers(1, 8)))


def _letters(number: int) -> str:
    """A made word for a number."""
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:02d}") + "lo"


def last_prompts(frame: pl.DataFrame) -> list[str]:
    """The prompts of made traffic."""
    return [json.loads(messages)[-1]["content"] for messages in frame["messages"].to_list()]


def with_prompts(frame: pl.DataFrame, prompts: Sequence[str]) -> pl.DataFrame:
    """The traffic with other prompts, one an exchange."""
    messages = [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts]
    return frame.with_columns(messages=pl.Series(messages))


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
    from luthier.core.records.deployment import CanaryRules
    from luthier.ml.drift.canary import compare, failing_streak

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
