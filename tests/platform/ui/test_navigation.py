"""The navigation: five groups, Home above and Settings below them, and where plug-ins go."""

from __future__ import annotations

import pytest

from luthier.core.access import Caller, Scope
from luthier.platform.auth.members_store import Session
from luthier.platform.ui import render
from luthier.platform.ui.render import Page, current, group_of, navigation_for
from luthier.server.pages import PAGES


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> dict[str, Page]:
    pages = dict(sorted(PAGES.items(), key=lambda item: item[1].order))
    monkeypatch.setattr(render, "declared", lambda: pages)
    return pages


def session_of(*scopes: Scope) -> Session:
    return Session(caller=Caller(scopes=scopes), project_name="default", how="key", created_at=0.0, expires_at=1.0)


def shown(*scopes: Scope) -> list[tuple[str, list[str]]]:
    return [(one.title, [page.name for page in one.pages]) for one in navigation_for(session_of(*scopes))]


def test_the_five_groups_in_the_order_of_the_work() -> None:
    assert shown("read", "train", "infer") == [
        ("", ["Home", "Inbox"]),
        ("Data", ["Datasets", "Review"]),
        ("Train", ["Guided run", "Runs", "Studies"]),
        ("Evaluate", ["Evaluations", "Panels"]),
        ("Use", ["Playground", "Models", "Deployments", "Batches"]),
        ("Watch", ["Monitor", "Traffic", "Alerts"]),
        ("", ["Settings"]),
    ]


def test_groups_without_a_page_for_the_visitor_are_left_out() -> None:
    assert shown("infer") == [("Use", ["Playground"]), ("", ["Settings"])]
    assert navigation_for(None) == []


def test_a_plug_in_without_a_group_is_under_more_and_with_one_in_it(ours: dict[str, Page]) -> None:
    ours["theirs"] = Page("Their page", "/plug-ins/theirs", "read", order=55)
    ours["costs"] = Page("Costs", "/plug-ins/costs", "read", order=95, group="watch")
    found = dict(shown("read"))
    assert found["More"] == ["Their page"]
    assert found["Watch"][-1] == "Costs"


def test_each_key_leads_to_one_page() -> None:
    keys = [page.key for page in PAGES.values() if page.key]
    assert len(keys) == len(set(keys)) > 10


@pytest.mark.parametrize(
    ("path", "address", "group"),
    [
        ("/", "/", "main"),
        ("/runs/run-1", "/runs", "train"),
        ("/evaluations/panels/p", "/evaluations/panels", "evaluate"),
        ("/evaluations/eval-1", "/evaluations", "evaluate"),
        ("/deployments/shop", "/deployments", "use"),
        ("/exports/export-1", "/models", "use"),
        ("/pipelines/p", "/studies", "train"),
        ("/worth", "/evaluations", "evaluate"),
        ("/monitor/exchanges", "/monitor/exchanges", "watch"),
        ("/runsandmore", "", "main"),
    ],
)
def test_a_page_belongs_to_the_nearest_entry(path: str, address: str, group: str) -> None:
    assert (current(path), group_of(path)) == (address, group)
