"""Use cases: collect the facts about an export, prove that a bundle is whole, send it somewhere."""

from __future__ import annotations

import platform
import shlex
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.data_sources import is_remote, without_queries
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.plan import Plan
from luthier.core.records.export import Export
from luthier.core.registry import STORED
from luthier.core.run import RunRecord, TrainResult
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.ports import StopCheck
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts, DatasetFacts, PackageFacts, RunFacts
    from luthier.ml.export.bundle.push import Pushed
    from luthier.ml.export.bundle.verify import VerifyReport

_ALWAYS: Final = ("luthier", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")
_LICENCE_FILES: Final = ("LICENSE*", "LICENCE*", "NOTICE*", "*TERMS*", "USE_POLICY*")
_MAX_LICENCE_BYTES: Final = 1 << 20


def facts_for(context: Context, export: Export) -> BundleFacts:
    """All facts about what was exported, with names in place of paths of this machine.

    The evaluation is that of the run, where the export is the outcome that it judged.

    Raises:
        NotFoundError: The run that it comes from was removed.
    """
    from luthier.ml.export.bundle.facts import BundleFacts

    source = export.source
    title = _name(source.name)
    run, evaluation, safety = None, None, tuple[str, ...]()
    if source.run_id is not None:
        record = context.runs.get(source.run_id)
        run = run_facts(record, context.runs.plan(source.run_id))
        # None: a base or a full outcome. Another digest means a checkpoint, which the run's evaluation is not about.
        is_outcome = source.adapter_sha256 in (None, run.result.adapter_sha256)
        evaluation = _evaluation(context, record) if is_outcome else None
        safety = _safety(context, source.run_id) if is_outcome else ()
    return BundleFacts(
        title=title,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        base=base_facts(context, source.base_name, source.base_sha256, source.base_path, source.base_licence),
        run=run,
        evaluation=evaluation,
        safety=safety,
        packages=_packages(export),
        command=_command(title, export),
    )


def facts_of_run(context: Context, run_id: str) -> BundleFacts:
    """The same for the result of a run before an export.

    Raises:
        NotFoundError: There is no such run.
    """
    from luthier.ml.export.bundle.facts import BundleFacts

    record, plan = context.runs.get(run_id), context.runs.plan(run_id)
    base = plan.base_model
    return BundleFacts(
        title=run_id,
        made_at=record.updated_at,
        base=base_facts(context, base.name, base.sha256, base.path),
        run=run_facts(record, plan),
        evaluation=_evaluation(context, record),
        safety=_safety(context, run_id),
        command="",
    )


def _safety(context: Context, run_id: str) -> tuple[str, ...]:
    """What the newest safety check of a run has found, a sentence each; nothing of one of earlier weights of it."""
    from luthier.features.release_gates.service import is_of_present_result, newest_safety

    project_id = context.runs.project_of(run_id)
    found = None if project_id is None else newest_safety(context, project_id, run_id)
    if found is None or not is_of_present_result(context, run_id, found):
        return ()
    return (found.headline, *found.concerns, f"Probes: the suite {found.suite}, checked {found.created_at[:10]}.")


def verify_bundle(
    context: Context,
    folder: Path,
    *,
    key: Path | None = None,
    bundle_sha256: str | None = None,
    base: str | None = None,
) -> VerifyReport:
    """Prove a bundle whole, signed by a key where one is given, and made for a base model where one is named.

    Args:
        context: The home.
        folder: Of the bundle.
        key: The file of the public key; None checks no signature.
        bundle_sha256: The digest that the bundle must have; None for any.
        base: The base model on this machine that it must be made for; None for any.

    Raises:
        NotFoundError: No such folder or key, or no such base model on this machine.
        RequestError: The key cannot be used.
    """
    from luthier.ml.export.bundle.verify import verify

    sha256 = None
    if base is not None:
        from luthier.ml.inference.models import sources

        model = sources.find(base, context.home)
        if model is None:
            raise NotFoundError(
                f"base model {base!r} is not on this machine",
                expected="one that was pulled, so that its digest is known",
                do=f"luthier models pull {base}",
            )
        # The digest and not the name: a base of the same name may have other weights.
        sha256 = model.sha256
    return verify(folder, key=key, bundle_sha256=bundle_sha256, base_sha256=sha256, progress=context.progress)


def push(
    context: Context, folder: Path, url: str, *, is_public: bool = False, stop_requested: StopCheck = lambda: None
) -> Pushed:
    """Send a whole bundle to `hf://org/name` or any URL of fsspec, and prove that it is whole there.

    Files that are there already are not sent again, so an interrupted push continues.

    Args:
        context: The home.
        folder: The bundle.
        url: Where it goes.
        is_public: Whether a repository that is made now is public.
        stop_requested: Called before each file, and within large ones where the target allows it.

    Raises:
        RequestError: The bundle is not whole, or the URL has no known form.
        ConflictError: Something else is there.
        WorkError: The target refused or failed.
        StoppedError: It was to stop. A repository then has no commit, a store a part that the next push completes.
    """
    from luthier.ml.export.bundle import push as target
    from luthier.ml.export.bundle import verify
    from luthier.ml.export.bundle.push import SCHEME, push_to_hub, push_to_store, shown_url

    if "://" not in url:
        raise RequestError(
            f"{shown_url(url)!r} is not a URL",
            expected="hf://org/name, s3://bucket/folder, or another URL of fsspec (file:///folder)",
            do="write where it goes in that form",
        )
    report = verify(folder, progress=context.progress)
    # Checked before the first byte is sent: a public repository must not get a broken bundle.
    if not report.is_whole:
        first = report.faults[0]
        more = f", and {len(report.faults) - 1} more faults" if len(report.faults) > 1 else ""
        raise RequestError(
            f"{folder} is not a complete bundle: {first.path} {first.what}{more}",
            expected="a bundle as `luthier export` has made it",
            do=f"see all faults with `luthier verify {shlex.quote(str(folder))}`, and export again",
        )
    payload = target.load(folder)
    if url.startswith(SCHEME):
        return push_to_hub(payload, url, context.progress, is_public=is_public, stop_requested=stop_requested)
    return push_to_store(payload, url, context.progress, stop_requested=stop_requested)


def sign_bundle(context: Context, folder: Path, key: Path) -> str:
    """Sign a whole bundle with the key of a PEM file; returns the key as `verify` names it.

    Raises:
        RequestError: The bundle is not whole, or the key cannot be used.
        ConflictError: It is signed already, by another key.
    """
    from luthier.ml.export.bundle.write import add_signature

    return add_signature(folder, key, context.progress)


def base_facts(context: Context, name: str, sha256: str, path: str, licence: str | None = None) -> BaseFacts:
    """What is known of a base model.

    Args:
        context: The home.
        name: Of the base model.
        sha256: The digest of its weights.
        path: Where its licence texts may be.
        licence: Where it is known already.
    """
    from luthier.ml.export.bundle.facts import BaseFacts
    from luthier.ml.inference.models import cache, catalog, sources
    from luthier.ml.inference.models import catalog as names

    model: LocalModel | None = next((one for one in sources.local_models(context.home) if one.name == name), None)
    origin: dict[str, str] = {}
    if model is not None:
        # The origin (hub repository and commit) is stored when a model is pulled; folders of the user have none.
        kept = cache.read(cache.models_folder(context.home) / names.parse(model.name).safe)
        origin = kept[1].origin if kept is not None else {}
    entry = catalog.entries().get(name)
    # In order of trust: what the run recorded, the model on this machine, the catalogue.
    licence = licence or (model.licence if model is not None else entry.licence if entry else None)
    hub = origin.get("repo")
    return BaseFacts(
        name=_name(name),
        sha256=sha256,
        hub=hub,
        revision=origin.get("commit") if hub is not None else None,
        licence=licence,
        licence_url=entry.licence_url if entry is not None else None,
        architecture=model.architecture if model is not None else None,
        num_parameters=model.num_parameters if model is not None else None,
        context_length_tokens=model.context_length_tokens if model is not None else None,
        note=entry.note if entry is not None else "",
        licence_texts=_licence_texts(Path(model.path if model is not None else path)),
    )


def _name(name: str) -> str:
    """What a model is called anywhere: of a path its last part."""
    from luthier.ml.export.bundle.write import last_part

    # A folder's path would publish the user name and layout of this machine; hub names are public already.
    return name if name.startswith("hub:") else last_part(name)


def _licence_texts(folder: Path) -> dict[str, str]:
    found = {}
    for pattern in _LICENCE_FILES:
        for path in sorted(folder.glob(pattern)):
            # The pattern may match anything; a licence of more than 1 MiB is no licence text.
            if path.is_file() and path.stat().st_size <= _MAX_LICENCE_BYTES:
                found[path.name] = path.read_text(encoding="utf-8", errors="replace")
    return found


def run_facts(record: RunRecord, plan: Plan) -> RunFacts:
    """What is known of a run, with names in place of paths.

    Raises:
        RequestError: It has no result.
    """
    from luthier.ml.export.bundle.facts import RunFacts
    from luthier.ml.export.bundle.write import without_folders

    if record.result is None:
        raise RequestError(
            f"run {record.run_id} is {record.status} and has no result yet",
            expected="a run that has succeeded",
            do=f"resume it: luthier train --resume {record.run_id}",
        )
    # `adapter_path` is dropped: the bundle holds the adapter itself.
    result = without_folders(record.result.model_dump(mode="json")) | {"adapter_path": None}
    bare = _without_folders(plan)
    return RunFacts(
        run_id=record.run_id,
        created_at=record.created_at,
        ended_at=record.updated_at,
        plan=bare,
        plan_hash=plan.hash,
        datasets=_datasets(bare),
        result=TrainResult.model_validate(result),
    )


def _without_folders(plan: Plan) -> Plan:
    """The plan with names where paths were. Only what its hash does not look at is touched."""
    from luthier.ml.export.bundle.write import last_part, without_folders

    document = plan.model_dump(mode="json")
    # Only sections outside the plan's hash: the hash in the bundle has to match that of the run.
    for section in ("recipe", "budget"):
        document[section] = without_folders(document[section])
    document["recipe"]["data"] = without_queries(document["recipe"]["data"])
    # Addresses of servers are nothing that a bundle's readers need.
    document["tracking"], document["recipe"]["tracking"] = [], None
    base, teacher = document["base_model"], document["objective"]["teacher"]
    replay = document["data"]["replay"] or {}
    profiles = [document["data"][name] for name in ("train", "validation", "held_out")]
    for profile in (*profiles, replay.get("rows"), replay.get("held_out")):
        if profile is not None:
            profile["file"] = last_part(profile["file"])
    for source in document["data"]["sources"]:
        is_file = not is_remote(source["path"])
        source["path"] = last_part(source["path"]) if is_file else without_queries(source["path"])
    for model, names in ((base, ("name", "path")), (teacher, ("name", "path", "adapter_path"))):
        for name in names if model is not None else ():
            model[name] = without_folders(model[name])
    document["evaluation"]["reflection_model"] = without_folders(document["evaluation"]["reflection_model"])
    # `sources` explains where each value came from, with paths; the hash ignores it.
    return Plan.model_validate(document | {"sources": {}}, context=STORED)


def _datasets(plan: Plan) -> tuple[DatasetFacts, ...]:
    from luthier.ml.export.bundle.facts import DatasetFacts

    data, replay = plan.data, plan.data.replay
    profiles = (data.train, data.validation, data.held_out, *((replay.rows, replay.held_out) if replay else ()))
    return tuple(
        DatasetFacts(
            split=profile.split,
            name=profile.file,
            sha256=profile.sha256,
            shape=profile.shape,
            num_rows=profile.num_rows,
            num_examples=profile.num_examples,
            num_tokens=profile.num_tokens,
            num_trained_tokens=profile.num_trained_tokens,
        )
        for profile in profiles
        if profile is not None
    )


def _evaluation(context: Context, record: RunRecord) -> Evaluation | None:
    """The evaluation that belongs to the run, without its samples."""
    from luthier.ml.export.bundle.write import without_folders

    if record.evaluation_id is None:
        return None
    found = context.evaluations.get(record.evaluation_id)
    # Samples hold held-out rows and answers, which may be private: a bundle publishes figures only.
    systems = tuple(system.model_copy(update={"samples": (), "adapter": None}) for system in found.systems)
    document = found.model_copy(update={"systems": systems}).model_dump(mode="json")
    return Evaluation.model_validate(without_folders(document))


def _packages(export: Export) -> tuple[PackageFacts, ...]:
    """Those of the packages that take part in such an export that are installed, and Python."""
    from luthier.ml.export.bundle.facts import PackageFacts
    from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
    from luthier.ml.export.exporters.registry import packages_of

    found = [PackageFacts(name="python", version=platform.python_version(), licence="PSF-2.0")]
    head = export.source.task_head
    own = packages_of(export.format) if head is None else HEAD_FORMATS[export.format].distributions
    for name in (*_ALWAYS, *own):
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(PackageFacts(name=name, version=about["Version"], licence=_licence(about)))
    return tuple(found)


def _licence(about: metadata.PackageMetadata) -> str | None:
    """The licence that a package states: the expression, else the short old field, else the trove classifier."""
    for field in ("License-Expression", "License"):
        value = about[field] if field in about else None  # noqa: SIM401 - an email message, whose get mypy does not know
        # Some packages put the whole licence text into the old `License` field.
        if value and "\n" not in value and len(value) <= 100:
            return str(value)
    # `License :: OSI Approved :: MIT License` gives the last part.
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line[:7] == "License"]
    return classifiers[0] if classifiers else None


def _command(name: str, export: Export) -> str:
    """The command that makes the same again, without a destination."""
    return shlex.join(["luthier", "export", name, "--to", export.format, "--quantise", export.precision, "-o", "DIR"])
