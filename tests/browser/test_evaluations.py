"""An evaluation where scripts run: its verdict, "Worth it?" in place, and samples found without loading the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.evaluation import Evaluation, Sample, SystemResult
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation
from luthier.testing.servers import home_server
from tests.browser.conftest import PHONE, WIDE, sign_in, violations

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
NUM_ROWS = 3000


def large() -> Evaluation:
    """Three thousand rows of two systems; of every hundredth the tuned one says something else."""
    made = make_evaluation("eval-20261126-120000-aaaaaa")

    def answered(system: SystemResult) -> SystemResult:
        other = system.name == "tuned"
        samples = tuple(
            Sample(
                row_id=f"t.jsonl:{n}",
                prompt=f"question {n}",
                reference="the front is spruce",
                output=f"the back {HOSTILE}" if other and n % 100 == 0 else f"answer {n}",
                num_new_tokens=4,
                finish_reason="stop",
                scores={"exact_match": 0.0},
            )
            for n in range(1, NUM_ROWS + 1)
        )
        return system.model_copy(update={"samples": samples, "num_samples": NUM_ROWS})

    return made.model_copy(update={"systems": tuple(map(answered, made.systems)), "num_rows": NUM_ROWS})


@pytest.mark.parametrize("options", [{"viewport": WIDE, "color_scheme": "dark"}, {"viewport": PHONE}])
def test_samples_are_found_and_paged(
    tmp_path: Path, make_page: Callable[..., Page], options: dict[str, object]
) -> None:
    with Context.open(tmp_path / "home") as context:
        context.evaluations.save(large())
    with home_server(tmp_path / "home") as server:
        page = make_page(**options)
        sign_in(page, server.url, server.key, "/evaluations")
        assert violations(page) == []
        page.click("tbody a")
        expect(page.locator("article.sample")).to_have_count(10)
        page.wait_for_load_state()  # the scripts listen only then
        page.evaluate("window.isSame = true")
        expect(page.locator("h1")).to_contain_text("The tuned model answers 1,500 of 3,000 held-out rows correctly")
        expect(page.locator(".verdict-picture svg")).to_be_visible()
        expect(page.locator("#action .verdict-title")).to_be_visible()
        expect(page.locator("#systems")).to_be_hidden()
        page.focus("#details > summary")
        page.keyboard.press("Enter")
        expect(page.locator("#systems")).to_be_visible()
        assert violations(page) == []
        for name, value in (("answers_per_week", "400"), ("minutes_each", "6"), ("cost_of_an_error", "20")):
            page.fill(f"#worth [name={name}]", value)
        page.click("text=Calculate")
        expect(page.locator("#worth")).to_contain_text("Worth in 12 months")
        assert "answers_per_week=400" in page.url
        page.focus("[name=kind]")
        page.select_option("[name=kind]", "changed")
        status = page.locator("#samples [role=status]")
        expect(status).to_contain_text("30 of 3,000 rows")
        expect(page.locator("[name=kind]")).to_be_focused()
        page.click("text=Next")
        expect(page.locator(".judged-pager")).to_contain_text("page 2 of 3")
        assert "page=2" in page.url
        assert "answers_per_week=400" in page.url, "a filter of samples keeps the answers to the questions"
        assert page.evaluate("window.isSame"), "the page was not loaded again"
        assert page.locator("article.sample img, article.sample script").count() == 0
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        page.go_back()
        expect(page.locator(".judged-pager")).to_contain_text("page 1 of 3")
        expect(page.locator("h1")).to_have_count(1)
