"""Events of a run as lines of text, for the log of a run and for who follows it."""

from __future__ import annotations

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
from luthier.features.planning.format import bill_line
from luthier.platform.cli import figures


def event_text(event: Event) -> str:
    """One line."""
    match event:
        case RunStarted():
            begun = "started" if event.from_step == 0 else f"resumed after step {event.from_step:,}"
            return f"{begun}, {event.num_steps:,} steps in all"
        case StepDone():
            return (
                f"step {event.step:,}  epoch {event.epoch:.2f}  loss {event.loss:.4f}  "
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
            return f"step {event.step:,}  {len(event.answers)} prompts answered in {event.seconds:.1f} s"
        case RunEnded():
            return f"step {event.step:,}  {event.status}: {event.reason}"


def _measure(name: str, value: float) -> str:
    """`token accuracy 61.2%`; what is not a share of something as a plain number."""
    shown = f"{value:.1%}" if name.endswith("accuracy") else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {shown}"
