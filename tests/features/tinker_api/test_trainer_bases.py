"""The process that trains, without its models: which bases stay in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import WorkError
from luthier.core.plan import Plan
from luthier.features.tinker_api.trainer_process import Trainer
from luthier.ml.inference.models.templates import chat_template
from luthier.ml.training import adapter_session
from luthier.testing.records import make_plan


def plan_of(name: str) -> Plan:
    plan = make_plan()
    return plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"path": f"/models/{name}"})})


def test_a_base_without_clients_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_session, "SharedBase", lambda path, *_: path)
    monkeypatch.setattr(chat_template.ChatTemplate, "load", lambda *_: None)
    make: Any = Trainer
    room: list[int] = [1 << 40, 1 << 40, 0]
    trainer: Any = make(print, hardware=None, memory_bytes=lambda: room[len(trainer._bases)])
    for name in ("a", "b"):
        trainer._base(plan_of(name))
    trainer._sessions["session:train:0"] = SimpleNamespace(plan=plan_of("a"))
    trainer._samplers["shape"] = object()
    trainer._base(plan_of("c"))
    assert [path for path, _ in trainer._bases] == ["/models/a", "/models/c"]
    assert not trainer._samplers
    room[1] = 0
    with pytest.raises(WorkError, match=r"and 0 K?i?B are free"):
        trainer._base(plan_of("d"))
    assert [path for path, _ in trainer._bases] == ["/models/a"]
