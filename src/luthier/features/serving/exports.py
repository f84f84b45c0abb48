"""Use cases: the folder of an export, as what runs it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.opted_turns import OptedTurns
from luthier.core.plan import DataPlan
from luthier.core.records.base_model import LocalModel
from luthier.core.stream import Served
from luthier.features.serving.targets import base_model, no_such_format, stamp
from luthier.platform.home.context import Context


def served_export(context: Context, folder: Path) -> Served:
    """An export in a format that declares `is_served`, as it is loaded.

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
        base = _base_of_adapter(context, folder)
        return Served(path=base.path, sha256=base.sha256, adapter_path=str(folder), **_as_trained(folder))
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return Served(path=str(folder), sha256=stamp(folder), **_as_trained(folder))
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return Served(engine="llama_cpp", path=str(ggufs[0]), sha256=stamp(folder), **_as_trained(folder))
    raise no_such_format(folder, "holds several GGUF files" if ggufs else "holds nothing that can be served")


def _as_trained(folder: Path) -> dict[str, Any]:
    """How the run of a bundle has written conversations; nothing where no run has made what lies there."""
    from luthier.ml.export.bundle.manifest import PLAN

    if not (folder / PLAN).is_file():
        return {}
    try:
        data = DataPlan.model_validate(json.loads((folder / PLAN).read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_such_format(folder, f"has a {PLAN} that is no plan") from error
    options = tuple(sorted(data.template_options.items()))
    return {"template_options": options, "opted_turns": OptedTurns.of(data)}


def check_export(folder: Path, *, needs_bundle: bool = False) -> None:
    """Raises ConflictError for an export that is not as it was written, or has not passed its proof.

    needs_bundle: false lets folders pass that Luthier has not written.
    """
    from luthier.ml.export.bundle import verify
    from luthier.ml.export.bundle.manifest import MANIFEST, PARITY

    if not (needs_bundle or (folder / MANIFEST).is_file()):
        return
    report = verify(folder)
    if not report.is_whole:
        shown = "; ".join(f"{fault.path} {fault.what}" for fault in report.faults[:3])
        raise ConflictError(
            f"the export {folder} cannot be trusted: {shown}",
            expected="the folder as `luthier export` has written it",
            do=f"see `luthier verify {folder}`, or export it again",
        )
    if not _has_passed(folder / PARITY):
        raise ConflictError(
            f"the export {folder} did not pass its proof",
            expected="an export that was proved equal to its source",
            do="export it again, with more bits",
        )


def _has_passed(report: Path) -> bool:
    try:
        # `is True`: a truthy string in a damaged report must not count as a pass.
        return json.loads(report.read_text(encoding="utf-8")).get("passed") is True
    except (OSError, ValueError, AttributeError):
        return False


def _base_of_adapter(context: Context, folder: Path) -> LocalModel:
    """The base that an adapter names: by its place, its repository on the hub, or the last part of its name."""
    from luthier.ml.inference.models import sources

    try:
        written = str(json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_such_format(folder, "has an adapter_config.json that names no base model") from error
    for model in sources.local_models(context.home):
        repository = model.name.removeprefix("hub:").partition("@")[0]
        if written in (model.path, model.name, repository, Path(model.name).name):
            return model
    return base_model(context, written)
