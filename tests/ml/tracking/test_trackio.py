"""Trackio's local store, read back by its own API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = ROOT / "build" / "trackio"
IS_HERE = find_spec("trackio") is not None
PYTHON = sys.executable if IS_HERE else str(OWN / "bin" / "python")
pytestmark = pytest.mark.skipif(
    not IS_HERE and not any(OWN.glob("lib/*/site-packages/trackio")),
    reason="needs luthier[trackio], or make build/trackers",
)

_DELIVER = """
import sys
from pathlib import Path
import json
from tests.ml.tracking.tracked_run import deliver_to
run = deliver_to("trackio", Path(sys.argv[1]))
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps({
    "runs": SQLiteStorage.get_runs("mails"),
    "logs": SQLiteStorage.get_logs("mails", run.run_id),
    "config": SQLiteStorage.get_run_config("mails", run.run_id),
}))
"""


def test_a_local_run_is_read_back(tmp_path: Path) -> None:
    # A process of its own: where the store is, is read when the package is imported.
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [PYTHON, "-c", _DELIVER, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == ["run-20261125-093000-aaaaaa"]
    losses = {row["step"]: row["train/loss"] for row in found["logs"] if "train/loss" in row}
    assert losses == pytest.approx({step: 1 / step for step in range(1, 6)})
    (end,) = [row for row in found["logs"] if "verdict" in row]
    assert (end["verdict"], end["verdict/exact_match/tuned minus base"]) == ("better", 0.25)
    assert found["config"]["training.learning_rate"] == 2e-4
