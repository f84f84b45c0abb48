"""TensorBoard's files, read back by its own reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.ml.tracking.tracked_run import BEGAN, RUN_ID, deliver_to

from luthier.core.tracking import TrackerPlan
from luthier.ml.tracking.protocol import TrackedRun

pytest.importorskip("tensorboard", reason="needs luthier[tensorboard]")


def test_scalars_parameters_and_texts_are_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    deliver_to("tensorboard", tmp_path, location=str(tmp_path / "curves"))
    found = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "curves")).Reload()
    assert list(found.Runs()) == [RUN_ID], "two deliveries are one run"
    loss = found.Scalars(RUN_ID, "train/loss")
    assert [(one.step, one.wall_time) for one in loss] == [(step, BEGAN + step) for step in range(1, 6)]
    assert [one.value for one in loss] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert [one.value for one in found.Scalars(RUN_ID, "train/epoch")] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    (difference,) = found.Scalars(RUN_ID, "verdict/exact_match/tuned minus base")
    assert (difference.step, difference.value) == (5, 0.25)
    (headline,) = found.Tensors(RUN_ID, "verdict_headline")
    assert headline.tensor_proto.string_val[0] == b"The tuned model is better."
    content = found.SummaryMetadata(RUN_ID, metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["training.learning_rate"].number_value == 2e-4
    assert start.hparams["training.packing"].bool_value is True
    assert start.hparams["recipe.method.name"].string_value == "lora"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("second try", f"second try-{RUN_ID}"),
        ("../../out", f"_.._out-{RUN_ID}"),
        ("/tmp/out", f"_tmp_out-{RUN_ID}"),
        ("..", RUN_ID),
        ("x" * 256, f"{'x' * 100}-{RUN_ID}"),
    ],
)
def test_the_name_of_a_run_does_not_lead_out_of_the_location(tmp_path: Path, name: str, folder: str) -> None:
    run = deliver_to("tensorboard", tmp_path, location=str(tmp_path / "curves"), run_name=name)
    assert run.tracker_run_id == str(tmp_path / "curves" / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "curves", "report.html", "trackers"]


@pytest.mark.parametrize(
    ("project", "folder"), [("mails 2", "mails 2"), ("../../etc", "_.._etc"), ("a/b", "a_b"), ("..", "luthier")]
)
def test_a_project_that_is_a_folder_does_not_lead_out_of_it(tmp_path: Path, project: str, folder: str) -> None:
    plan = TrackerPlan(name="trackio", project=project)
    run = TrackedRun(RUN_ID, plan, parameters={}, plan_hash="", base_model="", created_at=BEGAN, folder=tmp_path)
    assert run.folder_project == folder


def test_without_a_location_they_are_in_the_folder_of_the_run(tmp_path: Path) -> None:
    run = deliver_to("tensorboard", tmp_path)
    assert run.tracker_run_id == str(run.folder / "tensorboard")
    assert len(list((run.folder / "tensorboard").iterdir())) == 2, "a file a delivery"


def test_runs_of_one_name_and_deliveries_from_the_start_have_folders_of_their_own(tmp_path: Path) -> None:
    run = deliver_to("tensorboard", tmp_path, location=str(tmp_path / "curves"), run_name="second try")
    others = (replace(run, run_id="run-20261125-093000-bbbbbb"), replace(run, number=2))
    assert len({one.unique_name for one in (run, *others)}) == 3
