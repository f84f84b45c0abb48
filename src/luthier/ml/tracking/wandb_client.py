"""Weights & Biases: a run with its own axis of steps, online or offline (WANDB_MODE=offline)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.ids import sha256_bytes
from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS

STEP = "train/global_step"


class WeightsAndBiases(Tracker):
    """A run of W&B. Its id is made of that of ours, so that each delivery continues the same run.

    Charts count by `train/global_step`: W&B's own steps only grow, and would refuse what is delivered late.
    """

    rules: ClassVar[TrackerRules] = TRACKERS["wandb"]

    def __init__(self) -> None:
        self._run: Any = None
        self._name = ""

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Begin the run or continue it, with the parameters as its config."""
        import wandb

        self._name = run.run_id
        folder = run.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "console": "off",
            "silent": True,
            # The run's machine is in its own events; this process trains nothing.
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "disable_git": True,
            "disable_code": True,
        }
        if run.location is not None:
            settings["base_url"] = run.location
        self._run = wandb.init(
            project=run.plan.project,
            entity=run.plan.entity,
            id=run.tracker_run_id or sha256_bytes(run.key.encode())[:16],
            name=run.name,
            resume="allow",
            dir=str(folder),
            config=dict(run.parameters),
            # The longest tag that W&B takes.
            tags=[tag[:64] for tag in run.plan.tags],
            job_type="train",
            save_code=False,
            settings=wandb.Settings(**settings),
        )
        self._run.define_metric(STEP, hidden=True)
        for group in ("train", "eval", "system", "cost"):
            self._run.define_metric(f"{group}/*", step_metric=STEP)
        return RemoteRun(self._run.id, self._run.url or str(folder))

    def log(self, points: Sequence[Point]) -> None:
        """Hand figures to W&B's own process, which writes them to the disk and sends them."""
        for point in points:
            self._run.log({**point.values, STEP: point.step, "_timestamp": point.at})

    def end(self, outcome: RunOutcome) -> list[str]:
        """Store summary, texts, report and weights, and finish."""
        import wandb

        self._run.summary.update({**outcome.summary, **outcome.texts, "status": outcome.status})
        self._run.summary["reason"] = outcome.reason
        if outcome.report is not None:
            report = wandb.Artifact(f"{self._name}-report", type="report")
            report.add_file(str(outcome.report))
            self._run.log_artifact(report)
        if outcome.weights is not None:
            weights = wandb.Artifact(f"{self._name}-weights", type="model", metadata=dict(outcome.texts))
            weights.add_dir(str(outcome.weights))
            self._run.log_artifact(weights)
        self._finish(exit_code=1 if outcome.status == "failed" else 0)
        return []

    def close(self) -> None:
        """Finish the run, so that what was handed over is sent."""
        if self._run is not None:
            self._finish(exit_code=0)

    def _finish(self, exit_code: int) -> None:
        import wandb

        run, self._run = self._run, None
        run.finish(exit_code=exit_code)
        # W&B's own process may still be writing an offline run when `finish` returns: this waits for its end.
        wandb.teardown(exit_code=exit_code)
