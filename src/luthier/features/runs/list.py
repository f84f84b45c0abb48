"""Use cases: the runs of a project as rows of a list, those that wait in the queue included."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.budget import Bill
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.features.runs.entries_store import DatasetName, EntryStatus, RunEntry
from luthier.features.runs.evaluations import without_paths
from luthier.features.runs.state import Standing, last_bill, last_step, standing_of
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

ROWS: Final = 25
_MAX_TEXT_CHARACTERS: Final = 100
_MAX_EVALUATIONS: Final = 256


@dataclass(frozen=True, slots=True)
class RunRow:
    """One line of the list. What is not known, or not yet, is None or empty.

    Attributes:
        standing: The state of the run.
        base_model: By its name.
        method: By its name.
        train_file: The file of its training rows, without its folder.
        dataset: The dataset version with these rows.
        loss: Of the last step.
        judged: Its last evaluation, without samples.
        bill: So far.
    """

    standing: Standing
    base_model: str
    method: str
    train_file: str
    dataset: DatasetName | None
    loss: float | None
    judged: Evaluation | None
    bill: Bill | None

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.standing.run_id

    @property
    def main_metric(self) -> Metric | None:
        """What the verdict is about, of the tuned model."""
        # Without a verdict nothing says which of the metrics is the main one.
        if self.judged is None or self.judged.verdict is None:
            return None
        # The tuned model is judged last.
        return self.judged.systems[-1].metrics.get(self.judged.verdict.metric)


@dataclass(frozen=True, slots=True)
class RunPage:
    """Rows, the newest first, and the id behind which older ones are; None where there are none."""

    rows: Sequence[RunRow]
    older: str | None


class Judged:
    """Evaluations without their samples, which may be large: read once, kept in short, since none is ever changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: OrderedDict[str, Evaluation] = OrderedDict()
        self._lock = Lock()

    def of_runs(self, run_ids: Sequence[str]) -> dict[str, Evaluation]:
        """The last evaluation of each of these runs that was judged."""
        ids = self._context.run_entries.evaluation_ids(run_ids)
        return {run_id: self._get(evaluation_id) for run_id, evaluation_id in ids.items()}

    def _get(self, evaluation_id: str) -> Evaluation:
        with self._lock:
            if (kept := self._kept.get(evaluation_id)) is not None:
                self._kept.move_to_end(evaluation_id)
                return kept
        # Read without the lock: two threads may both read, which only costs time.
        found = self._context.evaluations.get(evaluation_id)
        systems = tuple(system.model_copy(update={"samples": ()}) for system in found.systems)
        # Paths are taken out before it is kept, so that no page can show them.
        found = without_paths(self._context, found.model_copy(update={"systems": systems, "forgetting": None}))
        with self._lock:
            self._kept[evaluation_id] = found
            while len(self._kept) > _MAX_EVALUATIONS:
                self._kept.popitem(last=False)
        return found


def page_of_runs(
    context: Context,
    caller: Caller,
    judged: Judged,
    *,
    before: str | None = None,
    status: EntryStatus | None = None,
    text: str = "",
    limit: int = ROWS,
) -> RunPage:
    """Some runs of the caller's project.

    Args:
        context: The home.
        caller: Whose project.
        judged: Evaluations, cached.
        before: Only runs older than the one with this id.
        status: Only runs in this state.
        text: Must occur in the id, the base model, the method or the request.
        limit: At most this many.
    """
    entries = context.run_entries.page(
        caller.project_id,
        # One more than is shown tells whether there are older ones, without a count.
        limit=limit + 1,
        before=before if before and is_id(before, "run") else None,
        status=status,
        text=text.strip()[:_MAX_TEXT_CHARACTERS],
    )
    shown = entries[:limit]
    return RunPage(rows_of(context, caller, judged, shown), shown[-1].run_id if len(entries) > limit else None)


def rows_of(context: Context, caller: Caller, judged: Judged, entries: Sequence[RunEntry]) -> list[RunRow]:
    """The lines of these entries, in their order."""
    # All plans, names and verdicts are read at once for the page, not line by line.
    begun = [entry.run_id for entry in entries if entry.record is not None]
    trained = {run_id: _trained_on(text) for run_id, text in context.run_entries.plan_documents(begun).items()}
    # A job that waits has no plan yet; what it was asked names its training file.
    waiting = [asked_of(entry.job).get("train", "") for entry in entries if entry.record is None]
    digests = {digest for _, digest in trained.values()}
    names = context.run_entries.dataset_names(caller.project_id, [*digests, *filter(None, waiting)])
    verdicts = judged.of_runs(begun)
    rows = []
    for entry in entries:
        record, job = entry.record, entry.job
        file, digest = trained.get(entry.run_id, ("", ""))
        step = None if record is None else last_step(context, entry.run_id)
        rows.append(
            RunRow(
                standing=standing_of(context, entry.run_id, record, job),
                base_model=_last_part(record.base_model if record else asked_of(job).get("base_model", "")),
                method=record.method if record else asked_of(job).get("method", ""),
                train_file=_last_part(file) or asked_of(job).get("train", ""),
                dataset=names.get(digest or asked_of(job).get("train", "")),
                loss=None if step is None else step.loss,
                judged=verdicts.get(entry.run_id),
                bill=None if record is None else bill_of(context, record),
            )
        )
    return rows


def bill_of(context: Context, record: RunRecord) -> Bill | None:
    """What a run has cost: the bill of its end, or the newest of those on the way."""
    if record.result is not None and record.result.bill is not None and record.status != "running":
        return record.result.bill
    newest = last_bill(context, record.run_id)
    return None if newest is None else newest.bill


def datasets_of(context: Context, caller: Caller, plan: Plan) -> dict[str, DatasetName]:
    """The datasets of the project that hold the files of a plan, by the digest of the file."""
    files = (plan.data.train, plan.data.validation, plan.data.held_out)
    return context.run_entries.dataset_names(caller.project_id, [one.sha256 for one in files if one is not None])


def asked_of(job: Job | None) -> dict[str, str]:
    """Base model, method and training file that a job was asked for, in words, where its document says so."""
    document: dict[str, Any] = {} if job is None else job.document
    if isinstance(request := document.get("request"), dict):
        method = request.get("method") or {}
        return {
            "base_model": str(request.get("model", "")),
            "method": str(method.get("type", "supervised")),
            "train": str(request.get("training_file", "")),
        }
    recipe = document.get("recipe") or document.get("asked") or {}
    if not isinstance(recipe, dict) or not recipe:
        return {}
    method, data = recipe.get("method") or {}, recipe.get("data") or {}
    return {
        "base_model": _last_part(str(recipe.get("base_model", ""))),
        "method": str(method.get("name") or "") if isinstance(method, dict) else str(method),
        "train": _last_part(str(data.get("train", ""))) if isinstance(data, dict) else "",
    }


def _trained_on(plan: str) -> tuple[str, str]:
    """Name and digest of the training file of a plan, read without making sure of all the rest of it."""
    train = json.loads(plan)["data"]["train"]
    return str(train["file"]), str(train["sha256"])


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1] if name.startswith("/") else name
