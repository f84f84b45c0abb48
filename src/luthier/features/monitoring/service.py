"""Use case: check a deployed model: its traffic against earlier traffic and against its training rows.

luthier monitor, the server's periodic look -> watch -> traffic.exchanges, training_profiles, text_checks
                                                     -> monitor/signals (the stage that tells what has changed)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError
from luthier.core.records.monitor_settings import WatchSettings
from luthier.core.results.signal import WatchReport
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.features.judges.service import judge_name
from luthier.features.monitoring.scheduled_suites import check_suite_file
from luthier.features.monitoring.settings import SETTINGS, model_settings
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

    from luthier.ml.drift.signals.signal_report import Watched

_MAX_GROUPS: Final = 12
_GROUP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """What `luthier monitor` has found.

    Attributes:
        report: The signals of the window.
        page: The file of the page; None where none was requested.
    """

    report: WatchReport
    page: Path | None


def watch(context: Context, project_id: str, model: str, *, since: float, until: float | None = None) -> WatchReport:
    """The report of a model's traffic in [since, until).

    Args:
        model: The name that clients ask for.
        since: Seconds since 1970.
        until: Seconds since 1970; None for now.

    Raises:
        RequestError: The window has no length.
    """
    return _watched(context, project_id, model, since, until).report


def look(context: Context, project_id: str, model: str, *, since: float, html: Path | None = None) -> MonitorResult:
    """The report up to now, and a page of it.

    Args:
        model: The name that clients ask for.
        since: Seconds since 1970.
        html: The file of the page; None for no page.

    Raises:
        NotFoundError: The project has neither traffic nor a deployment of this name.
        RequestError: The window has no length.
    """
    found = _watched(context, project_id, model, since, None)
    if not len(found.rows.at):
        _refuse_unknown(context, project_id, model)
    if html is not None:
        from luthier.ml.drift.report.page import write_watch_page

        html = html.absolute()
        write_watch_page(html, found)
    return MonitorResult(found.report, html)


def set_model_settings(context: Context, project_id: str, model: str, settings: WatchSettings) -> WatchSettings:
    """Store an operator's settings for a model, in place of earlier ones.

    Raises:
        RequestError: Too many groups, a group's name or pattern, a judge's name, or a suite that no job can run.
        NotFoundError: A path that does not exist.
    """
    if len(settings.groups) > _MAX_GROUPS:
        raise RequestError(
            f"{len(settings.groups)} groups", expected=f"at most {_MAX_GROUPS}", do="name those that matter most"
        )
    for name, pattern in settings.groups.items():
        if not _GROUP_NAME.fullmatch(name):
            raise RequestError(
                f"a group named {name[:40]!r}",
                expected="1 to 32 small letters, digits, dashes and underscores",
                do="write for example --group women='she|her|madam'",
            )
        # Compiled here only to refuse it now: patterns of users are run over all traffic at each check.
        BoundedPattern(f"group {name}", pattern, ignore_case=True)
    if settings.judge is not None:
        judge_name(settings.judge)
    if settings.suite is not None:
        check_suite_file(Path(settings.suite))
    for path in (settings.corpus, settings.data):
        if path is not None and not Path(path).exists():
            raise NotFoundError(f"no {path}", expected="a folder or a file", do="correct --corpus or --data")
    context.watches.put(project_id, SETTINGS, model, settings.model_dump_json())
    return settings


def _watched(context: Context, project_id: str, model: str, since: float, until: float | None) -> Watched:
    from luthier.features.judges.samples import judged_by
    from luthier.features.monitoring.suite_signals import suite_signals
    from luthier.features.monitoring.text_checks import text_checks
    from luthier.features.monitoring.training_profiles import training_profile
    from luthier.ml.drift.signals.signal_report import Compared, number_of_signals, stretch_begins, watch_rows

    until = context.access.now() if until is None else until
    if not since < until:
        raise RequestError(
            f"a window from {since:.0f} to {until:.0f}", expected="a beginning before its end", do="correct --since"
        )
    settings = model_settings(context, project_id, model)
    # The comparison needs traffic from before the window, so it is read in one query with the window itself.
    begins = min(since, stretch_begins(until, settings.normal_since))
    frame = traffic.exchanges(context, project_id, model=model, since=begins, until=until, with_text=True)
    # The name may route to several targets; training data and suites belong to the one that answers most.
    target = _answering(frame, since)
    cautions = []
    try:
        profile = training_profile(context, project_id, target, settings)
    # Without training data the comparison over time still works, so this is a caution and not a failure.
    except (DataError, ConflictError, NotFoundError) as error:
        profile = None
        cautions.append(f"The training data could not be read: {error.came}.")
    compared = Compared(profile, settings.groups, suite_signals(context, project_id, target))
    # The number of signals goes in because the confidence level is divided among all of them.
    judged, said = judged_by(context, project_id, settings, frame, since, number_of_signals(compared))
    cautions += said
    found = watch_rows(
        frame,
        project_id=project_id,
        model=model,
        since=since,
        until=until,
        checks=text_checks(context, None if settings.corpus is None else Path(settings.corpus)),
        compared=replace(compared, quality=(*compared.quality, *judged)),
        num_dropped=traffic.num_dropped(context, project_id, since, until),
        normal_since=settings.normal_since,
    )
    if not cautions:
        return found
    report = found.report.model_copy(update={"cautions": (*found.report.cautions, *cautions)})
    return replace(found, report=report)


def _answering(frame: pl.DataFrame, since: float) -> str:
    """Who has answered most in the window, not counting canaries; empty where nobody has."""
    import polars as pl

    own = frame.filter((pl.col("at") >= since) & ~pl.col("is_canary") & (pl.col("target") != ""))
    # Ties by name, else the order of a hash table would choose the target.
    counted = own["target"].value_counts().sort("count", "target", descending=[True, False])
    return str(counted["target"][0]) if counted.height else ""


def _refuse_unknown(context: Context, project_id: str, model: str) -> None:
    seen = traffic.exchanges(context, project_id)["model"].unique().sort().to_list()
    if model in seen or context.deployments.find(project_id, model) is not None:
        return
    known = ", ".join(repr(name) for name in seen[:5]) or "none"
    raise NotFoundError(
        f"nothing is known of a model {model[:100]!r}; models that were asked: {known}",
        expected="a name that clients ask for, and a policy that keeps traffic",
        do="see `luthier usage` for the names, `luthier traffic policy` for what is kept",
    )
