"""Data that a node copies from a store before it trains: `luthier train RECIPE --stage PATH=URL`.

Each process of a node asks for the same; the first one copies, the others wait for it. A copy appears under its path
when it is whole, and is used again as long as the store lists the same objects.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import Progress
from luthier.core.system.files import expanded, replace_file

_LOCK_SECONDS: Final = 6 * 3600.0
_VERSION_KEYS: Final = ("ETag", "etag", "md5Hash", "LastModified", "mtime")


@dataclass(frozen=True, slots=True)
class Staged:
    """A path on this machine and the URL that its content comes from."""

    path: Path
    url: str


def parse_staged(text: str) -> Staged:
    """`PATH=URL` as parts. Raises RequestError for other texts."""
    path, _, url = text.partition("=")
    if not path or "://" not in url:
        raise RequestError(
            f"{text!r} is not a file to stage",
            expected="PATH=URL, where the URL names an object or a folder of a store",
            do="write for example: rows=s3://bucket/rows",
        )
    return Staged(expanded(path), url)


def stage(texts: Sequence[str], progress: Progress) -> list[Path]:
    """Copy what is not here yet, or has changed in the store; returns the paths that were copied.

    Args:
        texts: `PATH=URL` each.
        progress: Shows the copied objects.

    Raises:
        RequestError: A text is wrong, no driver knows a URL, or something else than a copy is at a path.
        NotFoundError: There is nothing at a URL.
        WorkError: The store does not answer.
        StorageFullError: The disk is full.
    """
    asked = [parse_staged(text) for text in texts]
    return [one.path for one in asked if _staged(one, progress)]


def _staged(asked: Staged, progress: Progress) -> bool:
    from luthier.core.system.artifact_transfer import errors_explained, open_root
    from luthier.core.system.files import disk_full_explained, file_lock, replace_text, sync_tree

    target = asked.path.absolute()
    marker = target.with_name(f".{target.name}.staged.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(
        target.with_name(f".{target.name}.lock"), what=f"the copy of {asked.url}", timeout_seconds=_LOCK_SECONDS
    ):
        files, root = open_root(asked.url.rstrip("/"), what="data", setting="--stage")
        with errors_explained(asked.url, is_local=False):
            found = _listed(files, root)
        if not found:
            raise NotFoundError(
                f"nothing at {asked.url}", expected="an object, or a folder with objects", do="check the URL"
            )
        for name in found:
            _refuse_leading_out(asked, name)
        if target.exists() and _noted(marker) == found:
            return False
        _refuse_other_content(asked, target, marker)
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with progress.task(f"copying {asked.url}", len(found), "object") as bar:
            for name in found:
                # A single object has no name below its own.
                place, source = partial / (name or target.name), f"{root}/{name}" if name else root
                place.parent.mkdir(parents=True, exist_ok=True)
                with disk_full_explained(place), errors_explained(asked.url, is_local=False):
                    files.get_file(source, str(place))
                bar.advance()
        sync_tree(partial)
        # No note of a whole copy any more, and from now on what is there is a copy.
        replace_text(marker, "")
        _replace(partial if "" not in found else partial / target.name, target)
        shutil.rmtree(partial, ignore_errors=True)
        replace_text(marker, json.dumps(found))
    return True


def _refuse_other_content(asked: Staged, target: Path, marker: Path) -> None:
    """Raise RequestError where something else than a copy is at the path: it would be deleted."""
    if marker.exists() or not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    raise RequestError(
        f"{target} already exists, and is not a copy that --stage has made",
        expected="a path without content, or with an earlier copy, which is replaced where the store has changed",
        do=f"copy {asked.url} to another path, move this one away, or leave --stage out where these are the rows",
    )


def _noted(marker: Path) -> Any:
    """What was noted of a whole copy; None where nothing was, or a kill or a full disk has cut the note off."""
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _listed(files: Any, root: str) -> dict[str, list[str]]:
    """The objects below a URL by their names, with what changes when their content does."""
    try:
        found: dict[str, dict[str, Any]] = files.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {
        path[len(root) :].lstrip("/"): [str(entry.get(key)) for key in ("size", *_VERSION_KEYS) if key in entry]
        for path, entry in sorted(found.items())
        # An empty object `folder/`, as consoles of stores write it for a new folder, is no content.
        if entry.get("size") or not path.endswith("/")
    }


def _refuse_leading_out(asked: Staged, name: str) -> None:
    """Raise RequestError for an object whose name leads out of the folder: a store takes any text as a name."""
    if ".." in PurePosixPath(name).parts or "\\" in name:
        raise RequestError(
            f"the object {name[:200]!r} at {asked.url}",
            expected="names that stay below the folder they are copied to",
            do="remove or rename the object; nothing was copied",
        )


def _replace(source: Path, target: Path) -> None:
    """Put a copy in place of an earlier one."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    replace_file(source, target)
