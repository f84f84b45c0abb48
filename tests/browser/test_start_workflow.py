"""Forms that start workflows and the new settings in a real browser: rules and widths kept, the command follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from luthier.features.models.service import pull_model
from luthier.features.workflows.declared_forms import FORMS
from luthier.platform.auth.service import create_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from luthier.testing.tiny import make_tiny_model

from .conftest import PHONE, WIDE, sign_in, violations

MakePage = Callable[..., Page]


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    key: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("start")
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "say 1", "completion": "one"}\n' * 20, encoding="utf-8")
    with Context.open(folder / "home") as context:
        pull_model(context, str(make_tiny_model(folder / "tiny")))
        files.add_file(context, "default", rows, filename="client questions.jsonl", purpose="fine-tune")
        key = create_key(context, "Ada", scopes=("admin",))[1]
    with home_server(folder / "home") as server:
        yield Served(server.url, key)


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)], ids=["light desk", "dark phone"])
def test_the_pages_break_no_rule_and_fit(
    make_page: MakePage, served: Served, scheme: str, size: dict[str, int]
) -> None:
    page = make_page(viewport=size, color_scheme=scheme)
    sign_in(page, served.url, served.key)
    forms = [f"/pipelines/new/{name}" for name in FORMS]
    settings = [f"/settings/{name}" for name in ("gate", "alerts", "sign-in", "projects")]
    for path in ("/studies", *forms, *settings):
        page.goto(f"{served.url}{path}")
        for more in page.locator("details > summary:has-text('More settings')").all():
            more.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
        assert violations(page) == [], path


def test_the_command_follows_the_fields_and_the_study_starts(make_page: MakePage, served: Served) -> None:
    page = make_page()
    sign_in(page, served.url, served.key, "/studies")
    page.get_by_role("link", name="New study").click()
    line = page.get_by_role("region", name="Command", exact=True)
    expect(line).to_contain_text("luthier tune recipe.yaml --budget-hours 2")
    page.get_by_label("Budget").fill("3")
    page.get_by_role("textbox", name="Trials optional", exact=True).click()
    expect(line).to_contain_text("--budget-hours 3")
    page.get_by_label("Base model").select_option(index=1)
    page.get_by_label("Rows to train on").select_option(label="client questions.jsonl")
    expect(page.get_by_role("region", name="Recipe")).to_contain_text("train: client questions.jsonl")
    page.get_by_role("button", name="Start the study").click()
    expect(page.get_by_role("heading", name="Preparation")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("It is paused before its first stage")).to_be_visible()
