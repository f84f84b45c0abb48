"""The machine, the versions, and child processes that report what they used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What decides which products are fast, as the kernel names it.
_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PEER_PACKAGES = ("torch>=2.9", "transformers>=5.10,<6", "peft>=0.19", "trl==1.16.*", "datasets")


@dataclass(frozen=True, slots=True)
class Finished:
    """One child process: its last line of output as JSON, its peak memory and its processor time."""

    document: dict[str, Any]
    peak_rss_bytes: int
    cpu_seconds: float


def run_json(command: list[str], *, cwd: Path, environment: dict[str, str] | None = None) -> Finished:
    """Run a command to its end; raises with its error output where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=errors, env=os.environ | (environment or {}))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            raise RuntimeError(f"{command} ended with {child.returncode}:\n{errors.read()[-3000:]}")
        text = out.read()
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        document = json.loads(text.strip().splitlines()[-1])
    return Finished(document, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def peer_python(folder: Path) -> Path:
    """The interpreter of an environment with TRL in it, made on the first call."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        done.touch()
    return python


def luthier_command() -> list[str]:
    """How to start the command line of this very environment."""
    return [sys.executable, "-m", "luthier"]


def describe() -> dict[str, Any]:
    """Machine, versions and date: what a figure is worth nothing without."""
    from luthier.ml.planning import hardware

    machine = hardware.measure()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": machine.cpu_name,
        "cpu_features": _cpu_features(),
        "num_cores": machine.num_cores,
        "memory_gib": round(machine.memory_bytes / 2**30, 1),
        "float32_gflops": machine.float32_gflops,
        "bfloat16_gflops": machine.bfloat16_gflops,
        "versions": {name: version(name) for name in ("luthier", "torch", "transformers", "peft")},
    }


def _cpu_features() -> list[str]:
    """Those of `_FEATURES` that the processor has; none where the system does not list them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [name for name in _FEATURES if name in flags]
