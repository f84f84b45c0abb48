"""What a run is besides its checkpoints, as a document; and a run restored from an upload on another machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import CheckpointError, NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.events import Event, event_adapter
from luthier.core.plan import Plan
from luthier.core.registry import STORED
from luthier.core.run import RunRecord
from luthier.core.system.files import replace_file, sync_tree
from luthier.features.models.result_files import QUOTE_NAME
from luthier.features.planning.budgets import with_caps
from luthier.features.trackers.service import adopt_deliveries, delivered_here
from luthier.features.training.checkpoint_uploads.bucket import ALLOW_UNSIGNED, RunBucket, StoredFile, Upload, damaged
from luthier.features.training.checkpoint_uploads.uploader import step_of
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.training.ledger import Entry
    from luthier.ml.training.spent_elsewhere import Share

    _Spent = tuple[Entry, dict[str, Share]]

CHECKPOINTS: Final = "checkpoints"
_INCOMING: Final = ".incoming"
"""The folder in that of the run that holds what is downloaded until its digests are checked."""
_REPORTS: Final = ("report.html", "report.json")


class GatheredRun:
    """Reads a run for its uploads; used by the thread that uploads.

    Args:
        context: The home.
        run_id: The run.
    """

    def __init__(self, context: Context, run_id: str) -> None:
        self._context, self._run_id = context, run_id

    def state(self) -> dict[str, Any]:
        """Record, plan, evaluation, ledger and what trackers have, as a document."""
        from luthier.ml.training.ledger import Ledger

        runs, run_id = self._context.runs, self._run_id
        record, folder = runs.get(run_id), self._context.settings.run_folder(run_id)
        evaluation = None
        if record.evaluation_id is not None:
            with suppress(NotFoundError):
                evaluation = self._context.evaluations.get(record.evaluation_id).model_dump(mode="json")
        quote, ledger = folder / QUOTE_NAME, Ledger(folder)
        return {
            "record": record.model_dump(mode="json"),
            "plan": runs.plan(run_id).model_dump(mode="json"),
            "project_id": runs.project_of(run_id),
            "evaluation": evaluation,
            "spent": ledger.last().model_dump(mode="json"),
            "spent_by_home": {name: share.model_dump(mode="json") for name, share in ledger.shares().items()},
            "quote": quote.read_text(encoding="utf-8") if quote.is_file() else None,
            "folder": str(folder),
            "trackers": delivered_here(self._context, run_id),
        }

    def events(self, after: int) -> tuple[list[dict[str, Any]], int]:
        """The events after a position, in the order in which they came, and the position to continue from."""
        found, position = self._context.runs.tail(self._run_id, after)
        return [event.model_dump(mode="json") for event in found], position


def result_files(context: Context, record: RunRecord) -> dict[str, Path]:
    """Weights and report of a run that has ended, by their names in its folder."""
    folder, found = context.settings.run_folder(record.run_id), dict[str, Path]()
    if record.status != "succeeded" or record.result is None or record.result.adapter_path is None:
        return {}
    weights = Path(record.result.adapter_path)
    for file in sorted(path for path in weights.rglob("*") if path.is_file()):
        found[f"{weights.name}/{file.relative_to(weights).as_posix()}"] = file
    return found | {name: folder / name for name in _REPORTS if (folder / name).is_file()}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run on this disk, verified or not."""
    found = [path for path in (folder / CHECKPOINTS).glob("step-*") if path.name[5:].isdigit()]
    return max(found, key=step_of, default=None)


def restore(context: Context, bucket: RunBucket, *, with_checkpoints: bool = True) -> list[str]:
    """Make this home know a run as it was uploaded, where the upload is newer than what the home has.

    Args:
        context: The home; the caller holds the run's lock.
        bucket: Of the run.
        with_checkpoints: Whether the run is to be resumed; without them only its record and result are fetched.

    Returns:
        A message for each damaged upload that was skipped.

    Raises:
        CheckpointError: There are uploads and all are damaged.
        WorkError: The store does not answer.
    """
    folder, problems = context.settings.run_folder(bucket.run_id), list[str]()
    spent: list[_Spent] = []
    paths, do = bucket.uploads(), "check who writes to the bucket, then start the run again from its recipe"
    for path in paths:
        incoming = folder / _INCOMING
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            upload = bucket.read_upload(path)
            if not _is_newer(context, upload, folder, with_checkpoints=with_checkpoints):
                # What another machine has spent counts, also where this home has come further.
                with suppress(CheckpointError):
                    spent.append(_spent_of(bucket, upload, bucket.read_json(upload.state)))
                _adopt_ledgers(folder, spent)
                return problems
            document = bucket.read_json(upload.state)
            _check_own(bucket, upload, document, folder)
            # What was paid for counts, also where the checkpoint of that upload is damaged.
            spent.append(_spent_of(bucket, upload, document))
            found = [event for piece in upload.events for event in bucket.read_json(piece)]
            _download(bucket, upload, incoming, with_checkpoints=with_checkpoints)
        except CheckpointError as error:
            problems.append(error.came)
            do = error.do if error.do == ALLOW_UNSIGNED else do
            shutil.rmtree(incoming, ignore_errors=True)
            continue
        _adopt(context, upload, document, [event_adapter.validate_python(event) for event in found], incoming, spent)
        return problems
    # With its own checkpoint this home does not need them.
    if problems and newest_checkpoint(folder) is None:
        raise CheckpointError(
            f"all uploads of run {bucket.run_id} in {bucket.store.name} are damaged: {'; '.join(problems)}",
            expected="at least one whose objects match their digests",
            do=do,
        )
    # It continues from its own checkpoint, and what the others have spent counts all the same.
    _adopt_ledgers(folder, spent)
    return problems


def _check_own(bucket: RunBucket, upload: Upload, document: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError where a state is not of this run, or names files outside of its folder.

    Others may be able to write to the bucket: they must not change other runs of this home, nor have other files of
    this machine served or uploaded as the result of one.
    """
    place = f"{bucket.store.name}/{bucket.path(upload.state.path)}"
    try:
        record = RunRecord.model_validate(_moved(document["record"], document["folder"], str(folder)))
        evaluation = document["evaluation"]
        runs = {record.run_id} if evaluation is None else {record.run_id, evaluation["run_id"]}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(f"{place} cannot be read") from error
    if runs != {bucket.run_id}:
        raise damaged(f"{place} is that of another run")
    named = (record.report_path, None if record.result is None else record.result.adapter_path)
    for path in (Path(one) for one in named if one is not None):
        if ".." in path.parts or folder not in path.parents:
            raise damaged(f"{place} names a file outside of the run's folder")


def is_behind(context: Context, bucket: RunBucket) -> bool:
    """Whether the newest whole document of the uploads holds more of a run than this home."""
    for path in bucket.uploads():
        with suppress(CheckpointError):
            upload = bucket.read_upload(path)
            return _is_newer(context, upload, context.settings.run_folder(bucket.run_id), with_checkpoints=True)
    return False


def _is_newer(context: Context, upload: Upload, folder: Path, *, with_checkpoints: bool) -> bool:
    """Whether this home lacks what an upload holds."""
    try:
        record = context.runs.get(upload.run_id)
    except NotFoundError:
        return True
    if upload.result and (record.status != "succeeded" or not _has_result(upload, folder)):
        return True
    if record.status == "succeeded":
        return False
    here = newest_checkpoint(folder)
    if here is None and not with_checkpoints:
        return True  # all that is here was fetched before, and more events may have been uploaded since
    return upload.step > (0 if here is None else step_of(here))


def _has_result(upload: Upload, folder: Path) -> bool:
    return all((folder / file.name).is_file() for file in upload.result)


def _download(bucket: RunBucket, upload: Upload, incoming: Path, *, with_checkpoints: bool) -> None:
    """Fetch the files of an upload into one folder, checked and on the disk."""
    wanted: list[tuple[StoredFile, Path]] = [(file, incoming / file.name) for file in upload.result]
    if with_checkpoints and not upload.result:
        for name, files in upload.checkpoints.items():
            wanted += [(file, incoming / CHECKPOINTS / name / file.name) for file in files]
    for file, target in wanted:
        bucket.fetch(file, target)
    if incoming.is_dir():
        sync_tree(incoming)


def _adopt(
    context: Context,
    upload: Upload,
    document: dict[str, Any],
    found: list[Event],
    incoming: Path,
    spent: Sequence[_Spent],
) -> None:
    """Put what was downloaded in its place: files first, then the record that names them."""
    folder = context.settings.run_folder(upload.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    if (incoming / CHECKPOINTS).is_dir():
        # None of another generation stays beside them: a checkpoint refers to its best one by number.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for path in sorted(incoming.iterdir()) if incoming.is_dir() else ():
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        replace_file(path, target)
    shutil.rmtree(incoming, ignore_errors=True)
    _adopt_ledgers(folder, spent)
    if document["quote"] is not None and not (folder / QUOTE_NAME).is_file():
        (folder / QUOTE_NAME).write_text(document["quote"], encoding="utf-8")
    _adopt_record(context, _moved(document, document["folder"], str(folder)), found, is_ended=bool(upload.result))
    # Uploads of earlier versions do not say.
    adopt_deliveries(context, upload.run_id, document.get("trackers"))


def _spent_of(bucket: RunBucket, upload: Upload, document: dict[str, Any]) -> _Spent:
    """What a state says was spent. Raises CheckpointError where that cannot be read."""
    from luthier.ml.training.ledger import Entry
    from luthier.ml.training.spent_elsewhere import shares_adapter

    try:
        # States of earlier versions have no shares.
        return Entry.model_validate(document["spent"]), shares_adapter.validate_python(
            document.get("spent_by_home", {})
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"{bucket.store.name}/{bucket.path(upload.state.path)} cannot be read") from error


def _adopt_ledgers(folder: Path, spent: Sequence[_Spent]) -> None:
    """What the run has spent on other machines counts here."""
    from luthier.ml.training.ledger import Ledger

    ledger = Ledger(folder)
    for entry, shares in spent:
        ledger.adopt(entry, shares)
    ledger.close()


def _adopt_record(context: Context, document: dict[str, Any], found: list[Event], *, is_ended: bool) -> None:
    record, plan = RunRecord.model_validate(document["record"]), Plan.model_validate(document["plan"], context=STORED)
    evaluation = document["evaluation"]
    try:
        known = context.runs.plan(record.run_id)
    except NotFoundError:
        # Its evaluation is added below, and refers to the run.
        made = record.model_copy(update={"evaluation_id": None})
        if not is_ended:
            made = made.model_copy(update={"status": "paused"})
        context.runs.create(made, plan, context.owner_project_id)
    else:
        if plan.budget is not None and plan.budget != known.budget and plan.hash == known.hash:
            # It was given more there.
            context.runs.set_budget(record.run_id, with_caps(known, plan.budget))
    context.runs.add_missing(record.run_id, found)
    if not is_ended:
        # No process of this home works on it: the caller holds its lock.
        context.runs.update(
            record.run_id,
            status="paused",
            step=record.step,
            stopped_because=record.stopped_because,
            result=record.result,
        )
        return
    if evaluation is not None:
        with suppress(NotFoundError):
            context.evaluations.get(evaluation["evaluation_id"])
            evaluation = None
    if evaluation is not None:
        context.evaluations.save(Evaluation.model_validate(evaluation))
    context.runs.update(
        record.run_id,
        status=record.status,
        step=record.step,
        stopped_because=record.stopped_because,
        result=record.result,
        evaluation_id=record.evaluation_id,
        report_path=record.report_path,
    )


def _moved(document: dict[str, Any], before: str, now: str) -> dict[str, Any]:
    """The document with the run's folder on the other machine replaced by the one here."""
    if before == now:
        return document
    moved: dict[str, Any] = json.loads(json.dumps(document).replace(json.dumps(before)[1:-1], json.dumps(now)[1:-1]))
    return moved
