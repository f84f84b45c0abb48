"""The base models on this machine: `home/models/<safe name>/`, written atomically.

A model folder holds the transformers files, `manifest.json` (digest and size of every weight file, and their origin)
and `luthier.json` (the LocalModel), written last: a folder without it is not a model. New models are created in a
`.tmp-` folder next to it, fsynced and renamed; a file lock lets one process do this at a time. For a user's own folder
only the two documents are stored; the weights stay where they are.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.core.errors import ConflictError, ModelSourceError, StorageFullError, first_line
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress, SilentProgress, track
from luthier.core.records.base_model import LocalModel
from luthier.core.system import facilities
from luthier.core.system.files import is_disk_full, sync, sync_tree
from luthier.ml.inference.models.catalog import ModelName
from luthier.ml.inference.models.weights import WeightFile, weight_files, weights_digest

DOCUMENT, MANIFEST = "luthier.json", "manifest.json"


class Manifest(FrozenModel):
    """The recorded state of a model at registration.

    Attributes:
        files: digest, size and time of each weight file, by its name.
        origin: provenance (digests, commit, path).
    """

    files: dict[str, WeightFile]
    origin: dict[str, str]


def models_folder(home: Path) -> Path:
    """The folder of all base models of a home."""
    return home / "models"


def read(folder: Path) -> tuple[LocalModel, Manifest] | None:
    """The model in a folder of the cache, or None if there is none. The weights are not checked.

    Raises:
        ModelSourceError: the documents exist but cannot be parsed.
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
            expected="the two documents that Luthier writes next to a model",
            do=f"delete the folder {folder} and pull the model again",
        ) from error
    if model.source != "folder":
        # The home may have been moved since; the current location counts.
        model = model.model_copy(update={"path": str(folder)})
    return model, manifest


def damage(model: LocalModel, manifest: Manifest) -> str | None:
    """A problem with the weight files, or None.

    Checks existence, size and modification time, and reads a file only if its time differs from the record: silent disk
    corruption is found by `verify`.
    """
    for name, recorded in manifest.files.items():
        file = Path(model.path) / name
        if not file.is_file():
            return f"weight file {file} is missing"
        if (size := file.stat().st_size) != recorded.num_bytes:
            return f"weight file {file} has {size} bytes instead of {recorded.num_bytes}"
        # Copying a home changes times but not contents: then the digest decides.
        if file.stat().st_mtime_ns != recorded.modified_ns and sha256_file(file) != recorded.sha256:
            return f"weight file {file} was changed: its digest is no longer {recorded.sha256[:12]}"
    return None


def damaged(model: LocalModel, what: str) -> ModelSourceError:
    """The error for a model whose weights changed since registration."""
    return ModelSourceError(
        f"base model {model.name}: {what}",
        expected="the weight files as they were when the model was pulled",
        do=f"run `luthier models rm {model.name}`, then `luthier models pull {model.name}`",
    )


def verify(model: LocalModel) -> None:
    """Read every weight file and compare digests.

    Raises:
        ModelSourceError: a digest differs; the message names the file and what to do.
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
    """Hold the model's lock; waits for it with `progress`, and fails immediately without.

    The lock is released when the process ends, however it ends.

    Raises:
        ConflictError: another process holds it and there is no `progress`.
    """
    folder = models_folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    # A separate file, never deleted: a lock on the model's folder would move with the rename.
    with (folder / f".lock-{name.safe}").open("w") as file:
        if not facilities.try_lock(file.fileno()):
            if progress is None:
                raise ConflictError(
                    f"base model {name.text} is being pulled by another process",
                    expected="a model that no other process is working on",
                    do="wait until that pull has ended, then try again",
                )
            with progress.task(f"Waiting for another pull of {name.text}", None, ""):
                facilities.wait_for_lock(file.fileno())
        yield


@contextmanager
def workspace(home: Path, name: ModelName) -> Iterator[Path]:
    """An empty working folder for creating the model; call under the lock. It is always deleted afterwards.

    Leftovers of a killed pull are removed first.

    Raises:
        StorageFullError: the disk became full within the block.
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
    """Delete leftovers of killed pulls of this model; call under the lock."""
    for leftover in models_folder(home).glob(f".tmp-{name.safe}~*"):
        # A child of the killed process may still write into it for a moment; the next pull removes the rest.
        shutil.rmtree(leftover, ignore_errors=True)


def publish(home: Path, name: ModelName, made: Path, model: LocalModel, manifest: Manifest) -> LocalModel:
    """Move a finished folder to its place, in one step, replacing a damaged one; call under the lock.

    Args:
        home: the folder that contains `models/`.
        name: the name that was asked for.
        made: the finished folder, on the same file system.
        model: its record.
        manifest: its files and their origin.
    """
    final = models_folder(home) / name.safe
    if model.source != "folder":
        model = model.model_copy(update={"path": str(final)})
    write_json(made / MANIFEST, manifest)
    sync_tree(made)
    # Last, after everything else is on disk: a folder without this document is not a model.
    write_json(made / DOCUMENT, model)
    sync(made / DOCUMENT)
    sync(made)
    # A rename cannot replace a folder that is not empty. After a crash here there is no model, and it is pulled again.
    _discard(home, name, SilentProgress())
    made.rename(final)
    # The rename itself is durable only once its folder is synced.
    sync(final.parent)
    return model


def discard(home: Path, name: ModelName, progress: Progress) -> None:
    """Delete a model atomically; call under the lock.

    Args:
        home: The folder that contains `models/`.
        name: Of the model.
        progress: Counts the deleted files.
    """
    _discard(home, name, progress)
    clear_leftovers(home, name)


def write_json(file: Path, document: FrozenModel) -> None:
    """Write a spec as readable JSON."""
    write_json_object(file, document.model_dump(mode="json"))


def write_json_object(file: Path, document: dict[str, Any]) -> None:
    """Write a document as readable JSON."""
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def _discard(home: Path, name: ModelName, progress: Progress) -> None:
    final = models_folder(home) / name.safe
    if final.exists():
        # Renamed first: other processes see either the whole model or none.
        grave = models_folder(home) / f".tmp-{name.safe}~{uuid.uuid4().hex[:8]}"
        final.rename(grave)
        # File by file: one of many gigabytes takes seconds on some file systems, and whoever waits sees them count.
        files = [path for path in sorted(grave.rglob("*")) if path.is_symlink() or not path.is_dir()]
        for file in track(progress, "Deleting files", files, "files"):
            with suppress(OSError):
                file.unlink()
        shutil.rmtree(grave, ignore_errors=True)
