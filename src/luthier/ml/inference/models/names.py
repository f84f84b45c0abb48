"""How a base model is requested: what kind of name it is, and under which folder it is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.core.digest import sha256_bytes
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id
from luthier.ml.inference.models import catalog
from luthier.ml.inference.models.dropped_layers import LAYERS, PREFIX

_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_REPO_LIKE = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name, understood.

    Attributes:
        text: its one canonical spelling.
        safe: its folder under `home/models`.
        source: where the model comes from.
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
    """Understand a name: a catalogue name first, then `hub:` and `layers:`, then a path.

    Paths need not exist (what was made from them may still be there), but must look like one.

    Raises:
        NotFoundError: none of these.
        RequestError: a malformed `hub:` or `layers:` name.
    """
    # First, so that a folder here cannot shadow a name of the catalogue.
    if name in catalog.entries():
        return ModelName(name, name, "catalog")
    if name.startswith("hub:"):
        return parse_hub(name)
    if name.startswith(PREFIX):
        return _parse_layers(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        path = path.resolve()
        return ModelName(str(path), f"gguf--{_safe(path.stem)}-{_short(path)}", "gguf", file=path)
    if path.is_dir() or path.is_absolute() or name.startswith((".", "~")):
        path = path.resolve()
        return ModelName(str(path), f"folder--{_safe(path.name)}-{_short(path)}", "folder", file=path)
    if _REPO_LIKE.fullmatch(name):
        raise NotFoundError(
            f"base model {name!r}: no folder of that name here",
            expected="an existing folder, or a name on the hub written with hub: in front",
            do=_how_to_ask(name),
        )
    catalog.entry(name)
    raise AssertionError("unreachable: entry() raises for an unknown name")


def _how_to_ask(repository: str) -> str:
    """What to write for a repository of the hub: its short name where the catalogue has it."""
    wanted = repository.partition("@")[0].casefold()
    known = [e.name for e in catalog.entries().values() if (e.hub or "").partition("@")[0].casefold() == wanted]
    return (
        f"ask for {known[0]}, its name in the catalogue" if known else f"if it is on the hub, ask for hub:{repository}"
    )


def parse_hub(name: str) -> ModelName:
    """Understand `hub:org/name@revision`; the revision is `main` if left out.

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
    # Two different names may look alike once made safe for a file system: the digest keeps them apart.
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
    # No leading dot: hidden folders are Luthier's own (`.tmp-`, `.part-`, `.lock-`).
    return re.sub(r"[^A-Za-z0-9._-]+", "--", text)[:80].strip(".-") or "model"


def _short(path: Path) -> str:
    return sha256_bytes(str(path).encode())[:8]
