"""TensorBoard: event files in the folder of the run, or below `location`, written with its messages and nothing else.

Neither TensorFlow nor torch is loaded.

Its `EventFileWriter`, `hparams_pb` and `text_pb` load TensorFlow where that is installed, else a stand-in for it with
numpy, absl and, for remote folders, boto3: more processor time than all figures of a short run take. Its message
classes need protobuf alone. The bytes are those of its writer, which a test compares.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from luthier.ml.tracking.protocol import Parameter, Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS

_FILE_VERSION: Final = "brain.Event:2"
_WRITER: Final = "luthier.ml.tracking.tensorboard"
_CASTAGNOLI: Final = 0x82F63B78
"""The polynomial of CRC-32C, bits reversed."""
_MASK_DELTA: Final = 0xA282EAD8
_START_TAG: Final = "_hparams_/session_start_info"


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The check sum of a record: CRC-32C, rotated by 15 bits plus a constant, so that a sum of sums differs."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """A record of an event file: length, its check sum, data, their check sum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


class EventFile:
    """A new event file in a folder; other processes may write their own files into the same folder.

    Args:
        folder: Made where it is missing.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # TensorBoard reads files in the order of their names; the nanoseconds keep two files of one second apart.
        name = f"events.out.tfevents.{int(now):010d}.{platform.node()}.{os.getpid()}.{time.time_ns()}"
        # Unbuffered: what `write` has returned from is in the file, and an error is raised where it belongs.
        self._file = (folder / name).open("xb", buffering=0)
        self._records: list[bytes] = []
        self._write_version(now)

    def add(self, summary: Any, step: int, at: float) -> None:
        """Add a `Summary`, to be written by `flush`.

        Args:
            summary: The `Summary`.
            step: The step that it is about.
            at: Seconds since 1970.
        """
        from tensorboard.compat.proto.event_pb2 import Event

        self._add(Event(wall_time=at, step=step, summary=summary))

    def flush(self) -> None:
        """Write what was added, at once: a reader sees whole records.

        Raises:
            OSError: Not all was written, as on a full disk.
        """
        data, self._records = b"".join(self._records), []
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Write the rest, and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _write_version(self, now: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata

        self._add(Event(wall_time=now, file_version=_FILE_VERSION, source_metadata=SourceMetadata(writer=_WRITER)))
        self.flush()

    def _add(self, event: Any) -> None:
        self._records.append(record(event.SerializeToString()))


def scalars(values: Mapping[str, float]) -> Any:
    """A `Summary` of figures by name."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def hyperparameters(parameters: Mapping[str, Parameter], *, run_id: str, began: float) -> Any:
    """A `Summary` for the HParams tab.

    Args:
        parameters: The settings of the run, by name.
        run_id: The run.
        began: Seconds since 1970.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    start = SessionStartInfo(group_name=run_id, start_time_secs=began)
    for name, value in sorted(parameters.items()):
        # bool first: it is an int, too.
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = value
    content = HParamsPluginData(session_start_info=start).SerializeToString(deterministic=True)
    return _of_plugin(_START_TAG, "hparams", content, dtype="DT_FLOAT", shape=(0,))


def text(name: str, content: str) -> Any:
    """A `Summary` for the Text tab, which draws Markdown."""
    return _of_plugin(name, "text", b"", dtype="DT_STRING", strings=[content.encode(errors="replace")])


def _of_plugin(
    tag: str, plugin: str, content: bytes, *, dtype: str, shape: Sequence[int] = (), strings: Sequence[bytes] = ()
) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DataType

    dims = [TensorShapeProto.Dim(size=size) for size in shape]
    tensor = TensorProto(dtype=DataType.Value(dtype), tensor_shape=TensorShapeProto(dim=dims), string_val=strings)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


class TensorBoard(Tracker):
    """Scalars by step, parameters in the HParams tab, verdict and report's findings in the Text tab.

    Each delivery writes its own file into the same folder; TensorBoard shows them as one run.
    """

    rules: ClassVar[TrackerRules] = TRACKERS["tensorboard"]

    def __init__(self) -> None:
        self._file: EventFile | None = None
        self._folder = Path()

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Open an event file; the first one of a run holds its parameters."""
        if run.tracker_run_id:
            self._folder = Path(run.tracker_run_id)
        else:
            own = "tensorboard" if run.number == 1 else f"tensorboard-{run.number}"
            self._folder = Path(run.location) / run.unique_name if run.location else run.folder / own
        self._file = EventFile(self._folder)
        if not run.tracker_run_id:
            summary = hyperparameters(run.parameters, run_id=run.run_id, began=run.created_at)
            self._add(summary, 0, run.created_at)
            self._add_text("parameters", _table(run.parameters), 0, run.created_at)
            self._flush()
        return RemoteRun(str(self._folder), str(self._folder))

    def log(self, points: Sequence[Point]) -> None:
        """Write scalars with their times, all in one write."""
        for point in points:
            self._add(scalars(point.values), point.step, point.at)
        self._flush()

    def end(self, outcome: RunOutcome) -> list[str]:
        """Write the figures of the result at the last step, and texts. Files stay where the run has them."""
        now = time.time()
        self.log([Point(outcome.step, now, outcome.summary)] if outcome.summary else [])
        texts = {"status": f"{outcome.status}: {outcome.reason}", **outcome.texts}
        for name, path in (("report", outcome.report), ("weights", outcome.weights)):
            if path is not None:
                texts[name] = str(path)
        for name, content in texts.items():
            self._add_text(name, content, outcome.step, now)
        self._flush()
        return []

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _add_text(self, name: str, content: str, step: int, at: float) -> None:
        self._add(text(name, content.replace("\n", "\n\n")), step, at)

    def _add(self, summary: Any, step: int, at: float) -> None:
        assert self._file is not None, "begun"
        self._file.add(summary, step, at)

    def _flush(self) -> None:
        assert self._file is not None, "begun"
        self._file.flush()


def _table(parameters: Any) -> str:
    """Parameters as a table of Markdown, which the Text tab draws."""
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in parameters.items()]
    return "\n".join(["| parameter | value |", "|---|---|", *rows])
