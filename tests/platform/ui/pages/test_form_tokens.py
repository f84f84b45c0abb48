"""A form that is sent twice does its work once, and what is shown once is shown to whom it is for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

import luthier.platform.ui
from luthier.platform.auth.service import list_keys
from luthier.platform.home.context import Context
from luthier.platform.notifications.webhooks import list_webhooks
from luthier.platform.ui.forms import SEEN_SECONDS, UNSEEN_SECONDS, ShownOnce, SubmitOnce

Browser = Callable[..., TestClient]
KEY = {"name": "ci", "scopes": ["read"], "expires": "30d"}
PACKAGE = Path(luthier.platform.ui.__file__).parents[2]
TEMPLATES = {  # by the name that pages say
    **{
        str(path.relative_to(PACKAGE / "platform/ui/templates")): path
        for path in (PACKAGE / "platform/ui/templates").rglob("*.html")
    },
    **{
        f"{folder.parent.name}/{path.relative_to(folder)}": path
        for folder in (PACKAGE / "features").glob("*/templates")
        for path in folder.rglob("*.html")
    },
}
WITHOUT = {
    "accounts/passkey.html": "a session begins",
    "accounts/sign_in.html": "a session begins",
    "base.html": "a session ends",
    "language.html": "a browser keeps the language; sent twice, it keeps the same",
    "run_drafts/page.html": "its draft has a token of its own",
}


def token_of(one: TestClient, address: str) -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', one.get(address).text)
    assert found, f"{address} has a form with a token"
    return found[1]


def test_every_form_that_changes_something_carries_a_token() -> None:
    forms = [
        (name, path, line)
        for name, path in TEMPLATES.items()
        for line in re.findall(r'<form[^\n]*method="post"[^\n]*', path.read_text(encoding="utf-8"))
    ]
    assert len(forms) > 50
    for name, path, line in forms:
        assert "form_token()" in line or name in WITHOUT, f"{path}: {line[:80]}"


@pytest.mark.parametrize(
    ("address", "form", "scopes"),
    [
        ("/settings/keys", KEY, ("admin",)),
        ("/settings/projects", {"name": "new"}, ("admin",)),
        ("/settings/members", {"name": "Bo", "password": "correct horse battery", "role": "viewer"}, ("admin",)),
        (
            "/settings/webhooks",
            {"url": "https://example.com/h", "event_types": ["fine_tuning.job.failed"]},
            ("read", "train"),
        ),
    ],
)
def test_a_form_that_is_sent_twice_makes_one(
    home: Context, browser: Browser, address: str, form: dict[str, Any], scopes: tuple[str, ...]
) -> None:
    one = browser(*scopes)
    sent, before = form | {"form_token": token_of(one, address)}, home.audit_log.newest(limit=1)[0].number
    first, second = (one.post(address, data=sent) for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    made = [entry.action for entry in home.audit_log.newest(limit=50) if entry.number > before]
    assert len(made) == len(set(made)) >= 1, "the audit_event is written down once"


def test_another_token_or_another_content_is_another_submission(home: Context, browser: Browser) -> None:
    one, before = browser("admin"), len(list_keys(home))
    token = token_of(one, "/settings/keys")
    one.post("/settings/keys", data=KEY | {"form_token": token})
    one.post("/settings/keys", data=KEY | {"form_token": token, "name": "other"})
    one.post("/settings/keys", data=KEY | {"form_token": token_of(one, "/settings/keys")})
    assert len(list_keys(home)) == before + 3
    another = browser("admin")
    another.post("/settings/keys", data=KEY | {"form_token": token})
    assert len(list_keys(home)) == before + 5, "the key of that browser, and the one that it made"


def test_a_form_that_was_refused_is_tried_again(home: Context, browser: Browser) -> None:
    one = browser("read", "train")
    form = {"url": "https://example.com/h", "form_token": token_of(one, "/settings/webhooks")}
    assert [one.post("/settings/webhooks", data=form).status_code for _ in range(2)] == [422, 422]
    assert list_webhooks(home, "default") == []


def test_a_secret_is_shown_to_its_session_and_not_for_ever(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = browser("admin"), browser("admin")
    app: Any = one.app
    kept = app.router.default._pages.state.shown_once
    now = [100.0]
    monkeypatch.setattr(kept, "_clock", lambda: now[0])
    led = one.post("/settings/keys", data=KEY)
    assert "sk-luthier-" not in other.get(led.headers["location"]).text
    assert "sk-luthier-" in shown(one, led).text
    now[0] += SEEN_SECONDS - 1
    assert "sk-luthier-" in shown(one, led).text, "a second click of a double click follows, too"
    now[0] += 2
    gone = shown(one, led).text
    assert "sk-luthier-" not in gone.replace('placeholder="sk-luthier-', "")
    assert "This was shown once" in gone


def test_what_nobody_looks_at_is_forgotten() -> None:
    now = [0.0]
    kept = ShownOnce(clock=lambda: now[0])
    request: Any = type("R", (), {"cookies": {}, "query_params": {}})()
    address = kept.put(request, "/x?a=1", {"secret": "s"})
    assert address.startswith("/x?a=1&shown=")
    request.query_params["shown"] = address.rpartition("=")[2]
    now[0] = UNSEEN_SECONDS + 1
    assert kept.take(request) == {"is_shown_before": True}


def test_two_clicks_at_once_are_one_submission() -> None:
    calls, begun = [], asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        calls.append((await receive())["body"])
        begun.set()
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 303, "headers": [(b"location", b"/made/1")]})
        await send({"type": "http.response.body", "body": b""})

    async def click() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=SubmitOnce(slow))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
            sent = {"form_token": "t", "name": "a"}
            return list(await asyncio.gather(*(one.post("/make", data=sent) for _ in range(5))))

    answers = asyncio.run(click())
    assert len(calls) == 1
    assert {answer.headers["location"] for answer in answers} == {"/made/1"}


def test_of_those_who_waited_for_one_that_failed_one_does_the_work() -> None:
    statuses, num_done = [422, 303], 0

    async def second_time_lucky(scope: Any, receive: Any, send: Any) -> None:
        nonlocal num_done
        status = statuses.pop(0) if statuses else 303
        for _ in range(3):
            await asyncio.sleep(0)
        num_done += status == 303
        await send({"type": "http.response.start", "status": status, "headers": [(b"location", b"/made/1")]})
        await send({"type": "http.response.body", "body": b""})

    async def click() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=SubmitOnce(second_time_lucky))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
            return list(await asyncio.gather(*(one.post("/make", data={"form_token": "t"}) for _ in range(4))))

    answers = asyncio.run(click())
    assert sorted(answer.status_code for answer in answers) == [303, 303, 303, 422]
    assert num_done == 1


def test_a_submission_that_breaks_off_blocks_no_other() -> None:
    calls = 0

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("bug")

    async def click() -> list[Any]:
        transport = httpx2.ASGITransport(app=SubmitOnce(broken))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
            sent = {"form_token": "t"}
            return list(await asyncio.gather(*(one.post("/x", data=sent) for _ in range(2)), return_exceptions=True))

    assert [type(answer) for answer in asyncio.run(click())] == [RuntimeError] * 2
    assert calls == 2


def test_a_form_whose_work_has_failed_behind_its_answer_does_it_again() -> None:
    calls, failed = 0, set[str]()

    async def working(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        location = f"/working/work-{calls}".encode()
        await send({"type": "http.response.start", "status": 303, "headers": [(b"location", location)]})
        await send({"type": "http.response.body", "body": b""})

    app = SubmitOnce(working)

    async def in_pages(scope: Any, receive: Any, send: Any) -> None:
        works = SimpleNamespace(has_failed=lambda name: name in failed)
        await app(scope | {"app": SimpleNamespace(state=SimpleNamespace(page_work=works))}, receive, send)

    async def click() -> list[str]:
        transport = httpx2.ASGITransport(app=in_pages)
        led: list[str] = []
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as one:
            for fails in ((), (), ("work-1",), ()):
                failed.update(fails)
                led.append((await one.post("/make", data={"form_token": "t"})).headers["location"])
        return led

    assert asyncio.run(click()) == ["/working/work-1", "/working/work-1", "/working/work-2", "/working/work-2"]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("/datasets/new", '{{"prompt": "What comes after {0}?", "completion": "{0}1"}}\n'),
        ("/review/import", '{{"exchange_id": "chatcmpl-{0}", "thumb": "up"}}\n'),
    ],
)
def test_a_form_with_a_file_that_is_sent_twice_makes_one_and_another_file_is_another(
    browser: Browser, address: str, text: str
) -> None:
    one = browser("read", "train")
    token, led = token_of(one, address), []
    for rows in ((1, 2), (1, 2), (3, 4)):
        content = "".join(text.format(number) for number in rows)
        answer = one.post(address, data={"form_token": token}, files={"file": ("a.jsonl", content)})
        assert answer.status_code == 303, answer.text[:2000]
        led.append(answer.headers["location"])
    assert led[0] == led[1] != led[2]
    unlike = one.post(address, files={"file": ("a.jsonl", text.format(5))})
    assert unlike.headers["location"] not in led, "without a token it is a form of its own"
