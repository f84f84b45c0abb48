"""The files of a pattern, such as `talks/*.jsonl`, over time: those of a plan, and what has changed since.

A run that is resumed or looked into reads the files of its plan. Files that match since then are named and never
opened: they may still be written. A new plan reads the files that there are now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from luthier.core.data_sources import SourceFile, SourcePlan, is_pattern
from luthier.core.errors import ConflictError
from luthier.core.ids import sha256_file
from luthier.core.text.counted import counted
from luthier.platform.home.context import Context

MAX_NAMED: Final = 5
Matching = Sequence[tuple[Path, str]]
"""Files, each with its path below the last folder of the pattern that has no `*`."""


def files_of_plan(context: Context, pattern: Path, found: Matching, known: Sequence[SourceFile]) -> Matching:
    """Of the files that match a pattern, those that a plan has; all where it has none.

    Files that were added since are shown by the progress of the home.

    Args:
        context: The home.
        pattern: What they match.
        found: The files that match now.
        known: Those of the plan.

    Raises:
        ConflictError: One of the plan is not there any more.
    """
    if not known:
        return found
    kept, added, gone = _compared(found, known)
    if len(kept) < len(known):
        missing = gone or [known[-1].name]
        raise ConflictError(
            f"{missing[0]} no longer matches {pattern}" + _and_more(missing),
            expected=f"the {len(known):,} files that the run began with",
            do="restore the file, or start a new run",
        )
    if added:
        were, are = ("files were", "are") if len(added) > 1 else ("file was", "is")
        title = f"{len(added):,} {were} added since the run began, and {are} not read: {added[0]}{_and_more(added)}"
        with context.progress.task(title, total=None, unit="files"):
            pass
    return kept


def pattern_changes(sources: Iterable[SourcePlan]) -> tuple[str, ...]:
    """What has changed in the files of patterns since a plan was made, as sentences; empty where nothing has.

    For work that reads the files as they are now, such as a retraining.

    Args:
        sources: Of the plan.

    Raises:
        NotFoundError: No file matches a pattern any more.
    """
    from luthier.ml.data.files.patterns import matching_files

    said = []
    for source in sources:
        if not is_pattern(source.path):
            continue
        kept, added, gone = _compared(matching_files(Path(source.path)), source.files)
        digests = {file.sha256 for file in source.files}
        changed = [below for path, below in kept if sha256_file(path) not in digests]
        for names, what in (
            (added, f"{counted(len(added), 'file is', 'files are')} new"),
            (changed, f"{counted(len(changed), 'file has', 'files have')} changed"),
            (gone, f"{counted(len(gone), 'file is', 'files are')} gone"),
        ):
            if names:
                shown = ", ".join(names[:MAX_NAMED]) + _and_more(names, MAX_NAMED)
                said.append(f"{source.split} rows of {source.name}: {what} since the last run: {shown}")
    return tuple(said)


def _compared(found: Matching, known: Sequence[SourceFile]) -> tuple[list[tuple[Path, str]], list[str], list[str]]:
    """The files that a plan names; by name, those that were added since; and those of the plan that are gone."""
    kept = _named(found, known)
    taken, there = {path for path, _ in kept}, {below for _, below in kept} | {path.name for path, _ in kept}
    added = [below for path, below in found if path not in taken]
    return kept, added, [file.name for file in known if file.name not in there]


def _named(found: Matching, known: Sequence[SourceFile]) -> list[tuple[Path, str]]:
    """The files that a plan names, without a look into any other."""
    from luthier.ml.data.files.patterns import files_by_name

    kept = files_by_name(found, [file.name for file in known])
    if len(kept) <= len(known):
        return list(kept)
    # By last parts of paths, which files of two folders may share: their content tells them apart.
    digests = {(file.name, file.sha256) for file in known}
    return [one for one in kept if (one[0].name, sha256_file(one[0])) in digests]


def _and_more(names: Sequence[str], num_named: int = 1) -> str:
    return f" and {len(names) - num_named:,} more" if len(names) > num_named else ""
