"""Command lines, carried out in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.service.context import Context
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record, make_result, make_step


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as one JSON document; raises where it is anything else."""
        return json.loads(self.out)


Luthier = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def luthier(home: Path, capsys: pytest.CaptureFixture[str]) -> Luthier:
    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def run(home: Path) -> str:
    """A run that succeeded, judged, with events."""
    with Context.open(home) as context:
        context.runs.create(make_record(status="succeeded", result=make_result()), make_plan())
        for step in (1, 2):
            context.runs.append(RUN_ID, make_step(step))
        context.evaluations.save(make_evaluation(run_id=RUN_ID))
    return RUN_ID
