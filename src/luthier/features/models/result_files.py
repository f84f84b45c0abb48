"""The files of a finished run among the artifacts: kept by the machine that trained, fetched by one that lacks them.

So a server and its workers need no common disk: what is served, evaluated and shown comes from the database and the
artifacts. Checkpoints and snapshots stay on the machine that trains.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from luthier.core.errors import LuthierError
from luthier.core.ids import sha256_file
from luthier.core.system.files import file_lock, replace_file
from luthier.platform.files.artifacts import link_artifact
from luthier.platform.home.context import Context

REPORT: Final = "report"
QUOTE_NAME: Final = "quote.json"
_REPORT_FILES: Final = ("report.html", "report.json")
_LOCK_SECONDS: Final = 600.0


def result_saved_at(context: Context, run_id: str) -> float | None:
    """When the present result of a run was saved, in seconds since 1970; None for a run whose result does not change.

    That of a training client is the newest adapter that it has saved: results about an earlier one do not apply to it.

    Raises:
        NotFoundError: There is no such run.
    """
    result = context.runs.get(run_id).result
    if result is None or result.adapter_path is None:
        return None
    saved = context.tuned_models.of_client(run_id, result.adapter_path)
    return None if saved is None else saved.created_at


def keep_weights(context: Context, run_id: str, folder: Path) -> None:
    """Keep the folder of a run's weights, with all that loading them needs."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _keep(context, run_id, f"{folder.name}/{file.relative_to(folder).as_posix()}", file, folder.name)


def keep_report(context: Context, run_id: str) -> None:
    """Keep the report of a run, where it has one, and the quote that it is written again with."""
    for name in (*_REPORT_FILES, QUOTE_NAME):
        if (file := context.settings.run_folder(run_id) / name).is_file():
            _keep(context, run_id, f"{REPORT}/{name}", file, REPORT)


def _keep(context: Context, run_id: str, name: str, file: Path, kind: str) -> None:
    link = partial(link_artifact, run_id=run_id, name=name, sha256=sha256_file(file))
    # In one transaction: a registered file without a reference would be garbage-collected.
    context.artifacts.put_file(file, kind, link)


def local_weights(context: Context, run_id: str, adapter_path: str) -> Path | None:
    """The folder of a run's weights where it is on this machine; None where it is not. Nothing is fetched.

    Args:
        context: The home.
        run_id: The run.
        adapter_path: The folder on the machine that has trained; of a home that was moved or copied, where it was.
    """
    there = Path(adapter_path)
    places = (there, context.settings.run_folder(run_id) / there.name)
    return next((place for place in places if place.is_dir()), None)


def weights_folder(context: Context, run_id: str, adapter_path: str) -> Path:
    """The folder of a run's weights on this machine, fetched where another machine has trained it.

    Args:
        context: The home.
        run_id: The run.
        adapter_path: The folder on the machine that has trained.

    Returns:
        A folder that may be missing, where the artifacts do not hold it.

    Raises:
        WorkError: A file of it is lost or damaged, or the store does not answer.
    """
    if (here := local_weights(context, run_id, adapter_path)) is not None:
        return here
    there = Path(adapter_path)
    target = context.settings.run_folder(run_id) / there.name
    prefix, names = f"{there.name}/", _stored_weights(context, run_id, there.name)
    if not names:
        return there
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with file_lock(lock, what=f"the weights of run {run_id}", timeout_seconds=_LOCK_SECONDS):
        if not target.is_dir():
            # Under another name until it is whole: a folder of that name is taken for a complete one.
            partly = target.with_name(f".{target.name}.partly")
            for name, sha256 in names.items():
                place = partly / name.removeprefix(prefix)
                place.parent.mkdir(parents=True, exist_ok=True)
                context.artifacts.fetch(sha256, place)
            replace_file(partly, target)
    return target


def has_weights(context: Context, run_id: str, adapter_path: str) -> bool:
    """Whether `weights_folder` would find a folder; nothing is fetched."""
    is_here = local_weights(context, run_id, adapter_path) is not None
    return is_here or bool(_stored_weights(context, run_id, Path(adapter_path).name))


def _stored_weights(context: Context, run_id: str, folder: str) -> dict[str, str]:
    """Digests of the files of a folder of weights by name; empty where the artifacts do not hold all of it."""
    linked = context.artifacts.linked(run_id)
    names = {name: one.sha256 for name, one in linked.items() if name.startswith(f"{folder}/")}
    # Runs of earlier versions have the weights among the artifacts, and nothing that describes them.
    return names if any(name.endswith("config.json") for name in names) else {}


def has_report(context: Context, run_id: str) -> bool:
    """Whether `report_page` would find a page; nothing is fetched."""
    page = _REPORT_FILES[0]
    is_here = (context.settings.run_folder(run_id) / page).is_file()
    return is_here or f"{REPORT}/{page}" in context.artifacts.linked(run_id)


def report_page(context: Context, run_id: str) -> Path:
    """The page of a run's report, fetched where another machine wrote it. It may be missing."""
    return _report_file(context, run_id, _REPORT_FILES[0])


def report_data(context: Context, run_id: str) -> Path:
    """The report as a JSON document, fetched where another machine wrote it. It may be missing."""
    return _report_file(context, run_id, _REPORT_FILES[1])


def quote_file(context: Context, run_id: str) -> Path:
    """The quote of a run, fetched where another machine has trained it. It may be missing."""
    return _report_file(context, run_id, QUOTE_NAME)


def _report_file(context: Context, run_id: str, name: str) -> Path:
    page = context.settings.run_folder(run_id) / name
    if page.is_file():
        return page
    kept = context.artifacts.linked(run_id).get(f"{REPORT}/{name}")
    if kept is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        try:
            context.artifacts.fetch(kept.sha256, page)
        except LuthierError:
            return page  # as if there were none: the store may answer the next time
    return page
