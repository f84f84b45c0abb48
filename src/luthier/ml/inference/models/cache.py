"""The base models on this machine: `home/models/<safe name>/`, whole or not at all.

A model folder holds the transformers files, `manifest.json` (digest and size of every weight file, and where it all
came from) and `luthier.json` (the LocalModel), written last: a folder without it is not a model. New models are made in
a `.tmp-` folder beside it, fsynced and renamed; a file lock lets one process do this at a time. For a folder of the
user's own only the two documents are kept, the weights stay where they are.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.core.errors import ConflictError, ModelSourceError, StorageFullError, first_line
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress
from luthier.core.records.base_model import LocalModel
from luthier.core.system.files import is_disk_full, sync, sync_tree
from luthier.ml.inference.models.catalog import ModelName
from luthier.ml.inference.models.weights import WeightFile, weight_files, weights_digest

DOCUMENT, MANIFEST = "luthier.json", "manifest.json"


class Manifest(FrozenModel):
    """A model as it was when it was taken in.

    Attributes:
        files: digest, size and time of each weight file, by its name.
        origin: where it came from (digests, commit, path), for the record.
    """

    files: dict[str, WeightFile]
    origin: dict[str, str]


def models_folder(home: Path) -> Path:
    """The folder of all base models of a home."""
    return home / "models"


def read(folder: Path) -> tuple[LocalModel, Manifest] | None:
    """The model in a folder of the cache, or None if there is none. The weights are not looked at.

    Raises:
        ModelSourceError: the documents are there and cannot be understood.
    """
    document = folder / DOCUMENT
    if not document.is_file():
        return None
    try:
        model = LocalModel.model_validate_json(document.read_text(encoding="utf-8"))
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        raise ModelSourceError(
            f"{document} or its {MANIFEST} is damaged: {first_line(error)}",
            expected="the two documents that Luthier writes beside a model",
            do=f"delete the folder {folder} and pull the model again",
        ) from error
    if model.source != "folder":
        # The home may have been moved since; what counts is where the model lies now.
        model = model.model_copy(update={"path": str(folder)})
    return model, manifest


def damage(model: LocalModel, manifest: Manifest) -> str | None:
    """What is wrong with the weight files; None if nothing is.

    Looks at existence, size and time of change, and into a file only where its time is not the recorded one: what
    rots on the disk without a trace is found by `verify`.
    """
    for name, recorded in manifest.files.items():
        file = Path(model.path) / name
        if not file.is_file():
            return f"weight file {file} is missing"
        if (size := file.stat().st_size) != recorded.num_bytes:
            return f"weight file {file} has {size} bytes instead of {recorded.num_bytes}"
        # Copying a home changes times and not contents: then the digest decides.
        if file.stat().st_mtime_ns != recorded.modified_ns and sha256_file(file) != recorded.sha256:
            return f"weight file {file} was changed: its digest is not {recorded.sha256[:12]} any more"
    return None


def damaged(model: LocalModel, what: str) -> ModelSourceError:
    """The error for a model whose weights are no longer what was taken in."""
    return ModelSourceError(
        f"base model {model.name}: {what}",
        expected="the weight files as they were when the model was pulled",
        do=f"run `luthier models rm {model.name}`, then `luthier models pull {model.name}`",
    )


def verify(model: LocalModel) -> None:
    """Read every weight file and compare digests.

    Raises:
        ModelSourceError: one differs; it is named, with what to do.
    """
    folder = Path(model.path)
    if (kept := read(folder)) is not None:
        manifest = kept[1]
        if what := damage(model, manifest):
            raise damaged(model, what)
        for name, recorded in manifest.files.items():
            if (digest := sha256_file(folder / name)) != recorded.sha256:
                raise damaged(model, f"weight file {folder / name} has digest {digest}, not {recorded.sha256}")
        return
    files = {file.name: sha256_file(file) for file in weight_files(folder)}
    if (digest := weights_digest(files)) != model.sha256:
        raise damaged(
            model, f"the weight files in {folder} ({', '.join(files)}) changed: digest {digest}, not {model.sha256}"
        )


@contextmanager
def locked(home: Path, name: ModelName, progress: Progress | None) -> Iterator[None]:
    """Hold the model's lock; with `progress` wait for it visibly, without it do not wait at all.

    The lock goes with the process that holds it, however that ends.

    Raises:
        ConflictError: another process holds it and there is no `progress`.
    """
    folder = models_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    # A file of its own, never deleted: a lock on the model's folder would go with the rename.
    with (folder / f".lock-{name.safe}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is None:
                raise ConflictError(
                    f"base model {name.text} is being pulled by another process",
                    expected="a model that nobody is working on",
                    do="wait until that pull has ended, then try again",
                ) from None
            with progress.task(f"Waiting for another pull of {name.text}", None, ""):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def workspace(home: Path, name: ModelName) -> Iterator[Path]:
    """An empty folder to make the model in; call under the lock. Gone afterwards, whatever happens.

    What a killed pull left behind is cleared first.

    Raises:
        StorageFullError: the disk ran full inside.
    """
    clear_leftovers(home, name)
    work = models_folder(home) / f".tmp-{name.safe}~{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    except OSError as error:
        if is_disk_full(error):
            free = shutil.disk_usage(models_folder(home)).free
            raise StorageFullError(
                f"the disk of {models_folder(home)} is full ({free} bytes left) while pulling {name.text}",
                expected="room for the download and for the converted model, about four times the download",
                do="free some space or pass --home on a larger disk, then pull again",
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def clear_leftovers(home: Path, name: ModelName) -> None:
    """Delete what killed pulls of this model left; call under the lock."""
    for leftover in models_folder(home).glob(f".tmp-{name.safe}~*"):
        # A child of the killed process may still write into it for a moment; the next pull clears what stays.
        shutil.rmtree(leftover, ignore_errors=True)


def publish(home: Path, name: ModelName, made: Path, model: LocalModel, manifest: Manifest) -> LocalModel:
    """Move a finished folder to its place, in one step, replacing a damaged one; call under the lock."""
    final = models_folder(home) / name.safe
    if model.source != "folder":
        model = model.model_copy(update={"path": str(final)})
    write_json(made / MANIFEST, manifest)
    sync_tree(made)
    # Last, after all else is on the disk: a folder without this document is no model.
    write_json(made / DOCUMENT, model)
    sync(made / DOCUMENT)
    sync(made)
    # A rename cannot replace a folder that is not empty. A crash here leaves no model, which is pulled again.
    _discard(home, name)
    made.rename(final)
    # The rename itself is on the disk only once its folder is.
    sync(final.parent)
    return model


def discard(home: Path, name: ModelName) -> None:
    """Delete a model, in one step as others see it; call under the lock."""
    _discard(home, name)
    clear_leftovers(home, name)


def write_json(file: Path, document: FrozenModel) -> None:
    """Write a spec as readable JSON."""
    write_json_object(file, document.model_dump(mode="json"))


def write_json_object(file: Path, document: dict[str, Any]) -> None:
    """Write a document as readable JSON."""
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _discard(home: Path, name: ModelName) -> None:
    final = models_folder(home) / name.safe
    if final.exists():
        # Renamed first: others see the model whole or not at all.
        grave = models_folder(home) / f".tmp-{name.safe}~{uuid.uuid4().hex[:8]}"
        final.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
