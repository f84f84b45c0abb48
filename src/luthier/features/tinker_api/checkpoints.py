"""Use cases: what training clients save. A state is a checkpoint of a run, and its adapter a tuned model by name.

    runs/RUN/tinker/CHECKPOINT/adapter/     as PEFT reads it
                              /state/       weights and optimizer, of states alone

The run is there from the first save on. It has succeeded, and its result is the newest adapter, so that all that works
on runs works on it: chat, export, evaluation, deployment. The files are complete before the database knows of them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, RequestError
from luthier.core.events import StepDone
from luthier.core.ids import new_id, sha256_file, tuned_name
from luthier.core.run import RunRecord, TrainResult
from luthier.features.models.store import TunedModel
from luthier.features.tinker_api.live import Answer, PendingRequest
from luthier.features.tinker_api.records import CheckpointKind, TinkerCheckpoint, TinkerModel, checked_name
from luthier.features.tinker_api.service import folder_of, numbered
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

_TYPES: Final[Mapping[CheckpointKind, str]] = {
    "training": "save_weights",
    "sampler": "save_weights_for_sampler",
    "external": "save_weights_external",
}
_WEIGHTS: Final = "adapter_model.safetensors"
_MIN_TTL_SECONDS, _MAX_TTL_SECONDS = 3600, 3650 * 86_400
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


def save(
    context: Context,
    caller: Caller,
    model_id: str,
    number: int | None,
    kind: CheckpointKind,
    name: str | None,
    *,
    ttl_seconds: int | None = None,
    overwrites: bool = False,
    user_metadata: dict[str, str] | None = None,
) -> PendingRequest:
    """Save a state, or weights to sample from or to download, under a name.

    Args:
        context: The home.
        caller: Whose client it is.
        model_id: The training client.
        number: Of the request.
        kind: What is saved.
        name: Its name.
        ttl_seconds: How long it is kept; None forever.
        overwrites: Whether a checkpoint of this name is replaced.
        user_metadata: Labels of the client.

    Raises:
        NotFoundError: The client is not in memory, or belongs to another project.
    """
    live = context.tinker_sessions.model(caller.project_id, model_id)
    checkpoint_id = new_id("tck")

    def send() -> dict[str, Any]:
        check_ttl(ttl_seconds)
        known = context.tinker.find_checkpoint(caller.project_id, model_id, kind, checked_name(name))
        if known is not None and not overwrites and not context.tinker.is_expired(known):
            raise RequestError(
                f"{known.path} already exists", expected="a new name", do="choose another name, or overwrite=True"
            )
        model = context.tinker.model(caller.project_id, model_id)
        if known is not None:  # users of a deployment would get other weights, past its gates and its history
            _refuse_used(context, known, model)
        folder = context.settings.run_folder(model.run_id) / "tinker" / checkpoint_id
        folder.parent.mkdir(parents=True, exist_ok=True)
        return {"op": "save", "model": model_id, "folder": str(folder), "with_state": kind == "training"}

    def finish(result: dict[str, Any]) -> Answer:
        model = context.tinker.model(caller.project_id, model_id)
        expires_at = None if ttl_seconds is None else context.tinker.now() + ttl_seconds
        made = TinkerCheckpoint(
            checkpoint_id=checkpoint_id,
            model_id=model_id,
            project_id=caller.project_id,
            kind=kind,
            name=checked_name(name),
            step=result["step"],
            num_bytes=result["num_bytes"],
            served_name=served_name(model, kind, checked_name(name)),
            user_metadata=user_metadata,
            expires_at=expires_at,
        )
        path = _keep(context, caller, model, made, result)
        return Answer({"path": path, "size_bytes": made.num_bytes, "type": _TYPES[kind]})

    return numbered(context, caller, live, number, send, finish)


def check_ttl(ttl_seconds: int | None) -> None:
    """Raise RequestError where a checkpoint cannot be kept for this time."""
    if ttl_seconds is not None and not _MIN_TTL_SECONDS <= ttl_seconds <= _MAX_TTL_SECONDS:
        raise RequestError(
            f"ttl_seconds {ttl_seconds}",
            expected=f"{_MIN_TTL_SECONDS} (an hour) to {_MAX_TTL_SECONDS} (ten years), or None forever",
            do="correct ttl_seconds",
        )


def served_name(model: TinkerModel, kind: CheckpointKind, name: str) -> str:
    """The name by which a checkpoint answers: `ft:BASE:PROJECT:NAME:ID`."""
    base = _NOT_IN_A_NAME.sub("-", model.base_model)
    return tuned_name(base, model.project_id, name, f"{model.model_id} {kind} {name}")


def _keep(
    context: Context, caller: Caller, model: TinkerModel, made: TinkerCheckpoint, result: Mapping[str, Any]
) -> str:
    """Write down what was saved, in one transaction; returns its path."""
    adapter = Path(folder_of(context, made, model)) / "adapter"
    old = context.tinker.find_checkpoint(caller.project_id, made.model_id, made.kind, made.name)
    facts: dict[str, Any] = {"path": made.path, "step": made.step, "num_bytes": made.num_bytes, "run_id": model.run_id}
    with context.database.transaction():
        facts["is_result"] = _keep_run(context, model, adapter, result)
        if old is not None:
            _forget(context, old)
        context.tuned_models.add(
            TunedModel(
                model_id=made.served_name,
                project_id=made.project_id,
                job_id="",
                run_id=model.run_id,
                base_model=model.base_model,
                adapter_path=str(adapter),
                step=made.step,
            )
        )
        context.tinker.add_checkpoint(made)
        record(context, caller, "tinker_checkpoint.saved", made.checkpoint_id, facts)
    if old is not None:
        shutil.rmtree(folder_of(context, old, model), ignore_errors=True)
    return made.path


def _keep_run(context: Context, model: TinkerModel, adapter: Path, result: Mapping[str, Any]) -> bool:
    """The run of a training client with its newest adapter as result; made by the first save.

    Returns whether it is the result: where a deployment routes to the run, the one that was deployed stays.
    """
    state, now = result["state"], datetime.now(UTC).isoformat(timespec="seconds")
    seconds = max(state["seconds"], 1e-9)
    outcome = TrainResult(
        status="succeeded",
        stopped_because="saved by a client of the Tinker API",
        stop_cause="completed",
        num_steps=state["step"],
        num_tokens=state["num_tokens"],
        num_trained_tokens=state["num_trained_tokens"],
        num_examples=state["num_examples"],
        num_trainable_parameters=result["num_trainable"],
        trainable_fraction=result["num_trainable"] / result["num_parameters"],
        train_loss=state["loss_sum"] / max(1.0, state["loss_weight"]),
        best_validation_loss=None,
        best_step=state["step"],
        seconds=state["seconds"],
        tokens_per_second=state["num_tokens"] / seconds,
        examples_per_second=state["num_examples"] / seconds,
        seconds_per_step=state["seconds"] / max(1, state["step"]),
        peak_memory_bytes=0,
        adapter_path=str(adapter),
        adapter_sha256=result["sha256"],
    )
    try:
        context.runs.get(model.run_id)
    except NotFoundError:
        made = RunRecord(
            run_id=model.run_id,
            status="succeeded",
            base_model=model.plan.base_model.name,
            method=model.plan.method.name,
            plan_hash=model.plan.hash,
            created_at=now,
            updated_at=now,
            num_steps=max(1, state["step"]),
        )
        context.runs.create(made, model.plan, model.project_id)
    is_result = not context.deployments.routing_to(model.run_id)
    context.runs.update(
        model.run_id,
        status="succeeded",
        step=state["step"],
        stopped_because=outcome.stopped_because,
        result=outcome if is_result else None,
    )
    # A client that went back to an earlier state has left the steps behind it: they are not part of this curve.
    context.runs.truncate_after(model.run_id, state["step"] - len(result["events"]))
    for event in result["events"]:
        context.runs.append(model.run_id, StepDone.model_validate(event))
    return is_result


def _forget(context: Context, one: TinkerCheckpoint) -> None:
    """Remove the records of a checkpoint, within a transaction."""
    context.tinker.remove_checkpoint(one.checkpoint_id)
    with contextlib.suppress(NotFoundError):  # it was deleted by its name
        context.tuned_models.delete(one.project_id, one.served_name)


def _move_result(context: Context, gone: TinkerCheckpoint, model: TinkerModel) -> None:
    """Make the newest adapter that is left the result of the run, where it was the one that goes; in a transaction."""
    try:
        result = context.runs.get(model.run_id).result
    except NotFoundError:
        return
    if result is None or result.adapter_path != str(Path(folder_of(context, gone, model)) / "adapter"):
        return
    left, _ = context.tinker.checkpoints(model.project_id, model_id=model.model_id)
    for one in left:
        folder = Path(folder_of(context, one, model)) / "adapter"
        if (weights := folder / _WEIGHTS).is_file():
            changed = {"num_steps": one.step, "best_step": one.step, "adapter_path": str(folder)}
            changed["adapter_sha256"] = sha256_file(weights)
            context.runs.update(model.run_id, step=one.step, result=result.model_copy(update=changed))
            return


def delete(context: Context, caller: Caller, model_id: str, kind: CheckpointKind, name: str) -> None:
    """Delete a checkpoint and its files.

    Raises:
        NotFoundError: The project has no such checkpoint.
        RequestError: A deployment routes to it.
    """
    one = context.tinker.checkpoint(caller.project_id, model_id, kind, name)
    model = context.tinker.model(caller.project_id, model_id)
    _refuse_used(context, one, model)
    with context.database.transaction():
        _forget(context, one)
        _move_result(context, one, model)
        record(context, caller, "tinker_checkpoint.deleted", one.checkpoint_id, {"path": one.path})
    shutil.rmtree(folder_of(context, one, model), ignore_errors=True)


def _refuse_used(context: Context, one: TinkerCheckpoint, model: TinkerModel) -> None:
    """Raise RequestError where a deployment routes to a checkpoint, or to the run whose result it is."""
    names = [one.served_name]
    try:
        result = context.runs.get(model.run_id).result
    except NotFoundError:
        result = None
    if result is not None and result.adapter_path == str(Path(folder_of(context, one, model)) / "adapter"):
        names.append(model.run_id)
    if any(context.deployments.routing_to(name) for name in names):
        raise RequestError(
            f"a deployment routes to {one.path}",
            expected="a checkpoint that no deployment routes to",
            do="deploy another model first, or remove the deployment",
        )


def set_ttl(
    context: Context, caller: Caller, model_id: str, kind: CheckpointKind, name: str, ttl_seconds: int | None
) -> None:
    """Change how long a checkpoint is kept, from now on.

    Args:
        context: The home.
        caller: Whose project has saved it.
        model_id: The training client that has saved it.
        kind: What it was saved for.
        name: As the client has named it.
        ttl_seconds: How long; None forever.

    Raises:
        NotFoundError: The project has no such checkpoint.
        RequestError: The time is not between an hour and ten years.
    """
    check_ttl(ttl_seconds)
    one = context.tinker.checkpoint(caller.project_id, model_id, kind, name)
    expires_at = None if ttl_seconds is None else context.tinker.now() + ttl_seconds
    with context.database.transaction():
        context.tinker.set_expiry(one.checkpoint_id, expires_at)
        record(context, caller, "tinker_checkpoint.ttl_set", one.checkpoint_id, {"ttl_seconds": ttl_seconds})


def sweep_checkpoints(context: Context) -> None:
    """Delete the checkpoints whose time is over, except those that a deployment routes to."""
    for one in context.tinker.expired():
        try:
            model = context.tinker.model(one.project_id, one.model_id)
            _refuse_used(context, one, model)
            with context.database.transaction():
                _forget(context, one)
                _move_result(context, one, model)
                facts = {"path": one.path, "why": "expired"}
                record(
                    context, Caller(project_id=one.project_id), "tinker_checkpoint.deleted", one.checkpoint_id, facts
                )
            shutil.rmtree(folder_of(context, one, model), ignore_errors=True)
        except LuthierError:
            continue  # the next sweep tries again
