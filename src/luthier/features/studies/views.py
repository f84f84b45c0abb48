"""Use cases of who looks at studies: the list of a project, and one of them as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.workflows.study import Study, Trial
from luthier.ml.search.rungs import ranked
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_page, reference_paths

_MAX_LISTED = 100


@dataclass(frozen=True, slots=True)
class StudyView:
    """A study as it is now.

    Attributes:
        study: As it is stored.
        status: Its own, or `interrupted` where it should go on and no process works on it.
        trials: In the order of their numbers.
        best: Those of kind `search`, by how far they got and then by loss.
        hours: Spent up to now.
        steps: Of the trials that train at this moment, by number: done, and all of the run's.
    """

    study: Study
    status: str
    trials: Sequence[Trial]
    best: Sequence[Trial]
    hours: float
    steps: Mapping[int, tuple[int, int]]

    @property
    def is_at_work(self) -> bool:
        """Whether a process works on it."""
        return self.status in ("searching", "confirming", "final")


def list_studies(context: Context, caller: Caller) -> list[StudyView]:
    """The studies of the caller's project, the newest first, at most 100."""
    return [_view(context, study) for study in context.studies.list(caller.project_id)[:_MAX_LISTED]]


def view_study(context: Context, caller: Caller, study_id: str) -> StudyView:
    """One of them. Raises NotFoundError, also for another project's."""
    return _view(context, context.studies.get(study_id, caller.project_id))


def report_of(context: Context, caller: Caller, study_id: str) -> str:
    """Its report as an HTML page, without places of this machine. Raises NotFoundError, also where it has none."""
    study = context.studies.get(study_id, caller.project_id)
    try:
        text = (context.settings.home / "studies" / study_id / "report.html").read_text(encoding="utf-8")
    except OSError:
        raise NotFoundError(
            f"study {study_id} has no report", expected="a study that is done", do="wait until it is, then look again"
        ) from None
    recipe = study.spec.recipe.model_dump(mode="json")
    return redact_page(text, reference_paths(context, recipe))


def _view(context: Context, study: Study) -> StudyView:
    from luthier.core.system.file_lock import is_held

    trials = context.studies.trials(study.study_id)
    status: str = study.status
    is_over = status in ("done", "paused", "failed")
    if not is_over and not is_held(context.settings.home / "studies" / study.study_id / "lock"):
        status = "interrupted"
    hours = study.hours or sum(trial.hours for trial in trials) + study.overhead_hours
    running = [trial for trial in trials if trial.state == "running"] if status != "interrupted" else []
    return StudyView(study, status, trials, ranked(trials), hours, _steps(context, running))


def _steps(context: Context, running: Sequence[Trial]) -> dict[int, tuple[int, int]]:
    found = {}
    for trial in running:
        try:
            record = context.runs.get(trial.run_id)
        except NotFoundError:  # it is being made ready
            continue
        found[trial.number] = (record.step, record.num_steps or 1)
    return found
