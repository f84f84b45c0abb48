"""What `make` installs: on Linux without an NVIDIA GPU the torch for processors, which has a tenth of the size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not sys.platform.startswith("linux"), reason="needs make, and is about Linux"
)
_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *find_spec*) exit {has_no_torch} ;;
  *--index-url*) exit {fails} ;;
esac
"""


def made(folder: Path, *, devices: str = "", has_torch: bool = False, fails: bool = False) -> tuple[list[str], str]:
    """The calls of Python for `make VENV/installed`, and what was printed; nothing is installed."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    log = folder / "calls"
    python.write_text(_PYTHON.format(log=log, has_no_torch=int(not has_torch), fails=int(fails)))
    python.chmod(0o755)
    command = ["make", f"VENV={folder / '.venv'}", f"GPU_DEVICES={devices}", str(folder / ".venv" / "installed")]
    # Not as a part of the make that runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in log.read_text().splitlines() if "find_spec" not in line], done.stderr


def test_without_a_gpu_torch_for_processors_comes_before_luthier(tmp_path: Path) -> None:
    calls, said = made(tmp_path)
    assert len(calls) == 2
    assert "--no-deps --index-url https://download.pytorch.org/whl/cpu torch>=2.9" in calls[0]
    assert calls[1].endswith("-c constraints.txt -e .")
    assert said == ""


def test_where_its_index_does_not_answer_the_install_goes_on(tmp_path: Path) -> None:
    calls, said = made(tmp_path, fails=True)
    assert len(calls) == 2
    assert calls[1].endswith("-c constraints.txt -e .")
    assert "torch of PyPI is installed, with CUDA's libraries" in said


@pytest.mark.parametrize(("devices", "has_torch"), [("/dev/null", False), ("", True)])
def test_with_a_gpu_or_a_torch_nothing_else_is_installed(tmp_path: Path, devices: str, has_torch: bool) -> None:
    calls, _ = made(tmp_path, devices=devices, has_torch=has_torch)
    assert [call.rpartition(" -e ")[2] for call in calls] == ["."]
