"""Systems are evaluated one after another: one model is in memory at a time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.conversation import OptedTurns
from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.ports import SilentProgress
from luthier.features.generation.engines import EnginePool
from luthier.features.models.resolve import Candidate, answers_key, engine_key


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


def test_an_adapter_is_put_over_the_base_that_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    log: list[str] = []

    def over_base(one: Candidate, base: Any) -> Any:
        log.append(f"put {one.name} over {base._name}")
        return FakeEngine(one, log)

    pool = EnginePool(lambda one: FakeEngine(one, log), over_base)  # type: ignore[arg-type,return-value]
    base = candidate("base", tiny_model)
    tuned = candidate("tuned", tiny_model, adapter_in(tmp_path / "adapter"))
    for one in (base, tuned, replace(tuned, name="other", precision="bfloat16"), base):
        pool.engine(one).generate([], SilentProgress())
    assert log == [
        "open base", "write with base", "put tuned over base", "open tuned", "write with tuned", "close tuned",
        "open other", "write with other", "close other", "open base", "write with base",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"precision": "bfloat16"},
        {"device": "cuda"},
        {"template": "plain"},
        {"quantisation": "int8"},
        {"template_options": {"enable_thinking": True}},
        {"opted_turns": OptedTurns(folds_system=True)},
    ],
)
def test_systems_that_run_in_another_way_share_no_engine(tiny_model: Path, other: dict[str, Any]) -> None:
    log: list[str] = []
    pool = EnginePool(lambda one: FakeEngine(one, log))  # type: ignore[arg-type,return-value]
    base = candidate("base", tiny_model)
    teacher = replace(base, name="teacher", **other)
    assert engine_key(base) != engine_key(teacher)
    for one in (base, teacher):
        pool.engine(one).generate([], SilentProgress())
    assert log == ["open base", "write with base", "close base", "open teacher", "write with teacher"]


def test_the_template_that_auto_becomes_shares_an_engine(tiny_model: Path) -> None:
    log: list[str] = []
    pool = EnginePool(lambda one: FakeEngine(one, log))  # type: ignore[arg-type,return-value]
    base = candidate("base", tiny_model)
    for one in (base, replace(base, name="of a run", template="chat")):
        pool.engine(one).generate([], SilentProgress())
    assert log == ["open base", "write with base", "write with base"]


def test_options_of_templates_that_are_equal_but_written_otherwise_differ(tiny_model: Path) -> None:
    base = candidate("base", tiny_model)
    keys = {engine_key(replace(base, template_options={"shows": value})) for value in (True, 1, 1.0, "1")}
    assert len(keys) == 4


def test_stored_answers_are_of_the_files_that_were_there(tiny_model: Path, tmp_path: Path) -> None:
    tuned = candidate("tuned", tiny_model, adapter_in(tmp_path / "adapter"))
    before = answers_key(tuned)
    assert repr(answers_key(replace(tuned, name="of another name"))) == repr(before)
    assert answers_key(replace(tuned, adapter_path=None)) != before
    (weights := tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"trained on")
    trained_on = answers_key(tuned)
    assert trained_on != before
    os.utime(weights, ns=(1, 1))  # as many bytes, at another time
    assert answers_key(tuned) not in (before, trained_on)
    assert engine_key(tuned) == engine_key(replace(tuned, name="of another name"))


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
