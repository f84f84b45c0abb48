"""Which systems of a suite share an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.features.models.resolve import Candidate
from luthier.features.suites import task_runs
from luthier.features.suites.task_runs import Engines


class FakeEngine:
    def close(self) -> None:
        pass


def test_systems_share_an_engine_where_they_run_alike(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runs, "engine_of", lambda context, system: FakeEngine())
    base = Candidate(
        name="base",
        model_name="tiny",
        model_path=str(tiny_model),
        adapter_path=None,
        template="auto",
        precision="float32",
        device="cpu",
        context_length_tokens=512,
    )
    others: list[dict[str, Any]] = [
        {"precision": "bfloat16"},
        {"device": "cuda"},
        {"template": "plain"},
        {"template_options": {"enable_thinking": False}},
    ]
    with Engines(None) as engines:  # type: ignore[arg-type] # no engine is opened in a home
        first = engines.of(base)
        assert engines.of(replace(base, name="base + 2 examples", context_length_tokens=400)) is first
        assert engines.of(replace(base, name="base of a run", template="chat")) is first
        opened = [first, *(engines.of(replace(base, name="teacher", **other)) for other in others)]
        assert len({id(one) for one in opened}) == 1 + len(others)
