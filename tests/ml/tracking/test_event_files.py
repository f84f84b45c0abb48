"""TensorBoard's event files: the bytes of its own writer, without what that loads."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.ml.tracking.tensorboard import EventFile, hyperparameters, masked_crc32c, record, scalars, text

pytest.importorskip("tensorboard", reason="needs luthier[tensorboard]")

PARAMETERS = {"training.packing": True, "training.epochs": 3, "learning_rate": 2e-4, "method": "lora", "name": "größer"}
# The last three would be seconds of a run: TensorFlow's stand-in, AWS, and what both need.
HEAVY = ("tensorflow", "tensorboard.compat.tensorflow_stub", "boto3", "numpy")


def test_the_check_sum_is_that_of_the_standard() -> None:
    # RFC 3720, B.4: CRC-32C of 32 bytes of zeros, and of ones.
    for data, crc in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        assert masked_crc32c(data) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5])
def test_a_record_is_that_of_tensorboards_writer(data: bytes) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    RecordWriter(file).write(data)
    assert record(data) == file.getvalue()


def test_parameters_and_texts_are_those_of_tensorboards_functions() -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb

    made = [hyperparameters(PARAMETERS, run_id="run-1", began=5.5), hparams_pb(PARAMETERS, "run-1", 5.5)]
    # The bytes of a map are in any order.
    own, theirs = (HParamsPluginData.FromString(one.value[0].metadata.plugin_data.content) for one in made)
    assert own == theirs
    assert dict(own.session_start_info.hparams).keys() == PARAMETERS.keys()
    for one in made:
        one.value[0].metadata.plugin_data.ClearField("content")
    assert made[0] == made[1]
    assert text("verdict", "| größer |") == text_pb("verdict", "| größer |")


def test_what_is_flushed_is_read_while_the_file_is_open(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    file = EventFile(tmp_path)
    file.add(scalars({"train/loss": 0.5}), step=1, at=10.0)
    (path,) = tmp_path.iterdir()
    assert [event.file_version for event in EventFileLoader(str(path)).Load()] == ["brain.Event:2"]
    file.flush()
    _, event = EventFileLoader(str(path)).Load()
    assert (event.step, event.wall_time, event.summary.value[0].tag) == (1, 10.0, "train/loss")
    file.add(scalars({"train/loss": 0.25}), step=2, at=11.0)
    file.close()
    assert [event.step for event in EventFileLoader(str(path)).Load()] == [0, 1, 2]


def test_a_run_is_reported_without_loading_tensorflow_or_its_stand_in(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.ml.tracking.tracked_run import deliver_to\n"
        f"deliver_to('tensorboard', Path({str(tmp_path)!r}))\n"
        "assert 'tensorboard.compat.proto.event_pb2' in sys.modules\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
