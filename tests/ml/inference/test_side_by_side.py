"""Batches that workers compute: the results of one process, in order, whoever computes what and also after kills."""

from __future__ import annotations

import os
import signal
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, StoppedError
from luthier.core.ports import Generation, Prompt, SilentProgress
from luthier.ml.inference import side_by_side
from luthier.ml.inference.side_by_side import Form, SideBySide
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.engine_contract import CountingProgress

Open = Callable[..., TransformersEngine]
SILENT = SilentProgress()
TEXTS = [f"Which wood is number {n % 7} of the {'front and ' * (n % 5)}back?" for n in range(12)]
NUMBERS: Form[list[Any]] = Form(encode=lambda _, made: made, decode=lambda _, message: message)


@pytest.fixture(autouse=True)
def little_work_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "MIN_FLOPS", 0.0)


@pytest.fixture
def open_engine(tiny: Path) -> Open:
    def make(num_workers: int = 1, **options: Any) -> TransformersEngine:
        engine = TransformersEngine.open(str(tiny), dtype="float32", batch_tokens=64, **options)
        engine.num_workers = num_workers
        return engine

    return make


def rows(engine: TransformersEngine) -> list[TokenisedExample]:
    found = []
    for number, text in enumerate(TEXTS):
        ids, _ = engine.template.encode(text)
        mask = bytes(place > len(ids) // 2 for place in range(len(ids)))
        found.append(TokenisedExample(id=f"row:{number}", input_ids=array("i", ids), loss_mask=mask))
    return found


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are forked from now on."""
    seen, fork = list[int](), os.fork

    def count() -> int:
        if pid := fork():
            seen.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", count)
    return seen


def written(engine: TransformersEngine) -> list[Generation]:
    prompts = [Prompt(text=text, max_new_tokens=6, temperature=float(n % 2), seed=n) for n, text in enumerate(TEXTS)]
    return engine.generate(prompts, SILENT, returns_token_ids=True)


def states(engine: TransformersEngine) -> list[torch.Tensor]:
    with SILENT.task("states", len(TEXTS), "rows") as task:
        return engine.hidden_states(rows(engine), task)


def test_scores_answers_and_states_are_those_of_one_process(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = open_engine()
    with side_by_side.torch_threads(1):
        scores, answers, hidden = plain.score(rows(plain), SILENT), written(plain), states(plain)
    before, seen = children(), forked(monkeypatch)
    for num in (2, 3):
        engine = open_engine(num)
        assert engine.score(rows(engine), SILENT) == scores
        assert written(engine) == answers
        for own, other in nonempty(zip(states(engine), hidden, strict=True)):
            assert torch.equal(own, other)
        assert engine.notes == plain.notes
    assert len(seen) == 3 * 2 + 3 * 3
    assert children() <= before


def test_rows_with_one_prefix_are_shared_out_too(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, engine = open_engine(), open_engine(2)
    begin, _ = plain.template.encode("The luthier answered honestly, and the customer came back with a cello. " * 2)
    made = []
    for number, row in enumerate(rows(plain)):
        ids = [*begin, *row.input_ids]
        made.append(TokenisedExample(f"row:{number}", array("i", ids), bytes(len(begin)) + row.loss_mask))
    with side_by_side.torch_threads(1):
        expected = plain.score(made, SILENT)
    seen = forked(monkeypatch)
    assert engine.score(made, SILENT) == expected
    assert len(seen) == 2


def test_answers_that_keep_to_a_schema_are_those_of_one_process(open_engine: Open) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    prompts = [Prompt(text=text, max_new_tokens=8, json_schema=schema) for text in TEXTS]
    with side_by_side.torch_threads(1):
        expected = open_engine().generate(prompts, SILENT)
    assert open_engine(2).generate(prompts, SILENT) == expected
    assert all(one.text.startswith("{") for one in nonempty(expected))


def test_the_bar_counts_each_row_once(open_engine: Open) -> None:
    shown = CountingProgress()
    engine = open_engine(2)
    engine.score(rows(engine), shown)
    assert shown.done == len(TEXTS)


def run(num: int, work: Callable[[int], Any], advance: Callable[[int], None], notes: list[str], tiny: Path) -> Any:
    engine = TransformersEngine.open(str(tiny), dtype="float32")

    def compute(number: int, advance: Callable[[int], None]) -> list[Any]:
        found = [work(number)]
        advance(1)
        return found

    return SideBySide(engine.causal, 2, 1.0, notes.append)(num, compute, advance, lambda: NUMBERS)


def test_a_worker_that_is_killed_changes_nothing(tiny: Path) -> None:
    here, notes, shown = os.getpid(), list[str](), list[int]()

    def work(number: int) -> int:
        if number == 3 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    assert run(9, work, shown.append, notes, tiny) == [[n * n] for n in range(9)]
    assert sum(shown) == 9
    (note,) = notes
    assert "was ended by SIGKILL" in note
    assert "the result is the same" in note


def test_rows_that_a_lost_worker_had_shown_are_not_shown_again(tiny: Path) -> None:
    here, shown = os.getpid(), list[int]()
    engine = TransformersEngine.open(str(tiny), dtype="float32")

    def compute(number: int, advance: Callable[[int], None]) -> list[int]:
        for row in range(4):
            if number == 1 and row == 2 and os.getpid() != here:
                os.kill(os.getpid(), signal.SIGKILL)
            advance(1)
        return [number]

    found = SideBySide(engine.causal, 2, 1.0, lambda _: None)(3, compute, shown.append, lambda: NUMBERS)
    assert found == [[0], [1], [2]]
    assert sum(shown) == 12


def test_what_fails_in_a_worker_fails_here(tiny: Path) -> None:
    before, notes = children(), list[str]()

    def work(number: int) -> int:
        if number == 2:
            raise DivergedError("no number", expected="one", do="look")
        return number

    with pytest.raises(DivergedError, match="no number"):
        run(5, work, lambda _: None, notes, tiny)
    assert "failed with DivergedError" in notes[0]
    assert children() <= before


def test_a_worker_that_computes_something_else_is_not_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, notes, used = os.getpid(), list[str](), list[int]()
    probe = SideBySide._probe
    monkeypatch.setattr(SideBySide, "_probe", lambda self: probe(self) if os.getpid() == here else "otherwise")

    def work(number: int) -> int:
        used.append(number)
        return os.getpid()

    assert run(4, work, lambda _: None, notes, tiny) == [[here]] * 4
    assert used == [0, 1, 2, 3]
    assert "other logits" in notes[0]


def test_a_stop_check_ends_workers_too(open_engine: Open) -> None:
    before = children()
    reasons = [None, None, "budget of 1 h: 1 h spent"]
    engine = open_engine(2, stop=lambda: reasons.pop(0))
    with pytest.raises(StoppedError, match="budget of 1 h"):
        engine.generate([Prompt(text=text, max_new_tokens=6) for text in TEXTS], SILENT)
    assert reasons == []
    assert children() <= before


def test_this_process_computes_where_workers_would_wait(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer batches than workers, for little work, and with a device of its own."""
    seen = forked(monkeypatch)
    engine = open_engine(50)
    engine.score(rows(engine), SILENT)
    monkeypatch.setattr(side_by_side, "MIN_FLOPS", 1e18)
    engine.num_workers = 2
    engine.score(rows(engine), SILENT)
    monkeypatch.setattr(side_by_side, "MIN_FLOPS", 0.0)
    monkeypatch.setattr("luthier.ml.inference.transformers_engine.can_fork", lambda _: False)
    engine.score(rows(engine), SILENT)
    assert seen == []
