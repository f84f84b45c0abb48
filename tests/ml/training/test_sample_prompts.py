"""Fixed prompts that are answered while a model trains: the same ones at each checkpoint, and nothing else changes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.ml.training.conftest import FixedSchedule, random_examples
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.events import CheckpointSaved, Event, SamplesAnswered, WarningRaised
from luthier.core.ids import sha256_file
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training import sample_prompts
from luthier.ml.training.checkpoint import CheckpointStore, save_model
from luthier.ml.training.loop import train
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.sample_prompts import SamplePrompts, chosen_rows

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


def row(ids: list[int], num_prompt: int, name: str = "r") -> TokenisedExample:
    return TokenisedExample(name, array("i", ids), bytes(num_prompt) + b"\1" * (len(ids) - num_prompt))


def test_the_first_rows_with_different_prompts_and_room_are_chosen() -> None:
    rows = [row([1, 2, 3], 2, "a"), row([1, 2, 9], 2, "b"), row(list(range(70)), 60, "c"), row([5, 6], 1, "d"),
            row([7, 8], 1, "e")]  # fmt: skip
    assert [one.id for one in chosen_rows(rows, 2, context_length_tokens=100)] == ["a", "d"]
    assert [one.id for one in chosen_rows(rows, 9, context_length_tokens=1000)] == ["a", "c", "d", "e"]
    assert chosen_rows(rows, 0, context_length_tokens=1000) == ()


def trained(plan: Plan, model: TrainableModel, folder: Path, samples: Any, stop_at: int | None = None) -> list[Event]:
    events: list[Event] = []
    examples = random_examples(24, seed=1)

    def emit(event: Event) -> None:
        events.append(event)

    def stop() -> str | None:
        return "asked to" if stop_at is not None and sum(e.kind == "step" for e in events) >= stop_at else None

    train(
        plan,
        model,
        load_objective(plan.objective),
        [(one,) for one in examples],
        [([(one,) for one in random_examples(3, seed=2)], ())],
        FixedSchedule(len(examples), 4, 3),
        CheckpointStore(folder / "checkpoints", 2),
        emit=emit,
        stop_requested=stop,
        progress=SilentProgress(),
        samples=None if samples is None else samples(emit),
    )
    return events


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_trains_the_same_bytes_with_and_without_samples_also_over_a_pause(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, tmp_path: Path, method: str
) -> None:
    template = ChatTemplate.load(tiny_model)
    rows = chosen_rows(random_examples(5, seed=3), 2, context_length_tokens=10_000)
    plan = make_plan(method, dropout=0.1)
    digests, seen = set(), []
    for name, makes in (("without", None), ("with", lambda emit: SamplePrompts(rows, template, emit, 4))):
        for pause in (None, 3):
            folder = tmp_path / f"{name}-{pause}"
            model = make_model(plan)
            events = trained(plan, model, folder, makes, pause)
            if pause is not None:
                model = make_model(plan)
                events += trained(plan, model, folder, makes)
            path, _ = save_model(model, tiny_model, folder)
            digests.add(sha256_file(next(iter(sorted(path.glob("*.safetensors"))))))
            seen.append({e.step: e.answers for e in events if isinstance(e, SamplesAnswered)})
            if makes is not None:
                saved = {e.step for e in events if isinstance(e, CheckpointSaved)} - {pause}
                assert saved <= set(seen[-1])
    assert len(digests) == 1
    assert seen[0] == seen[1] == {}
    assert 0 in seen[2]
    assert all(len(answers) == 2 for answers in nonempty(seen[2].values()))
    assert seen[2] == {step: seen[3][step] for step in seen[2]}, "and the same answers over a pause"


def test_an_answer_has_its_prompt_and_the_answer_of_its_row(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path
) -> None:
    template, events = ChatTemplate.load(tiny_model), list[Event]()
    words = template.ids("one two three four")
    made = row([*words, *words], len(words))
    SamplePrompts([made], template, events.append, 4)(make_model(make_plan()), 7)
    (event,) = events
    assert isinstance(event, SamplesAnswered)
    (answer,) = event.answers
    assert (event.step, answer.prompt, answer.reference) == (7, "one two three four", "one two three four")
    assert 0 < answer.num_new_tokens <= 4


def test_a_model_that_cannot_write_gets_one_warning_and_trains_on(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RequestError("a trained prompt", expected="another method", do="choose it")

    monkeypatch.setattr("luthier.ml.training.objectives.sampling.draw_samples", refuse)
    template, rows = ChatTemplate.load(tiny_model), random_examples(2, seed=3)
    plan = make_plan()
    events = trained(plan, make_model(plan), tmp_path, lambda emit: SamplePrompts(rows, template, emit, 4))
    warnings = [e for e in events if isinstance(e, WarningRaised)]
    assert [(e.code, "a trained prompt" in e.message) for e in warnings] == [("no_samples", True)]
    assert sum(e.kind == "step" for e in events) == 6
    assert sample_prompts.MAX_NEW_TOKENS == 64
