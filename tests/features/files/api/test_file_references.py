"""No request names a file of the server: paths, addresses, links and ids of other projects are refused alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.ports import SilentProgress
from luthier.platform.auth.service import create_project
from luthier.platform.files.service import add_file
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

SECRET = "the words of the secret file"
Body = Callable[[str], tuple[str, dict[str, Any]]]


@pytest.fixture
def mine(home: Context, tmp_path: Path, tiny_model: Path) -> str:
    """The id of a file of the project `default`; the home has pulled a model that is called `tiny`."""
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "completion": "a{n}"}}\n' for n in range(24)))
    return add_file(home, "default", path, filename="mine.jsonl", purpose="fine-tune").file_id


@pytest.fixture
def hostile(home: Context, tmp_path: Path) -> list[str]:
    """Names of files that are there and that no caller of the project `default` may name."""
    secret = tmp_path / "secret.jsonl"
    secret.write_text(json.dumps({"prompt": SECRET, "completion": SECRET}) + "\n")
    link = tmp_path / "link.jsonl"
    link.symlink_to(secret)
    other = create_project(home, "other").project_id
    theirs = add_file(home, other, secret, filename="theirs.jsonl", purpose="fine-tune").file_id
    paths = [str(secret), str(link), f"file:{secret}", f"file://{secret}", str(home.settings.database_path)]
    return [*paths, "/etc/passwd", "../../luthier.db", "..", "/dev/stdin", "/proc/self/environ", theirs]


def recipes(place: str, address: str) -> Body:
    def body(mine: str, name: str) -> tuple[str, dict[str, Any]]:
        recipe: dict[str, Any] = {"base_model": "tiny", "data": {"train": mine}}
        holder, *inner = place.split(".")
        if not inner:
            recipe[holder] = name
        elif inner[0] == "sources":
            recipe["data"]["train"] = [{"path": mine}, {"path": name}]
        elif inner[0] == "replay":
            recipe["data"]["replay"] = {"file": mine, inner[1]: name}
        else:
            kind = {"name": "distillation"} if holder == "objective" else {}
            recipe[holder] = recipe.get(holder, {}) | kind | {inner[0]: name}
        return address, {"recipe": recipe}

    return body  # type: ignore[return-value]


def plain(address: str, **keys: Any) -> Body:
    """A request whose `NAME` is the name, and whose `MINE` is a file of the caller's own."""

    def body(mine: str, name: str) -> tuple[str, dict[str, Any]]:
        text = json.dumps(keys).replace('"NAME"', json.dumps(name)).replace('"MINE"', json.dumps(mine))
        return address, json.loads(text)

    return body  # type: ignore[return-value]


RECIPE_PLACES = (
    "base_model", "data.train", "data.validation", "data.held_out", "data.replay.file", "data.replay.held_out",
    "objective.teacher", "data.sources",
)  # fmt: skip
TURNS = [{"role": "user", "content": "q"}]
GRADER = {"type": "score_model", "name": "g", "model": "NAME", "input": TURNS}
PLACES: dict[str, Any] = {
    **{f"plan {place}": recipes(place, "/api/v1/plans") for place in RECIPE_PLACES},
    **{f"run {place}": recipes(place, "/api/v1/runs") for place in RECIPE_PLACES},
    "audit file_id": plain("/api/v1/audits", file_id="NAME"),
    "audit against": plain("/api/v1/audits", file_id="MINE", against="NAME"),
    "audit model": plain("/api/v1/audits", file_id="MINE", model="NAME"),
    "job training_file": plain("/v1/fine_tuning/jobs", model="tiny", training_file="NAME"),
    "job validation_file": plain("/v1/fine_tuning/jobs", model="tiny", training_file="MINE", validation_file="NAME"),
    "job model": plain("/v1/fine_tuning/jobs", model="NAME", training_file="MINE"),
    "evaluation rows": plain("/api/v1/evaluations", kind="rows", candidate="RUN", file_id="NAME"),
    "evaluation suite": plain("/api/v1/evaluations", kind="suite", candidate="RUN", file_id="NAME"),
    "evaluation candidate": plain("/api/v1/evaluations", kind="safety", candidate="NAME"),
    "evaluation against": plain("/api/v1/evaluations", kind="safety", candidate="RUN", against=["NAME"]),
    "deployment target": plain("/api/v1/deployments", name="live", target="NAME"),
    "chat model": plain("/v1/chat/completions", model="NAME", messages=TURNS),
    "completion model": plain("/v1/completions", model="NAME", prompt="q"),
    "embedding model": plain("/v1/embeddings", model="NAME", input="q"),
    "classify model": plain("/v1/classify", model="NAME", input="q"),
    "rerank model": plain("/v1/rerank", model="NAME", query="q", documents=["d"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_is_no_id_is_refused_and_nothing_is_read(
    home: Context, visitor: Callable[..., TestClient], mine: str, hostile: list[str], place: str
) -> None:
    caller = visitor("train", "infer", "read")
    run = add_run(home, "a")
    assert hostile
    for name in hostile:
        address, body = PLACES[place](mine, name)
        answer = caller.post(address, json=json.loads(json.dumps(body).replace("RUN", run)))
        assert 400 <= answer.status_code < 500, (name, answer.text)
        assert SECRET not in answer.text
        assert "root:" not in answer.text
        assert "SQLite" not in answer.text
        shown = answer.text.replace(name, "")
        assert str(home.home) not in shown, "nothing else of this machine is named"
        absent = "file-20260101-000000-abcdef" if name == hostile[-1] else f"{name}-is-not-there"
        address, body = PLACES[place](mine, absent)
        other = caller.post(address, json=json.loads(json.dumps(body).replace("RUN", run)))
        assert other.status_code == answer.status_code, "whether a file is there is not said"
    assert home.jobs.list(project_id="default", limit=5) == []


def test_the_model_of_a_grader_is_one_of_the_api(
    visitor: Callable[..., TestClient], mine: str, hostile: list[str]
) -> None:
    caller = visitor("train", "infer")
    assert mine
    assert hostile
    for name in hostile:
        body = json.loads(json.dumps({"grader": GRADER, "model_sample": "x"}).replace('"NAME"', json.dumps(name)))
        answer = caller.post("/v1/fine_tuning/alpha/graders/run", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["reward"] == 0
        assert SECRET not in answer.text
