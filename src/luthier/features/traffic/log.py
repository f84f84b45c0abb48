"""Use cases: keep what was asked and answered, as far as the project's policy says, beside the answer.

`keep` is called where an ask ends, in the thread that counts its tokens. It takes microseconds and never raises.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.digest import sha256_bytes
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.features.traffic import service as traffic
from luthier.features.traffic.files import settle
from luthier.features.traffic.policy import traffic_policy, user_digest, user_key
from luthier.features.traffic.spans import Spans
from luthier.ml.drift.traffic.log import FAILED, Lost, TrafficLog
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.frozen_model import FrozenModel

_KNOWN_SECONDS: Final = 5.0
_NUM_POINTS: Final = 1 << 32
log = logging.getLogger("luthier.service")


class TrafficRecorder:
    """Records traffic for a serving process: a log, cached policies, and spans."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[str, tuple[float, TrafficPolicy, bytes]] = {}
        self.spans = Spans.from_environment()
        self.log = TrafficLog(
            traffic.spool(context),
            mask_texts,
            tell_lost=lambda lost: count_lost(context, lost),
            settle=lambda: settle(context),
        )

    def known(self, project_id: str) -> tuple[TrafficPolicy, bytes]:
        """A project's policy and the key of its users, asked of the database every few seconds."""
        now = time.monotonic()
        # No lock: two threads may both ask the database, and the last answer wins.
        found = self._known.get(project_id)
        if found is None or now - found[0] > _KNOWN_SECONDS:
            policy = traffic_policy(self._context, project_id)
            found = self._known[project_id] = (now, policy, user_key(self._context, project_id))
        return found[1:]

    def close(self) -> None:
        """Write and send what waits."""
        self.log.close()
        if self.spans is not None:
            self.spans.close()


def keep(
    context: Context,
    asked: Exchange,
    user: str = "",
    words: Callable[[], tuple[Sequence[FrozenModel], str] | None] = lambda: None,
) -> None:
    """Have an exchange kept as the project's policy says; never raises, and does not wait.

    Args:
        context: The home.
        asked: The exchange, without its words and its user.
        user: Whose request it was, where a user is named.
        words: Messages and answer; called only where they are kept.
    """
    recorder = None
    try:
        recorder = context.traffic_recorder
        policy, key = recorder.known(asked.project_id)
        if policy.keep == "off":
            return
        changes: dict[str, object] = {"user_digest": user_digest(key, user)}
        if keeps_words(policy, asked.exchange_id) and (found := words()) is not None:
            messages = tuple(one.model_dump(mode="json", exclude_defaults=True) for one in found[0])
            changes |= {"messages": messages, "answer": found[1]}
        recorder.log.offer(asked.model_copy(update=changes), is_masked=policy.mask_personal_data)
    except Exception:
        log.exception("an exchange is not in the log")
        if recorder is not None:
            recorder.log.lose(asked, FAILED)


def keeps_words(policy: TrafficPolicy, exchange_id: str) -> bool:
    """Whether the words of an exchange are kept: of a sample by its id, so that the same one is drawn again."""
    if policy.keep == "sampled":
        # The first 32 bits of the digest are uniform on [0, 2**32).
        point = int(sha256_bytes(exchange_id.encode())[:8], 16)
        return point < policy.fraction * _NUM_POINTS
    return policy.keep == "full"


def mask_texts(groups: Sequence[Sequence[str]]) -> list[tuple[list[str], int]]:
    """Texts without personal data and secrets, and how many places that were; the same value in a group gets the same
    stand-in (`data.masking`). Names of people are not looked for: that takes a language model for each language."""
    import polars as pl

    from luthier.ml.data.personal_data.find import may_hold_personal_data
    from luthier.ml.data.personal_data.masking import Pseudonyms, mask_personal_data, mask_secrets

    # Lone surrogates, which JSON may carry, cannot be held by an Arrow string.
    texts = [[text.encode("utf-8", "replace").decode() for text in group] for group in groups]
    flat = pl.Series("text", [text for group in texts for text in group], dtype=pl.String)
    suspects = iter(may_hold_personal_data(flat).to_list())
    found = []
    for group in texts:
        pseudonyms, num_masked, kept = Pseudonyms(), 0, []
        for text in group:
            counts: list[int] = []
            # One vectorised scan marks the texts that may hold personal data; the slow rules run on these alone.
            if next(suspects):
                text, by_kind = mask_personal_data(text, pseudonyms)
                counts += by_kind.values()
            text, by_kind = mask_secrets(text, pseudonyms)
            num_masked += sum([*counts, *by_kind.values()])
            kept.append(text)
        found.append((kept, num_masked))
    return found


def count_lost(context: Context, lost: Lost) -> None:
    """Add to what is known to be lost, by hour. Raises where the database does not take it."""
    by_hour: dict[tuple[str, str], dict[str, int]] = {}
    for (project_id, at, reason), count in lost.items():
        counts = by_hour.setdefault((project_id, traffic.hour_of(at)), {})
        counts[reason] = counts.get(reason, 0) + count
    known = {one.project_id for one in context.access.projects()}
    for (project_id, hour), counts in by_hour.items():
        if project_id not in known:
            continue

        # The default binds this round's counts: a closure would see the last one's.
        def more(kept: str | None, counts: dict[str, int] = counts) -> str:
            sums: dict[str, int] = json.loads(kept or "{}")
            return json.dumps(sums | {reason: sums.get(reason, 0) + count for reason, count in counts.items()})

        # Read and written in one transaction: several servers add to the same hour.
        context.watches.change(project_id, traffic.LOST, hour, more)
