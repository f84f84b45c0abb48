"""A run as trackers get it, in two deliveries: three steps, then two more and the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from luthier.core.tracking import TrackerPlan
from luthier.ml.tracking.protocol import Point, RunOutcome, TextModel, TrackedRun
from luthier.ml.tracking.registry import make_tracker

RUN_ID = "run-20261125-093000-aaaaaa"
BEGAN = 1_764_000_000.0


def points(steps: Sequence[int]) -> list[Point]:
    return [
        Point(step, BEGAN + step, {"train/loss": 1 / step, "train/epoch": step / 5, "train/global_step": step})
        for step in steps
    ]


def make_outcome(folder: Path) -> RunOutcome:
    """Adapter, report and verdict of a run; the files are written into a folder."""
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    report = folder / "report.html"
    report.write_text("<h1>Report</h1>")
    return RunOutcome(
        status="succeeded",
        reason="all steps done",
        step=5,
        summary={"verdict/exact_match/tuned minus base": 0.25, "verdict/exact_match/tuned minus base_low": 0.1},
        texts={"verdict": "better", "verdict_headline": "The tuned model is better."},
        report=report,
        weights=adapter,
        model=TextModel(adapter, template="chat"),
    )


def deliver_to(name: str, folder: Path, *, notes: Sequence[str] = (), **settings: object) -> TrackedRun:
    """Deliver the run as two processes do it; returns it with the tracker's own id. notes: of its end."""
    plan = TrackerPlan.model_validate({"name": name, "project": "mails", "tags": ("october",)} | settings)
    run = TrackedRun(
        run_id=RUN_ID,
        plan=plan,
        parameters={"training.learning_rate": 2e-4, "training.packing": True, "recipe.method.name": "lora"},
        plan_hash="0" * 64,
        base_model="tiny",
        created_at=BEGAN,
        folder=folder / "trackers",
        location=plan.location,
    )
    run.folder.mkdir()
    first = make_tracker(name)
    run = replace(run, tracker_run_id=first.begin(run).tracker_run_id)
    first.log(points([1, 2, 3]))
    first.close()
    second = make_tracker(name)
    assert second.begin(run).tracker_run_id == run.tracker_run_id, "the same run goes on"
    second.log(points([4, 5]))
    assert second.end(make_outcome(folder)) == list(notes)
    second.close()
    return run
