"""Work in stages that resumes where it stopped: `luthier compare-models`, `luthier automl` and `luthier retrain`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.core.frozen import Frozen

PipelineKind = Literal["auto", "retrain", "showdown"]
StageStatus = Literal["waiting", "running", "done", "paused", "refused", "failed"]


class Stage(Frozen):
    """One step of the way.

    refused: it was done, and its result ends the way (a gate that was not passed, prompting that was enough).
    paused: it was asked to stop, by a signal.

    Attributes:
        came: what it has made, as JSON, for the stages after it.
        reason: why it went no further.
        began_at, ended_at: seconds since 1970.
    """

    name: str
    status: StageStatus = "waiting"
    came: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    began_at: float | None = None
    ended_at: float | None = None


class Pipeline(Frozen):
    """What was asked, and how far it is.

    Attributes:
        asked: as JSON, with absolute paths; it never changes.
    """

    pipeline_id: str
    kind: PipelineKind
    asked: dict[str, Any]
    stages: tuple[Stage, ...] = Field(min_length=1)
    created_at: float = 0.0

    def came(self, name: str) -> dict[str, Any]:
        """What a stage that is done has made; empty where it is not done yet."""
        return next((stage.came for stage in self.stages if stage.name == name), {})

    @property
    def next_stage(self) -> Stage | None:
        """The first stage that is not done; None where all are, or one has ended the way."""
        for stage in self.stages:
            if stage.status == "refused":
                return None
            if stage.status != "done":
                return stage
        return None

    def changed(self, stage: Stage) -> Pipeline:
        """The pipeline with a stage as it is now."""
        stages = tuple(stage if one.name == stage.name else one for one in self.stages)
        return self.model_copy(update={"stages": stages})
