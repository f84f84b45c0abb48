"""Projects by the page: who may open one, and that its first key opens it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown

from luthier.platform.auth.service import caller_of, create_project, list_projects
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/projects"


def test_an_admin_of_default_opens_a_project_and_hands_its_key_on(home: Context, browser: Browser) -> None:
    one = browser("admin")
    answer = shown(one, one.post(ADDRESS, data={"name": "<i>mine</i>"}))
    assert "&lt;i&gt;mine&lt;/i&gt;" in answer.text
    assert "<i>mine" not in answer.text
    found = re.search(r'<code id="secret" class="secret">([^<]+)</code>', answer.text)
    assert found is not None
    caller = caller_of(home, found[1])
    assert caller is not None
    assert (caller.project_id, caller.may("admin")) == (list_projects(home)[1].project_id, True)
    assert found[1] not in one.get(ADDRESS).text
    theirs = browser()
    theirs.post("/sign-in", data={"key": found[1]})
    page = theirs.get(ADDRESS).text
    assert "Your project" in page
    assert page.count("</tr>") == 2, "a head and one project: it knows of no other"


@pytest.mark.parametrize(("name", "status"), [("", 422), ("default", 422), ("x" * 101, 422), ("a\u202eb", 422)])
def test_a_name_that_cannot_be_is_explained(home: Context, browser: Browser, name: str, status: int) -> None:
    answer = browser("admin").post(ADDRESS, data={"name": name})
    assert answer.status_code in (status, 409)
    assert 'role="alert"' in answer.text
    assert len(list_projects(home)) == 1


def test_an_admin_of_another_project_sees_and_makes_none(home: Context, browser: Browser) -> None:
    create_project(home, "mine")
    create_project(home, "theirs")
    one = browser("admin", project="mine")
    page = one.get(ADDRESS).text
    assert "theirs" not in page
    assert "A new project" not in page
    answer = one.post(ADDRESS, data={"name": "more"})
    assert (answer.status_code, "in which the server is set up" in answer.text) == (403, True)
    assert len(list_projects(home)) == 3


def test_a_project_is_renamed_by_its_own_admin_and_by_those_of_default(home: Context, browser: Browser) -> None:
    made, other = create_project(home, "support"), create_project(home, "sales")
    own, local = browser("admin", project="support"), browser("admin")
    assert own.post(f"{ADDRESS}/rename", data={"project": made.project_id, "name": " help desk "}).status_code == 303
    assert home.access.project("help desk").project_id == made.project_id
    assert local.post(f"{ADDRESS}/rename", data={"project": "help desk", "name": "support"}).status_code == 303
    wrong = [
        (own, other.project_id, "mine", 404),
        (own, made.project_id, "sales", 409),
        (local, made.project_id, other.project_id, 422),
        (local, "default", "main", 422),
        (local, made.project_id, " ", 422),
    ]
    answers = [
        one.post(f"{ADDRESS}/rename", data={"project": project, "name": name}) for one, project, name, _ in wrong
    ]
    assert [answer.status_code for answer in answers] == [status for *_, status in wrong]
    assert [one.name for one in list_projects(home)] == ["default", "support", "sales"]
    assert browser("train").post(f"{ADDRESS}/rename", data={"project": "sales", "name": "x"}).status_code == 403


def test_what_was_typed_for_a_project_stays_where_it_is_refused(home: Context, browser: Browser) -> None:
    made, _ = create_project(home, "support"), create_project(home, "sales")
    one = browser("admin")
    page = one.post(f"{ADDRESS}/rename", data={"project": made.project_id, "name": "sales"}).text
    assert '<input name="name" value="sales" maxlength="100" aria-label="Another name for support"' in page
    page = one.post(f"{ADDRESS}/quota", data={"project": made.project_id, "limit": "20 bananas"}).text
    assert page.count('value="20 bananas"') == 1
    assert '<input name="name" value="support"' in page


def test_an_admin_of_default_sets_file_quotas_and_each_project_sees_its_own(home: Context, browser: Browser) -> None:
    made, _ = create_project(home, "support"), create_project(home, "sales")
    local, own = browser("admin"), browser("admin", project="support")
    answer = shown(local, local.post(f"{ADDRESS}/quota", data={"project": made.project_id, "limit": "1.5 GiB"}))
    assert "The files of support may take 1.5 GiB." in answer.text
    assert "0 B of 1.5 GiB" in own.get(ADDRESS).text.replace("\u00a0", " ")
    assert "File quota of support" not in own.get(ADDRESS).text
    wrong = [
        (local, made.project_id, "much", 422),
        (local, "proj-none", "1 GiB", 404),
        (own, made.project_id, "9 GiB", 403),
        (own, "sales", "9 GiB", 404),
        (browser("train"), made.project_id, "9 GiB", 403),
    ]
    answers = [one.post(f"{ADDRESS}/quota", data={"project": who, "limit": most}) for one, who, most, _ in wrong]
    assert [answer.status_code for answer in answers] == [status for *_, status in wrong]
    assert home.access.project("support").max_file_bytes == 3 << 29
    answer = shown(local, local.post(f"{ADDRESS}/quota", data={"project": made.project_id, "limit": " "}))
    assert "The files of support have no limit." in answer.text
    assert home.access.project("support").max_file_bytes is None
