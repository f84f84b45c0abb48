"""The stored record of a workflow: what was asked, and each of its stages with its result."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

PipelineKind = Literal["auto", "distill", "formats", "quickstart", "retrain", "showdown", "tune"]
StageStatus = Literal["waiting", "running", "done", "paused", "refused", "failed"]


class Stage(FrozenModel):
    """One stage of a workflow.

    Attributes:
        name: Unique within the workflow.
        status: `refused` where it was done and its result ends the workflow (a gate refuses the model); `paused` where
            it was asked to stop by a signal.
        came: Its result as JSON, for the stages after it; until it is done, what it has begun.
        reason: Why it went no further.
        began_at: Seconds since 1970.
        ended_at: Seconds since 1970.
        inputs: Digest of what the result depends on; empty where it was stored before there were digests.
    """

    name: str
    status: StageStatus = "waiting"
    came: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    began_at: float | None = None
    ended_at: float | None = None
    inputs: str = ""


class Pipeline(FrozenModel):
    """A workflow that was begun.

    Attributes:
        pipeline_id: Its id.
        kind: Which workflow.
        asked: The request as JSON, with absolute paths; it never changes.
        stages: In order.
        created_at: Seconds since 1970, by the clock of the database.
    """

    pipeline_id: str
    kind: PipelineKind
    asked: dict[str, Any]
    stages: tuple[Stage, ...] = Field(min_length=1)
    created_at: float = 0.0

    def stage(self, name: str) -> Stage | None:
        """A stage by its name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def came(self, name: str) -> dict[str, Any]:
        """The result of a stage, or what it has begun; empty where it has not begun yet."""
        stage = self.stage(name)
        return {} if stage is None else stage.came

    @property
    def next_stage(self) -> Stage | None:
        """The first stage that is not done; None where all are, or one has ended the way."""
        for stage in self.stages:
            # A refusal is a result: the stages after it stay `waiting` for good.
            if stage.status == "refused":
                return None
            if stage.status != "done":
                return stage
        return None

    def changed(self, stage: Stage) -> Pipeline:
        """The pipeline with a stage as it is now."""
        stages = tuple(stage if one.name == stage.name else one for one in self.stages)
        return self.model_copy(update={"stages": stages})
