"""An attempt of a job that writes questions: pairs with their passages, as a dataset to review.

What the teacher has answered is kept request by request: an attempt after a stop requests only the rest.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.defaults import SYNTHESIS_TOKENS
from luthier.core.errors import (
    BusyError,
    DataError,
    LuthierError,
    StillRunningError,
    StorageFullError,
    UnreachableError,
    WorkError,
    library_words_hidden,
)
from luthier.core.system.files import replace_text
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.questions import (
    BATCH_PASSAGES,
    QuestionOrder,
    check_is_configured,
    order_of,
)
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.syntheses import Synthesis, SynthesisRun, SynthesisState, refused_file, synthesise
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import exit_on_sigterm, own_copy
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

_MAX_REFUSED_SHOWN: Final = 20
_MAX_WARNED: Final = 50_000
_FIRST_REST_SECONDS: Final = 30.0
_LAST_REST_SECONDS: Final = 300.0
"""Between two looks at a batch of a provider, which takes up to a day."""


@dataclass
class _Report:
    """Progress as events of the job, with figures that its page shows as a bar."""

    context: Context
    job: Job
    number: int = 0
    began: float = field(default_factory=time.monotonic)
    last: SynthesisState | None = None

    def stage(self, message: str) -> None:
        """A part of the work begins."""
        self._append(message, None)

    def waiting(self, batches: StillRunningError, cost_usd: float | None) -> None:
        """The provider has batches that have not ended."""
        self.keep_spent(cost_usd)
        figures = {"answered": float(batches.num_done), "requests": float(batches.num_total), "cost_usd": cost_usd}
        counts = f": {batches.num_done:,} of {batches.num_total:,} requests are answered" if batches.num_total else ""
        # Without counts the bar of the page stays as it is.
        self._append(f"Waiting for {batches.what}{counts}", figures if batches.num_total else None)

    def keep_spent(self, cost_usd: float | None) -> None:
        """Store what was spent so far, for the next attempt."""
        if cost_usd is not None:
            replace_text(_spent_place(self.context, self.job), str(cost_usd))

    def batch(self, state: SynthesisState) -> None:
        """A batch of passages is done."""
        self.last = state
        self.keep_spent(state.cost_usd)
        left = (time.monotonic() - self.began) / state.num_done * (state.num_rows - state.num_done)
        figures = {
            "done": float(state.num_done),
            "total": float(state.num_rows),
            "made": float(state.num_pairs),
            "seconds_left": left,
            "cost_usd": state.cost_usd,
        }
        cost = "" if state.cost_usd is None else f", {state.cost_usd:.4f} USD so far"
        words = f"{state.num_done:,} of {state.num_rows:,} passages, {state.num_pairs:,} pairs{cost}"
        self._append(f"Writing questions: {words}", figures)

    def _append(self, message: str, figures: dict[str, float | None] | None) -> None:
        self.number += 1
        code = f"progress-{self.job.attempt}-{self.number}"
        self.context.job_events.append(self.job.job_id, code, message, data=figures)


def carry_out(context: Context, job: Job) -> Outcome:
    """Write the pairs, and make a dataset of them. A teacher that stops to answer is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: The teacher or the database cannot be reached; the job is tried again.
    """
    order, report = order_of(job), _Report(context, job)
    try:
        with exit_on_sigterm(), library_words_hidden():
            found = _write(context, job, order, report)
    except SystemExit:
        return Outcome(status="paused")  # what was answered is kept
    except StillRunningError:
        # Back into the queue: an attempt that waited for the provider would hold up the other jobs of its lane.
        rest = min(_LAST_REST_SECONDS, _FIRST_REST_SECONDS * 2 ** min(job.attempt - 1, 10))
        return Outcome(status="waiting", rest_seconds=rest)
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        shown, refused = error, _refused_of(_output(context, job))
        if isinstance(error, WorkError | BusyError):
            shown = _stopped(order, report, error)
        elif isinstance(error, DataError) and refused:
            shown = _no_pairs_error(order, refused)
        return Outcome(status="failed", error=redact_paths(shown.as_json(), home_paths(context)), found=refused)
    return Outcome(status="succeeded", found=found)


def _write(context: Context, job: Job, order: QuestionOrder, report: _Report) -> dict[str, Any]:
    made = _made_before(context, job)
    if made is not None:  # the attempt before died between its work and its last word
        return dict(made.details["found"])
    check_is_configured(context, order)
    if not order.uses_batch_api:
        report.stage(f"Loading {order.teacher_name}")
    output, spent_usd = _output(context, job), _spent_usd(context, job)
    passages = _passages(own_copy(context, job, order.file_id, "passages"), order.column, output.parent)
    # Written again from the kept answers, so that a pair that was refused twice is listed once.
    refused_file(output).unlink(missing_ok=True)
    done = synthesise(
        context,
        passages,
        teacher=order.teacher,
        output=output,
        pairs_per_passage=order.pairs_per_passage,
        max_rows=order.max_passages,
        max_new_tokens=SYNTHESIS_TOKENS,
        prices=order.prices,
        force=True,
        run=SynthesisRun(
            order.budget_usd,
            BATCH_PASSAGES,
            with_passage=True,
            on_batch=report.batch,
            teacher_name=order.teacher_name,
            spent_usd=spent_usd,
            uses_batch_api=order.uses_batch_api,
            on_waiting=report.waiting if order.uses_batch_api else None,
            on_stop=report.keep_spent,
        ),
    )
    found = _found(done, spent_usd) | _refused_of(output) | {"teacher": order.teacher_name}
    version = _keep(context, job, order, output, found)
    # Only now: until the version exists, the file is all that there is of the answers.
    output.unlink()
    dataset = context.datasets.get(job.project_id, version.dataset_id)
    own = {"dataset_id": version.dataset_id, "version": version.number, "name": dataset.name}
    return found | own


def _output(context: Context, job: Job) -> Path:
    return context.settings.jobs_folder / job.job_id / "pairs.jsonl"


def _spent_place(context: Context, job: Job) -> Path:
    return context.settings.jobs_folder / job.job_id / "spent_usd"


def _spent_usd(context: Context, job: Job) -> float:
    """What earlier attempts of this job have spent; of one that was killed, up to its last whole batch."""
    place = _spent_place(context, job)
    return float(place.read_text(encoding="ascii")) if place.is_file() else 0.0


def _passages(file: Path, column: str, folder: Path) -> Path:
    """The passages as rows with `text`, row for row: a copy where another column holds them.

    Raises:
        DataError: Rows cannot be read.
    """
    if column == "text":
        return file
    from luthier.core.dataset import Row
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.provenance import PROVENANCE
    from luthier.ml.data.rows.outputs import json_line
    from luthier.ml.data.rows.rows import read_rows

    output, num_rows, problems = folder / "texts.jsonl", 0, []
    with output.open("wb") as written:
        for row in read_rows(open_source(file)):
            num_rows += 1
            if not isinstance(row, Row):
                problems.append(row)
                continue
            # Nothing else is asked for, and a table may have columns that JSON has no values for.
            known = {PROVENANCE: row.fields[PROVENANCE]} if isinstance(row.fields.get(PROVENANCE), dict) else {}
            written.write(json_line(known | {"text": row.fields.get(column)}) + b"\n")
    if problems:
        raise DataError(
            f"{len(problems):,} of {num_rows:,} rows of {file.name} cannot be read",
            expected=f"rows with their passage in {column!r}",
            do="repair these rows",
            problems=problems,
        )
    return output


def _found(done: Synthesis, spent_usd: float) -> dict[str, Any]:
    return {
        "num_pairs": done.num_pairs,
        "num_passages": done.num_rows,
        "num_passages_left": done.num_rows_left,
        "stopped_by_budget": done.stopped_by_budget,
        "cost_usd": None if done.cost_usd is None else done.cost_usd + spent_usd,
        "num_prompt_tokens": done.teacher_usage.num_prompt_tokens,
        "num_new_tokens": done.teacher_usage.num_new_tokens,
    }


def _refused_of(output: Path) -> dict[str, Any]:
    """The pairs that were left out: how many by reason, and the first of them; nothing before that is known."""
    file = refused_file(output)
    counts: Counter[str] = Counter()
    shown: list[dict[str, str]] = []
    for row in _rows(file) if file.is_file() else ():
        counts[str(row["reason"])] += 1
        if len(shown) < _MAX_REFUSED_SHOWN:
            said = {name: str(row[name] or "")[:500] for name in ("prompt", "completion", "explanation")}
            shown.append(said | {"reason": str(row["reason"])})
    if not counts and not output.is_file():
        return {}
    return {"num_refused": counts.total(), "refused": dict(counts.most_common()), "refused_shown": shown}


def _no_pairs_error(order: QuestionOrder, refused: dict[str, Any]) -> DataError:
    """The error of a model whose every pair was left out."""
    reasons = ", ".join(f"{reason.replace('_', ' ')} {number:,}" for reason, number in refused["refused"].items())
    return DataError(
        f"{order.teacher_name} wrote no pair that its passage supports: {reasons}",
        expected="questions with their answers in the passage",
        do="see what it wrote below; use a larger model that was tuned to follow instructions",
    )


def _keep(context: Context, job: Job, order: QuestionOrder, output: Path, found: dict[str, Any]) -> DatasetVersion:
    """The pairs as their own dataset."""
    caller = Caller(project_id=job.project_id, name=order.author)
    warned = [line for line, row in enumerate(_rows(output), start=1) if row["provenance"]["warnings"]]
    of = {"dataset_id": order.dataset_id, "name": order.name, "version": order.version}
    details = {"job": job.job_id, "of": of, "warned": warned[:_MAX_WARNED], "found": found}
    file = files.add_file(context, job.project_id, output, filename="pairs.jsonl", purpose="fine-tune", is_result=True)
    try:
        name = dataset_versions.free_name(context, job.project_id, f"{order.name[:85]} questions")
        note = f"written by {order.teacher_name} from {order.name} version {order.version}"
        return dataset_versions.create_dataset(
            context, caller, name, file, origin="questions", note=note[:1000], details=details
        )[1]
    except BaseException:
        files.delete_file(context, job.project_id, file.file_id)
        raise


def _made_before(context: Context, job: Job) -> DatasetVersion | None:
    known = context.datasets.all_versions(job.project_id, 200)
    made = next((one for _, one in known if one.origin == "questions" and one.details.get("job") == job.job_id), None)
    if made is None:
        return None
    dataset = context.datasets.get(job.project_id, made.dataset_id)
    own = {"dataset_id": made.dataset_id, "version": made.number, "name": dataset.name}
    return made.model_copy(update={"details": made.details | {"found": made.details["found"] | own}})


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _stopped(order: QuestionOrder, report: _Report, error: LuthierError) -> LuthierError:
    """The error of a teacher that has stopped to answer, with what is kept."""
    last = report.last
    kept = "what it has answered is kept"
    if last is not None:
        kept = f"{last.num_pairs:,} pairs from {last.num_done:,} of {last.num_rows:,} passages are kept"
    return WorkError(
        f"{order.teacher_name} stopped answering: {error.came}",
        expected="a model that answers for every passage",
        do=f"make sure that it runs, then continue: {kept}, and nothing is requested twice",
    )
