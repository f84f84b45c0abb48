"""The process that trains: what it refuses before memory runs out, and how projects take turns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.features.tinker_api import trainer_process
from luthier.features.tinker_api.trainer_process import TURN_TOKENS, Trainer
from luthier.ml.training.adapter_sampler import SampledAnswer, SampleOrder, SampleResult


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


def work_all(trainer: Trainer) -> None:
    while trainer._waiting or not trainer._inbox.empty():
        trainer.work_once()


@pytest.fixture
def answers() -> list[Any]:
    return []


@pytest.fixture
def trainer(answers: list[Any]) -> Trainer:
    return Trainer(answers.append, hardware=lambda: 1 / 0, memory_bytes=lambda: 0)  # type: ignore[arg-type, return-value]


def test_a_large_pass_of_one_project_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, answers: list[Any]
) -> None:
    computed: list[str] = []

    def passes(request: dict[str, Any]) -> Generator[int, None, Any]:
        for number in range(request["parts"]):
            if number:
                yield TURN_TOKENS
            computed.append(request["id"])
        if request["id"] == "much2":
            raise RequestError("wrong", expected="right", do="correct it")
        return {"id": request["id"]}

    monkeypatch.setattr(trainer, "_pass", passes)
    trainer._operations = {"step": lambda request: {"id": request["id"]}}
    for project, key, op, parts in (
        ("much", "much1", "pass", 3),
        ("much", "much2", "pass", 1),
        ("much", "much3", "step", 0),
        ("little", "little1", "pass", 1),
        ("little", "little2", "step", 0),
        ("third", "third1", "step", 0),
    ):
        trainer.hear({"id": key, "op": op, "project": project, "parts": parts})
    work_all(trainer)
    # The others are done before the second part of the large pass; those of one project keep their order.
    assert computed == ["much1", "little1", "much1", "much1", "much2"]
    assert [answer["id"] for answer in answers] == ["little1", "third1", "little2", "much1", "much2", "much3"]
    assert [answer["id"] for answer in answers if "error" in answer] == ["much2"]


def test_a_large_sample_is_drawn_in_parts_while_others_wait_and_answered_once(
    monkeypatch: pytest.MonkeyPatch, trainer: Trainer, answers: list[Any]
) -> None:
    drawn: list[list[tuple[int, int]]] = []

    def sample(orders: list[SampleOrder], _: Callable[[], bool]) -> list[SampleResult]:
        drawn.append([(order.first_sample, order.num_samples) for order in orders])
        if len(orders[0].prompt) == 2:
            raise MemoryError
        numbers = [range(order.first_sample, order.first_sample + order.num_samples) for order in orders]
        return [SampleResult(tuple(SampledAnswer((one,), (0.0,), False) for one in some)) for some in numbers]

    model = SimpleNamespace(context_length_tokens=1000)
    monkeypatch.setattr(trainer, "_sampler", lambda _: SimpleNamespace(check=id, sample=sample, model=model))
    monkeypatch.setattr(trainer_process, "TURN_TOKENS", 250)
    monkeypatch.setattr(
        trainer_process, "_sampled_document", lambda parts: [one.tokens for p in parts for one in p.answers]
    )
    trainer._operations = {"step": lambda request: {"id": request["id"]}}

    def ask(project: str, key: str, prompt: list[int], num: int) -> None:
        order = {"prompt": prompt, "num_samples": num, "max_tokens": 100 - len(prompt), "stop_ids": None}
        trainer.hear({"id": key, "op": "sample", "sampler": "s", "project": project, "order": order})

    ask("much", "1", [1], 5)
    ask("much", "2", [1, 1], 3)
    trainer.hear({"id": "3", "op": "step", "project": "little"})
    work_all(trainer)
    assert drawn == [[(0, 2)], [(2, 2)], [(4, 1)], [(0, 2)]]
    assert [answer["id"] for answer in answers] == ["3", "1", "2"]
    assert answers[1]["result"] == [(0,), (1,), (2,), (3,), (4,)]
    assert "not enough memory" in answers[2]["error"]["came"]
