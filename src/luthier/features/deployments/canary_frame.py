"""The exchanges of a deployment since a canary began, as `monitor.canary` compares them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.digest import sha256_document
from luthier.core.records.feedback import Feedback
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

_SERVER_ERROR, _NOT_FOUND = 500, 404


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """Counts about a frame.

    Attributes:
        num_with_text: Exchanges whose text is stored.
        num_unnamed: Exchanges whose user is not known.
        num_dropped: Exchanges of the time that the log has dropped.
    """

    num_with_text: int
    num_unnamed: int
    num_dropped: int


def canary_frame(
    context: Context, project_id: str, name: str, *, canary: str, since: float, with_text: bool = True
) -> tuple[pl.DataFrame, FrameSummary]:
    """One row an exchange, with the columns of `monitor.canary.compare`. since: seconds since 1970.

    A request has failed where the status is 500 or above, or 404, as when the files of a target are gone: what a client
    has asked wrongly or too often is no fault of the model, and is left out. Refusals are those of the texts that are
    kept; without with_text there are none, and it is quick. `bad` is a thumb down or a correction, `lacking` what is
    missing to a full score; of several authors the mean counts.
    """
    import polars as pl

    from luthier.ml.evaluation.safety.refusal import is_refusal

    found = traffic.exchanges(context, project_id, model=name, since=since, with_text=with_text)
    has_failed = (pl.col("status") >= _SERVER_ERROR) | (pl.col("status") == _NOT_FOUND)
    # Exchanges of an earlier canary of this name are left out: they belong to neither side.
    is_theirs = ~pl.col("is_canary") | (pl.col("target") == canary)
    found = found.filter(is_theirs & ((pl.col("status") < 400) | has_failed))
    said = _said(context.feedback.list(project_id, model=name, since=since))
    answers, failed = found["answer"].to_list(), found.select(has_failed)["status"].to_list()
    ids = found["exchange_id"].to_list()
    units, num_unnamed = _units(found)
    frame = pl.DataFrame(
        {
            "unit": units,
            "is_canary": found["is_canary"],
            "ended_at": found["at"] + found["seconds"],
            "failed": [float(one) for one in failed],
            # A failed request has no latency to compare: an immediate 500 would make a broken canary look fast.
            "seconds": [None if bad else one for bad, one in zip(failed, found["seconds"], strict=True)],
            # Null, not 0, where there is no text: nulls are left out of a rate, zeros would lower it.
            "refused": [
                None if bad or text is None else float(is_refusal(text))
                for bad, text in zip(failed, answers, strict=True)
            ],
            "bad": [said[one][0] if one in said else None for one in ids],
            "lacking": [said[one][1] if one in said else None for one in ids],
            "rated_at": [said[one][2] if one in said else None for one in ids],
        },
        # A column of nulls only would be inferred as type Null, and comparisons on it fail.
        schema_overrides=dict.fromkeys(("failed", "seconds", "refused", "bad", "lacking", "rated_at"), pl.Float64()),
    )
    num_with_text = sum(one is not None for one in answers)
    dropped = traffic.num_dropped(context, project_id, since, context.access.now())
    return frame, FrameSummary(num_with_text, num_unnamed, dropped)


def _said(given: Sequence[Feedback]) -> dict[str, tuple[float | None, float | None, float]]:
    """By exchange: whether it is bad, what is missing to the full score, and when the last of it was said."""
    by_exchange: dict[str, list[Feedback]] = {}
    for one in given:
        by_exchange.setdefault(one.exchange_id, []).append(one)
    found = {}
    for exchange_id, words in by_exchange.items():
        # A correction without a thumb counts as bad: somebody had to write what the answer should have been.
        bad = [float(w.thumb == "down" or bool(w.correction)) for w in words if w.thumb or w.correction]
        lacking = [1 - w.score for w in words if w.score is not None]
        found[exchange_id] = (_mean(bad), _mean(lacking), max(w.created_at for w in words))
    return found


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _units(found: pl.DataFrame) -> tuple[list[str], int]:
    """Who was drawn into the canary or out of it, for each exchange, and how many name no user.

    Without a user the draw is by the beginning of the conversation (`serving.models.user_of`), so that is the unit
    where its text is kept, else the exchange. A user of whom there are exchanges on both sides was not drawn as one.
    """
    import polars as pl

    named = found.filter(pl.col("user_digest") != "")
    # The test needs independent units. One user's exchanges depend on each other, so a user is one unit; one who
    # was seen on both sides was routed by conversation or by request, and does not qualify.
    sides = named.group_by("user_digest").agg(pl.col("is_canary").n_unique().alias("num_sides"))
    not_drawn = {"", *sides.filter(pl.col("num_sides") > 1)["user_digest"].to_list()}
    units, num_unnamed = [], 0
    columns = ("user_digest", "exchange_id", "messages")
    for user, exchange_id, messages in zip(*(found[one].to_list() for one in columns), strict=True):
        if user not in not_drawn:
            units.append(f"user {user}")
            continue
        num_unnamed += 1
        units.append(f"exchange {exchange_id}" if messages is None else f"talk {_beginning(messages)}")
    return units, num_unnamed


def _beginning(messages: str) -> str:
    """A digest of what a conversation begins with: the system's words and the first of the user."""
    parsed = json.loads(messages)
    first = [one for one in parsed if one.get("role") == "user"][:1]
    system = [one for one in parsed if one.get("role") in ("system", "developer")][:1]
    return sha256_document([one.get("content") for one in (*system, *first)])
