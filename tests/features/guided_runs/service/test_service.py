"""Which base models a size tries, and which of their plans is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.features.guided_runs import service
from luthier.features.guided_runs.goals import GOALS, goal_for
from luthier.features.guided_runs.service import Candidate, Found, Wish
from luthier.features.models.service import ModelView
from luthier.features.planning.drafts import Planned
from luthier.features.run_drafts.choices import StartingRows


def model(name: str, num_parameters: int, *, is_here: bool = True, chats: bool = True) -> ModelView:
    return ModelView(
        name=name,
        title=name,
        source="catalog",
        licence="Apache-2.0",
        licence_url=None,
        num_parameters=num_parameters,
        context_length_tokens=2048,
        has_chat_template=chats,
        note="",
        path="/models" if is_here else None,
        num_bytes=None,
        sha256=None,
        architecture=None,
    )


MODELS = [
    model("small", 10),
    model("middle", 100),
    model("large", 1000),
    model("huge", 10**6),
    model("away", 5, is_here=False),
]


def found(models: list[ModelView], shape: Any = "prompt_completion") -> Found:
    rows = StartingRows({"train": "file-1", "held_out": 0.1}, object(), None, None)  # type: ignore[arg-type]
    return Found(GOALS["answers"], None, rows, shape, None, {one.name: one for one in models})


def names(
    size: Any, models: list[ModelView] = MODELS, base_model: str = "", shape: Any = "prompt_completion"
) -> list[str]:
    return [one.model.name for one in service.candidates(found(models, shape), Wish(base_model=base_model), size)]


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 6 * 1000.0

    monkeypatch.setattr(service.psutil, "virtual_memory", lambda: Memory)


def test_quick_takes_the_smallest_and_better_the_largest_that_may_fit() -> None:
    assert names("quick") == ["small"]
    assert names("better") == ["large", "middle", "small"], "the huge one cannot fit"
    assert names("better", [model("huge", 10**6)]) == ["huge"], "the plan says that it does not fit"
    assert names("better", base_model="middle") == names("quick", base_model="middle") == ["middle"]
    assert names("quick", [model("away", 5, is_here=False)]) == []


def test_conversations_need_a_chat_template_and_texts_do_not() -> None:
    models = [model("plain", 10, chats=False), model("chat", 100)]
    assert names("quick", models) == ["chat"]
    assert names("quick", models, shape="text") == ["plain"]
    assert names("quick", models[:1]) == ["plain"], "better than nothing"


def planned(*, fits: bool = True, hours: float = 1.0) -> Planned:
    return Planned({"predicted": {"fits": fits, "hours": hours}})


@pytest.mark.parametrize(
    ("answers", "taken"),
    [
        ([planned(), None, None], 0),
        ([None, planned(), planned()], 0),
        ([planned(fits=False), planned(), None], 1),
        ([planned(hours=25.0), planned(hours=24.0), None], 1),
        ([Planned(error=RequestError("a", expected="b", do="c")), planned(), None], 1),
        ([planned(fits=False), planned(fits=False), planned(fits=False)], 2),
    ],
)
def test_the_first_that_fits_within_a_day_is_taken(answers: list[Planned | None], taken: int) -> None:
    options = [Candidate({"place": place}, MODELS[place]) for place in range(3)]
    option, plan = service.choose(options, lambda place, _: answers[place])
    assert option.keys == {"place": taken}
    assert plan is answers[taken]


def test_shapes_suggest_a_purpose() -> None:
    assert goal_for("text") == "style"
    assert goal_for("unpaired") == goal_for("preference") == "preferences"
    assert goal_for("chat") == goal_for("alpaca") == "answers"
    assert goal_for(None) is None


def test_marked_answers_are_learned_by_kto() -> None:
    one = replace(found(MODELS, "unpaired"), goal=GOALS["preferences"])
    assert service.candidates(one, Wish(), "quick")[0].keys["objective"] == {"name": "kto"}
