"""Use cases: an export that this server has made, and the folder that it lies in."""

from __future__ import annotations

from pathlib import Path

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import is_id
from luthier.core.records.export import ServerExport
from luthier.platform.home.context import Context


def made_export(context: Context, caller: Caller, export_id: str) -> tuple[ServerExport, Path]:
    """An export that was made, and its folder. Raises NotFoundError, ConflictError while it is not made."""
    found = context.exports.get(caller.project_id, export_id)
    folder = export_folder(context, export_id)
    if found.document is None:
        raise ConflictError(
            f"the export {export_id} is not made yet",
            expected="an export that has succeeded",
            do="see on its page how far it is",
        )
    if not folder.is_dir():
        raise NotFoundError(
            f"the files of the export {export_id} are not on this machine any more",
            expected="the folder that was written",
            do="export the model again",
        )
    return found, folder


def export_folder(context: Context, export_id: str) -> Path:
    """Where an export lies. Raises NotFoundError for what is no id of one: it must never become part of a path."""
    if not is_id(export_id, "exp"):
        raise NotFoundError(
            f"no export {export_id[:64]!r}", expected="the id of an export", do="see the page of its model"
        )
    return context.settings.exports_folder / export_id
