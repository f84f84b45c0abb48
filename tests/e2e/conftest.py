"""The real base model, fetched once a session, and the command line in processes of their own or in this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked_children import Script, SessionForkServer

from luthier.cli.main import main
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import LocalModel
from luthier.ml.inference.models import sources

Start = Callable[..., "subprocess.Popen[str] | Script"]
NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def model_home(run_folder: Path) -> Path:
    """A home with the base model, for all processes of a session. LUTHIER_TEST_HOME names one that outlives it."""
    if shared := os.environ.get("LUTHIER_TEST_HOME"):
        return Path(shared)
    home = run_folder / "model-home"
    home.mkdir(exist_ok=True)
    return home


@pytest.fixture(scope="session")
def model(model_home: Path) -> LocalModel:
    """SmolLM2-135M-Instruct out of the catalogue."""
    return sources.pull(NAME, model_home, SilentProgress())


@pytest.fixture(scope="session")
def run_home(model: LocalModel, model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for runs that goes with the session; its base models are those of `model_home`."""
    home = tmp_path_factory.mktemp("runs-home")
    (home / "models").symlink_to(model_home / "models")
    return home


@pytest.fixture(scope="session")
def start(run_home: Path, run_folder: Path, fork_server: SessionForkServer) -> Start:
    """Starts `luthier ... --json`: once a run of tests as a user's shell would, else from libraries that are loaded."""
    mark = run_folder / "luthier-was-executed"

    def begin(*arguments: object) -> subprocess.Popen[str] | Script:
        words = [*map(str, arguments), "--json", "--home", str(run_home)]
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return fork_server.module("luthier", *words)
        command = [sys.executable, "-m", "luthier", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture(scope="session")
def luthier(start: Start) -> Callable[..., Any]:
    """Carries out `luthier ... --json` to its end; returns the one document on stdout."""

    def run(*arguments: object) -> Any:
        process = start(*arguments)
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        return json.loads(out)

    return run


@pytest.fixture(scope="session")
def luthier_here(run_home: Path) -> Callable[..., Any]:
    """The same in this process, which has the libraries loaded: for commands that read, ask or judge."""

    def run(*arguments: object) -> Any:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main([*map(str, arguments), "--json", "--home", str(run_home)])
        assert code == 0, errors.getvalue()
        assert "Traceback" not in errors.getvalue()
        return json.loads(out.getvalue())

    return run
