"""What can be chatted with, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.stream import TextRequest
from luthier.core.task_head import TASK_HEAD_FILE, TaskHead
from luthier.features.models.store import TunedModel
from luthier.features.playground.chat import list_playground_models, route_to
from luthier.features.runs.labels import RunLabels
from luthier.features.serving import service as serving
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

ME = Caller()


def test_runs_that_have_made_something_are_listed_and_routed_to(home: Context) -> None:
    first, failed, second = add_run(home, "a"), add_run(home, "b", status="failed"), add_run(home, "c")
    assert [(one.name, one.kind) for one in list_playground_models(home, ME)] == [(second, "runs"), (first, "runs")]
    routed = route_to(home, ME, first, [TextRequest(text="x")])
    assert (routed.model, routed.target) == (first, first)
    assert routed.served.path.endswith("model")
    with pytest.raises(ConflictError, match="is failed"):
        route_to(home, ME, failed, [])


def test_a_run_with_a_named_model_is_listed_by_that_name(home: Context) -> None:
    run_id = add_run(home, "a")
    for name, step in (("ft:tiny:default::1", None), ("ft:tiny:default::1:ckpt-step-5", 5)):
        home.tuned_models.add(
            TunedModel(
                model_id=name,
                project_id=ME.project_id,
                job_id="j",
                run_id=run_id,
                base_model="tiny",
                adapter_path="/x",
                step=step,
            )
        )
    home.run_labels.put(run_id, RunLabels(name="Client questions"))
    models = list_playground_models(home, ME)
    assert {one.name: one.run_id for one in models} == {
        "ft:tiny:default::1": run_id,
        "ft:tiny:default::1:ckpt-step-5": None,
    }
    assert {one.name: one.title for one in models} == {
        "ft:tiny:default::1": "Client questions",
        "ft:tiny:default::1:ckpt-step-5": "Client questions, step 5",
    }


def test_those_of_other_projects_are_as_if_they_were_not_there(home: Context) -> None:
    run_id = add_run(home, "a")
    other = Caller(project_id=create_project(home, "other").project_id)
    assert list_playground_models(home, other) == []
    with pytest.raises(NotFoundError):
        route_to(home, other, run_id, [])


@pytest.mark.parametrize(
    ("caller", "place"),
    [(ME, None), (Caller(key_id="key-1"), "key-1"), (Caller(member_id="member-1"), "member-1")],
)
def test_a_member_waits_in_line_as_a_key_does(
    home: Context, monkeypatch: pytest.MonkeyPatch, caller: Caller, place: str | None
) -> None:
    keys: list[str | None] = []

    def ask(*_: Any, key: str | None) -> Callable[[], None]:
        keys.append(key)
        return lambda: None

    monkeypatch.setattr(home.inference_client, "ask", ask)
    monkeypatch.setattr(serving, "charge_tokens", lambda *_, **__: None)
    serving.ask(home, caller, route_to(home, ME, add_run(home, "a"), []), [TextRequest(text="x")], lambda _: None)
    assert keys == [place]


def test_what_writes_no_text_is_not_listed(home: Context) -> None:
    writes, classifies = add_run(home, "a"), add_run(home, "b")
    folder = home.runs.get(classifies).result
    assert folder is not None
    head = TaskHead(kind="classify", width=8, labels=("a", "b"))
    (Path(str(folder.adapter_path)) / TASK_HEAD_FILE).write_text(head.model_dump_json(), encoding="utf-8")
    assert [one.name for one in list_playground_models(home, ME)] == [writes]
