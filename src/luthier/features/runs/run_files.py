"""What a run gives away: its weights as a ZIP archive, metrics as CSV, its recipe as text, the end of its log."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.aliases import with_new_keys
from luthier.core.errors import NotFoundError
from luthier.core.events import Event, MachineSampled, RunStarted, SamplesAnswered, StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.text.spreadsheet import csv_line, text_cell
from luthier.features.models import result_files
from luthier.features.runs.series import usage_of, values_of
from luthier.features.runs.state import Standing, standing
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.home.settings import LOG_NAME
from luthier.platform.http.path_redaction import redact_paths, redact_text, run_paths

_BLOCK_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 16 << 10
_EVENTS_AT_ONCE: Final = 2_000
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_FOLDERS: Final = re.compile(r"""(?<![\w/:.~-])/(?:[^\s/"'<>:,;()]+/)+""")
"""Folders of absolute paths. Not those of addresses, whose slashes follow a colon, a host or another slash."""


@dataclass(frozen=True, slots=True)
class WeightsArchive:
    """The trained weights of a run, ready to be sent. num_bytes: of the files together."""

    name: str
    num_bytes: int
    blocks: Iterator[bytes]


def has_weights(context: Context, found: Standing) -> bool:
    """Whether the trained weights of a run can be downloaded."""
    path = _weights_path(found)
    return path is not None and result_files.has_weights(context, found.run_id, path)


def weights_of(context: Context, caller: Caller, run_id: str) -> WeightsArchive:
    """The adapter, or the whole model, that a run has trained, with its files of settings; the download is logged.

    Raises:
        NotFoundError: The project has no such run, or the run has no trained weights.
        WorkError: Another machine has trained it, and the artifacts hold a damaged file.
    """
    found = standing(context, caller, run_id)
    folder = _weights_folder(context, found)
    files = [] if folder is None else _files_in(folder)
    if folder is None or not files:
        raise NotFoundError(
            f"run {run_id} has no trained weights",
            expected="a run that has succeeded",
            do="wait until it has, or take a checkpoint on the machine",
        )
    sizes = {path: path.stat().st_size for path in files}
    with context.database.transaction():
        record(context, caller, "run.weights_downloaded", run_id, {"num_bytes": sum(sizes.values())})
    return WeightsArchive(f"{run_id}-{folder.name}.zip", sum(sizes.values()), _zipped(folder, files))


def _weights_folder(context: Context, found: Standing) -> Path | None:
    path = _weights_path(found)
    if path is None:
        return None
    folder = result_files.weights_folder(context, found.run_id, path)
    # The path comes from the database: nothing outside of the run's own folder is given away.
    is_own = folder.resolve().is_relative_to(context.settings.run_folder(found.run_id).resolve())
    return folder if is_own and folder.is_dir() else None


def _weights_path(found: Standing) -> str | None:
    result = None if found.record is None else found.record.result
    return None if result is None else result.adapter_path


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


class _Outgoing(io.RawIOBase):
    """A file without places to go back to, whose content is taken as it is written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        found, self._parts = b"".join(self._parts), []
        return found


def _zipped(folder: Path, files: Sequence[Path]) -> Iterator[bytes]:
    """The files in an archive, a block at a time. Not compressed: weights do not get smaller."""
    outgoing = _Outgoing()
    with zipfile.ZipFile(outgoing, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            # A fixed time: two downloads of one run are the same bytes.
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _ZIP_TIME)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as target:
                while block := file.read(_BLOCK_BYTES):
                    target.write(block)
                    yield outgoing.take()
    yield outgoing.take()


def metrics_csv(context: Context, caller: Caller, run_id: str) -> Iterator[str]:
    """All that was measured in the steps of a run: a line for each step, value and series, in the order of events.

    Nothing is thinned. Lines of steps that were trained again after a crash are those of the last time.

    Raises:
        NotFoundError: The project has no such run.
    """
    standing(context, caller, run_id)
    return _csv_lines(context, run_id)


def _csv_lines(context: Context, run_id: str) -> Iterator[str]:
    lines = [csv_line(("step", "chart", "series", "value"))]
    position = 0
    while True:
        found, position = context.runs.appended(run_id, position, limit=_EVENTS_AT_ONCE)
        for event in found:
            for (chart, name), value in _measured(event).items():
                lines.append(csv_line((_step_of(event), text_cell(chart), text_cell(name), repr(value))))
        yield "".join(lines)
        lines = []
        if len(found) < _EVENTS_AT_ONCE:
            return


def _measured(event: Event) -> Mapping[tuple[str, str], float]:
    if isinstance(event, StepDone):
        return values_of(event)
    if isinstance(event, ValidationDone):
        return {("loss", "validation"): event.loss, **{(n, "validation"): v for n, v in event.measures.items()}}
    return usage_of(event) if isinstance(event, MachineSampled) else {}


def _step_of(event: Event) -> int:
    return event.from_step if isinstance(event, RunStarted) else event.step


@dataclass(frozen=True, slots=True)
class Copies:
    """A run as text to be used again.

    Attributes:
        recipe: Its recipe as YAML.
        command: The command that trains it.
        python: The call that does the same.
    """

    recipe: str
    command: str
    python: str


def copies_of(context: Context, plan: Plan) -> Copies:
    """The recipe of a run, and how to train it again. Files are named without places of this machine."""
    keys = with_new_keys(plan.recipe.model_dump(mode="json", exclude_none=True))
    document = redact_paths(keys, run_paths(context, plan))
    recipe = write_yaml(document)
    call = f"import luthier\n\nrun = luthier.train({_python_text(document)})\nprint(run.verdict)\n"
    return Copies(recipe, "luthier train recipe.yaml", call)


def _python_text(value: Any, indent: int = 0) -> str:
    """A plain document as a literal of Python, an entry a line."""
    inner, outer = " " * (indent + 4), " " * indent
    if isinstance(value, dict) and value:
        lines = "".join(f"{inner}{key!r}: {_python_text(one, indent + 4)},\n" for key, one in value.items())
        return f"{{\n{lines}{outer}}}"
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        lines = "".join(f"{inner}{_python_text(one, indent + 4)},\n" for one in value)
        return f"[\n{lines}{outer}]"
    return repr(value)


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a log. is_whole: whether it begins with the first line."""

    title: str
    text: str
    is_whole: bool


def logs_of(context: Context, found: Standing, plan: Plan | None) -> list[LogTail]:
    """The ends of the logs of a run: its own, and that of the newest attempt of its job, as far as there are any."""
    places = run_paths(context, plan)
    named = [("Log of the run", context.settings.run_folder(found.run_id) / LOG_NAME)]
    if found.job is not None and found.job.attempt:
        attempt = context.settings.jobs_folder / found.job.job_id / f"attempt-{found.job.attempt:04d}" / LOG_NAME
        named.append((f"Output of attempt {found.job.attempt}", attempt))
    tails = []
    for title, path in named:
        text, is_whole = _tail(path)
        if text:
            # Tracebacks and libraries name folders that no plan knows: those of Python, of packages, of people.
            tails.append(LogTail(title, _FOLDERS.sub("…/", redact_text(text, places)), is_whole))
    return tails


def _tail(path: Path) -> tuple[str, bool]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            content = file.read(_TAIL_BYTES)
    except OSError:
        return "", True
    text = content.decode("utf-8", "replace")
    # The first line may be cut in the middle.
    return (text, True) if size <= _TAIL_BYTES else (text.partition("\n")[2], False)


@dataclass(frozen=True, slots=True)
class SampleTable:
    """Answers of the fixed prompts side by side.

    Attributes:
        steps: A column each.
        rows: For each prompt its text, the answer of its row, and the answers of the steps in their order; None where
            a step has none.
    """

    steps: Sequence[int]
    rows: Sequence[tuple[str, str, Sequence[str | None]]]


MAX_SAMPLE_STEPS: Final = 8


def samples_of(context: Context, run_id: str) -> SampleTable | None:
    """The answers over the steps, the first and the newest of them where there are many; None where there are none."""
    found = [e for e in context.runs.of_kinds(run_id, ["samples"]) if isinstance(e, SamplesAnswered)]
    events = sorted(found, key=lambda event: event.step)
    if not events:
        return None
    if len(events) > MAX_SAMPLE_STEPS:
        # Evenly spread, the first and the last among them.
        places = [round(n * (len(events) - 1) / (MAX_SAMPLE_STEPS - 1)) for n in range(MAX_SAMPLE_STEPS)]
        events = [events[place] for place in places]
    rows = []
    for number, one in enumerate(events[-1].answers):
        answers = [event.answers[number].answer if number < len(event.answers) else None for event in events]
        rows.append((one.prompt, one.reference, answers))
    return SampleTable([event.step for event in events], rows)
