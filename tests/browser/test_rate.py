"""A rater in a browser: keys alone, nothing said of what is not on the screen, the end, and pages that all can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from luthier.core.results.human_eval import RatingItem
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from tests.assessed import careful, clicking, make_panel, rate_all
from tests.browser.conftest import PHONE, sign_in, violations

MakePage = Callable[..., Page]
PATIENT = 120_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeServer]:
    with home_server(tmp_path_factory.mktemp("rate") / "home") as running:
        yield running


def test_pairs_are_rated_by_keys_alone(server: HomeServer, make_page: MakePage) -> None:
    with Context.open(server.home) as context:
        made = make_panel(context, num_rows=3, attention=0)
    page = make_page()
    page.goto(server.url + made.links[0].path)
    assert violations(page) == []
    page.keyboard.press("Enter")  # Begin has the focus
    expect(page.get_by_text("1 of 3", exact=True)).to_be_visible(timeout=PATIENT)
    assert violations(page) == []
    boxes = [page.get_by_role("region", name=f"Text of answer {side}").bounding_box() for side in "ab"]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert abs(boxes[0]["y"] - boxes[1]["y"]) < 2, "side by side"
    for keys, number in ((("a",), "2 of 3"), (("ArrowRight",), "3 of 3")):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text(number, exact=True)).to_be_visible(timeout=PATIENT)
    page.keyboard.press("u")
    expect(page.get_by_text("2 of 3", exact=True)).to_be_visible(timeout=PATIENT)
    page.keyboard.press("c")
    page.keyboard.type("both are bad, t")  # letters in a comment choose nothing
    page.keyboard.press("Escape")
    expect(page.locator("input[name=choice]:checked")).to_have_count(0)
    page.keyboard.press("t")
    page.keyboard.press("Enter")
    expect(page.get_by_text("3 of 3", exact=True)).to_be_visible(timeout=PATIENT)
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="you are done")).to_be_visible(timeout=PATIENT)
    with Context.open(server.home) as context:
        kept = context.rating_panels.ratings(made.panel.panel_id)
    assert len(kept) == 3
    assert [one.comment for one in kept if one.preference == "tie"] == ["both are bad, t"]
    assert all(one.seconds is not None for one in kept)


def test_scores_by_keys_on_a_phone_and_answers_one_below_the_other(server: HomeServer, make_page: MakePage) -> None:
    with Context.open(server.home) as context:
        scored = make_panel(context, kind="likert", num_rows=1, attention=0)
        pairs = make_panel(context, num_rows=1, attention=0)
    page = make_page(viewport=PHONE, color_scheme="dark")
    page.goto(f"{server.url}{scored.links[0].path}?begin=1")
    assert violations(page) == []
    for key in "425":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 of 2", exact=True)).to_be_visible(timeout=PATIENT)
    page.goto(f"{server.url}{pairs.links[0].path}?begin=1")
    boxes = [page.get_by_role("region", name=f"Text of answer {side}").bounding_box() for side in "ab"]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with Context.open(server.home) as context:
        (kept,) = context.rating_panels.ratings(scored.panel.panel_id)
    assert kept.scores == {"relevance": 4, "coherence": 2, "accuracy": 5}


def _wrong(item: RatingItem) -> str:
    assert item.check is not None
    return "a" if item.check.preference == "b" else "b"


def test_the_page_of_a_panel_can_be_used_by_all(server: HomeServer, make_page: MakePage) -> None:
    with Context.open(server.home) as context:
        made = make_panel(context, num_rows=12)
        for place in (0, 1):
            rate_all(context, made, place, careful("pairwise", seed=place))
        clicks = clicking("pairwise", seed=3)
        # luck alone may pass a check: this one passes none
        rate_all(context, made, 2, lambda item: clicks(item) if item.check is None else _wrong(item))
    page = make_page()
    page.set_default_timeout(PATIENT)  # the first report loads what figures are made with
    sign_in(page, server.url, server.key, f"/evaluations/panels/{made.panel.panel_id}")
    expect(page.get_by_text("seems not to read").first).to_be_visible(timeout=PATIENT)
    assert violations(page) == []
