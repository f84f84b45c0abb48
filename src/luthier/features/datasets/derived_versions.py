"""Use cases: new versions of a dataset by repair or by split, each exactly as previewed.

A repair shows its changes row by row and then makes a version of exactly these. A split makes three datasets that share
nothing, and stores the proof of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.ports import ProgressTask
from luthier.core.system.files import blocks_of, scratch_folder
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.service import add_version, get_version, keep_rows
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.datasets.version_analyses import columns_key, compared_columns, compared_key
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import check_is_local, model_digest
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

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
        because: The reason for it.
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
        # Some checks distinguish sorts (kinds of personal data), others kinds; either limits a repair.
        sort = [one["details"].get("sort", one["details"].get("kind")) for one in found]
        return sum(one["count"] for one, s in zip(found, sort, strict=True) if not self.sorts or s in self.sorts)


def repairs() -> list[Repair]:
    """All repairs that there are, in the order in which they are made."""
    from luthier.ml.data.repair.request import ACTIONS

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
        id: Its name in requests.
        is_default: Whether certain values of it are masked without being chosen.
        missing: Why it cannot be found on this machine, or empty.
    """

    id: str
    is_default: bool
    missing: str = ""


def mask_kinds() -> list[MaskKind]:
    """All kinds of personal data, in a fixed order."""
    from luthier.ml.data.personal_data.find import why_not
    from luthier.ml.data.personal_data.masking import DEFAULT_KINDS
    from luthier.ml.data.personal_data.recognizers import KINDS

    return [MaskKind(kind, kind in DEFAULT_KINDS, (why_not() or "") if kind == "name" else "") for kind in KINDS]


def repair_state(context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice) -> CachedResult:
    """The state of the preview of a repair.

    Raises:
        NotFoundError: No such held-out dataset.
    """
    found = cached_result(context, _repair_subject(context, caller, version, choice)[0])
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
    _check_repair(context, choice)
    subject, other = _repair_subject(context, caller, version, choice)
    output = _prepared(context, caller, version, choice)

    def answer() -> dict[str, Any]:
        return answer_about(
            context,
            caller.project_id,
            "repair",
            version.file_id,
            {
                "output": str(output),
                "actions": list(choice.actions),
                "mask": list(choice.mask),
                "columns": version.columns,
                "against_columns": None if other is None else compared_columns(context, caller, version, other),
            },
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
            "this repair was not previewed", expected="a repair that was previewed", do="preview it, then keep it"
        )
    summary = state.answer["summary"]
    if not summary["fates"]["changed"] and not summary["fates"]["removed"]:
        raise RequestError("this repair changes no row", expected="something to repair", do="keep the version")
    stem = Path(version.filename.removesuffix(".gz")).stem
    with context.progress.task("Copying the repaired rows", output.stat().st_size, "bytes") as task:
        file = keep_rows(context, caller, _counted_blocks(output, task), f"{stem}.jsonl")
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
    # The prepared rows and the manifest next to them; the cached summary stays but is `unasked` without them.
    for path in (output, *output.parent.glob(f"{output.name}.*")):
        path.unlink(missing_ok=True)
    return made


def _counted_blocks(path: Path, task: ProgressTask) -> Iterator[bytes]:
    for block in blocks_of(path):
        yield block
        task.advance(len(block))


def _check_repair(context: Context, choice: RepairChoice) -> None:
    from luthier.ml.data.repair.request import masked_kinds

    if choice.model:
        check_is_local(context, choice.model)
    known = {one.id: one for one in repairs()}
    for name in choice.actions:
        if name not in known:
            raise RequestError(f"no repair {name!r}", expected=f"one of {', '.join(known)}", do="choose one of these")
        if known[name].needs == "other rows" and not choice.against:
            raise RequestError(
                f"the repair {name} without rows to compare with",
                expected="the dataset with the held-out rows",
                do="choose it under “Compare with”, or leave this repair out",
            )
        if known[name].needs == "a model" and not choice.model:
            raise RequestError(
                f"the repair {name} without a model", expected="the model that counts tokens", do="choose a base model"
            )
    if choice.mask and "personal_data" not in choice.actions:
        raise RequestError(
            "kinds of personal data are chosen, and personal data is not among the repairs",
            expected="personal_data among the repairs",
            do="also tick personal data, or tick no kind of it",
        )
    masked_kinds(choice.mask)
    if not choice.actions:
        raise RequestError("no repair was chosen", expected="at least one", do="tick the repairs to make")


def _repair_subject(
    context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice
) -> tuple[Subject, DatasetVersion | None]:
    other = get_version(context, caller, choice.against) if choice.against else None
    given = {
        "suffix": files.suffix_of(version.filename),
        # Sorted: repairs are made in their own fixed order, so the order of ticks must not make another cache key.
        "actions": sorted(choice.actions),
        "mask": sorted(choice.mask),
        "against": compared_key(
            context, caller, version, other, "" if other is None else files.suffix_of(other.filename)
        ),
        # Name and digest: a model that was pulled again under its name may count other tokens.
        "model": [choice.model, model_digest(context, choice.model)] if choice.model else None,
    } | columns_key(version)
    return Subject(version.sha256, "repair", given), other


def _prepared(context: Context, caller: Caller, version: DatasetVersion, choice: RepairChoice) -> Path:
    """The file of rows that a repair makes, next to the answer that describes it."""
    subject, _ = _repair_subject(context, caller, version, choice)
    path = subject.path(context)
    # Next to the cached summary, under the same key, so that the two always belong to the same choice.
    return path.with_name(f"{path.stem}-rows.jsonl")


SIDES: Final = {"train": "train", "validation": "validation", "held_out": "held-out"}
"""The sides of a split, and what is put behind the name of the dataset for each."""
OF_SPLIT: Final = frozenset({"of", "split", "side"})
"""Details of a version that is a side of a split."""
_MAX_NAME_CHARACTERS: Final = 85
_MAX_STRATA: Final = 100


@dataclass(frozen=True, slots=True)
class SplitWishes:
    """How to split a version; the fields of `SplitOptions` without paths.

    Attributes:
        validation: The fraction of the validation side, 0 to 1.
        held_out: The fraction of the held-out side, 0 to 1.
        seed: Another seed gives another split.
        group_by: The field whose equal values stay on one side.
        stratify_by: The field whose values each side has its share of.
        near_threshold: Jaccard similarity (0.5 to 1) from which rows stay together; None does not search.
    """

    validation: float = 0.1
    held_out: float = 0.1
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    near_threshold: float | None = 0.8


@dataclass(frozen=True, slots=True)
class MadeSplit:
    """A split that was stored as datasets.

    Attributes:
        sides: The dataset and version of each side.
        document: The content of split.json.
    """

    sides: dict[str, tuple[Dataset, DatasetVersion]]
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SplitOrigin:
    """How a version belongs to a split.

    Attributes:
        side: Which side it is: `train`, `validation` or `held_out`.
        made_of: The version that the split has made of that side.
        sides: What the same split has made and is still there, by side.
        is_changed: Whether rows were changed since the split, so that its proof does not cover them.
    """

    side: str
    made_of: DatasetVersion
    sides: dict[str, DatasetVersion]
    is_changed: bool

    @property
    def name(self) -> str:
        """Of the dataset that was split."""
        return str(self.made_of.details["of"]["name"])

    @property
    def proof(self) -> dict[str, Any]:
        """What is on two sides, as in split.json."""
        proof: dict[str, Any] = self.made_of.details["split"]["proof"]
        return proof


def begin_split(context: Context, caller: Caller, version: DatasetVersion, wishes: SplitWishes) -> CachedResult:
    """Begin `split_dataset` in the background, unless that version is being split already.

    Raises:
        NotFoundError: There is none in the project.
        RequestError: The options are impossible with any rows.
    """
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    _check_split(wishes, dataset.name)

    def work() -> dict[str, Any]:
        made = split_dataset(context, caller, version, wishes)
        return {side: one.number for side, (_, one) in made.sides.items()}

    return start_computation(context, _split_subject(version), work)


def split_state(context: Context, version: DatasetVersion) -> CachedResult:
    """The state of the newest split of a version."""
    return cached_result(context, _split_subject(version))


def split_dataset(context: Context, caller: Caller, version: DatasetVersion, wishes: SplitWishes) -> MadeSplit:
    """Make NAME-train, NAME-validation and NAME-held-out, or the next versions of those, of a version's rows.

    A fraction of 0 makes no dataset. The work is done in a separate process.

    Raises:
        NotFoundError: No such dataset.
        DataError: Rows, fields or fractions that do not allow it.
        RequestError: Options that cannot be met.
        LeakageError: The proof failed; nothing was made.
        FileQuotaError: The files of the project would take more than they may; nothing was made.
        WorkError: The process failed or was late.
    """
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    _check_split(wishes, dataset.name)
    beside = context.settings.file_cache_folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    # Next to the file cache, on a disk that is sized for data files; /tmp may be a small tmpfs.
    with scratch_folder(beside, "split-") as folder:
        given = {"folder": str(folder), "options": asdict(wishes), "columns": version.columns}
        # The child writes the sides into the scratch folder and returns split.json with the proof.
        document = answer_about(context, caller.project_id, "split", version.file_id, given)
        document["file"] = version.filename
        # The document is stored with each version, so it may not grow with the number of strata.
        document["strata"] = dict(list(document["strata"].items())[:_MAX_STRATA])
        of = {"dataset_id": dataset.dataset_id, "name": dataset.name, "version": version.number}
        # Before the first one is kept: with some of its sides alone it would be no split.
        num_bytes = sum((folder / part["file"]).stat().st_size for part in document["sides"].values())
        context.files.check_room(caller.project_id, num_bytes)
        sides = {
            side: _keep(
                context, caller, f"{dataset.name}-{SIDES[side]}", folder / part["file"], of, document, version.columns
            )
            for side, part in document["sides"].items()
        }
    return MadeSplit(sides, document)


def last_split(context: Context, caller: Caller, dataset: Dataset) -> MadeSplit | None:
    """The split of a dataset that was made last, if its datasets still exist; None where there is none."""
    sides: dict[str, tuple[Dataset, DatasetVersion]] = {}
    for side, ending in SIDES.items():
        found = context.datasets.find(caller.project_id, f"{dataset.name}-{ending}")
        if found is None:
            continue
        newest = context.datasets.versions(found.dataset_id)[0]
        # A dataset of that name may be somebody's own upload, or the side of a split of another dataset.
        if newest.origin == "split" and newest.details.get("of", {}).get("dataset_id") == dataset.dataset_id:
            sides[side] = found, newest
    if "train" not in sides:
        return None
    document = sides["train"][1].details["split"]
    # A side of an earlier split may hold rows that this one trains on: it is none of this split.
    same = {side: pair for side, pair in sides.items() if pair[1].details["split"] == document}
    return MadeSplit(same, document)


def split_of(context: Context, caller: Caller, version: DatasetVersion) -> SplitOrigin | None:
    """The split that a version is a side of, or that a version is a side of which it was made from; None for neither.

    Raises:
        NotFoundError: An earlier version that it was made from no longer exists.
    """
    # Repairs and annotations keep their parent, so the chain of parents leads back to the split.
    chain = dataset_versions.ancestry(context, caller, version)
    one = next((other for other in chain if other.origin == "split"), None)
    if one is None or not one.details.keys() >= OF_SPLIT:
        return None
    name, document = one.details["of"]["name"], one.details["split"]
    sides: dict[str, DatasetVersion] = {}
    for side, ending in SIDES.items():
        found = context.datasets.find(caller.project_id, f"{name}-{ending}")
        for other in [] if found is None else context.datasets.versions(found.dataset_id):
            if other.details.get("split") == document and other.details.get("of") == one.details["of"]:
                # Versions come newest first; a split that was kept twice counts with its newest version.
                sides.setdefault(side, other)
    return SplitOrigin(side=one.details["side"], made_of=one, sides=sides, is_changed=one.number != version.number)


def _keep(
    context: Context,
    caller: Caller,
    name: str,
    path: Path,
    of: dict[str, Any],
    document: dict[str, Any],
    columns: dict[str, str],
) -> tuple[Dataset, DatasetVersion]:
    file = files.add_file(context, caller.project_id, path, filename=f"{path.stem}.jsonl", purpose="fine-tune")
    details = {"of": of, "side": path.stem, "split": document}
    # Names have up to 100 characters and notes 1,000: the cut only guards against a change of either.
    note = f"split from {of['name']} version {of['version']}"[:1000]
    known = context.datasets.find(caller.project_id, name)
    if known is None:
        return dataset_versions.create_dataset(
            context, caller, name, file, origin="split", note=note, details=details, columns=columns
        )
    newest = context.datasets.versions(known.dataset_id)[0].number
    made = dataset_versions.add_version(
        context,
        caller,
        known.dataset_id,
        file,
        origin="split",
        parent=newest,
        note=note,
        details=details,
        columns=columns,
    )
    return known, made


def _split_subject(version: DatasetVersion) -> Subject:
    return Subject(version.sha256, "split", {"dataset": version.dataset_id, "version": version.number})


def _check_split(wishes: SplitWishes, name: str) -> None:
    if len(name) > _MAX_NAME_CHARACTERS:
        raise RequestError(
            f"a name of {len(name)} characters, which grows by the names of the sides",
            expected=f"at most {_MAX_NAME_CHARACTERS} characters",
            do="add the rows as a dataset with a shorter name",
        )
    if wishes.near_threshold is not None and not 0.5 <= wishes.near_threshold <= 1:
        raise RequestError(
            f"{wishes.near_threshold:g} as the similarity of near-duplicates",
            expected="a Jaccard similarity from 0.5 to 1",
            do="use 0.8, or do not search for near-duplicates",
        )
