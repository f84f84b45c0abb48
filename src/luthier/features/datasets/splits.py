"""Use case: split a version of a dataset into three datasets that share nothing, with the proof of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.system.scratch_folders import scratch_folder
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.records import Dataset, DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

SIDES: Final = {"train": "train", "validation": "validation", "held_out": "held-out"}
"""The sides of a split, and what is put behind the name of the dataset for each."""
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
        """What stands on two sides, as split.json has it."""
        proof: dict[str, Any] = self.made_of.details["split"]["proof"]
        return proof


def begin_split(context: Context, caller: Caller, version: DatasetVersion, wishes: SplitWishes) -> CachedResult:
    """Begin `split_dataset` beside the request, unless that version is being split already.

    Raises NotFoundError, and RequestError for wishes that cannot be met whatever the rows are.
    """
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    _check(wishes, dataset.name)

    def work() -> dict[str, Any]:
        made = split_dataset(context, caller, version, wishes)
        return {side: one.number for side, (_, one) in made.sides.items()}

    return start_computation(context, _subject(version), work)


def split_state(context: Context, version: DatasetVersion) -> CachedResult:
    """How it stands with the split of a version that was begun last."""
    return cached_result(context, _subject(version))


def split_dataset(context: Context, caller: Caller, version: DatasetVersion, wishes: SplitWishes) -> MadeSplit:
    """Make NAME-train, NAME-validation and NAME-held-out, or the next versions of those, of a version's rows.

    A fraction of 0 makes no dataset. The work is done in a process of its own.

    Raises:
        NotFoundError: No such dataset.
        DataError: Rows, fields or fractions that do not allow it.
        RequestError: Options that cannot be met.
        LeakageError: The proof failed; nothing was made.
        WorkError: The process failed or was late.
    """
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    _check(wishes, dataset.name)
    beside = context.settings.file_cache_folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    # Beside the file cache, on a disk that is sized for data files; /tmp may be a small tmpfs.
    with scratch_folder(beside, "split-") as folder:
        given = {"folder": str(folder), "options": asdict(wishes)}
        # The child writes the sides into the scratch folder and returns split.json with the proof.
        document = answer_about(context, caller.project_id, "split", version.file_id, given)
        document["file"] = version.filename
        # The document is stored with each version, so it may not grow with the number of strata.
        document["strata"] = dict(list(document["strata"].items())[:_MAX_STRATA])
        of = {"dataset_id": dataset.dataset_id, "name": dataset.name, "version": version.number}
        sides = {
            side: _keep(context, caller, f"{dataset.name}-{SIDES[side]}", folder / part["file"], of, document)
            for side, part in document["sides"].items()
        }
    return MadeSplit(sides, document)


def last_split(context: Context, caller: Caller, dataset: Dataset) -> MadeSplit | None:
    """The split of a dataset that was made last, as far as its datasets are still there; None where there is none."""
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

    Raises NotFoundError.
    """
    one: DatasetVersion | None = version
    # Repairs and annotations keep their parent, so the chain of parents leads back to the split.
    while one is not None and one.origin != "split":
        parent = one.parent
        one = None if parent is None else dataset_versions.get_version(context, caller, one.dataset_id, parent)
    if one is None or not {"of", "split", "side"} <= one.details.keys():
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
    context: Context, caller: Caller, name: str, path: Path, of: dict[str, Any], document: dict[str, Any]
) -> tuple[Dataset, DatasetVersion]:
    file = files.add_file(context, caller.project_id, path, filename=f"{path.stem}.jsonl", purpose="fine-tune")
    details = {"of": of, "side": path.stem, "split": document}
    # Names have up to 100 characters and notes 1,000: the cut only guards against a change of either.
    note = f"split from {of['name']} version {of['version']}"[:1000]
    known = context.datasets.find(caller.project_id, name)
    if known is None:
        return dataset_versions.create_dataset(context, caller, name, file, origin="split", note=note, details=details)
    newest = context.datasets.versions(known.dataset_id)[0].number
    made = dataset_versions.add_version(
        context, caller, known.dataset_id, file, origin="split", parent=newest, note=note, details=details
    )
    return known, made


def _subject(version: DatasetVersion) -> Subject:
    return Subject(version.sha256, "split", {"dataset": version.dataset_id, "version": version.number})


def _check(wishes: SplitWishes, name: str) -> None:
    if len(name) > _MAX_NAME_CHARACTERS:
        raise RequestError(
            f"a name of {len(name)} characters, which grows by the names of the sides",
            expected=f"at most {_MAX_NAME_CHARACTERS} characters",
            do="bring the rows as a dataset with a shorter name",
        )
    if wishes.near_threshold is not None and not 0.5 <= wishes.near_threshold <= 1:
        raise RequestError(
            f"{wishes.near_threshold:g} as the likeness of near-duplicates",
            expected="a Jaccard similarity from 0.5 to 1",
            do="take 0.8, or do not search for near-duplicates",
        )
