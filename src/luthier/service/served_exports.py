"""Use cases: the folder of an export, as what runs it is told."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.stream import Served
from luthier.service.context import Context
from luthier.service.served_targets import base_of, no_such_format, stamp


def served_export(context: Context, folder: Path) -> Served:
    """An export in the format adapter, merged or gguf as it is loaded.

    Raises NotFoundError where the folder, or the base of an adapter, is not on this machine; RequestError for another
    format.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"the export {folder} is not on this machine any more",
            expected="the folder that was deployed",
            do="export it again to the same place, or roll back",
        )
    if (folder / "adapter_config.json").is_file():
        base = base_of(context, _base_name(context, folder))
        return Served(path=base.path, sha256=base.sha256, adapter_path=str(folder))
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return Served(path=str(folder), sha256=stamp(folder))
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return Served(engine="llama_cpp", path=str(ggufs[0]), sha256=stamp(folder))
    raise no_such_format(folder, "holds several GGUF files" if ggufs else "holds nothing that can be served")


def check_export(folder: Path) -> None:
    """Raises ConflictError for an export that did not pass its proof, or whose files are not as they were written."""
    report = next((file for file in (folder / "parity.json", folder / "export.json") if file.is_file()), None)
    if report is None:
        return
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{report} cannot be read: {error}", expected="the report that the export wrote", do="export it again"
        ) from error
    parity = document.get("parity", document) if isinstance(document, dict) else None
    if isinstance(parity, dict) and parity.get("passed") is False:
        reasons = "; ".join(str(reason) for reason in parity.get("reasons") or ())
        raise ConflictError(
            f"the export {folder} did not pass its proof{': ' + reasons if reasons else ''}",
            expected="an export that was proved equal to its source",
            do="export it again, with more bits",
        )


def _base_name(context: Context, folder: Path) -> str:
    """The name in a recipe of the base model that an adapter was made for."""
    from luthier.models import sources

    try:
        written = str(json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_such_format(folder, "has an adapter_config.json that names no base model") from error
    by_path = (model.name for model in sources.local_models(context.home) if model.path == written)
    return next(by_path, written)
