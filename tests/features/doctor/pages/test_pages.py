"""The page of the machine: what is there and what is missing, for admins of the first project, without paths."""

from __future__ import annotations

import os
import re
from html import unescape
from typing import Any

import pytest
from tests.fixtures.pages import Browser, shown
from tests.fixtures.questions import answer_to

from luthier.features.doctor import pages
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.ui.work_progress import Stage

ADDRESS = "/settings/machine"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is answered by this process, as over a channel."""
    monkeypatch.setattr(pages, "answer_to", answer_to)


def test_the_machine_is_shown_and_its_rates_stay(home: Context, browser: Browser) -> None:
    before = hardware_of(home)
    stored = {path: path.read_bytes() for path in home.settings.rates_folder.glob("*.json")}
    assert len(stored) == 1
    one = browser("admin")
    assert "luthier doctor" in one.get(ADDRESS).text
    page = unescape(shown(one, one.post(ADDRESS)).text)
    for words in (before.cpu_name, before.precision, "Free disk of the home", "bubblewrap"):
        assert words in page
    assert re.search(rf"{before.num_cores} usable", page)
    assert {path: path.read_bytes() for path in home.settings.rates_folder.glob("*.json")} == stored


@pytest.mark.skipif(os.name == "nt", reason="modes of files say nothing there")
def test_advice_names_no_path_of_the_server(home: Context, browser: Browser) -> None:
    home.home.chmod(0o755)
    one = browser("admin")
    page = unescape(shown(one, one.post(ADDRESS)).text)
    assert "the home HOME is open to other users of this machine (mode 0755)" in page
    assert "chmod -R go-rwx HOME" in page
    assert str(home.home) not in page


def test_advice_is_a_list_with_what_to_do(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(context: Context, question: str, given: dict[str, Any]) -> dict[str, Any]:
        assert question == "machine"
        finding = {"message": "1 GiB of 16 GiB memory are free", "do": "close other programs <b>"}
        return answer_to(context, question, given) | {"warnings": [finding]}

    monkeypatch.setattr(pages, "answer_to", poor)
    one = browser("admin")
    page = shown(one, one.post(ADDRESS)).text
    assert "1 GiB of 16 GiB memory are free" in page
    assert "close other programs &lt;b&gt;" in page
    assert "No problems found." not in page


def test_others_do_not_examine_it(home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "answer_to", lambda *_: pytest.fail("the machine is examined"))
    friend = browser("admin", project=create_project(home, "friend").project_id)
    assert "All projects share this machine" in friend.get(ADDRESS).text
    assert friend.post(ADDRESS).status_code == 403
    assert browser("read", "train").post(ADDRESS).status_code == 403


def test_the_wait_shows_the_parts_of_the_examination(browser: Browser, stages: list[Stage]) -> None:
    assert browser("admin").post(ADDRESS).status_code == 303
    whole, *parts = stages
    assert whole.words == "Examining the machine: 4 of 4 parts"
    assert [one.words for one in parts] == [
        "Loading the libraries",
        "Measuring the processor",
        "Trying the sandbox",
        "Looking for what is missing",
    ]
