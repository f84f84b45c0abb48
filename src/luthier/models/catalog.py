"""The base models that Luthier knows by a short name."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources

import yaml

from luthier.core.base_model import CatalogEntry
from luthier.core.errors import NotFoundError


@cache
def _catalog() -> tuple[CatalogEntry, ...]:
    text = resources.files("luthier.models").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return tuple(CatalogEntry.model_validate(document) for document in yaml.safe_load(text))


def entries() -> dict[str, CatalogEntry]:
    """All entries by name, in the order of the catalogue."""
    return {entry.name: entry for entry in _catalog()}


def entry(name: str) -> CatalogEntry:
    """The entry called `name`.

    Raises:
        NotFoundError: there is none; the message names the nearest ones.
    """
    known = entries()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise NotFoundError(
        f"base model {name!r}",
        expected=f"a catalogue name ({', '.join(known)}), hub:org/name@revision, a local folder or a .gguf file",
        do=f"did you mean {' or '.join(near)}?" if near else "list the catalogue with `luthier models list`",
    )
