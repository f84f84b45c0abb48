"""Which base models a size tries, and which of their plans is taken."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.features.guided_runs import service
from luthier.features.guided_runs.goals import GOALS, GoalName, goal_for
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


def found(
    models: list[ModelView],
    shape: Any = "prompt_completion",
    *,
    goal: GoalName = "answers",
    num_rows: int | None = None,
    data: dict[str, Any] | None = None,
) -> Found:
    version: Any = SimpleNamespace(num_rows=num_rows)
    rows = StartingRows({"train": "file-1", "held_out": 0.1} | (data or {}), version, None, None)
    return Found(GOALS[goal], None, rows, shape, None, {one.name: one for one in models})


def names(
    size: Any, models: list[ModelView] = MODELS, base_model: str = "", shape: Any = "prompt_completion"
) -> list[str]:
    return [one.model.name for one in service.candidates(found(models, shape), Wish(base_model=base_model), size)]


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "memory_bytes", lambda: (6 * 1000, 0))


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


@pytest.mark.parametrize(
    ("goal", "shape", "num_rows", "validation", "num_prompts"),
    [
        ("answers", "prompt_completion", 100, 0.1, 5),
        ("answers", "chat", 99, None, None),  # too few rows to set some apart
        ("answers", "prompt_completion", None, None, None),
        ("fields", "prompt_completion", 5000, 0.1, 5),
        ("style", "text", 5000, None, None),  # a text has no prompt to answer
        ("labels", "prompt_completion", 5000, None, None),  # a label is no answer to read
        ("preferences", "preference", 5000, None, None),
    ],
)
def test_five_prompts_are_answered_at_each_checkpoint_where_there_are_rows_for_it(
    goal: GoalName, shape: Any, num_rows: int | None, validation: float | None, num_prompts: int | None
) -> None:
    for size in ("quick", "better"):
        one = found(MODELS, shape, goal=goal, num_rows=num_rows)
        (keys, *_) = [option.keys for option in service.candidates(one, Wish(), size)]
        assert keys["data"].get("validation") == validation
        assert keys.get("evaluation", {}).get("sample_prompts") == num_prompts
        assert one.rows is not None
        assert "validation" not in one.rows.data, "what was found stays as it is"


def test_the_validation_side_of_a_split_is_used_as_it_is() -> None:
    one = found(MODELS, num_rows=9, data={"validation": "file-2", "held_out": "file-3"})
    keys = service.candidates(one, Wish(), "quick")[0].keys
    assert (keys["data"]["validation"], keys["evaluation"]) == ("file-2", {"max_samples": 50, "sample_prompts": 5})


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
