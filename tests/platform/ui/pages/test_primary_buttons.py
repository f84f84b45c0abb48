"""One primary button a page, also where there is nothing yet: what to do first is never a choice of two."""

from __future__ import annotations

from tests.fixtures.pages import Browser
from tests.page_rules import primary_buttons
from tests.vacuous import nonempty

from luthier.server.pages import PAGES

MORE = (
    "/models?show=base",
    "/models?show=lineage",
    "/evaluations?q=nothing",
    "/evaluations/new",
    "/evaluations/panels/new",
    "/datasets/import",
    "/runs/compare",
    "/playground/head",
    "/monitor/alerts",
    "/monitor/exchanges",
    "/inbox?show=open",
    "/pipelines/new/tune",
    "/pipelines/new/distill",
)
"""Addresses that the navigation does not name."""


def test_a_page_of_an_empty_home_has_at_most_one_primary_button(browser: Browser) -> None:
    one = browser("read", "train", "infer", "admin")
    found = {}
    for address in nonempty(dict.fromkeys([*(page.address for page in PAGES.values()), *MORE])):
        answer = one.get(address)
        assert answer.status_code == 200, address
        found[address] = primary_buttons(answer.text)
    assert {address: buttons for address, buttons in found.items() if len(buttons) > 1} == {}
    assert found["/batches"] == ["Start"]
    assert found["/models"] == ["Start a guided run"]
