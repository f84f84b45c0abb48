"""The audit log by the page: entries of the project alone, filtered and paged, and the proof that it is whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from luthier.core.access import Caller
from luthier.platform.audit_log.service import make_audit_event, verify_log
from luthier.platform.auth.service import create_key, create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
ADDRESS = "/settings/audit-log"
HOSTILE = "<script>alert(1)</script>"


def test_entries_of_the_project_newest_first(home: Context, browser: Browser) -> None:
    other = Caller(project_id=create_project(home, "mine").project_id)
    facts = {"name": HOSTILE, "num_rows": 3, "ends_at": 1e9}
    home.audit_log.append(make_audit_event(Caller(name=HOSTILE), "file.deleted", "file-1", facts))
    home.audit_log.append(make_audit_event(other, "file.secret_of_mine", "file-2"))
    page = browser("admin").get(ADDRESS).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "3 facts" in page
    assert '<dd><code><time datetime="2001-09-09T01:46:40+00:00"' in page
    assert "secret_of_mine" not in page
    assert page.index("session.begun") < page.index("<code>file.deleted")
    assert "secret_of_mine" in browser("admin", project="mine").get(ADDRESS).text


def test_they_are_filtered_and_paged(home: Context, browser: Browser) -> None:
    for number in range(60):
        home.audit_log.append(make_audit_event(Caller(name=f"Ada {number % 2}"), "row.decided", f"row-{number}-"))
    one = browser("admin")
    page = one.get(ADDRESS, params={"actor": "aDA 1", "action": "row.decided"}).text
    assert "row-59-" in page
    assert "row-58-" not in page
    assert "Older entries" not in page
    page = one.get(ADDRESS, params={"action": "row.decided"}).text
    older = page.split('<a class="button" href="')[1].split('"')[0].replace("&amp;", "&")
    assert older.startswith(f"{ADDRESS}?action=row.decided&before=")
    page = one.get(older).text
    assert "row-9-" in page
    assert "row-10-" not in page
    assert "Older entries" not in page
    assert "No entry matches this filter." in one.get(ADDRESS, params={"actor": "%"}).text
    assert one.get(ADDRESS, params={"before": "x"}).status_code == 422


def test_the_chain_is_verified_with_and_without_a_head(home: Context, browser: Browser) -> None:
    one = browser("admin")
    verdict = verify_log(home)
    head = f"{verdict.head_number}:{verdict.head_hash}"
    page = one.get(f"{ADDRESS}/verify").text
    assert "The log is complete" in page
    assert head in page
    assert "<html" in page
    piece = one.get(f"{ADDRESS}/verify", params={"expect": head}, headers={"HX-Request": "true"}).text
    assert "The log is complete" in piece
    assert "<html" not in piece
    wrong = one.get(f"{ADDRESS}/verify", params={"expect": "<b>"})
    assert (wrong.status_code, "NUMBER:HASH, a number" in wrong.text, "<b>" in wrong.text) == (422, True, False)
    cut = one.get(f"{ADDRESS}/verify", params={"expect": f"99:{'0' * 64}"}, headers={"HX-Request": "true"}).text
    assert "its end was cut off" in cut


def test_an_entry_that_was_changed_is_named(home: Context, browser: Browser) -> None:
    one = browser("admin")
    create_key(home, "x", scopes=("read",))
    with home.database.write() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
        for name in names:
            connection.execute(text(f"DROP TRIGGER {name}"))
        connection.execute(text("UPDATE audit_log SET actor = 'somebody else' WHERE number = 2"))
    page = one.get(f"{ADDRESS}/verify").text
    assert "tampered with at entry 2" in page
    assert "it was changed" in page


@pytest.mark.parametrize("scopes", [("read",), ("read", "train", "infer")])
def test_it_is_for_admins(browser: Browser, scopes: tuple[str, ...]) -> None:
    assert browser(*scopes).get(f"{ADDRESS}/verify").status_code == 403
