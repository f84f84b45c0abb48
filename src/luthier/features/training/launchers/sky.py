"""A job file started by SkyPilot's own Python API, as a managed job or on a cluster.

SkyPilot 0.14 and Luthier need different versions of two packages (uvicorn and click), so that SkyPilot is as a rule
installed in its own environment: its API is called by the Python of the command `sky`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from luthier.core.errors import RequestError, WorkError

_CLIENT: Final = Path(__file__).with_name("sky_client.py")
_SHEBANG: Final = re.compile(
    rb"^#!\s*(\S*python[\d.]*)\s*$|^'''exec' [\"']?([^\"'\n]*python[\d.]*)[\"']? ", re.MULTILINE
)
_HEAD_BYTES: Final = 1000


@dataclass(frozen=True, slots=True)
class SkyJob:
    """A job that SkyPilot has taken.

    Attributes:
        request_id: Of the request to SkyPilot's API server.
        job_ids: Of the managed job, or of the job on the cluster.
        cluster: The cluster; None for a managed job.
    """

    request_id: str
    job_ids: tuple[int, ...]
    cluster: str | None

    def as_json(self) -> dict[str, Any]:
        """As a part of the document of `luthier launch --json`."""
        return {"request_id": self.request_id, "job_ids": list(self.job_ids), "cluster": self.cluster}

    @property
    def summary(self) -> str:
        """What was started, and the commands that follow and end it."""
        numbers = " ".join(map(str, self.job_ids))
        if self.cluster is None:
            return (
                f"started as managed job {numbers}; follow it with: sky jobs logs {numbers}; end it with: sky jobs "
                f"cancel {numbers}"
            )
        return (
            f"started as job {numbers} on cluster {self.cluster}; follow it with: sky logs {self.cluster} {numbers}; "
            f"end it with: sky cancel {self.cluster} {numbers}"
        )


def start(text: str, name: str, *, cluster: str | None, secrets: Sequence[str], idle_minutes: int) -> SkyJob:
    """Start a job file of `job_files` and wait until SkyPilot has submitted it.

    Args:
        text: The file.
        name: Of the managed job.
        cluster: Where it runs, made if there is none of that name; None for a managed job.
        secrets: Names of variables of this environment that the job gets.
        idle_minutes: After which a cluster without a job is ended.

    Raises:
        RequestError: SkyPilot is not installed, or a secret is not set.
        WorkError: SkyPilot refuses the job, or no machine is to be had.
    """
    missing = [one for one in secrets if one not in os.environ]
    if missing:
        raise RequestError(
            f"--secret {missing[0]}, which is not set here",
            expected="a variable of this environment",
            do=f"export {missing[0]}, and start it again",
        )
    python = interpreter()
    if python is None:
        raise RequestError(
            "--on sky needs SkyPilot, which is not installed",
            expected="the command `sky`; SkyPilot needs its own environment, since it requires older packages",
            do="uv tool install 'skypilot[aws]' (or pipx install), run `sky check`, and start it again; or write the "
            "file with --out and start it where SkyPilot is",
        )
    request = {
        "task": yaml.safe_load(text),
        "name": name,
        "cluster": cluster,
        "idle_minutes": idle_minutes,
        "secrets": {one: os.environ[one] for one in secrets},
    }
    answer = _called(python, request)
    return SkyJob(answer["request_id"], tuple(answer["job_ids"]), cluster)


def interpreter() -> str | None:
    """The Python that has SkyPilot: this one, or that of the command `sky`; None without either."""
    if importlib.util.find_spec("sky") is not None:
        return sys.executable
    command = shutil.which("sky")
    if command is None:
        return None
    with Path(command).open("rb") as file:
        found = _SHEBANG.search(file.read(_HEAD_BYTES))
    return None if found is None else (found[1] or found[2]).decode()


def _called(python: str, request: dict[str, Any]) -> dict[str, Any]:
    environment = dict(os.environ)
    if python != sys.executable:
        # Packages of this environment must not be found by the other one.
        environment.pop("PYTHONPATH", None)
    # As text and in an empty folder: modules beside the client's file, or in this folder, must not hide SkyPilot's.
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [python, "-c", _CLIENT.read_text(encoding="utf-8")],
            input=json.dumps(request),
            stdout=subprocess.PIPE,  # stderr is progress, and is shown
            text=True,
            env=environment,
            cwd=folder,
            check=False,
        )
    try:
        answer: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        answer = {"error": f"its Python ended with exit code {ended.returncode}"}
    if "error" in answer:
        raise WorkError(
            f"SkyPilot did not start the job: {answer['error']}",
            expected="an API server that accepts it and a cloud with such machines",
            do="run `sky check` and `sky api status`, or try another --accelerator or fewer --nodes",
        )
    return answer
