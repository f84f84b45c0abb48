"""Use case: both sides of a canary release beside each other, up to now, also by the judge that its model has.

The figures are stored with the last check of the canary, so that a page reads no traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.ids import sha256_document
from luthier.core.records.deployment import CanaryMeasure
from luthier.core.records.monitoring import SETTINGS_KIND, WatchSettings
from luthier.platform.auth.members import caller_for
from luthier.platform.auth.members_store import Member
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis import answer_to
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

if TYPE_CHECKING:
    import polars as pl

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
    return scores_of_sides(context, settings, found)
