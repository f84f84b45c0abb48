"""Systems are judged one after another: one model is in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.ports import SilentProgress
from luthier.features.generation.engine_pool import EnginePool
from luthier.features.models.resolve import Candidate


class FakeEngine:
    name = "fake"

    def __init__(self, candidate: Candidate, log: list[str]) -> None:
        self._name, self._log = candidate.name, log
        log.append(f"open {self._name}")

    def generate(self, prompts: Any, progress: Any) -> list[Any]:
        self._log.append(f"write with {self._name}")
        return []

    def score(self, examples: Any, progress: Any) -> list[Any]:
        self._log.append(f"score with {self._name}")
        return []

    def close(self) -> None:
        self._log.append(f"close {self._name}")


def candidate(name: str, model: Path, adapter: Path | None = None) -> Candidate:
    return Candidate(
        name=name,
        model_name="tiny",
        model_path=str(model),
        adapter_path=None if adapter is None else str(adapter),
        precision="float32",
        device="cpu",
        template="auto",
        context_length_tokens=512,
    )


def adapter_in(folder: Path) -> Path:
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes(b"")
    return folder


def test_one_model_is_open_at_a_time_and_systems_of_one_base_share_it(tiny_model: Path, tmp_path: Path) -> None:
    log: list[str] = []
    pool = EnginePool(lambda one: FakeEngine(one, log))  # type: ignore[arg-type,return-value]
    base, shown = (pool.engine(candidate(name, tiny_model)) for name in ("base", "base + 4"))
    tuned = pool.engine(candidate("tuned", tiny_model, adapter_in(tmp_path / "adapter")))
    assert log == []  # templates and prompts need no weights
    assert base.template.kind == "chat"
    base.generate([], SilentProgress())
    shown.generate([], SilentProgress())
    shown.score([], SilentProgress())
    tuned.generate([], SilentProgress())
    pool.close()
    pool.close()
    assert log == [
        "open base", "write with base", "write with base", "score with base", "close base",
        "open tuned", "write with tuned", "close tuned",
    ]  # fmt: skip


def test_a_missing_adapter_is_found_before_anything_is_judged(tiny_model: Path, tmp_path: Path) -> None:
    pool = EnginePool(lambda one: pytest.fail("nothing is opened"))
    with pytest.raises(NotFoundError):
        pool.engine(candidate("tuned", tiny_model, tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelSourceError, match=r"adapter_config\.json"):
        pool.engine(candidate("tuned", tiny_model, tmp_path / "empty"))


def test_what_an_engine_had_to_say_outlives_it(tiny_model: Path) -> None:
    class Slow(FakeEngine):
        notes = ("it writes a row at a time",)

    pool = EnginePool(lambda one: Slow(one, []))  # type: ignore[arg-type,return-value]
    pool.engine(candidate("base", tiny_model)).generate([], SilentProgress())
    assert pool.notes == ()
    pool.close()
    pool.close()
    assert pool.notes == ("it writes a row at a time",)
