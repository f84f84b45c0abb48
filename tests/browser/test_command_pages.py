"""Pages for what only commands could do: axe-core finds nothing, and nothing overflows on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from luthier.features.model_checks.service import Check, ModelCheck
from luthier.features.model_checks.stored import store_check
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from tests.full_home import fill_home

from .conftest import PHONE, WIDE, sign_in, violations

MakePage = Callable[..., Page]
_FITS = "document.documentElement.scrollWidth <= innerWidth"
LONG = "the loss of padded rows differs from that of the model itself by 0.01 of it"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("command_pages")
    base = folder / "bases" / "tiny"
    base.parent.mkdir()
    base.symlink_to(tiny_model)
    with Context.open(folder / "home") as context:
        fill_home(context, folder, base)
        model = pull_model(context, str(base))
        checks = (
            Check(name="template", status="works", path="its own"),
            Check(name="loss", status="wrong", reason=LONG),
        )
        store_check(
            context,
            str(model.sha256),
            ModelCheck(
                model="tiny", path=str(base), architecture=None, num_parameters=1, context_length_tokens=1,
                layers="all", checks=checks,
            ),
        )  # fmt: skip
        key = create_key(context, "Ada", scopes=("admin",))[1]
    with home_server(folder / "home") as server:
        yield server.url, key


@pytest.mark.parametrize("options", [{"viewport": WIDE}, {"viewport": PHONE, "color_scheme": "dark"}])
def test_axe_finds_nothing_and_nothing_overflows(
    make_page: MakePage, served: tuple[str, str], tmp_path: Path, options: dict[str, object]
) -> None:
    url, key = served
    page = make_page(**options)
    sign_in(page, url, key)

    def check(place: str) -> None:
        assert page.evaluate(_FITS), place
        assert violations(page) == [], place

    for path, heading in (
        ("/models/tiny", "tiny"),
        ("/models/removal?name=tiny", "Remove from this machine"),
        ("/evaluations/import", "Import an eval"),
        ("/runs/import", "Import a recipe"),
        ("/evaluations/judges", "Judges"),
        ("/exports/benchmarks", "Compare formats"),
    ):
        page.goto(f"{url}{path}")
        assert page.locator("h1").inner_text() == heading
        check(path)
    page.goto(f"{url}/datasets/forget")
    check("/datasets/forget")
    page.fill("#row", "question 1 of nobody")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("heading", name="What contains it").wait_for()
    check("nothing found")
    page.goto(f"{url}/review/import")
    check("/review/import")
    said = tmp_path / "said.jsonl"
    said.write_text('{"exchange_id": "chatcmpl-of-nobody", "thumb": "up"}\n', encoding="utf-8")
    page.set_input_files("#file", said)
    page.get_by_role("button", name="Import").click()
    page.get_by_text("Lines that were refused").wait_for()
    check("a refused line")
    page.close()
