"""Use case: probes measure on this machine how long training steps take, and calibrate the cost model.

A few real steps at the plan's own shapes run in a child process (`probe_worker`), so that peak memory is the run's own
and is freed completely. The results are kept in the home, one JSON file for each setting of machine and software, and
predict every later plan with the same machine, torch, precision and number of threads.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from luthier.core.child_process.process import ChildEndedError, run_child
from luthier.core.errors import LuthierError, WorkError, first_line
from luthier.core.ids import sha256_document
from luthier.core.plan import Plan
from luthier.core.system.libraries import version
from luthier.features.planning.service import Prepared
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.ports import Progress
    from luthier.core.results.cost import Device
    from luthier.ml.inference.models.structure import Structure
    from luthier.ml.planning.predict import Calibration, Measurement

_FORMAT = 2
"""1: peaks of memory are too high, so that calibrations by them would be, too."""
_NUM_KEPT = 12
"""Older measurements are dropped: only the present machine counts, and a fit needs few."""


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """What a measurement holds for, and for nothing else. device: its title, as `plan.devices` gives it."""

    device: str
    torch_version: str
    precision: str
    num_threads: int

    def as_json(self) -> dict[str, Any]:
        """The key as in the file."""
        return {
            "device": self.device,
            "torch_version": self.torch_version,
            "precision": self.precision,
            "num_threads": self.num_threads,
        }


class UnreadableProbeError(ValueError):
    """A file of measurements that is damaged, or not about the key it is named by."""


class ProbeStore:
    """The measurements of one home. Files appear whole or not at all; the last writer wins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: ProbeKey) -> Path:
        """Where the measurements of a key are."""
        return self.folder / f"{sha256_document(key.as_json())[:24]}.json"

    def read(self, key: ProbeKey) -> tuple[Measurement, ...]:
        """The measurements of a key, oldest first; none where no probe has run.

        Raises:
            UnreadableProbeError: the file cannot be read, or is not what a probe has written.
        """
        path = self.path(key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableProbeError(f"{path}: {error}") from error
        return _parsed(text, key, path)

    def add(self, key: ProbeKey, measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
        """Keep new measurements, each in place of an older one of the same workload; returns all that are kept.

        What cannot be read is replaced.

        Raises:
            StorageFullError: the disk has no room for them.
        """
        from luthier.core.system.files import replace_text

        try:
            before = self.read(key)
        except UnreadableProbeError:
            before = ()
        new = [m.workload for m in measurements]
        # No lock: two concurrent probes may lose one measurement, which the next probe makes again.
        kept = [*(m for m in before if m.workload not in new), *measurements][-_NUM_KEPT:]
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"format": _FORMAT, "key": key.as_json(), "measurements": _adapter().dump_python(kept, mode="json")}
        replace_text(self.path(key), json.dumps(document, indent=1) + "\n")
        return tuple(kept)


def _parsed(text: str, key: ProbeKey, path: Path) -> tuple[Measurement, ...]:
    from luthier.core.errors import RecipeError

    try:
        document = json.loads(text)
        if document["format"] == 1:
            raise UnreadableProbeError(f"{path} is of an earlier version, which measured peaks of memory too high")
        if document["format"] != _FORMAT or document["key"] != key.as_json():
            raise UnreadableProbeError(f"{path} is of format {document['format']!r} and holds for {document['key']!r}")
        found = tuple(_adapter().validate_python(document["measurements"], strict=False))
    except UnreadableProbeError:
        raise
    except (ValueError, KeyError, TypeError, RecipeError) as error:
        raise UnreadableProbeError(f"{path}: {first_line(error)}") from error
    if not found or any(m.step_seconds <= 0 or m.peak_memory_bytes <= 0 for m in found):
        raise UnreadableProbeError(f"{path} holds no measurement above zero")
    return found


def _adapter() -> Any:
    from pydantic import TypeAdapter

    from luthier.ml.planning.predict import Measurement

    return TypeAdapter(list[Measurement])


_NUM_BETWEEN = 3
NUM_STEPS = _NUM_BETWEEN + 2
_NUM_LOOKED_AT = 2000
_WORKER: Final = "luthier.features.planning.probe_worker:probe"
_LENGTH_THAT_DOUBLES = 1024

Tell = Callable[[str], None]


class ProbeBatch(NamedTuple):
    """A micro-batch. prefixes: tokens of each that is computed once; rows: tokens, learned tokens."""

    prefixes: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(row[0] for row in self.rows)

    @property
    def num_computed(self) -> int:
        """Positions that are computed, padding included and common prefixes once."""
        from luthier.ml.planning.batch_shapes import num_computed_tokens

        return num_computed_tokens([row[0] for row in self.rows], self.prefixes)


ProbeStep = Sequence[ProbeBatch]


def probe(context: Context, prepared: Prepared) -> Calibration:
    """Run a few steps of a plan on this machine, keep what they took, and fit the cost model to all that is kept.

    The step with the run's largest micro-batch warms up and is repeated at the end; between are the run's smaller,
    middle and larger ones. Nothing is saved of what they train.

    Raises:
        WorkError: the steps do not finish, with the output of the child process.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import predict
    from luthier.ml.planning.devices import this_machine
    from luthier.platform.home.hardware_benchmark import hardware_of

    device, structure = this_machine(hardware_of(context)), read_structure(prepared.model.path)
    plan = prepared.plan
    while True:
        prepared = replace(prepared, plan=plan)
        try:
            steps = probe_steps(prepared, shares_prefix=plan.training.shared_prefix)
            measured = measure(plan, structure, device, steps, context.progress)
            break
        except _RefusedError as error:  # a run of this model continues without it, and so does the probe
            plan = plan.model_copy(update={"training": plan.training.model_copy(update={error.setting: False})})
    store = ProbeStore(context.settings.probes_folder)
    return predict.fit(device, undisturbed(store.add(key_of(device, prepared.plan), [measured]), None))


def stored(context: Context, device: Device, plan: Plan, *, tell: Tell | None = None) -> Calibration | None:
    """The calibration that earlier probes on this machine speak for; None where none has run for this device.

    Args:
        context: the home.
        device: the device of the plan.
        plan: its workload is looked up.
        tell: called about a file that cannot be used, which is then ignored; a Python warning where it is None.
    """
    from luthier.ml.planning import predict

    try:
        found = ProbeStore(context.settings.probes_folder).read(key_of(device, plan))
    except UnreadableProbeError as error:
        message = f"measurements of an earlier probe are ignored: {error}; `--probe` measures again"
        if tell is None:
            warnings.warn(message, stacklevel=2)
        else:
            tell(message)
        return None
    return predict.fit(device, undisturbed(found, tell)) if found else None


def undisturbed(found: Sequence[Measurement], tell: Tell | None) -> Sequence[Measurement]:
    """The measurements of an idle machine where there are some; else all, and `tell` reports the disturbance."""
    from luthier.ml.planning.hardware import QUIET_CORES

    quiet = [measured for measured in found if measured.busy_cores <= QUIET_CORES]
    if not quiet and tell is not None:
        least = min(measured.busy_cores for measured in found)
        tell(
            f"the probe ran while other processes used {least:.1f} cores or more: its times may be too long; "
            "probe again with --probe once they are done"
        )
    return quiet or found


def key_of(device: Device, plan: Plan) -> ProbeKey:
    """What a probe of this plan on this device holds for."""
    return ProbeKey(
        device=device.title,
        torch_version=version("torch"),
        precision=plan.training.precision,
        num_threads=plan.training.num_threads,
    )


def probe_steps(prepared: Prepared, *, shares_prefix: bool) -> list[ProbeStep]:
    """The step with the largest micro-batch, then the run's smaller, middle and larger ones, then the first again.

    Memory is cut up by the steps between: a step that fitted at first takes more when it comes again. Of a step that
    draws its answers only the learning is probed, from answers as long as they may be.
    """
    from luthier.features.planning import batch_schedules as schedules

    units, training = prepared.trained_units, prepared.plan.training
    schedule = schedules.of_training(prepared, shares_prefix=shares_prefix, packs=training.packing)
    count = min(training.num_steps, schedule.num_steps_per_epoch, _NUM_LOOKED_AT)
    if prepared.plan.objective.draws:
        lies_so = shares_prefix or training.packing
        found = [schedules.shapes_of_drawn(prepared, schedule, n, training.micro_batch_tokens) for n in range(count)]
        made: list[ProbeStep] = [
            [ProbeBatch(prefixes if lies_so else (), rows) for prefixes, rows in shapes] for shapes in found
        ]
        return _chosen(made)
    made = [
        [
            ProbeBatch(
                schedule.shared_tokens(batch),
                tuple((row.num_tokens, row.num_trained_tokens) for i in batch for row in units[i]),
            )
            for batch in schedule.step(step)
        ]
        for step in range(count)
    ]
    return _chosen(made)


def _chosen(made: Sequence[ProbeStep]) -> list[ProbeStep]:
    """Those steps of a run that are probed."""
    count = len(made)
    by_size = sorted(made, key=lambda step: sum(batch.num_computed for batch in step))
    # Midpoints of thirds by size (the 1/6, 1/2 and 5/6 quantiles): three steps whose mean is near that of the run.
    timed = [by_size[(2 * i + 1) * count // (2 * _NUM_BETWEEN)] for i in range(_NUM_BETWEEN)]
    largest = max(made, key=lambda step: max(map(_weight, step)))
    # The largest first: it grows the allocator's pools to their peak before anything is timed.
    return [largest, *timed, largest]


def measure(
    plan: Plan, structure: Structure, device: Device, steps: Sequence[ProbeStep], progress: Progress
) -> Measurement:
    """Run steps of these shapes by a plan's settings in a child process; the first warms up and is not timed.

    Args:
        plan: of the run.
        structure: of its model.
        device: this machine's.
        steps: the shapes, the warm-up first.
        progress: shows the work.

    Raises:
        WorkError: the child does not finish.
    """
    from luthier.core.system.free_cores import OtherProcesses
    from luthier.ml.planning.batch_shapes import batches_of, splits_by_length
    from luthier.ml.planning.predict import Measurement
    from luthier.ml.planning.workload import workload_of

    others = OtherProcesses()
    answer = _run_child(plan, steps, progress)
    # Taken after the child has ended, over the same stretch of time as the steps.
    busy_cores = others.busy_cores()
    lengths = [[[row[0] for row in batch.rows] for batch in step] for step in steps]
    shared = [[batch.prefixes for batch in step] for step in steps]
    rows = [row for step in steps[1:] for batch in step for row in batch.rows]
    learned = sum(row[1] for row in rows) / sum(row[0] for row in rows)
    # Time comes from the steps that were timed, peak memory from all of them: the warm-up counts for memory.
    apart = splits_by_length(plan.objective)
    batches = batches_of(lengths[1:], learned_fraction=learned, shared=shared[1:], apart=apart)
    whole = batches_of(lengths, learned_fraction=learned, shared=shared, apart=apart)
    batches = replace(batches, peak_rows=whole.peak_rows, peak_length=whole.peak_length, other_peaks=whole.other_peaks)
    work = workload_of(plan, structure, device, batches=batches)
    # The child does none of these, so a measurement must not be explained by them.
    work = replace(work, num_steps=len(steps), judging=None, rollouts=None)
    seconds = answer["step_seconds"][1:]
    return Measurement(
        workload=work,
        step_seconds=sum(seconds) / len(seconds),
        peak_memory_bytes=answer["peak_memory_bytes"],
        busy_cores=round(busy_cores, 2),
    )


def _weight(batch: ProbeBatch) -> float:
    """By what micro-batches are ranked in memory: attention's part grows with the length of the rows, too."""
    return batch.num_computed * (1.0 + batch.longest / _LENGTH_THAT_DOUBLES)


class _RefusedError(Exception):
    """The model computes something else with a setting of training, whose name this is: a run continues without it."""

    def __init__(self, setting: str) -> None:
        super().__init__(setting)
        self.setting = setting


def _run_child(plan: Plan, steps: Sequence[ProbeStep], progress: Progress) -> dict[str, Any]:
    document = {"plan": plan.model_dump(mode="json"), "steps": steps}
    with progress.task("probing", len(steps), "step") as bar:
        try:
            answer: dict[str, Any] = run_child(_WORKER, document, on_event=lambda _: bar.advance())
        except ChildEndedError as error:
            raise WorkError(
                "\n    ".join(
                    [f"the probe's process ended with exit code {error.returncode}; its output:", *error.log_lines]
                ),
                expected="a few steps of the plan that run to their end",
                do="exit code -9 means that memory ran out: lower training.micro_batch_tokens; or plan without --probe",
            ) from error
        except LuthierError as error:
            raise WorkError(f"the probe failed: {error.came}", expected=error.expected, do=error.do) from error
    if answer["refused"] is not None:
        raise _RefusedError(answer["refused"])
    return answer
