"""Every method of the installed `openai` client: a route of this server, or refused with what to do instead."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import openai
import pytest
from fastapi.testclient import TestClient
from starlette.routing import Match

from luthier.core.ports import SilentProgress
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.http.hosted_addresses import HOSTED_NAMES, instead_of
from luthier.server.api import create_app

Request = tuple[str, str]  # method, address


class SeenError(Exception):
    """A request was made, and is not sent."""


def resources(owner: Any) -> Iterator[Any]:
    """All groups of methods, at any depth."""
    for name in dir(type(owner)):
        if name.startswith(("_", "with_")):
            continue
        found = getattr(owner, name)
        if type(found).__module__.startswith("openai.resources"):
            yield found
            yield from resources(found)


def methods(resource: Any) -> Iterator[Callable[..., Any]]:
    for name in dir(type(resource)):
        found = getattr(resource, name) if not name.startswith(("_", "with_")) else None
        if inspect.ismethod(found):
            yield found


def called(method: Callable[..., Any]) -> None:
    """By its required parameters alone. What only combines other methods may refuse such values."""
    needed = (one for one in inspect.signature(method).parameters.values() if one.default is one.empty)
    names = [one.name for one in needed if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    values = {name: b"x" if name in ("file", "data", "image", "video") else "x" for name in names}
    try:
        method(**values)
    except (SeenError, TypeError, ValueError, AttributeError, RuntimeError):
        return


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """What the client sends."""
    found: list[Request] = []

    def seen(_: Any, options: Any, **__: Any) -> NoReturn:
        found.append((options.method.upper(), "/v1" + options.url.partition("?")[0]))
        raise SeenError

    with openai.OpenAI(api_key="k", admin_api_key="k", base_url="http://127.0.0.1:1/v1") as client:
        client.request = seen  # type: ignore[method-assign, assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for resource in resources(client):
                for method in methods(resource):
                    called(method)
    return sorted(set(found))


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with Context(Settings(home=tmp_path_factory.mktemp("methods")), SilentProgress()) as context:
        _, key = create_key(context, "k", scopes=("admin",))
        with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as made:
            yield made


@pytest.fixture(scope="module")
def app(visitor: TestClient) -> Any:
    return visitor.app


def has_route(app: Any, request: Request) -> bool:
    scope = {"type": "http", "method": request[0], "path": request[1], "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


def test_every_method_is_a_route_or_refused_with_what_to_do(app: Any, requests: list[Request]) -> None:
    assert len(requests) > 250
    here = [one for one in requests if has_route(app, one)]
    assert len(here) > 50
    silent = [one for one in requests if one not in here and "what to do: " not in (instead_of(one[1]) or "")]
    assert silent == []


def test_what_is_refused_has_no_route(app: Any, requests: list[Request]) -> None:
    both = [one for one in requests if has_route(app, one) and instead_of(one[1]) is not None]
    assert both == []


OLDER = ["/v1/engines", "/v1/engines/m/completions", "/v1/fine-tunes", "/v1/fine-tunes/f/events", "/v1/edits"]


@pytest.mark.parametrize("path", [*OLDER, "/v1/responses/compact", "/v1/threads/t/messages", "/v1/projects/p"])
def test_the_error_says_what_to_do(visitor: TestClient, path: str) -> None:
    answer = visitor.post(path, json={})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unknown_url")
    assert error["message"].startswith(f"no such address: POST {path}; expected: ")
    assert "; what to do: " in error["message"]


def test_azures_addresses_are_named() -> None:
    assert "in place of AzureOpenAI" in str(instead_of("/openai/deployments/m/chat/completions"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/engine", "/engines", "/v1/responses/x", "/", "/v1/"])
def test_other_addresses_are_not_named(path: str) -> None:
    assert instead_of(path) is None


def test_an_unknown_method_and_an_unknown_address_say_what_to_do(visitor: TestClient) -> None:
    for answer in (visitor.put("/v1/models"), visitor.get("/v1/nothing")):
        assert "; expected: " in answer.text
        assert "; what to do: " in answer.text


def test_the_documentation_names_them_all() -> None:
    text = (Path(__file__).parents[4] / "docs" / "server.md").read_text(encoding="utf-8")
    section = text.partition("### Addresses that only the hosted service has")[2].partition("\n### ")[0]
    assert [name for name in HOSTED_NAMES if f"`{name}`" not in section] == []
