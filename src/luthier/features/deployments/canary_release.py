"""Use case: compare canaries with the rest of their deployments, and roll back a worse one, with the reason.

server's periodic check -> check_canaries -> traffic, feedback -> monitor.canary -> rollback, audit log, watches

Both sides beside each other, up to now, also by the judge that the model has, are stored with the last check of the
canary, so that a page reads no traffic.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.core.ids import sha256_bytes, sha256_document
from luthier.core.records.deployment import CanaryMeasure, CanaryRules, CanaryWatch, Deployment
from luthier.core.records.monitoring import SETTINGS_KIND, WatchSettings
from luthier.core.records.traffic import Feedback
from luthier.core.text.counted import counted
from luthier.features.deployments import service as deployments
from luthier.features.deployments.store import CANARY_RULES, CANARY_SEEN
from luthier.features.traffic import service as traffic
from luthier.platform.audit_log import service as audit_log
from luthier.platform.auth.members import caller_for
from luthier.platform.auth.members_store import Member
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis import answer_to
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

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

    Args:
        context: The home.
        project_id: The project.
        name: The deployment.
        canary: The target that is tried.
        since: Exchanges of this time and later, in seconds since 1970.
        with_text: Whether the texts are read, which refusals are counted in.
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
            "exchange_id": ids,
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
    """By exchange: whether it is bad, what is missing to the full score, and the time of the latest feedback."""
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

    Without a user the draw is by the key and the beginning of the conversation (`serving.models.user_of`), so that
    beginning is the unit where its text is kept, else the exchange. A user of whom there are exchanges on both sides
    was not drawn as one.
    """
    import polars as pl

    named = found.filter(pl.col("user_digest") != "")
    # The test needs independent units. One user's exchanges depend on each other, so a user is one unit; one who
    # was seen on both sides was routed by conversation or by request, and does not qualify.
    sides = named.group_by("user_digest").agg(pl.col("is_canary").n_unique().alias("num_sides"))
    not_drawn = {"", *sides.filter(pl.col("num_sides") > 1)["user_digest"].to_list()}
    units, num_unnamed = [], 0
    columns = ("user_digest", "exchange_id", "messages", "is_canary")
    for user, exchange_id, messages, is_canary in zip(*(found[one].to_list() for one in columns), strict=True):
        if user not in not_drawn:
            units.append(f"user {user}")
            continue
        num_unnamed += 1
        if messages is None:
            units.append(f"exchange {exchange_id}")
            continue
        # With the side: conversations of two keys may begin alike and be drawn apart, and a unit is on one side.
        units.append(f"talk {_beginning(messages)} of {'the canary' if is_canary else 'the rest'}")
    return units, num_unnamed


def _beginning(messages: str) -> str:
    """A digest of what a conversation begins with: the system's words and the first of the user."""
    parsed = json.loads(messages)
    first = [one for one in parsed if one.get("role") == "user"][:1]
    system = [one for one in parsed if one.get("role") in ("system", "developer")][:1]
    return sha256_document([one.get("content") for one in (*system, *first)])


log = logging.getLogger("luthier.service")

_WATCHER: Final = "canary watch"


@dataclass(frozen=True, slots=True)
class _CanaryState:
    """What a look is about, and what it has to know of how the traffic was kept.

    Attributes:
        looks_before: Looks at the same canary while it had other fractions.
    """

    deployment: Deployment
    canary: str
    fraction: float
    rules: CanaryRules
    looks_before: int


def check_canaries(context: Context) -> list[CanaryWatch]:
    """Look at every canary of every project, once; what was seen of each. For a server to call now and then.

    How often it is called only changes how soon a thing is seen: see `ml.drift.canary.interim_looks`. What goes wrong
    with one of them is logged, and the others are looked at all the same.
    """
    seen = []
    # One call covers all projects, since the server has one thread for it.
    for project in context.access.projects():
        for deployment in context.deployments.list(project.project_id):
            if deployment.revision.canary is None:
                continue
            try:
                seen.append(check_canary(context, Caller(project_id=project.project_id), deployment.name))
            except LuthierError as error:
                log.error("the canary of %s was not checked: %s", deployment.name, error.came)
            except Exception:
                log.exception("the canary of %s was not checked", deployment.name)
    return seen


def check_canary(context: Context, caller: Caller, name: str, *, may_roll_back: bool = True) -> CanaryWatch:
    """Check the canary of one deployment, and roll it back where it is worse and the rules allow it.

    Raises NotFoundError for the name, ConflictError where no canary is being tried.
    """
    from luthier.ml.drift.canary import compare

    look = _look(context, caller, name)
    revision = look.deployment.revision
    # The fast check first: this runs every few seconds.
    if (same := _still(context, look)) is not None:
        context.watches.put(caller.project_id, CANARY_SEEN, name, same.model_dump_json())
        return same
    frame, summary = canary_frame(context, caller.project_id, name, canary=look.canary, since=revision.created_at)
    # One look of a sequential test; its error is spent over all looks, so it may be repeated without correction.
    found = compare(frame, look.fraction, look.rules, seed=_seed(look.deployment), looks_before=look.looks_before)
    watch = CanaryWatch(
        project_id=caller.project_id,
        name=name,
        canary=look.canary,
        revision=revision.number,
        at=context.access.now(),
        since=revision.created_at,
        state=found.state,
        sentence=found.sentence,
        look=found.look,
        looks_before=look.looks_before,
        num_canary=found.num_canary,
        num_rest=found.num_rest,
        num_seen=found.num_seen,
        next_at=found.next_at,
        signals=found.signals,
        cautions=_cautions(frame, summary),
    )
    # Rolled back before it is stored, so that the stored state says what was done about it, and before a judge is
    # asked: it may take minutes, or be ended with this process.
    if watch.state == "worse" and may_roll_back:
        watch = _taken_back(context, look, watch)
        context.watches.put(caller.project_id, CANARY_SEEN, name, watch.model_dump_json())
    measures, words, more = measured_sides(
        context,
        caller.project_id,
        name,
        frame,
        canary=look.canary,
        since=revision.created_at,
        seed=_seed(look.deployment),
    )
    changes = {"measures": measures, "summary": words, "cautions": (*watch.cautions, *more)}
    watch = watch.model_copy(update=changes)
    context.watches.put(caller.project_id, CANARY_SEEN, name, watch.model_dump_json())
    return watch


def last_seen(context: Context, caller: Caller, name: str) -> CanaryWatch | None:
    """What was seen of the last canary of a deployment when it was last looked at; None where none ever was."""
    document = context.watches.get(caller.project_id, CANARY_SEEN, name)
    return None if document is None else CanaryWatch.model_validate_json(document)


def rules_of(context: Context, project_id: str, name: str) -> CanaryRules:
    """The rules of a deployment's canaries: its own, else the usual ones."""
    document = context.watches.get(project_id, CANARY_RULES, name)
    return CanaryRules() if document is None else CanaryRules.model_validate_json(document)


def set_rules(context: Context, caller: Caller, name: str, rules: CanaryRules) -> None:
    """Change them. They hold from the next look on: change them before a canary, not while it is tried.

    Raises NotFoundError for the name.
    """
    context.deployments.get(caller.project_id, name)
    with context.database.transaction():
        context.watches.put(caller.project_id, CANARY_RULES, name, rules.model_dump_json())
        audit_log.record(context, caller, "canary.rules_changed", name, rules.model_dump(mode="json"))


def _look(context: Context, caller: Caller, name: str) -> _CanaryState:
    deployment = context.deployments.get(caller.project_id, name)
    canary = deployment.revision.canary
    share = None if canary is None else deployment.revision.share_of(canary)
    if canary is None or share is None:
        raise ConflictError(
            f"the deployment {name!r} has no canary",
            expected="a deployment that is trying one",
            do=f"begin one with: luthier deploy RUN --as {name} --canary 0.1",
        )
    rules = rules_of(context, caller.project_id, name)
    return _CanaryState(deployment, canary, share.fraction, rules, _looks_before(context, deployment, canary))


def _looks_before(context: Context, deployment: Deployment, canary: str) -> int:
    """Looks at this canary before its fraction was changed: what they spent of the error is not there a second time."""
    last, revision = last_seen(context, Caller(project_id=deployment.project_id), deployment.name), deployment.revision
    if last is None or last.canary != canary:
        return 0
    if (last.revision, last.since) == (revision.number, revision.created_at):
        return last.looks_before
    for one in context.deployments.revisions(deployment.deployment_id):
        if one.canary != canary:  # it was taken back in between, and is tried from the beginning
            return 0
        if one.number == last.revision:
            # By its time as well: a name that was given a second time may have the look at its earlier canary.
            return last.looks_before + last.look if one.created_at == last.since else 0
    return 0


def _still(context: Context, look: _CanaryState) -> CanaryWatch | None:
    """What was seen last, where no new look has come since and nothing fails: then nothing else can have changed.

    Texts are not read for this: it is done every few seconds, among what may be a million exchanges.
    """
    from luthier.ml.drift.canary import failing_streak, first_look, look_at

    one, revision = look.deployment, look.deployment.revision
    document = context.watches.get(one.project_id, CANARY_SEEN, one.name)
    last = None if document is None else CanaryWatch.model_validate_json(document)
    # "worse" is looked at again: an earlier rollback may have failed.
    if last is None or not last.look or last.state == "worse" or (last.canary, last.revision, last.since) != (
        look.canary, revision.number, revision.created_at
    ):  # fmt: skip
        return None
    frame, summary = canary_frame(
        context, one.project_id, one.name, canary=look.canary, since=revision.created_at, with_text=False
    )
    # The number of a look depends on the number of exchanges alone; the same number means the same test.
    number, _ = look_at(frame.height, first_look(look.fraction, look.rules.least_requests))
    if number != last.look or failing_streak(frame.sort("ended_at", maintain_order=True)) is not None:
        return None
    is_renewed = frame.height != last.num_seen
    if is_renewed and summary.num_unnamed:
        # Those count by conversation, which is known by its text: one by one, the intervals would be too narrow.
        frame, _ = canary_frame(context, one.project_id, one.name, canary=look.canary, since=revision.created_at)
    same: dict[str, Any] = {"at": context.access.now(), "num_seen": frame.height}
    if is_renewed:
        # The figures of both sides are those of now; the test waits for its next look.
        measures, words, _ = measured_sides(
            context,
            one.project_id,
            one.name,
            frame,
            canary=look.canary,
            since=revision.created_at,
            seed=_seed(one),
        )
        same |= {"measures": measures, "summary": words}
    return last.model_copy(update=same)


def _taken_back(context: Context, look: _CanaryState, watch: CanaryWatch) -> CanaryWatch:
    """The canary rolled back, with all earlier fractions that it had; by whom and why is in the audit log."""
    if not look.rules.rolls_back:
        return watch.model_copy(update={"kept_because": "its rules only tell"})
    caller = Caller(project_id=watch.project_id, name=_WATCHER)
    document = watch.model_dump(
        mode="json", include={"canary", "revision", "sentence", "look", "num_canary", "num_rest"}
    )
    document["signals"] = [one.model_dump(mode="json") for one in watch.signals if one.state == "worse"]
    with context.database.transaction():
        try:
            made = look.deployment
            # A canary may have been raised in steps (5%, 20%): each step is a separate revision to go back over.
            while made.revision.canary == look.canary:
                # The expected revision keeps this from undoing what a person has deployed in the meantime.
                made = deployments.rollback(context, caller, watch.name, expected_revision=made.revision.number)
        except (ConflictError, NotFoundError) as error:
            log.error("the canary %s of %s is worse, but was not rolled back: %s", watch.canary, watch.name, error.came)
            # Steps that did succeed take effect: a smaller share goes to a worse model.
            return watch.model_copy(update={"kept_because": error.came})
        document["rolled_back_to"] = made.revision.number
        audit_log.record(context, caller, "canary.rolled_back", watch.name, document)
    log.warning("rolled the canary %s of %s back: %s", watch.canary, watch.name, watch.sentence)
    return watch.model_copy(update={"rolled_back_to": made.revision.number})


def _cautions(frame: pl.DataFrame, summary: FrameSummary) -> tuple[str, ...]:
    said = []
    if frame.is_empty():
        said.append("No exchange is kept since it began: where the policy of traffic is `off`, no canary is watched.")
    # Dropped under load, when a slow canary is slowest: the figures may flatter it.
    if summary.num_dropped:
        said.append(
            f"The log has dropped {counted(summary.num_dropped, 'exchange')} of this time: missing in the figures."
        )
    if frame.height and not summary.num_with_text:
        said.append("No text is kept, so refusals are not seen.")
    if summary.num_unnamed:
        said.append(
            f"{summary.num_unnamed:,} of {frame.height:,} exchanges name no user: each "
            f"{'conversation' if summary.num_with_text else 'exchange'} counts as a separate one. Clients that send "
            "`user` make the test surer."
        )
    return tuple(said)


def _seed(deployment: Deployment) -> int:
    """The same for each look at a revision, so that repeated looks cannot wait for a lucky draw."""
    # 48 bits of the digest: any int would do, this one fits JSON numbers exactly.
    words = f"{deployment.deployment_id} {deployment.revision.number}".encode()
    return int(sha256_bytes(words)[:12], 16)


JUDGE: Final = "judge"


def measured_sides(
    context: Context, project_id: str, name: str, frame: pl.DataFrame, *, canary: str, since: float, seed: int
) -> tuple[tuple[CanaryMeasure, ...], str, tuple[str, ...]]:
    """All measures of both sides, a sentence about them, and cautions.

    Args:
        context: The home.
        project_id: The project.
        name: The deployment.
        frame: As of `canary_release.canary_frame`, with its column `exchange_id`.
        canary: The target that is tried.
        since: Since when, in seconds since 1970.
        seed: Of the draws.
    """
    import polars as pl

    from luthier.ml.drift.canary_sides import both_sides, summary_of

    document = context.watches.get(project_id, SETTINGS_KIND, name)
    settings = WatchSettings() if document is None else WatchSettings.model_validate_json(document)
    judged, cautions = _judged(context, project_id, name, settings, canary=canary, since=since)
    ids = frame["exchange_id"].to_list()
    judged_column = pl.Series("judged", [judged.get(one) for one in ids], dtype=pl.Float64)
    measures = both_sides(frame.with_columns((1 - pl.col("lacking")).alias("score"), judged_column), seed=seed)
    # Without a judge there is nothing to wait for in its line.
    shown = tuple(one for one in measures if one.name != JUDGE or settings.judge is not None)
    return shown, summary_of(shown), cautions


def start_comparison(context: Context, project_id: str, name: str) -> CachedResult:
    """Check the canaries now, in a separate process, unless that is running already."""
    asked: dict[str, Any] = {"models": [], "canaries": True}
    return start_computation(context, _comparison(project_id, name), lambda: answer_to(context, "watch", asked))


def comparison_state(context: Context, project_id: str, name: str) -> CachedResult:
    """The state of the last comparison that was started by hand."""
    return cached_result(context, _comparison(project_id, name))


def who_may_decide(context: Context, caller: Caller) -> list[Member]:
    """The members of the caller's project who may promote a canary or roll it back."""
    return [one for one in context.members.list(caller.project_id) if caller_for(one).may("train")]


def _comparison(project_id: str, name: str) -> Subject:
    return Subject(sha256_document({"project": project_id, "deployment": name}), "canary-now", {})


def _judged(
    context: Context, project_id: str, name: str, settings: WatchSettings, *, canary: str, since: float
) -> tuple[Mapping[str, float], tuple[str, ...]]:
    """The mean score (0 to 1) that the model's judge gave to sampled answers, by exchange; nothing without a judge."""
    from luthier.features.judges.service import scores_of_sides
    from luthier.features.traffic import service as traffic

    if settings.judge is None:
        return {}, ()
    found = traffic.exchanges(context, project_id, model=name, since=since, with_text=True)
    found = found.filter(~found["is_canary"] | (found["target"] == canary))
    with context.caching_for(project_id):
        return scores_of_sides(context, settings, found)
