"""A real server of MLflow (`make build/trackers`): what was delivered to it is read back by its client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.ml.tracking.tracked_run import RUN_ID, deliver_to

pytestmark = [
    pytest.mark.drill,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning"),
]
PROGRAM = Path(__file__).parents[3] / "build" / "mlflow" / "bin" / "mlflow"


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A server of MLflow over SQLite and a folder of artifacts, which it hands on itself."""
    command = [str(PROGRAM), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # Without the workers of its own jobs, which are eight more processes.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while not _is_healthy(port):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_run_reaches_a_server_that_was_away_and_is_continued_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PROGRAM.is_file():
        pytest.skip("needs the server of MLflow: make build/trackers")
    pytest.importorskip("mlflow", reason="needs luthier[mlflow]")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        # Set first, so that what the client sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    from luthier.ml.tracking.mlflow_client import MLflow

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address, folder = f"http://127.0.0.1:{port}", tmp_path / "server"
    folder.mkdir()
    (tmp_path / "away").mkdir()
    with pytest.raises(MlflowException):
        deliver_to("mlflow", tmp_path / "away", location=address)
    with server(folder, port):
        run = deliver_to("mlflow", tmp_path, location=address, registered_model="mails")
        client = MlflowClient(tracking_uri=address)
        found = client.get_run(run.tracker_run_id)
        assert (found.info.status, found.info.run_name) == ("FINISHED", RUN_ID)
        assert found.data.params["training.learning_rate"] == "0.0002"
        history = client.get_metric_history(run.tracker_run_id, "train/loss")
        assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in range(1, 6)]
        assert found.data.metrics["verdict/exact_match/tuned minus base_low"] == 0.1
        report = client.download_artifacts(run.tracker_run_id, "report/report.html", str(tmp_path))
        assert Path(report).read_text() == "<h1>Report</h1>"
        (version,) = client.search_model_versions("name = 'mails'")
        assert (version.run_id, version.status) == (run.tracker_run_id, "READY")
        signature = get_model_info("models:/mails/1").signature
        assert [column.name for column in signature.inputs.inputs] == ["prompt"]
    with server(folder, port):
        again = MLflow()
        assert again.begin(replace(run, tracker_run_id="")).tracker_run_id == run.tracker_run_id, "found by its tag"
        again.close()
        assert client.get_run(run.tracker_run_id).info.status in ("RUNNING", "FINISHED")
