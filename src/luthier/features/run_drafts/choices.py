"""Use cases of who drafts a recipe: the rows and the models to choose from, and the recipe of a run to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.aliases import with_new_keys, with_stored_keys
from luthier.core.dataset import Row, Shape
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.core.ids import sha256_document
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.registry import STORED
from luthier.core.text.counted import counted
from luthier.features.datasets import derived_versions as dataset_splits
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.derived_versions import MadeSplit, SplitOrigin
from luthier.features.datasets.store import DatasetVersion
from luthier.features.models.service import ModelView, list_models
from luthier.features.runs import state as run_control
from luthier.features.studies.end import winning_document
from luthier.features.training.recipe_job import ASKED
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, may_use_base

_MAX_VERSIONS: Final = 100
_MAX_FILES: Final = 30
_ROWS_LOOKED_AT: Final = 50
_MAX_SHAPES: Final = 1000
_shapes: Final[dict[tuple[str, str], Shape]] = {}
"""By the digest of the file's content and the columns that were chosen, which alone decide it."""
_SPLITS: Final = ("train", "validation", "held_out")
_JUDGING: Final = ("validation", "held_out")
_FIRST_SHARE: Final = 0.1
"""What is held out of rows that are no side of a split: so that the run has a verdict."""


@dataclass(frozen=True, slots=True)
class FileChoice:
    """A file of rows that a recipe may name. group: the dataset that it belongs to; words: which version, how large."""

    file_id: str
    group: str
    words: str

    @property
    def comment(self) -> str:
        """The file of an id in a recipe."""
        return f"{self.group}, {self.words}" if self.group else self.words


@dataclass(frozen=True, slots=True)
class StartingRows:
    """The rows that a recipe begins with.

    Attributes:
        data: Of the recipe.
        version: The rows that are learned.
        split: How these belong to a split; None where they are no side of one.
        has_split: The split that was made of these very rows; None where there is none.
    """

    data: dict[str, Any]
    version: DatasetVersion
    split: SplitOrigin | None
    has_split: MadeSplit | None


@dataclass(frozen=True, slots=True)
class Fork:
    """A recipe to begin with. left_out: what of the run could not be named here, as text."""

    keys: dict[str, Any]
    left_out: tuple[str, ...] = ()


def file_choices(context: Context, caller: Caller) -> list[FileChoice]:
    """The newest versions of the project's datasets, then its newest other files that are there to train on."""
    found: dict[str, FileChoice] = {}
    for dataset, version in context.datasets.all_versions(caller.project_id, _MAX_VERSIONS):
        rows = "" if version.num_rows is None else f", {counted(version.num_rows, 'row')}"
        choice = FileChoice(version.file_id, dataset.name, f"version {version.number}{rows}")
        found.setdefault(version.file_id, choice)
    others, _ = files.list_files(context, caller.project_id, purpose="fine-tune", limit=_MAX_FILES)
    for file in others:
        found.setdefault(file.file_id, FileChoice(file.file_id, "", file.filename))
    return list(found.values())


def model_choices(context: Context, caller: Caller) -> dict[str, ModelView]:
    """The base models that the caller's project may use, by the name that its recipes know them by.

    Those on this machine come first.
    """
    views = {view.name: view for view in list_models(context) if may_use_base(context, caller.project_id, view.name)}
    known = {name: views[own] for name, own in base_models(context).items() if own in views}
    return dict(sorted(known.items(), key=lambda item: item[1].path is None))


def shape_of(context: Context, caller: Caller, file_id: str) -> Shape | None:
    """The shape of a file's first rows; None where that cannot be read off, or there is no such file."""
    try:
        file = files.get_file(context, caller.project_id, file_id)
        # Read once: another thread may clear them at any time.
        columns = context.datasets.columns_of_file(caller.project_id, file_id)
        key = file.sha256, sha256_document(columns)
        found = _shapes.get(key)
        if found is None:
            # A bound on memory; the content decides the shape, so entries never go stale and clearing only costs a
            # second look.
            if len(_shapes) >= _MAX_SHAPES:
                _shapes.clear()
            _shapes[key] = found = _shape_of(files.local_path(context, file), columns)
        return found
    except LuthierError:
        return None


def fork(context: Context, caller: Caller, run_id: str) -> Fork:
    """The recipe of a run of the project, with files by id and its base model by name.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: A run that has neither a plan nor a recipe yet.
    """
    job = run_control.job_of(context, caller, run_id)
    if job is not None and ASKED in job.document:
        return Fork(job.document[ASKED])
    try:
        plan = context.runs.plan(run_id)
    except NotFoundError:
        raise ConflictError(
            f"run {run_id} has not started",
            expected="a run that has a plan",
            do="wait until it trains, or start with an empty recipe",
        ) from None
    asked = {} if job is None else job.document.get("request", {})
    ids = {"train": asked.get("training_file"), "validation": asked.get("validation_file")}
    return _fork_of_plan(context, caller, plan, ids)


def fork_study(context: Context, caller: Caller, study_id: str) -> Fork:
    """The recipe of a study's winner, as `fork` gives that of a run.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: None is named yet.
    """
    study = context.studies.get(study_id, caller.project_id)
    trials = context.studies.trials(study_id)
    recipe = Recipe.model_validate(with_stored_keys(winning_document(study, trials)), context=STORED)
    plan = context.runs.plan(trials[study.winner or 0].run_id)
    return _fork_of_plan(context, caller, plan.model_copy(update={"recipe": recipe}), {})


def rows_of(context: Context, caller: Caller, dataset_id: str, number: int | None) -> StartingRows:
    """The `data` of a recipe that learns from a dataset's version; None: from the newest.

    A side that trains is evaluated by the sides of the same split; other rows by a separate share.

    Raises:
        NotFoundError: The project has no such dataset, or the dataset no such version.
    """
    version = dataset_versions.get_version(context, caller, dataset_id, number)
    split = dataset_splits.split_of(context, caller, version)
    data: dict[str, Any] = {"train": version.file_id}
    if version.columns:
        data["columns"] = dict(version.columns)
    if split is not None and split.side == "train":
        data |= {side: one.file_id for side in _JUDGING if (one := split.sides.get(side)) is not None}
    if "held_out" not in data:
        data["held_out"] = _FIRST_SHARE
    return StartingRows(data, version, split, None if split else _split_made_of(context, caller, version))


def _split_made_of(context: Context, caller: Caller, version: DatasetVersion) -> MadeSplit | None:
    """The split of a version that was made last, so that its sides can be trained with instead."""
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    made = dataset_splits.last_split(context, caller, dataset)
    return made if made and made.sides["train"][1].details["of"]["version"] == version.number else None


def _fork_of_plan(context: Context, caller: Caller, plan: Plan, ids: Mapping[str, str | None]) -> Fork:
    keys = with_new_keys(plan.recipe.model_dump(mode="json", exclude_none=True))
    names = {own: name for name, own in base_models(context).items()}
    left_out = []
    if (name := names.get(plan.base_model.name)) is not None:
        keys["base_model"] = name
    else:
        del keys["base_model"]
        left_out.append("its base model, which is no longer on this machine")
    stored, _ = files.list_files(context, caller.project_id, purpose="fine-tune")
    # `list_files` is newest first: reversed, the newest of equal files wins.
    by_digest = {file.sha256: file.file_id for file in reversed(stored)}
    known = {file.file_id for file in stored}
    for split in _SPLITS:
        if isinstance(sources := keys["data"].get(split), list):
            digests = [one.files[0].sha256 for one in plan.data.sources if one.split == split and len(one.files) == 1]
            if len(digests) == len(sources) and set(digests) <= by_digest.keys():
                paths = zip(sources, digests, strict=True)
                keys["data"][split] = [source | {"path": by_digest[digest]} for source, digest in paths]
            else:
                del keys["data"][split]
                rows = f"{split.replace('_', '-')} rows"
                left_out.append(f"the sources of its {rows}, which are not files of this project")
            continue
        if not isinstance(keys["data"].get(split), str):
            continue  # a share, or none
        profile = getattr(plan.data, split)
        file_id = ids.get(split) or by_digest.get(profile.sha256 if profile else "")
        if file_id in known:
            keys["data"][split] = file_id
        else:
            del keys["data"][split]
            left_out.append(f"the {split.replace('_', '-')} rows, which are not a file of this project")
    if keys["data"].pop("replay", None) is not None:
        left_out.append("the general rows of its replay")
    if keys.get("objective", {}).pop("teacher", None) is not None:
        left_out.append("its teacher")
    search = keys.get("evaluation", {}).get("optimised_prompt", {})
    if search.pop("reflection_model", None) is not None:
        left_out.append("the model that writes instructions")
    return Fork(keys, tuple(left_out))


def _shape_of(path: Path, columns: Mapping[str, str]) -> Shape:
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.data.rows.shapes import ShapeDetector

    source = open_source(path)
    detector = ShapeDetector(source.name, dict(columns))
    for number, row in enumerate(read_rows(source)):
        if isinstance(row, Row):
            detector.add(row)
        if number >= _ROWS_LOOKED_AT:
            break
    return detector.decide(group=None)[0]
