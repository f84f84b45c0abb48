"""The settings of one monitored model on its page: judge, suite, groups of people, and what counts as normal.

form -> changed_settings -> service.set_model_settings
            `-> command_of: the command that sets the same
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller, project_option
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.records.monitoring import WatchSettings
from luthier.core.text.counted import counted
from luthier.core.text.names import distinct_names
from luthier.features.generation.configured_teacher import CONFIGURED, ConfiguredTeacher, configured_teacher
from luthier.features.model_cards import service as project_models
from luthier.features.monitoring.scheduled_suites import model_settings
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, shown_reference
from luthier.platform.ui.settings_tabs import whole_number

KEEP: Final = "as-it-is"
"""A choice of the form: the judge or suite that a command has set, which the page cannot name, stays."""
_MAX_TUNED: Final = 100
_MAX_FILES: Final = 100
_FEWEST_JUDGED: Final = 20
_MOST_JUDGED: Final = 1000
_MAX_HOURS: Final = 24 * 366


@dataclass(frozen=True, slots=True)
class SettingsForm:
    """The form of a model's settings.

    Attributes:
        bases: Base models on this machine.
        tuned: Run and name of each tuned model of the project, newest first.
        teacher: The model that the operator has configured; None where there is none.
        suites: Id and name of each file of the project that may be a suite, newest first.
        kept_judge: The judge, without a path, where it is none of these models; empty otherwise.
        is_judge_gone: Whether that judge was the configured model, and another one is configured by now.
        kept_suite: The suite, without a path, where it is no file of the project; empty otherwise.
        values: What the fields hold.
        command: The command that sets the same.
    """

    bases: tuple[str, ...]
    tuned: tuple[tuple[str, str], ...]
    teacher: ConfiguredTeacher | None
    suites: tuple[tuple[str, str], ...]
    kept_judge: str
    is_judge_gone: bool
    kept_suite: str
    values: Mapping[str, str]
    command: str


def settings_form(context: Context, caller: Caller, model: str, given: Mapping[str, str] | None = None) -> SettingsForm:
    """The form as it is stored, or with what was typed.

    Args:
        context: The home.
        caller: Whose project it is.
        model: The monitored model.
        given: The fields of a form that was refused.
    """
    kept, places = model_settings(context, caller.project_id, model), home_paths(context)
    bases = tuple(one.name for one in project_models.list_bases(context, caller.project_id) if one.is_here)
    views, _ = project_models.list_tuned(context, caller, limit=_MAX_TUNED)
    names = distinct_names(context.run_labels.names([view.record.run_id for view in views]))
    tuned = tuple((view.record.run_id, names[view.record.run_id]) for view in views)
    suites = _suites(context, caller.project_id, kept)
    teacher = configured_teacher(context)
    is_teacher = kept.judge_is_configured and teacher is not None and kept.judge == teacher.address
    is_listed = is_teacher or kept.judge is None or kept.judge in (*bases, *names)
    kept_suite = "" if kept.suite is None else shown_reference(kept.suite, places)
    values = {
        "judge": CONFIGURED if is_teacher else (kept.judge or "") if is_listed else KEEP,
        "num_judged": str(kept.num_judged),
        "suite": KEEP if kept_suite else kept.suite_file_id or "",
        "suite_every": f"{kept.suite_every_hours:g}",
        "groups": "\n".join(f"{name}={pattern}" for name, pattern in kept.groups.items()),
        "normal_now": "",
    }
    return SettingsForm(
        bases=bases,
        tuned=tuned,
        teacher=teacher,
        suites=suites,
        is_judge_gone=kept.judge_is_configured and not is_teacher,
        kept_judge="" if is_listed else shown_reference(str(kept.judge), places),
        kept_suite=kept_suite,
        values=values | dict(given or {}),
        command=_command_of(
            model,
            kept,
            caller.project_id,
            judge="none" if kept.judge is None else shown_reference(kept.judge, places),
            suite=kept_suite or dict(suites).get(kept.suite_file_id or "", "none"),
        ),
    )


def change_settings(
    context: Context, caller: Caller, model: str, given: Mapping[str, str], *, decimal_mark: str = "."
) -> WatchSettings:
    """Store what a form says, and write it into the audit log.

    Args:
        context: The home.
        caller: Whose project it is.
        model: The monitored model.
        given: The fields of the form: `judge`, `num_judged`, `suite`, `suite_every`, `groups`, `normal_now`.
        decimal_mark: Of the numbers in it.

    Raises:
        RequestError: A number out of its range, a line of the groups without `=`, or a setting that
            `service.set_model_settings` refuses.
        NotFoundError: A judge or a suite that the project does not have.
    """
    from luthier.features.monitoring.service import set_model_settings

    kept = model_settings(context, caller.project_id, model)
    num_judged = whole_number(given.get("num_judged", ""), "number of scored answers", decimal_mark)
    hours = whole_number(given.get("suite_every", ""), "hours between suites", decimal_mark)
    if num_judged is not None and not _FEWEST_JUDGED <= num_judged <= _MOST_JUDGED:
        raise RequestError(
            f"the judge is to score {counted(num_judged, 'answer')}",
            expected="from 20 to 1,000",
            do="correct the number",
        )
    if hours is not None and not 1 <= hours <= _MAX_HOURS:
        raise RequestError(
            f"the suite is to evaluate every {counted(hours, 'hour')}",
            expected="from 1 to 8,784, which are 366 days",
            do="correct the number",
        )
    judge = given.get("judge", "")
    update: dict[str, object] = {
        "judge": _judge(context, caller, judge, kept),
        "judge_is_configured": kept.judge_is_configured if judge == KEEP else judge == CONFIGURED,
        "num_judged": num_judged or kept.num_judged,
        "suite_every_hours": float(hours or kept.suite_every_hours),
        "groups": _groups(given.get("groups", "")),
        "normal_since": context.access.now() if given.get("normal_now") else kept.normal_since,
    }
    if (suite := given.get("suite", "")) != KEEP:
        update |= {"suite": None, "suite_file_id": suite or None}
    after = kept.model_copy(update=update)
    with context.database.transaction():
        set_model_settings(context, caller.project_id, model, after)
        facts = after.model_dump(mode="json", include={"judge", "num_judged", "suite_file_id", "suite_every_hours"})
        record(context, caller, "monitor.settings_changed", model, facts | {"groups": sorted(after.groups)})
    return after


def _suites(context: Context, project_id: str, kept: WatchSettings) -> tuple[tuple[str, str], ...]:
    listed, _ = files.list_files(context, project_id, limit=_MAX_FILES, order="desc")
    found = [one for one in listed if one.filename.endswith((".yaml", ".yml"))]
    if kept.suite_file_id is not None and all(one.file_id != kept.suite_file_id for one in found):
        try:
            found.append(files.get_file(context, project_id, kept.suite_file_id))
        except NotFoundError:  # deleted: the next check says so, and the form proposes none
            kept = kept.model_copy(update={"suite_file_id": None})
    names = distinct_names({one.file_id: one.filename for one in found})
    return tuple((one.file_id, names[one.file_id]) for one in found)


def _judge(context: Context, caller: Caller, name: str, kept: WatchSettings) -> str | None:
    """The judge that a form names: a model of the project, or the one that the operator has configured.

    An address is never taken from a form: it would have the operator's key and the texts of users sent anywhere.
    """
    if name == KEEP:
        return kept.judge
    if not name:
        return None
    if name == CONFIGURED and (teacher := configured_teacher(context)) is not None:
        return teacher.address
    bases = {one.name for one in project_models.list_bases(context, caller.project_id) if one.is_here}
    tuned, _ = project_models.list_tuned(context, caller, limit=_MAX_TUNED)
    if name not in bases | {view.record.run_id for view in tuned}:
        raise NotFoundError(
            f"no model {name[:100]!r} that can judge",
            expected="a base model or a tuned model of this project, or the model that the operator has configured",
            do="choose one of the list",
        )
    return name


def _groups(text: str) -> dict[str, str]:
    groups = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, pattern = line.partition("=")
        if not equals or not pattern.strip():
            raise RequestError(
                f"the line {line[:80]!r} of the groups",
                expected="a name, = and a regular expression",
                do="write for example women=she|her",
            )
        groups[name.strip()] = pattern.strip()
    return groups


def _command_of(model: str, kept: WatchSettings, project: str, *, judge: str, suite: str) -> str:
    words = ["luthier", "monitor", model, "--judge", judge, "--judged", str(kept.num_judged)]
    words += ["--suite", suite, "--suite-every", f"{kept.suite_every_hours:g}h"]
    for name, pattern in kept.groups.items():
        words += ["--group", f"{name}={pattern}"]
    return shlex.join(words) + project_option(project)
