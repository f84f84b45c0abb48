"""`luthier inbox`: list, assign, snooze, done, reopen."""

from __future__ import annotations

import re
from pathlib import Path

from tests.features.inbox.service.test_service import correct, member

from luthier.platform.home.context import Context


def test_the_inbox_by_commands(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert "nothing waits" in luthier("inbox", "list").out
    with Context.open(home) as context:
        correct(context)
        member(context, "Ben", "trainer")
    (entry,) = luthier("inbox", "list", "--json").document
    assert entry["title"] == "Review answers of shop-bot"
    assert "assigned to Ben" in luthier("inbox", "assign", entry["id"], "Ben", "--due", "2999-12-31").out
    assert "2999-12-31" in luthier("inbox", "list", "--for", "Ben").out
    assert luthier("inbox", "list", "--for", "Cleo", "--json").document == []
    assert luthier("inbox", "snooze", entry["id"], "3d", "--json").document["status"] == "snoozed"
    assert re.search(r"hidden until \d{4}-\d\d-\d\d \d\d:\d\d UTC", luthier("inbox", "snooze", entry["id"], "3d").out)
    assert "nothing is done" in luthier("inbox", "list", "--show", "done").out
    assert "open again" in luthier("inbox", "reopen", entry["id"]).out
    assert luthier("inbox", "done", entry["id"], "--json").document["status"] == "done"
    assert "assigned to nobody" in luthier("inbox", "assign", entry["id"]).out
    for wrong, words in (
        (("assign", entry["id"], "Ben", "--due", "soon"), "a day such as"),
        (("done", "item-000000000000"), "no entry here"),
        (("snooze", entry["id"], "long"), "not a duration"),
    ):
        done = luthier("inbox", *wrong)
        assert (done.code, words in done.err) == (2, True), wrong
