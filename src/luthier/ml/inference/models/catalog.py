"""The base models that Luthier knows by a short name."""

from __future__ import annotations

import difflib
import os
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.records.base_model import CatalogEntry

ENVIRONMENT = "LUTHIER_CATALOG"


def entries() -> dict[str, CatalogEntry]:
    """All entries by name, in the order of the catalogue.

    A YAML file of the same form may add entries: its path is in the environment variable LUTHIER_CATALOG.

    Raises:
        RequestError: that file cannot be read, is not a catalogue, or takes a name that Luthier has already.
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
    """The entries that come with Luthier, in the order of the catalogue."""
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
    # the same safe loader written in C, ten times as fast, where PyYAML was built with it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(CatalogEntry.model_validate(document) for document in yaml.load(text, Loader=loader))  # noqa: S506


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
        expected="a name of the catalogue, hub:org/name@revision, a local folder or a .gguf file",
        do=f"did you mean {' or '.join(near)}?" if near else "list the catalogue with `luthier models list`",
    )
