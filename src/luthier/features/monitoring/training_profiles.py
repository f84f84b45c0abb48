"""What a model was trained on, as prompts and answers that its traffic is held against."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.deployment import Share
from luthier.core.records.monitor_settings import WatchSettings
from luthier.features.recipes.column_maps import column_map
from luthier.features.serving.targets import EXPORT
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.drift.signals.training import Profile

MOST_ROWS: Final = 4_000
"""Rows that are drawn by lot: more would not make a PSI surer than the traffic lets it be."""
_MAX_KNOWN: Final = 4
_KNOWN: Final[dict[str, Profile]] = {}


def training_profile(context: Context, project_id: str, target: str, settings: WatchSettings) -> Profile | None:
    """The profile of what answers; None for a base model, or where its training rows are unknown.

    Args:
        target: A run id or the name of a model; empty for none.
        settings: `data` names rows in place of those of the run.

    Raises:
        DataError: The rows cannot be read.
        ConflictError: The rows are gone, or are not those that it was trained on.
    """
    from luthier.core.digest import sha256_file

    if settings.data is not None:
        path = Path(settings.data)
        if not path.is_file():
            raise ConflictError(
                f"the rows {path} are gone", expected="the file that was named with --data", do="put it back"
            )
        run = _run_behind(context, project_id, target)
        # The run's own column map: without it the rows would be read in another shape than they were trained in.
        mapping = column_map(context, () if run is None else (run,), path, None).mapping
        # Digest and sorted mapping make the arguments hashable and stale entries unreachable for lru_cache.
        return _of_file(settings.data, sha256_file(path), tuple(sorted((mapping or {}).items())))
    run_id = _run_behind(context, project_id, target)
    if run_id is None:
        return None
    if run_id not in _KNOWN:
        from luthier.features.evaluations.service import training_rows

        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[run_id] = _profile(tuple(training_rows(context, [run_id])))
    return _KNOWN[run_id]


def _run_behind(context: Context, project_id: str, target: str) -> str | None:
    from luthier.features.release_gates.service import judged_behind

    # An export has no run of its own to read rows from; `--data` names them then.
    if not target or target.startswith(EXPORT):
        return None
    try:
        return judged_behind(context, Caller(project_id=project_id), Share(target=target, fraction=1)).run_id
    except NotFoundError:
        return None


@lru_cache(maxsize=4)
def _of_file(
    path: str,
    sha256: str,  # noqa: ARG001 - a file that has changed is read again
    mapping: tuple[tuple[str, str], ...],
) -> Profile:
    from luthier.ml.data.rows.formats import load_file

    return _profile(tuple(load_file(Path(path), mapping=dict(mapping)).examples))


def _profile(examples: tuple[Example, ...]) -> Profile:
    from luthier.ml.drift.signals.training import Profile

    # The same rows at each check: a new draw would move the reference and look like drift.
    drawn = random.Random(0).sample(examples, min(MOST_ROWS, len(examples)))  # noqa: S311 - a sample, no secret
    pairs = [pair for pair in map(_pair, drawn) if pair is not None]
    return Profile([prompt for prompt, _ in pairs], [answer for _, answer in pairs])


def _pair(example: Example) -> tuple[str, str] | None:
    """What the user said last before the last answer, and that answer; None for a plain text."""
    conversation = example.conversation
    if conversation is None or (place := conversation.last_answer) is None:
        return None
    # The last user turn before the answer, as traffic is compared: earlier turns are context.
    asked = [turn.content for turn in conversation.messages[:place] if turn.role == "user" and turn.content]
    answer = conversation.messages[place].content
    return (asked[-1], answer) if asked and answer else None
