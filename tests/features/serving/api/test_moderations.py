"""/v1/moderations over a classifier whose probabilities are known; the classifier itself is in `test_task_heads.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.task_heads import add_head_run

from luthier.core.access import Caller
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import SilentProgress
from luthier.core.stream import Pooled
from luthier.features.serving import service as serving
from luthier.features.serving.api.offline import answer_offline
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app

LABELS = ("safe", "threat", "insult")
SCORES = {"fine": (0.9, 0.05, 0.05), "bad": (0.2, 0.7, 0.1), "worse": (0.1, 0.6, 0.8)}
Open = Callable[..., TestClient]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """A home with classifiers of the project `default`: its folder, and by kind (run, tuned model, folder)."""
    home = tmp_path_factory.mktemp("moderations") / "home"
    with Context.open(home) as context:
        sources.pull(str(tiny_model), home, SilentProgress())
        context.access.add_project("proj-other", "other")
        one = add_head_run(context, "tiny", "a", kind="classify", labels=LABELS)
        several = add_head_run(context, "tiny", "b", kind="classify", labels=LABELS[1:], is_multi_label=True)
        whole = add_head_run(context, "tiny", "c", kind="classify", labels=LABELS, is_adapter=False)
        rank = add_head_run(context, "tiny", "d", kind="rank")
    return {"home": home, "one": one, "several": several, "whole": whole, "rank": rank}


@pytest.fixture
def open_with(heads: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes a client of a server with these settings; the probabilities are those of `SCORES`."""
    opened: list[Any] = []

    def ask_pooling(context: Any, caller: Any, routed: Any, request: PoolingRequest, hear: Any) -> Callable[[], None]:
        texts = [one.messages[0].content or "" for one in request.conversations]
        num = 2 if routed.target == heads["several"][1] else 3
        hear(Pooled(outputs=tuple(SCORES[text][-num:] for text in texts), num_prompt_tokens=len(texts)))
        return lambda: None

    monkeypatch.setattr(serving, "ask_pooling", ask_pooling)

    def make(project: str = "other", **settings: Any) -> TestClient:
        context = Context(Settings(home=heads["home"], **settings), SilentProgress())
        opened.append(context)
        _, key = create_key(context, "k", scopes=("infer",), project=project)
        client = TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"})
        opened.append(client)
        return client

    yield make
    for one in reversed(opened):
        one.close()


def moderate(client: TestClient, **wishes: Any) -> Any:
    return client.post("/v1/moderations", json={"input": "bad"} | wishes)


@pytest.mark.parametrize("kind", ["run", "tuned model", "folder"])
def test_the_classifier_of_the_settings_answers_every_project(
    open_with: Open, heads: dict[str, Any], kind: str
) -> None:
    name = {"run": heads["one"][0], "tuned model": heads["one"][1], "folder": str(heads["whole"][2])}[kind]
    answer = moderate(open_with(moderation_model=name), input=["fine", "bad"], model="omni-moderation-latest")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    # Where a folder lies on the machine of the server is not shown to callers of all projects.
    shown = Path(name).name if kind == "folder" else name
    assert (document["model"], answer.headers["x-luthier-target"]) == (shown, shown)
    assert document["id"].startswith("modr-")
    fine, bad = document["results"]
    assert fine == {
        "flagged": False,
        "categories": {"threat": False, "insult": False},
        "category_scores": {"threat": 0.05, "insult": 0.05},
        "category_applied_input_types": {"threat": ["text"], "insult": ["text"]},
    }
    assert (bad["flagged"], bad["categories"]) == (True, {"threat": True, "insult": False})


def test_labels_that_exclude_nothing_are_flagged_each_by_its_threshold(open_with: Open, heads: dict[str, Any]) -> None:
    answer = moderate(open_with(moderation_model=heads["several"][1]), input=["fine", "worse"])
    fine, worse = answer.json()["results"]
    assert (fine["flagged"], worse["flagged"]) == (False, True)
    assert worse["categories"] == {"threat": True, "insult": True}
    assert worse["category_scores"] == {"threat": 0.6, "insult": 0.8}


def test_a_project_may_name_its_own_classifier_and_no_other(open_with: Open, heads: dict[str, Any]) -> None:
    own = moderate(open_with("default"), model=heads["several"][1])
    assert own.status_code == 200, own.text
    assert own.json()["model"] == heads["several"][1]
    assert moderate(open_with("other"), model=heads["several"][1]).status_code == 404


def test_parts_are_one_text(open_with: Open, heads: dict[str, Any]) -> None:
    client = open_with(moderation_model=heads["one"][1])
    parts = [{"type": "text", "text": "bad"}]
    assert len(moderate(client, input=parts).json()["results"]) == 1
    image = moderate(client, input=[*parts, {"type": "image_url", "image_url": {"url": "https://x"}}])
    assert (image.status_code, image.json()["error"]["param"]) == (400, "input.1")
    assert "'image_url'" in image.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({}, 400, "LUTHIER_MODERATION_MODEL"),
        ({"moderation_model": "one", "moderation_safe_labels": "ok, fine"}, 400, "LUTHIER_MODERATION_SAFE_LABELS"),
        ({"moderation_model": "rank"}, 400, "classes with probabilities"),
        ({"moderation_model": "/nowhere/at/all"}, 404, "not a classifier"),
    ],
)
def test_without_a_classifier_it_is_refused_with_what_to_do(
    open_with: Open, heads: dict[str, Any], settings: dict[str, str], status: int, says: str
) -> None:
    if (name := settings.get("moderation_model", "")) in heads:
        settings = settings | {"moderation_model": heads[name][1]}
    answer = moderate(open_with(**settings))
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert says in message
    assert "; expected: " in message
    assert "; what to do: " in message
    assert "/nowhere" not in message


def test_a_batch_moderates_as_the_route_does(open_with: Open, heads: dict[str, Any]) -> None:
    client = open_with(moderation_model=heads["one"][1])
    with Context(Settings(home=heads["home"], moderation_model=heads["one"][1]), SilentProgress()) as context:
        caller = Caller(project_id="proj-other", scopes=("infer",))
        found = answer_offline(context, caller, "/v1/moderations", {"input": ["fine", "bad"]})
        wrong = answer_offline(context, caller, "/v1/moderations", {"input": [5]})
    online = moderate(client, input=["fine", "bad"]).json()
    assert found.status == 200
    assert found.body["id"].startswith("modr-")
    assert found.body | {"id": ""} == online | {"id": ""}
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "input.0")
