"""examples/openai/fine_tune.py as it is, against a real server: only address and key say that it is not OpenAI's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from luthier.testing.servers import RunningServer

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "openai" / "fine_tune.py"


def test_the_program_trains_and_asks_the_tuned_model(keys_and_server: tuple[dict[str, str], RunningServer]) -> None:
    keys, server = keys_and_server
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--model", "tiny", "--epochs", "1"],
        env=os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": keys["admin"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ft:tiny:[^:]*:dates:\S+: ", done.stdout, re.MULTILINE), done.stdout
    assert len(done.stdout.splitlines()) > 2, "the events of the job come before the answer"
