"""Names of base models: the catalogue of short names, the kinds of names, and the folder of a model."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id, sha256_bytes
from luthier.core.records.base_model import CatalogEntry
from luthier.core.system.files import expanded
from luthier.ml.inference.models.smaller_models import LAYERS, PREFIX

ENVIRONMENT = "LUTHIER_CATALOG"


def entries() -> dict[str, CatalogEntry]:
    """All entries by name, in catalogue order.

    A YAML file of the same format may add entries; the environment variable LUTHIER_CATALOG contains its path.

    Raises:
        RequestError: that file cannot be read, is not a catalogue, or reuses a name of Luthier's catalogue.
    """
    known = {entry.name: entry for entry in built_in()}
    own = os.environ.get(ENVIRONMENT)
    if own:
        for added in _read_own(Path(own)):
            if added.name in known:
                raise RequestError(
                    f"{ENVIRONMENT}={own} has an entry {added.name!r}",
                    expected="names that are not in the catalogue yet",
                    do="give the entry another name",
                )
            known[added.name] = added
    return known


@cache
def built_in() -> tuple[CatalogEntry, ...]:
    """The built-in entries, in catalogue order."""
    return _parse(resources.files("luthier.ml.inference.models").joinpath("catalog.yaml").read_text(encoding="utf-8"))


def _read_own(file: Path) -> tuple[CatalogEntry, ...]:
    try:
        return _parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RequestError(
            f"{ENVIRONMENT}={file}: {error}",
            expected="a YAML list of catalogue entries, as in luthier/ml/inference/models/catalog.yaml",
            do=f"repair the file, or unset {ENVIRONMENT}",
        ) from error


def _parse(text: str) -> tuple[CatalogEntry, ...]:
    # the same safe loader written in C, ten times as fast, if PyYAML was built with it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(CatalogEntry.model_validate(document) for document in yaml.load(text, Loader=loader))  # noqa: S506


def entry(name: str) -> CatalogEntry:
    """The entry called `name`.

    Raises:
        NotFoundError: there is none; the message suggests similar names.
    """
    known = entries()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise NotFoundError(
        f"base model {name!r}",
        expected="a name of the catalogue, hub:org/name@revision, a local folder or a .gguf file",
        do=f"did you mean {' or '.join(near)}?" if near else "list the catalogue with `luthier models list`",
    )


_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_REPO_LIKE = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name.

    Attributes:
        text: its canonical spelling.
        safe: its folder under `home/models`.
        source: the kind of source.
        repo, revision: of a model on the hub.
        file: of a local file or folder.
        layers, teacher: of `layers:15@TEACHER`, which layers of which base model or run.
    """

    text: str
    safe: str
    source: Literal["catalog", "hub", "folder", "gguf", "layers"]
    repo: str = ""
    revision: str = ""
    file: Path | None = None
    layers: str = ""
    teacher: str = ""


def parse(name: str) -> ModelName:
    """Parse a name: a catalogue name first, then `hub:` and `layers:`, then a path.

    Paths need not exist (models made from them may still exist), but must look like paths.

    Raises:
        NotFoundError: none of these.
        RequestError: a malformed `hub:` or `layers:` name.
    """
    # First, so that a local folder cannot shadow a catalogue name.
    if name in entries():
        return ModelName(name, name, "catalog")
    if name.startswith("hub:"):
        return parse_hub(name)
    if name.startswith(PREFIX):
        return _parse_layers(name)
    path = expanded(name)
    if path.suffix == ".gguf":
        path = path.resolve()
        return ModelName(str(path), f"gguf--{_safe(path.stem)}-{_short(path)}", "gguf", file=path)
    # No name, as of a variable that is not set, is not the current folder.
    if name and (path.is_dir() or path.is_absolute() or name.startswith((".", "~"))):
        path = path.resolve()
        return ModelName(str(path), f"folder--{_safe(path.name)}-{_short(path)}", "folder", file=path)
    if _REPO_LIKE.fullmatch(name):
        raise NotFoundError(
            f"base model {name!r}: no folder of that name here",
            expected="an existing folder, or a name on the hub written with hub: in front",
            do=_how_to_ask(name),
        )
    entry(name)
    raise AssertionError("unreachable: entry() raises for an unknown name")


def _how_to_ask(repository: str) -> str:
    """The advice for a repository of the hub: its short name if the catalogue has it."""
    wanted = repository.partition("@")[0].casefold()
    known = [e.name for e in entries().values() if (e.hub or "").partition("@")[0].casefold() == wanted]
    return f"use {known[0]}, its name in the catalogue" if known else f"if it is on the hub, use hub:{repository}"


def parse_hub(name: str) -> ModelName:
    """Parse `hub:org/name@revision`; the revision defaults to `main`.

    Raises:
        RequestError: malformed.
    """
    match = _HUB.fullmatch(name)
    if match is None or ".." in name:
        raise RequestError(
            f"base model {name!r}",
            expected="hub:org/name or hub:org/name@revision",
            do="copy the name from the model's page, for example hub:HuggingFaceTB/SmolLM2-135M-Instruct@main",
        )
    repo, revision = match["repo"], match["revision"] or "main"
    # Two names may become equal when made safe for a file system: the digest distinguishes them.
    digest = sha256_bytes(f"{repo}@{revision}".encode())[:8]
    return ModelName(
        f"hub:{repo}@{revision}", f"hub--{_safe(f'{repo}@{revision}')}-{digest}", "hub", repo=repo, revision=revision
    )


def _parse_layers(name: str) -> ModelName:
    layers, _, teacher = name.removeprefix(PREFIX).partition("@")
    if LAYERS.fullmatch(layers) is None or not teacher or teacher.startswith(PREFIX):
        raise RequestError(
            f"base model {name!r}",
            expected=f"{PREFIX}15@TEACHER or {PREFIX}0,2,4-29@TEACHER, the teacher a base model or a run",
            do=f"write for example {PREFIX}15@smollm2-135m-instruct",
        )
    text = f"{PREFIX}{layers}@{teacher if is_id(teacher, 'run') else parse(teacher).text}"
    safe = f"layers--{_safe(text.removeprefix(PREFIX))}-{sha256_bytes(text.encode())[:8]}"
    return ModelName(text, safe, "layers", layers=layers, teacher=text.partition("@")[2])


def _safe(text: str) -> str:
    # No leading dot: hidden folders are internal (`.tmp-`, `.part-`, `.lock-`).
    return re.sub(r"[^A-Za-z0-9._-]+", "--", text)[:80].strip(".-") or "model"


def _short(path: Path) -> str:
    return sha256_bytes(str(path).encode())[:8]
