"""Work in stages, each written down when it is done: what was killed goes on with the stage that it was in.

A stage gets the pipeline with what came of the stages before, and returns what the later ones need, as JSON. It may be
called a second time after a kill: it must find what it has begun (`begun`, which is stored before the stage begins).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, WorkError
from luthier.core.system.file_lock import file_lock
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.platform.home.context import Context

LOCK_SECONDS = 1.0
Work = Callable[[Pipeline], dict[str, Any]]
Tell = Callable[[Pipeline, Stage], None]


class StageRefusedError(LuthierError):
    """What a stage has found ends the way, without anything having failed: prompting is enough, a gate says no."""


class PausedError(WorkError):
    """It was asked to stop by SIGTERM or SIGINT, and can be gone on with from where it is."""


def lock_of(context: Context, pipeline_id: str) -> Path:
    """The file that a process holds locked while it works on a pipeline."""
    return context.settings.home / "pipelines" / pipeline_id / "lock"


def run_pipeline(
    context: Context,
    pipeline_id: str,
    works: Mapping[str, Work],
    *,
    begun: Mapping[str, Callable[[Pipeline], dict[str, Any]]] | None = None,
    tell: Tell = lambda _pipeline, _stage: None,
) -> Pipeline:
    """Do all stages that are not done, one after the other; the pipeline as it is then.

    works: by the name of the stage. begun: for a stage that must know after a kill what it had begun, such as the id of
    a run: called once and stored as its `came` before its work is. tell: told of every stage that changes.

    Raises ConflictError where another process works on it, and what a stage raises, which is written down before. A
    stage that raises StageRefusedError ends the way: that is written down, and not raised.
    """
    lock = lock_of(context, pipeline_id)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock, what=f"pipeline {pipeline_id}", timeout_seconds=LOCK_SECONDS):
        pipeline = context.pipelines.get(pipeline_id)

        def keep(stage: Stage) -> None:
            nonlocal pipeline
            pipeline = pipeline.changed(stage)
            context.pipelines.save(pipeline)
            tell(pipeline, stage)

        while (stage := pipeline.next_stage) is not None:
            if stage.status != "running":
                begin = (begun or {}).get(stage.name)
                came = stage.came or ({} if begin is None else begin(pipeline))
                started = {"status": "running", "came": came, "reason": "", "began_at": context.access.now()}
                keep(stage := stage.model_copy(update=started))
            try:
                came = works[stage.name](pipeline)
            except StageRefusedError as error:
                keep(_ended(context, stage, "refused", reason=error.came))
            except PausedError as error:
                keep(_ended(context, stage, "paused", reason=error.came))
                raise
            except LuthierError as error:
                keep(_ended(context, stage, "failed", reason=error.came))
                raise
            else:
                keep(_ended(context, stage, "done", came=came))
        return pipeline


def _ended(context: Context, stage: Stage, status: str, **found: Any) -> Stage:
    return stage.model_copy(update={"status": status, "ended_at": context.access.now(), **found})
