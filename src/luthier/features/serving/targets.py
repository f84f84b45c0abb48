"""Use cases: resolve target names (base model, tuned model, run, export) to loadable models.

Requests never download anything, and names from the network never become paths: only local commands may name folders.
Exports are those made by this server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from luthier.core.access import Caller
from luthier.core.conversation import OptedTurns
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import is_id, sha256_document
from luthier.core.plan import DataPlan
from luthier.core.records.base_model import LocalModel
from luthier.core.records.deployment import Revision, Share
from luthier.core.records.export import ServerExport
from luthier.core.stream import Served
from luthier.core.system.files import expanded
from luthier.core.task_head import HEAD_DOCUMENT
from luthier.features.models.names import base_of_adapter, is_tuned_name
from luthier.features.models.result_files import result_saved_at, weights_folder
from luthier.features.models.trained_over import adapter_plan, refuse_other_base
from luthier.ml.inference.models.weights import packed_weights
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, may_use_base, stored_names


def made_export(context: Context, caller: Caller, export_id: str) -> tuple[ServerExport, Path]:
    """A completed export and its folder.

    Raises:
        NotFoundError: The project has no such export, or its files are not on this machine.
        ConflictError: It is not complete yet.
    """
    found = context.exports.get(caller.project_id, export_id)
    folder = export_folder(context, export_id)
    if found.document is None:
        raise ConflictError(
            f"the export {export_id} is not finished yet",
            expected="an export that has succeeded",
            do="see its progress on its page",
        )
    if not folder.is_dir():
        raise NotFoundError(
            f"the files of the export {export_id} are no longer on this machine",
            expected="the folder that was written",
            do="export the model again",
        )
    return found, folder


def export_folder(context: Context, export_id: str) -> Path:
    """The folder of an export.

    Raises:
        NotFoundError: An invalid id, which must never become part of a path.
    """
    if not is_id(export_id, "exp"):
        raise NotFoundError(
            f"no export {export_id[:64]!r}", expected="the id of an export", do="see the page of its model"
        )
    return context.settings.exports_folder / export_id


EXPORT = "export:"
_WEIGHTS = ("*.safetensors", "*.gguf", "config.json", "adapter_config.json", "tokenizer.json")
_WEIGHT_FILES = (".safetensors", ".gguf")


def find_share(
    context: Context, caller: Caller, name: str, fraction: float = 1.0, *, others: Sequence[Share] = ()
) -> Share:
    """The share of a target by its name; `export:ID` is an export made by the server.

    Args:
        context: The home.
        caller: Whose project it is; a local user may also name the folder of an export.
        name: Of a base model, a run, a tuned model or an export.
        fraction: Of the requests that it gets, 0 to 1.
        others: The shares beside it that no revision has yet.

    Raises:
        NotFoundError: There is none of this name, or it is of another project.
        ConflictError: A run without a servable result, or an export that is damaged or has not passed its proof.
        RequestError: An export in a format that cannot be served.
    """
    # Only for local users: a remote caller must not learn which folders exist. No name is not the current folder.
    if name and caller.is_local and not is_id(name, "run") and (folder := expanded(name)).is_dir():
        folder = folder.resolve()
        if str(folder) not in (model.name for model in local_base_models(context).values()):
            check_export(folder, needs_bundle=True)
            share = _share_of_folder(_target_of_folder(context, caller, folder, others), folder, fraction)
            served_share(context, caller, share)
            return share
    if name.startswith(EXPORT) and is_id(name.removeprefix(EXPORT), "exp"):
        return _share_of_export(context, caller, name.removeprefix(EXPORT), fraction)
    # The record rejects an empty or overlong name with another error; here it should be "no such model".
    share = Share(target=name[:1024] or " ", fraction=fraction)
    served_share(context, caller, share)
    return share


def find_shares(context: Context, caller: Caller, fractions: Mapping[str, float]) -> list[Share]:
    """The shares of several targets, each as `find_share` finds it.

    Args:
        context: The home.
        caller: Whose project it is.
        fractions: Of the requests, by the name of the target.
    """
    shares: list[Share] = []
    for name, fraction in fractions.items():
        shares.append(find_share(context, caller, name, fraction, others=shares))
    return shares


def _share_of_export(context: Context, caller: Caller, export_id: str, fraction: float) -> Share:
    """The share of an export that this server made for the project."""

    _, folder = made_export(context, caller, export_id)
    check_export(folder, needs_bundle=True)
    share = _share_of_folder(f"{EXPORT}{export_id}", folder, fraction)
    served_share(context, caller, share)
    return share


def _target_of_folder(context: Context, caller: Caller, folder: Path, others: Iterable[Share]) -> str:
    """The target by which the project knows the folder of an export: its last name, numbered where another has it.

    Figures and canaries go by the target, so that two folders of one last name must not be one.
    """
    known = {share.target: share.folder for share in (*context.deployments.shares(caller.project_id), *others)}
    # Of several, as after earlier versions: the name that a share was given last.
    if own := [target for target, its in known.items() if its == str(folder)]:
        return own[-1]
    name = f"{EXPORT}{folder.name}"
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in known else next(one for one in numbered if one not in known)


def _share_of_folder(target: str, folder: Path, fraction: float) -> Share:
    """The share of the export that is in a folder now."""
    return Share(target=target, fraction=fraction, folder=str(folder), weights_sha256=_weights_digest(folder))


def _weights_digest(folder: Path) -> str | None:
    """The digest of the weights of an export by its manifest; None without one that can be read.

    An export of the same model has the same, so that lost files can be restored by exporting it again.
    """
    from luthier.ml.export.bundle.manifest import MANIFEST, ManifestError, read_manifest

    try:
        files = read_manifest((folder / MANIFEST).read_bytes()).files
    except (OSError, ManifestError):
        return None
    return sha256_document({file.path: file.sha256 for file in files if file.path.endswith(_WEIGHT_FILES)})


def served_share(context: Context, caller: Caller, share: Share) -> Served:
    """The target of a share in loadable form.

    Raises:
        NotFoundError: The target, its files or its base are not on this machine, or belong to another project.
        ConflictError: A run without a servable result, or an export that was replaced in its folder.
        RequestError: A folder in a format that cannot be served.
    """
    if share.folder is not None:
        served = served_export(context, Path(share.folder))
        if share.weights_sha256 not in (None, _weights_digest(Path(share.folder))):
            raise ConflictError(
                f"{share.target} has other weights than when it was deployed",
                expected="the weights that its gates and evaluations are about",
                do="on the machine of the server: deploy its folder again, or roll back",
            )
        return served
    return served_target(context, caller, share.target)


def check_targets_of(context: Context, caller: Caller, name: str, revision: Revision) -> None:
    """Check that the targets of an earlier revision of a deployment are there, with the weights that they had.

    Args:
        context: The home.
        caller: Whose project it is.
        name: Of the deployment.
        revision: The revision.

    Raises:
        ConflictError: A target cannot be served any more, or is a tuned model that was saved again under its name, or a
            run whose training client has saved another result.
    """
    for share in revision.shares:
        try:
            served_share(context, caller, share)
        except (NotFoundError, RequestError) as error:
            raise ConflictError(
                f"revision {revision.number} of {name!r} goes to {share.target}, which cannot be served: {error.came}",
                expected="a revision whose targets all exist",
                do="restore it, or deploy another target",
            ) from error
        saved_at = None if share.folder is not None else _saved_at(context, caller, share.target)
        # Both times are of the database's clock.
        if saved_at is not None and saved_at > revision.created_at:
            raise ConflictError(
                f"revision {revision.number} of {name!r} goes to {share.target}, which has been saved again since, "
                "with other weights",
                expected="a revision whose targets are unchanged",
                do=f"evaluate it, and deploy it as it is now: luthier deploy {share.target} --as {name}",
            )


def _saved_at(context: Context, caller: Caller, target: str) -> float | None:
    """When the weights of a target were saved that can be saved again; None for others."""
    if is_tuned_name(target):
        # Saving again replaces the record.
        return context.tuned_models.get(caller.project_id, target).created_at
    return result_saved_at(context, target) if is_id(target, "run") else None


def served_target(context: Context, caller: Caller, name: str) -> Served:
    """A run, a tuned model or a base model in loadable form.

    Raises:
        NotFoundError: There is none of this name, or it is of another project.
        ConflictError: A run without a servable result, or whose base has other weights than in training.
    """
    if is_id(name, "run"):
        return _served_run(context, caller, name)
    if is_tuned_name(name):
        tuned = context.tuned_models.get(caller.project_id, name)
        return _served_outcome(context, name, tuned.run_id, tuned.adapter_path)
    model = base_model(context, name, None if caller.is_local else caller.project_id)
    return Served(path=model.path, sha256=model.sha256)


def base_of(context: Context, recipe_name: str) -> LocalModel:
    """The base of a tuned model, by the name in its recipe.

    Raises:
        NotFoundError: It is not on this machine.
    """
    for model in local_base_models(context).values():
        if model.name == recipe_name:
            return model
    # Not here, so that the error uses the API's name of the model.
    name = next((known for known, own in base_models(context).items() if own == recipe_name), recipe_name)
    return base_model(context, name)


def local_base_models(context: Context, project_id: str | None = None) -> dict[str, LocalModel]:
    """The base models on this machine that a project may use (None: all), by the name in the API."""
    from luthier.ml.inference.models import sources

    local = {model.name: model for model in sources.local_models(context.home)}
    return {
        name: local[own]
        for name, own in base_models(context).items()
        if own in local and may_use_base(context, project_id, own)
    }


def base_model(context: Context, name: str, project_id: str | None = None) -> LocalModel:
    """A base model on this machine by its name in the API; names in requests never become paths.

    Args:
        context: The home.
        name: In the API.
        project_id: Only a model that this project may use; None for any.

    Raises:
        NotFoundError: The machine has no base model of this name.
    """
    here = local_base_models(context, project_id)
    found = next((here[one] for one in stored_names(name) if one in here), None)
    if found is not None:
        return found
    own = base_models(context).get(name)
    is_known = own is not None and may_use_base(context, project_id, own)
    raise NotFoundError(
        f"the base model {name!r} is not on this machine" if is_known else f"the model {name!r} does not exist",
        expected="a base model on this machine, or a model from a job of this project",
        do=f"on the machine of the server: luthier models pull {name}" if is_known else "list them: GET /v1/models",
    )


def stamp(folder: Path) -> str:
    """A stamp that changes when relevant files of a folder change."""
    return stamp_of(file for pattern in _WEIGHTS for file in folder.glob(pattern))


def stamp_of(files: Iterable[Path]) -> str:
    """A stamp of files: their sizes and times, not their content."""
    found: dict[str, Any] = {}
    for file in files:
        # Hashing gigabytes for every request is too slow; size and time change with any normal write.
        its = file.stat()
        found[file.name] = [its.st_size, its.st_mtime_ns]
    return sha256_document(found)


def _served_run(context: Context, caller: Caller, run_id: str) -> Served:
    if context.runs.project_of(run_id) != caller.project_id:
        raise NotFoundError(
            f"no run {run_id!r}", expected="the id of a run of this project", do="see `luthier runs list`"
        )
    record = context.runs.get(run_id)
    adapter_path = None if record.result is None else record.result.adapter_path
    if record.status != "succeeded" or adapter_path is None:
        why = f" ({record.stopped_because})" if record.stopped_because else ""
        raise ConflictError(
            f"run {run_id} is {record.status}{why}: its results so far are not served",
            expected="a run that has succeeded",
            do=f"continue it: luthier train --resume {run_id}",
        )
    return _served_outcome(context, run_id, run_id, adapter_path)


def _served_outcome(context: Context, name: str, run_id: str, adapter_path: str) -> Served:
    """The result of training: an adapter on its base, or a full model."""
    plan = context.runs.plan(run_id)
    folder = weights_folder(context, run_id, adapter_path)
    if not folder.is_dir():
        raise NotFoundError(
            f"the files of {name!r} are no longer on this machine",
            expected="the folder that its job wrote",
            do="train it again, or copy the home of the machine where it was trained",
        )
    is_adapter = (folder / "adapter_config.json").is_file()
    base = base_of(context, plan.base_model.name) if is_adapter else None
    if base is not None:
        refuse_other_base(plan.base_model.sha256, base)
        _refuse_packed_base(folder, Path(base.path))
    return Served(
        path=str(folder) if base is None else base.path,
        sha256="" if base is None else base.sha256,
        adapter_path=None if base is None else str(folder),
        template=plan.base_model.template,
        precision=plan.training.precision,
        quantisation=plan.method.quantisation if is_adapter else None,
        template_options=tuple(sorted(plan.data.template_options.items())),
        opted_turns=OptedTurns.of(plan.data),
    )


def no_such_format(folder: Path, found: str) -> RequestError:
    """The error for a folder that cannot be served."""
    from luthier.ml.export.exporters.registry import served_formats

    return RequestError(
        f"{folder} {found}",
        expected=f"an export in one of the formats {', '.join(served_formats())}",
        do="export it in such a format: luthier export RUN --to merged -o DIR",
    )


def served_export(context: Context, folder: Path) -> Served:
    """An export in a format that declares `is_served`, in loadable form.

    Raises:
        NotFoundError: The folder, or the base of an adapter, is not on this machine.
        ConflictError: The base of an adapter has other weights than those that it was trained over.
        RequestError: It is in another format, or the weights of an adapter's base are packed.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"the export {folder} is no longer on this machine",
            expected="the folder that was deployed",
            do="export it again to the same place, or roll back",
        )
    if (folder / HEAD_DOCUMENT).is_file():
        raise no_such_format(folder, "holds a model with a task head for other programs: serve the run itself")
    if (folder / "adapter_config.json").is_file():
        return _served_adapter(context, folder)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        # No other engine computes with packed weights.
        engine = "transformers" if packed_weights(folder) is None else "vllm"
        return Served(engine=engine, path=str(folder), sha256=stamp(folder), **_as_trained(folder))
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return Served(engine="llama_cpp", path=str(ggufs[0]), sha256=stamp(folder), **_as_trained(folder))
    raise no_such_format(folder, "holds several GGUF files" if ggufs else "holds nothing that can be served")


def _served_adapter(context: Context, folder: Path) -> Served:
    """The adapter in a folder over its base, which is read as in training where the plan of the run is with it."""
    plan = adapter_plan(folder)
    written, found = base_of_adapter(context, folder, None if plan is None else plan.base_model.sha256)
    _refuse_packed_base(folder, expanded(written) if found is None else Path(found.path))
    base = found or base_model(context, written)
    if plan is None:
        return Served(path=base.path, sha256=base.sha256, adapter_path=str(folder))
    refuse_other_base(plan.base_model.sha256, base)
    return Served(
        path=base.path,
        sha256=base.sha256,
        adapter_path=str(folder),
        template=plan.base_model.template,
        precision=plan.training.precision,
        quantisation=plan.method.quantisation,
        template_options=tuple(sorted(plan.data.template_options.items())),
        opted_turns=plan.opted_turns,
    )


def _refuse_packed_base(adapter: Path, base: Path) -> None:
    """Refuse an adapter over quantised weights: only vLLM reads them, and nothing shows that its answers are right."""
    if (packed := packed_weights(base)) is not None:
        raise RequestError(
            f"the adapter {adapter} is for {base}, whose weights are packed ({packed.phrase})",
            expected="an adapter over a base in full or half precision, with which vLLM is compared with transformers",
            do="name the same model in 16 bits as base_model_name_or_path in the adapter's adapter_config.json (fetch "
            "it with luthier models pull), or merge the adapter where it was trained and serve the merged model",
        )


def _as_trained(folder: Path) -> dict[str, Any]:
    """The conversation settings of a bundle's run; empty if it was not made by a run."""
    from luthier.ml.export.bundle.manifest import PLAN

    if not (folder / PLAN).is_file():
        return {}
    try:
        data = DataPlan.model_validate(json.loads((folder / PLAN).read_text(encoding="utf-8"))["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_such_format(folder, f"has a {PLAN} that is not a plan") from error
    options = tuple(sorted(data.template_options.items()))
    return {"template_options": options, "opted_turns": OptedTurns.of(data)}


def check_export(folder: Path, *, needs_bundle: bool = False) -> None:
    """Refuse an export that was modified or has not passed its proof.

    Args:
        folder: Of the export.
        needs_bundle: False accepts folders that were not written by Luthier.

    Raises:
        ConflictError: A digest differs, or the proof failed.
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
            expected="the folder as `luthier export` wrote it",
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
