"""The recorder of a run: its events go into the store and, as text, into its log, with samples of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from luthier.core.events import (
    BillUpdated,
    CheckpointSaved,
    CheckpointUploaded,
    Event,
    MachineSampled,
    RunEnded,
    RunStarted,
    SamplesAnswered,
    SnapshotSaved,
    StepDone,
    ValidationDone,
    WarningRaised,
)
from luthier.core.ports import EventSink
from luthier.core.text.counted import counted
from luthier.features.planning.format import bill_line
from luthier.platform.cli import figures
from luthier.platform.home.context import Context
from luthier.platform.home.settings import LOG_NAME

_FEWEST_SECONDS: Final = 1.0


class RunLog:
    """The log of a run, `log.txt` in its folder: a line an event, appended over all of its starts.

    Of steps at most one a second is written. A log that cannot be written ends no training.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._last_step = folder / LOG_NAME, float("-inf")

    def write(self, event: Event) -> None:
        """Append an event."""
        if isinstance(event, StepDone):
            now = time.monotonic()
            if now - self._last_step < _FEWEST_SECONDS:
                return
            self._last_step = now
        self.say(event_text(event))

    def say(self, text: str) -> None:
        """Append a line with the time in UTC."""
        moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{moment}  {' '.join(text.split(chr(10)))}\n")


def recorder(
    context: Context, run_id: str, warnings: list[str], listener: EventSink | None = None, *, device: str = "cpu"
) -> Callable[[Event], None]:
    """Writes events into the store. Events of a killed process after its last checkpoint are dropped first.

    Now and then it adds what the run and its machine do: processor, memory and GPUs. It waits for a database that
    restarts.

    Args:
        context: of the home.
        run_id: of the run.
        warnings: gets the text of each warning.
        listener: called with each event after it is stored; None for none.
        device: that the run trains on, by torch's name.
    """
    from luthier.core.system.machine_usage import MachineSampler
    from luthier.platform.db.database import retry_unreachable

    sampler = MachineSampler(has_gpu=device.startswith("cuda"))
    log = RunLog(context.settings.run_folder(run_id))

    def record(event: Event) -> None:
        if isinstance(event, RunStarted):
            # Steps after the checkpoint are trained again, and their events must not be there twice.
            context.runs.truncate_after(run_id, event.from_step)
            context.runs.update(run_id, status="running", step=event.from_step)
            _tell_of_checkpoint(context, run_id, event.from_step)
        if isinstance(event, RunEnded):
            return  # the record is closed by `_carry_out`, once result, verdict and report are on disk
        context.runs.append(run_id, event, reached_step=event.step if isinstance(event, StepDone) else None)
        if listener is not None:
            listener(event)

    def sample(step: int) -> None:
        if (usage := sampler.if_due()) is not None:
            measured = MachineSampled.model_validate({"step": step, **asdict(usage)})
            retry_unreachable(lambda: context.runs.append(run_id, measured))

    def emit(event: Event) -> None:
        # A run of hours must survive a restart of its database.
        retry_unreachable(lambda: record(event))
        if isinstance(event, WarningRaised):
            warnings.append(event.message)
        # The end is logged where the record is closed: after the evaluation, and for errors, too.
        if not isinstance(event, RunEnded):
            log.write(event)
        # Once a step at most: a sample is of the steps since the one before.
        if isinstance(event, StepDone):
            sample(event.step)

    return emit


def _tell_of_checkpoint(context: Context, run_id: str, step: int) -> None:
    """Emit the event of the checkpoint from which a run resumes, if its process was killed before emitting it."""
    from luthier.ml.training.checkpoint import checkpoint_path

    folder = checkpoint_path(context.settings.run_folder(run_id) / "checkpoints", step)
    if not folder.is_dir() or any(
        isinstance(event, CheckpointSaved) and event.step == step for event in context.runs.events(run_id)
    ):
        return
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    context.runs.append(run_id, CheckpointSaved(step=step, path=str(folder), num_bytes=num_bytes))


def event_text(event: Event) -> str:
    """An event as one line, for the log of a run and for whoever follows it."""
    match event:
        case RunStarted():
            begun = "started" if event.from_step == 0 else f"resumed after step {event.from_step:,}"
            return f"{begun}, {counted(event.num_steps, 'step')} in all"
        case StepDone():
            epoch = "" if event.epoch is None else f"epoch {event.epoch:.2f}  "
            return (
                f"step {event.step:,}  {epoch}loss {event.loss:.4f}  "
                f"learning rate {event.learning_rate:.3g}  gradient {event.gradient_norm:.3g}  "
                f"{event.num_tokens / max(event.seconds, 1e-9):,.0f} tokens/s"
            )
        case ValidationDone():
            best = "  best so far" if event.is_best else ""
            measures = "".join(f"  {_measure(name, value)}" for name, value in event.measures.items())
            return f"step {event.step:,}  validation loss {event.loss:.4f}{measures}{best}"
        case CheckpointSaved():
            return f"step {event.step:,}  checkpoint {event.path} ({figures.size(event.num_bytes)})"
        case CheckpointUploaded():
            size = figures.size(event.num_bytes)
            return f"step {event.step:,}  checkpoint uploaded to object storage ({size} in {event.seconds:.1f} s)"
        case SnapshotSaved():
            return f"step {event.step:,}  snapshot {event.path}"
        case WarningRaised():
            return f"step {event.step:,}  warning: {event.message}"
        case BillUpdated():
            return f"step {event.step:,}  {bill_line(event.bill)}"
        case MachineSampled():
            return (
                f"step {event.step:,}  processor {event.run_cores:.1f} of {event.num_cores} cores  "
                f"memory {figures.size(event.run_memory_bytes)}"
                + "".join(f"  {gpu.name} {gpu.utilisation:.0%}" for gpu in event.gpus if gpu.utilisation is not None)
            )
        case SamplesAnswered():
            return f"step {event.step:,}  {counted(len(event.answers), 'prompt')} answered in {event.seconds:.1f} s"
        case RunEnded():
            return f"step {event.step:,}  {event.status}: {event.reason}"


def _measure(name: str, value: float) -> str:
    """`token accuracy 61.2%`; what is not a share of something as a plain number."""
    shown = f"{value:.1%}" if name.endswith("accuracy") else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {shown}"
