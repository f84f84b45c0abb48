"""Every route, asked over a home with one of everything in it: what answers name, and what a stranger learns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.documented_names import Page as DocumentPage
from tests.documented_names import command_offences
from tests.fixtures.one_loop import OneLoop
from tests.full_home import QUOTED, FullHome, fill_home
from tests.page_routes import QUERIES, WITHOUT_ADDRESS, routes_of
from tests.page_rules import ids_shown, primary_buttons
from tests.surface.gather import commands
from tests.vacuous import nonempty

from luthier.core.access import SCOPES
from luthier.platform.auth.service import create_key, create_project
from luthier.platform.home.context import Context
from luthier.server.home import create_home_app

ClientOf = Callable[..., TestClient]
HX = {"HX-Request": "true"}
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Context, FullHome, Path]]:
    """An open home, the ids of what is in it, and the folder that holds it and the user's rows."""
    folder = tmp_path_factory.mktemp("server")
    base = folder / "bases" / "tiny"
    base.parent.mkdir()
    base.symlink_to(tiny_model)
    with Context.open(folder / "home") as home:
        yield home, fill_home(home, folder, base), folder


@pytest.fixture(scope="module")
def app(filled: tuple[Context, FullHome, Path]) -> FastAPI:
    """What serves that home."""
    return create_home_app(filled[0])


@pytest.fixture(scope="module")
def client_of(filled: tuple[Context, FullHome, Path], app: FastAPI) -> Iterator[ClientOf]:
    """Makes a client that is signed in to the pages of a project, with a key of all scopes."""
    loop = OneLoop()

    def make(project: str = "default") -> TestClient:
        key = create_key(filled[0], "walker", scopes=SCOPES, project=project)[1]
        one = loop.client(app, base_url="http://127.0.0.1", follow_redirects=False, raise_server_exceptions=False)
        one.headers["Sec-Fetch-Site"] = "same-origin"
        assert one.post("/sign-in", data={"key": key}).status_code == 303
        one.headers["Authorization"] = f"Bearer {key}"
        return one

    with loop:
        yield make


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route has answered. is_page: a whole page of the shell, and no piece, file or report."""

    path: str
    status: int
    text: str
    is_page: bool


@pytest.fixture(scope="module")
def answers(filled: tuple[Context, FullHome, Path], app: FastAPI, client_of: ClientOf) -> list[Answer]:
    """What every GET answers, as a page and to HTMX."""
    full, asked = filled[1], client_of()
    paths = [path for method, path in routes_of(app) if method == "GET" and path not in WITHOUT_ADDRESS]
    assert len(paths) > 90
    found = []
    for path in (*paths, *QUERIES):
        for headers in ({}, HX):
            answer = asked.get(full.address(path), headers=headers)
            is_page = answer.status_code == 200 and not headers and '<main class="main"' in answer.text
            found.append(Answer(path, answer.status_code, answer.text, is_page))
    return found


def test_no_answer_names_a_path_of_the_server(filled: tuple[Context, FullHome, Path], answers: list[Answer]) -> None:
    leaks = []
    for answer in nonempty(answers):
        assert answer.status < 500, f"{answer.path}: {answer.text[:500]}"
        text = unescape(answer.text)
        leaks += [
            f"{answer.path}: {text[max(0, one.start() - 80) : one.end() + 40]}" for one in _found(filled[2], text)
        ]
    assert not leaks, "\n".join(leaks)
    assert sum(answer.status == 200 for answer in answers) > 150


def test_pages_call_things_by_their_names_and_show_ids_in_lines_of_details(
    filled: tuple[Context, FullHome, Path], answers: list[Answer]
) -> None:
    pages = nonempty([answer for answer in answers if answer.is_page])
    assert len(pages) > 60

    def is_gone(text: str) -> bool:
        runs = re.findall(r"run-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", text)
        return bool(runs) and all(filled[0].runs.project_of(run_id) is None for run_id in runs)

    # A run that is not there any more has no name.
    shown = [(page.path, text) for page in pages for text in ids_shown(page.text) if not is_gone(text)]
    offenders = [f"{path}: {text[:200]}" for path, text in shown]
    assert offenders == [], "\n".join(["write the name first, and the id into a line of class `mono`", *offenders])


def test_a_page_has_at_most_one_primary_button(answers: list[Answer]) -> None:
    pages = nonempty([answer for answer in answers if answer.is_page])
    found = {page.path: primary_buttons(page.text) for page in pages}
    assert {path: buttons for path, buttons in found.items() if len(buttons) > 1} == {}
    assert sum(map(len, found.values())) > 20


def test_a_page_with_choices_to_search_loads_what_searches_them(answers: list[Answer]) -> None:
    searched = nonempty([answer for answer in answers if answer.is_page and "data-search" in answer.text])
    assert [answer.path for answer in searched if "search_select" not in answer.text] == []
    assert len({answer.path for answer in searched}) > 12


COMMANDS_BESIDE = {
    "/deployments/{name}": ("deploy", "deployments"),
    "/evaluations/new": ("eval", "safety"),
    "/evaluations/panels/new?evaluation={evaluation_id}": ("human-eval create",),
    "/monitor/model?name={name}": ("monitor",),
    "/settings/alerts": ("alerts settings",),
    "/settings/gate": ("gates set",),
    "/settings/keys": ("keys create",),
    "/settings/members": ("users invite", "users add"),
    "/settings/projects": ("projects rename", "projects create"),
    "/settings/traffic": ("traffic policy",),
    "/pipelines/new/{name}": ("tune",),
}
"""What pages let one do, and the commands that do the same, which they show beside it."""


def test_pages_show_the_commands_that_do_the_same_and_each_exists(answers: list[Answer]) -> None:
    pages = nonempty([answer for answer in answers if answer.is_page])
    shown = {page.path: _commands_shown(page.text) for page in pages}
    missing = [
        f"{path}: luthier {name}"
        for path, names in COMMANDS_BESIDE.items()
        if path in shown
        for name in names
        if not any(one.startswith(f"luthier {name} ") for one in shown[path])
    ]
    assert missing == []
    assert len(set(shown) & set(COMMANDS_BESIDE)) > 7
    written = [DocumentPage(path, "\n".join(f"`{one}`" for one in found)) for path, found in shown.items()]
    every = commands()
    assert [f"{page.path}: {what}" for page in written for _, what in command_offences(page, every)] == []


def _commands_shown(text: str) -> list[str]:
    """Commands in `<code>` and in the boxes of commands of a page."""
    found = re.findall(r"<(?:code|pre)\b[^>]*>(luthier [^<\n]*)<", text)
    return [unescape(one).replace("`", "'") for one in found]


def _found(folder: Path, text: str) -> Iterator[re.Match[str]]:
    """Where the folder is named: as it is, in JSON, and in an address."""
    return re.finditer(re.escape(str(folder)) + "|" + re.escape(str(folder).replace("/", "%2F")), text)


def test_what_rows_and_models_say_is_shown_as_it_is(
    filled: tuple[Context, FullHome, Path], client_of: ClientOf
) -> None:
    full, asked = filled[1], client_of()
    found = asked.get(full.address("/api/v1/evaluations/{evaluation_id}?with_samples=true")).json()
    for sample in nonempty(sample for system in found["systems"] for sample in system["samples"]):
        assert {sample["prompt"], sample["output"], sample["reference"]} <= {QUOTED, "p", "o", "r"}
    names = [system["name"] for system in found["systems"]]
    assert names == ["tiny + 4 examples", full.ids["run_id"]]
    assert found["verdict"]["headline"] == f"{full.ids['run_id']} is not better than tiny + 4 examples."
    assert found["comparisons"][0]["baseline"] == names[0]
    assert QUOTED in unescape(asked.get(full.address("/monitor/exchanges/{exchange_id}")).text)


SHARED = {"member_id", "model", "number", "deed", "file_format", "path", "task", "kind", "tinker_kind"}
"""Parameters that are no object of a project: members are of the home, as base models are."""


def absent(real: str) -> str:
    """An id of the same form and length that nobody has."""
    return re.sub(r"(.)(?=$|:ckpt)", lambda last: "e" if last[1] != "e" else "d", real, count=1)


BODIES: dict[str, dict[str, Any]] = {
    "POST /api/v1/evaluations": {"kind": "safety", "candidate": "{run_id}"},
    "POST /api/v1/deployments": {"name": "stolen", "target": "{run_id}"},
    "POST /api/v1/audits": {"file_id": "{file_id}"},
    "POST /api/v1/plans": {"recipe": {"base_model": "tiny", "data": {"train": "{file_id}"}}},
    "POST /api/v1/runs": {"recipe": {"base_model": "tiny", "data": {"train": "{file_id}"}}},
    "POST /v1/fine_tuning/jobs": {"model": "tiny", "training_file": "{file_id}"},
    "POST /api/v1/dataset-imports": {"address": "org/qa", "dataset_id": "{dataset_id}"},
    "POST /v1/chat/completions": {"model": "{checkpoint}", "messages": [{"role": "user", "content": "q"}]},
    "POST /v1/completions": {"model": "{checkpoint}", "prompt": "q"},
    "POST /v1/embeddings": {"model": "{checkpoint}", "input": "q"},
    "POST /v1/classify": {"model": "{checkpoint}", "input": "q"},
    "POST /v1/rerank": {"model": "{checkpoint}", "query": "q", "documents": ["d"]},
    "POST /v1/score": {"model": "{checkpoint}", "text_1": "q", "text_2": "d"},
    "POST /v1/chat/completions/{completion_id}": {"metadata": {"label": "stolen"}},
    "POST /v1/evals/{eval_id}": {"name": "stolen"},
    "POST /v1/evals/{eval_id}/runs": {
        "data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"q": "a"}}]}}
    },
    "POST /v1/batches": {"input_file_id": "{file_id}", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "POST /api/v1/inbox/annotations": {"dataset": "{dataset_id}", "assignee": "ada"},
    "POST /api/v1/inbox/{item}/assign": {"assignee": None},
    "POST /api/v1/inbox/{item}/snooze": {"seconds": 60},
    "POST /api/v1/feedback": {"id": "{exchange_id}", "rating": 1},
    "POST /v1/uploads/{upload_id}/complete": {"part_ids": ["part-1"]},
    "POST /v1/fine_tuning/checkpoints/{checkpoint:path}/permissions": {"project_ids": ["proj-friend"]},
}
FORMS: dict[str, dict[str, Any]] = {
    "POST /datasets/adopt": {"name": "stolen", "file": "{file_id}", "file_id": "{file_id}"},
    "POST /datasets/import": {"address": "org/qa", "dataset": "{dataset_id}"},
    "POST /evaluations/new": {"kind": "safety", "candidate": "{run_id}"},
    "POST /evaluations/panels/new": {"evaluation": "{evaluation_id}", "systems": ["base"]},
    "POST /exports": {"source": "{run_id}", "to": "merged"},
    "POST /deployments": {"name": "stolen", "target": "{run_id}", "deployment": "stolen"},
    "POST /playground/answer": {"model": "{checkpoint}", "prompt": "q"},
    "POST /playground/head": {"model": "{run_id}", "text": "q"},
    "POST /inbox/annotate": {"dataset": "{dataset_id}"},
    "POST /inbox/{item}/assign": {"name": ""},
    "POST /review/add": {"dataset": "{dataset_id}"},
    "POST /review/decide": {"item": "{exchange_id}", "seen": "x", "decision": "accept"},
}
DEFAULT_FORM: dict[str, Any] = {
    "version": "1", "row": "1", "decision": "accept", "seen": "0", "target": "tiny", "revision": "1", "percent": "10",
    "name": "ada", "text": "{}", "key": "x", "kind": "generate", "part": "0.1", "model": "tiny",
}  # fmt: skip
LISTS = (
    "/v1/files?after={file_id}", "/api/v1/runs?after={run_id}", "/v1/fine_tuning/jobs?after={job_id}",
    "/runs?before={run_id}", "/runs/compare?run={run_id}&run={run_id}", "/runs/new?from={run_id}",
    "/runs/new?dataset={dataset_id}", "/runs/new?study={study_id}", "/evaluations/new?model={run_id}",
    "/evaluations/panels/new?evaluation={evaluation_id}", "/review?item={exchange_id}", "/models?after={run_id}",
    "/datasets/new?dataset={dataset_id}", "/evaluations?after={evaluation_id}", "/monitor/model?name={name}",
    "/playground/head?model={run_id}", "/batches?after={batch_id}", "/datasets/import?dataset={dataset_id}&version=1",
)  # fmt: skip
"""Addresses whose queries name objects."""


def _absent(ids: dict[str, str]) -> dict[str, str]:
    return {name: value if name in SHARED else absent(value) for name, value in ids.items()}


def _routes_with_ids(app: FastAPI) -> list[tuple[str, str]]:
    found = [(method, path) for method, path in routes_of(app) if "{" in path and "{token}" not in path]
    return [*found, *(tuple(one.split(" ", 1)) for one in (*BODIES, *FORMS) if "{" not in one)]  # type: ignore[misc]


def _filled_in(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(one, ids) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled_in(one, ids) for one in value]
    for name, one in ids.items():
        value = value.replace(f"{{{name}}}", one) if isinstance(value, str) else value
    return value


def _said(asked: TestClient, method: str, path: str, full: FullHome) -> tuple[int, str]:
    """Status and text of an answer, without what names the object that was asked for."""
    ids, address, named = full.ids, full.address(path), f"{method} {path}"
    sent: dict[str, Any] = {}
    if named in BODIES or path.startswith(("/v1/", "/api/")):
        sent = {} if method in ("GET", "DELETE") else {"json": _filled_in(BODIES.get(named, {}), ids)}
    elif method == "POST":
        sent = {"data": _filled_in(DEFAULT_FORM | FORMS.get(named, {}), ids)}
    answer = asked.request(method, address, **sent)
    text = unescape(answer.text)
    known = {value for ids in (full.ids, *full.of_route.values()) for name, value in ids.items() if name not in SHARED}
    for one in sorted(known, key=len, reverse=True):
        text = text.replace(one, "ID")
    # Drawn for each answer.
    text = re.sub(r'name="form_token" value="[^"]*"|(?<=[?&])restored=[\w-]+', "", text)
    return answer.status_code, re.sub(r"req_[0-9a-f]+|\d{4}-\d\d-\d\dT[\d:.+Z]+|\d+\.\d+ ?m?s\b", "", text)


def _difference(one: str, other: str) -> str:
    """The first place where two answers part."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[max(0, at - 40) : at + 80]!r} against {other[max(0, at - 40) : at + 80]!r}"


def _fingerprint(home: Context, full: FullHome, owner: TestClient) -> str:
    """What there is of the first project; any change shows."""
    parts = [
        owner.get(full.address(path)).text
        for path in (
            "/v1/files", "/api/v1/deployments", "/api/v1/runs", "/api/v1/webhooks", "/v1/fine_tuning/jobs",
            "/api/v1/jobs/{job_id}", "/v1/fine_tuning/checkpoints/{checkpoint}/permissions", "/api/v1/feedback",
        )
    ]  # fmt: skip
    counts = [len(home.exports.list("default")), len(home.rating_panels.list("default")), len(home.jobs.list(limit=99))]
    return "\n".join([*parts, str(counts), str(home.pipelines.list("default", None, limit=9))])


def test_a_stranger_neither_reads_nor_changes_nor_infers_what_another_project_has(
    filled: tuple[Context, FullHome, Path], app: FastAPI, client_of: ClientOf
) -> None:
    home, full, _ = filled
    stranger = client_of(create_project(home, "strangers").project_id)
    routes = _routes_with_ids(app)
    assert len(routes) > 90
    nothing = FullHome(_absent(full.ids), {start: _absent(ids) for start, ids in full.of_route.items()})
    before = _fingerprint(home, full, client_of())
    differing, entered = [], []
    for method, path in routes:
        names = {name.partition(":")[0] for name in re.findall(r"\{([^}]+)\}", path)}
        if names and names <= SHARED:
            continue
        real = _said(stranger, method, path, full)
        if real != (other := _said(stranger, method, path, nothing)):
            differing.append(f"{method} {path}: {real[0]} {_difference(real[1], other[1])}")
        if method != "GET" and real[0] < 300 and real[0] != 204:
            entered.append(f"{method} {path}: {real[0]} {real[1][:300]}")
    for address in LISTS:
        real = _said(stranger, "GET", address, full)
        if real != (other := _said(stranger, "GET", address, nothing)):
            differing.append(f"GET {address}: {real[0]} {_difference(real[1], other[1])}")
    assert not differing, "\n".join(differing)
    assert not entered, "\n".join(entered)
    assert _fingerprint(home, full, client_of()) == before


def test_the_owner_sees_what_the_stranger_does_not(
    filled: tuple[Context, FullHome, Path], app: FastAPI, client_of: ClientOf
) -> None:
    full, owner = filled[1], client_of()
    nothing = FullHome(_absent(full.ids), {start: _absent(ids) for start, ids in full.of_route.items()})
    paths = [path for method, path in _routes_with_ids(app) if method == "GET"]
    differing = [path for path in paths if _said(owner, "GET", path, full) != _said(owner, "GET", path, nothing)]
    assert len(differing) > 40, "the comparison that finds nothing for a stranger finds these for the owner"


def test_a_nul_character_in_a_query_is_refused_by_every_route(app: FastAPI, client_of: ClientOf) -> None:
    one = client_of()
    found = {path for method, path in routes_of(app) if method == "GET"}
    pages = {str(getattr(route, "path", "")) for route in app.router.default._pages.routes}  # type: ignore[attr-defined]
    asked = [(path, 422 if path in pages else 400) for path in sorted(found) if path in pages or "/v1/" in path]
    assert len(asked) > 100
    for path, status in asked:
        address = re.sub(r"\{[^}]*\}", "x", path)
        answer = one.get(f"{address}?filter=a%00b", headers={"Accept": "text/html"})
        assert (answer.status_code, "NUL character" in answer.text) == (status, True), path
