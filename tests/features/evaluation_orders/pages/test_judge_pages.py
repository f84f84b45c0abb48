"""Judges by the page: a job compares one with the people of a panel, and the result is listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_panel, pair_ratings, reading_judge
from tests.fixtures.pages import shown

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.core.results.human_eval import RatingsTable
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.job import carry_out
from luthier.features.human_eval import service as rating_panels
from luthier.features.judges import service as judges
from luthier.ml.inference.models import sources
from luthier.ml.inference.openai import http
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models
from luthier.platform.home.settings import Settings
from luthier.testing.fake_engine import FakeEngine
from luthier.testing.openai_server import OpenAIServer, serving

Browser = Callable[..., TestClient]
ADDRESS = "/evaluations/judges"


@pytest.fixture
def judge(home: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a base model of this server, which judges as somebody who reads."""
    path = str(sources.pull(str(tiny_model), home.home, SilentProgress()).path)

    def opened(_: Context, name: str) -> FakeEngine:
        return FakeEngine(lambda prompt: reading_judge(prompt.conversation.messages[-1].content), name=name)  # type: ignore[union-attr, arg-type]

    monkeypatch.setattr(judges, "open_judge", opened)
    return next(name for name, own in base_models(home).items() if Path(own).name == Path(path).name)


@pytest.fixture
def panel(home: Context, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a panel in which two people have rated sixty pairs."""
    made = make_panel(home, num_rows=3).panel
    monkeypatch.setattr(rating_panels, "ratings_table", lambda *_: RatingsTable(tuple(pair_ratings())))
    return made.panel_id


def test_a_judge_is_compared_with_a_panel_and_listed(
    home: Context, browser: Browser, tiny_model: Path, judge: str, panel: str
) -> None:
    one = browser("read", "train")
    assert ADDRESS in one.get("/evaluations").text
    assert ADDRESS in one.get("/evaluations/panels").text
    form = one.get(ADDRESS).text
    assert "No judge has been compared with people yet" in form
    assert f'<option value="{judge}"' in form
    page = shown(one, one.post(ADDRESS, data={"judge": judge, "panel": panel}))
    assert "as a judge, compared with" in unescape(page.text)
    assert str(tiny_model) not in page.text
    (order,) = evaluation_orders.list_orders(home, Caller())
    assert order.job.document["evaluation"]["panel"] == panel
    assert carry_out(home, order.job).status == "succeeded"
    (stored,) = judges.calibrations(home, "default")
    assert (stored.source, stored.num_items, stored.may_enter_gate) == (panel, 60, True)
    assert carry_out(home, order.job).status == "succeeded", "an attempt that died before its last word"
    assert len(judges.calibrations(home, "default")) == 1, "is not made again"
    listed = unescape(one.get(ADDRESS).text)
    assert "may enter a gate" in listed
    assert "Compared with 2 raters" in listed
    assert re.search(r"Rated answers</dt><dd>60<", listed)
    # Twelve ties of sixty, and as many pairs for the first as for the second.
    assert re.search(r'first is better</th><td class="number">24<', listed)
    assert str(tiny_model) not in listed


def test_only_models_of_the_project_judge_and_only_its_panels(
    home: Context, browser: Browser, judge: str, panel: str
) -> None:
    one = browser("read", "train")
    for wrong in ("http://127.0.0.1:9/v1#m", "/models/judge.gguf", "run-20261125-093000-dddddd", ""):
        answer = one.post(ADDRESS, data={"judge": wrong, "panel": panel})
        assert answer.status_code in (404, 422), wrong
        assert 'role="alert"' in answer.text
    assert one.post(ADDRESS, data={"judge": judge, "panel": "panel-20200101-000000-abcdef"}).status_code == 404
    friend = create_project(home, "friend").project_id
    assert browser("train", project=friend).post(ADDRESS, data={"judge": judge, "panel": panel}).status_code == 404
    viewer = browser("read")
    assert "Compare a judge with people" not in viewer.get(ADDRESS).text
    assert viewer.post(ADDRESS, data={"judge": judge, "panel": panel}).status_code == 403
    assert evaluation_orders.list_orders(home, Caller()) == []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OpenAIServer, str]]:
    """A server that judges as somebody who reads, and the address of its model."""
    monkeypatch.setattr(http, "NUM_ATTEMPTS", 1)
    found = OpenAIServer(answer=reading_judge)
    with serving(found) as url:
        yield found, f"{url}#big"


def test_the_configured_model_is_compared_with_a_panel_while_it_is_configured(
    home: Context, browser: Browser, server: tuple[OpenAIServer, str], panel: str
) -> None:
    asked, address = server
    one = browser("read", "train")
    home.settings = Settings(home=home.home, teacher=address, teacher_usd_per_million_prompt_tokens=0.5,
                             teacher_usd_per_million_new_tokens=2)  # fmt: skip
    form = unescape(one.get(ADDRESS).text)
    assert "Configured by the operator" in form
    assert address in form
    assert "0.5 USD for a million tokens of questions, 2 USD for a million tokens of replies" in form
    answers = [one.post(ADDRESS, data={"judge": ":teacher", "panel": panel}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    later, first = (order.job for order in evaluation_orders.list_orders(home, Caller()))
    assert carry_out(home, first).status == "succeeded"
    (stored,) = judges.calibrations(home, "default")
    assert (stored.judge, stored.num_items) == (address, 60)
    num_asked = len(asked.requests)
    assert num_asked > 0
    assert list(evaluation_orders.models_of(home, first)) == []
    # Another model is configured before the second job begins.
    home.settings = Settings(home=home.home, teacher="http://127.0.0.1:9/v1#other")
    outcome = carry_out(home, later)
    assert outcome.status == "failed"
    assert "no longer configured" in str(outcome.error)
    assert len(asked.requests) == num_asked


def test_a_forged_form_has_no_other_address_asked(
    home: Context, browser: Browser, server: tuple[OpenAIServer, str], panel: str
) -> None:
    asked, address = server
    one = browser("read", "train")
    assert one.post(ADDRESS, data={"judge": ":teacher", "panel": panel}).status_code == 404, "none is configured"
    home.settings = Settings(home=home.home, teacher="https://judge.example/v1#big")
    for forged in (address, "https://judge.example/v1#other", f":teacher#{address}"):
        answer = one.post(ADDRESS, data={"judge": forged, "panel": panel})
        assert answer.status_code in (404, 422), forged
        assert 'role="alert"' in answer.text
    assert evaluation_orders.list_orders(home, Caller()) == []
    assert asked.requests == []


def test_a_panel_without_ratings_is_refused_before_a_worker_begins(home: Context, browser: Browser, judge: str) -> None:
    made = make_panel(home, num_rows=3).panel
    answer = browser("read", "train").post(ADDRESS, data={"judge": judge, "panel": made.panel_id})
    assert answer.status_code == 422
    assert "ratings of 0 items" in answer.text
    assert evaluation_orders.list_orders(home, Caller()) == []
