"""The process that trains: what it refuses before memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.features.tinker_api.trainer_process import Trainer
from luthier.ml.training.adapter_sampler import SampleResult


@pytest.mark.parametrize(("op", "needed"), [("create", 20_000), ("snapshot", 4_000)])
def test_an_adapter_that_does_not_fit_is_refused_before_it_is_made(
    op: str, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = []
    trainer = Trainer(answers.append, hardware=lambda: 1 / 0, memory_bytes=lambda: needed - 1)  # type: ignore[arg-type, return-value]
    plan = SimpleNamespace(method=SimpleNamespace(num_trainable_parameters=1000))
    monkeypatch.setattr(trainer, "_planned", lambda *_: (plan, None))
    monkeypatch.setattr(trainer, "_session", lambda _: SimpleNamespace(plan=plan))
    base = {"name": "tiny", "path": "/tiny", "sha256": "0" * 64, "num_parameters": 1}
    monkeypatch.setattr("luthier.features.tinker_api.trainer_process.LocalModel.model_validate", lambda given: given)
    trainer.hear({"id": "1", "op": op, "model": "m", "sampler": "s", "base": base, "options": {"rank": 4}})
    trainer.work_once()
    (answer,) = answers
    assert "are free" in answer["error"]["came"]
    assert "1,000" in answer["error"]["came"]


def test_what_is_sampled_for_a_session_that_has_ended_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    trainer = Trainer(answers.append, hardware=lambda: 1 / 0, memory_bytes=lambda: 0)  # type: ignore[arg-type, return-value]
    wanted: list[bool] = []

    def sample(orders: list[Any], is_wanted: Callable[[], bool]) -> list[SampleResult]:
        wanted.append(is_wanted())
        trainer.hear({"id": "2", "op": "drop", "models": [], "samplers": ["s"]})  # from another thread, as it were
        wanted.append(is_wanted())
        return [SampleResult(()) for _ in orders]

    model = SimpleNamespace(context_length_tokens=100)
    monkeypatch.setattr(trainer, "_sampler", lambda _: SimpleNamespace(check=id, sample=sample, model=model))
    order = {"prompt": [1], "stop_ids": None, "stop_texts": []}
    trainer.hear({"id": "1", "op": "sample", "sampler": "s", "order": order})
    trainer.work_once()
    trainer.work_once()
    assert wanted == [True, False]
    assert [answer["id"] for answer in answers] == ["1"]
    assert trainer._ended == set()
