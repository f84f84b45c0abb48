"""Use cases: repair a version: see what would change, row by row, then make a new version of exactly that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.digest import sha256_file
from luthier.core.errors import ConflictError, RequestError
from luthier.features.datasets.records import DatasetVersion
from luthier.features.datasets.service import add_version, get_version, keep_rows
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import check_is_local, model_digest
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

_BLOCK_BYTES: Final = 1 << 20
_NEEDS_OTHER: Final = "contamination"
_NEEDS_MODEL: Final = "over_context"


@dataclass(frozen=True, slots=True)
class RepairChoice:
    """Which repairs to make.

    Attributes:
        actions: Ids of repairs.
        against: The id of the held-out dataset; empty for none.
        model: The base model whose tokens count; empty for none.
        mask: Kinds of personal data of which every value is masked. Of the default kinds certain values always are.
    """

    actions: tuple[str, ...]
    against: str = ""
    model: str = ""
    mask: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair that can be chosen.

    Attributes:
        id: Its id.
        check: The check of an audit that finds what it repairs.
        kind: Whether rows are changed or removed.
        is_default: Whether it is safe for every file.
        reason: What it does.
        because: Why one would want it.
        needs: What else must be given: `other rows`, `a model`, or empty.
        sorts: Sorts of findings that it is limited to; empty for all.
    """

    id: str
    check: str
    kind: str
    is_default: bool
    reason: str
    because: str
    needs: str
    sorts: tuple[str, ...]

    def num_rows(self, findings: list[dict[str, Any]]) -> int:
        """How many rows the findings of an audit have for it; what is not certain to be personal data is left out."""
        found = [one for one in findings if one["check"] == self.check and one["details"].get("is_certain", True)]
        # Some checks tell sorts apart (kinds of personal data), others kinds; either limits a repair.
        sort = [one["details"].get("sort", one["details"].get("kind")) for one in found]
        return sum(one["count"] for one, s in zip(found, sort, strict=True) if not self.sorts or s in self.sorts)


def repairs() -> list[Repair]:
    """All repairs that there are, in the order in which they are made."""
    from luthier.ml.data.repair.actions import ACTIONS

    def needs(check: str) -> str:
        return "other rows" if check == _NEEDS_OTHER else "a model" if check == _NEEDS_MODEL else ""

    return [
        Repair(one.id, one.check, one.kind, one.is_default, one.reason, one.because, needs(one.check), one.sorts)
        for one in ACTIONS.values()
    ]


@dataclass(frozen=True, slots=True)
class MaskKind:
    """A kind of personal data that a repair can mask.

    Attributes:
        id: By which it is chosen.
        is_default: Whether certain values of it are masked without being chosen.
        missing: Why it cannot be found on this machine, or empty.
    """

    id: str
    is_default: bool
    missing: str = ""


def mask_kinds() -> list[MaskKind]:
    """All kinds of personal data, in a fixed order."""
    from luthier.ml.data.personal_data.masking import DEFAULT_KINDS
    from luthier.ml.data.personal_data.names import why_not
    from luthier.ml.data.personal_data.span import KINDS

    return [MaskKind(kind, kind in DEFAULT_KINDS, (why_not() or "") if kind == "name" else "") for kind in KINDS]


def repair_state(context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice) -> CachedResult:
    """The state of the preview of a repair.

    Raises:
        NotFoundError: No such held-out dataset.
    """
    found = cached_result(context, _subject(context, caller, version, choice)[0])
    # The rows are deleted when they have become a version, the summary stays: then the repair is not prepared.
    if found.answer is not None and not _prepared(context, caller, version, choice).is_file():
        return CachedResult("unasked")
    return found


def begin_repair(context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice) -> CachedResult:
    """Prepare a repair in the background. The rows that are previewed are those that will be stored.

    Raises:
        NotFoundError: No such held-out dataset.
        RequestError: A choice that cannot be made.
    """
    _check(context, choice)
    subject, other = _subject(context, caller, version, choice)
    output = _prepared(context, caller, version, choice)

    def answer() -> dict[str, Any]:
        return answer_about(
            context,
            caller.project_id,
            "repair",
            version.file_id,
            {"output": str(output), "actions": list(choice.actions), "mask": list(choice.mask)},
            against=None if other is None else other.file_id,
            model=choice.model or None,
        )

    return start_computation(context, subject, answer)


def keep_repair(
    context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice, *, note: str = ""
) -> DatasetVersion:
    """Make a new version of a repair that was prepared.

    Raises:
        ConflictError: It was not prepared, or its rows were damaged since.
        RequestError: It changes no row.
        NotFoundError: No such dataset.
    """
    state, output = repair_state(context, caller, version, choice), _prepared(context, caller, version, choice)
    # The digest ties the rows on the disk to the summary that the user has seen and agreed to.
    if state.answer is None or sha256_file(output) != state.answer["summary"]["output_sha256"]:
        raise ConflictError(
            "this repair is not prepared", expected="a repair that was previewed", do="preview it, then keep it"
        )
    summary = state.answer["summary"]
    if not summary["fates"]["changed"] and not summary["fates"]["removed"]:
        raise RequestError("this repair changes no row", expected="something to repair", do="keep the version as it is")
    stem = Path(version.filename.removesuffix(".gz")).stem
    file = keep_rows(context, caller, _blocks(output), f"{stem}.jsonl")
    names = ("fates", "actions", "grade_before", "grade_after", "num_rows", "num_rows_after", "left", "skipped", "mask")
    details = {name: summary[name] for name in names}
    try:
        made = add_version(
            context,
            caller,
            version.dataset_id,
            file,
            origin="repair",
            parent=version.number,
            note=note,
            details=details,
        )
    # Also on KeyboardInterrupt: the stored file would count against the project with no version that names it.
    except BaseException:
        files.delete_file(context, caller.project_id, file.file_id)
        raise
    # The prepared rows and the manifest beside them; the cached summary stays but is `unasked` without them.
    for path in (output, *output.parent.glob(f"{output.name}.*")):
        path.unlink(missing_ok=True)
    return made


def _check(context: Context, choice: RepairChoice) -> None:
    from luthier.ml.data.repair.masked_kinds import masked_kinds

    if choice.model:
        check_is_local(context, choice.model)
    known = {one.id: one for one in repairs()}
    for name in choice.actions:
        if name not in known:
            raise RequestError(f"no repair {name!r}", expected=f"one of {', '.join(known)}", do="choose one of these")
        if known[name].needs == "other rows" and not choice.against:
            raise RequestError(
                f"the repair {name} without rows to hold these against",
                expected="the dataset that will judge",
                do="choose it under “held against”, or leave this repair out",
            )
        if known[name].needs == "a model" and not choice.model:
            raise RequestError(
                f"the repair {name} without a model", expected="the model whose tokens count", do="choose a base model"
            )
    if choice.mask and "personal_data" not in choice.actions:
        raise RequestError(
            "kinds of personal data are chosen, and personal data is not among the repairs",
            expected="personal_data among the repairs",
            do="tick personal data, too, or no kind of it",
        )
    masked_kinds(choice.mask)
    if not choice.actions:
        raise RequestError("no repair was chosen", expected="at least one", do="tick what is to be repaired")


def _subject(
    context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice
) -> tuple[Subject, DatasetVersion | None]:
    other = get_version(context, caller, choice.against) if choice.against else None
    given = {
        "suffix": files.suffix_of(version.filename),
        # Sorted: repairs are made in their own fixed order, so the order of ticks must not make another cache key.
        "actions": sorted(choice.actions),
        "mask": sorted(choice.mask),
        "against": None if other is None else [other.sha256, files.suffix_of(other.filename)],
        # Name and digest: a model that was pulled again under its name may count other tokens.
        "model": [choice.model, model_digest(context, choice.model)] if choice.model else None,
    }
    return Subject(version.sha256, "repair", given), other


def _prepared(context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice) -> Path:
    """The file of rows that a repair makes, beside the answer that tells of it."""
    subject, _ = _subject(context, caller, version, choice)
    path = subject.path(context)
    # Beside the cached summary, under the same key, so that the two always belong to the same choice.
    return path.with_name(f"{path.stem}-rows.jsonl")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
