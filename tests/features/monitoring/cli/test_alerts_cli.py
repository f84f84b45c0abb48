"""`luthier alerts` and `luthier feedback`."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from tests.fixtures.mail_server import mail_server

from luthier.core.records.monitoring import Signal, WatchReport
from luthier.core.records.traffic import Exchange
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is looked at has changed."""

    def watch(_context: Context, project_id: str, model: str, *, since: float, until: float) -> WatchReport:
        signal = Signal(
            name="e", title="Errors \x1b[2J", group="serving", unit="%", value=9.0, low=8.0, high=10.0, reference=1.0,
            state="changed", since=1e9, examples=("chatcmpl-1",), do="look at the server",
        )  # fmt: skip
        return WatchReport(
            project_id=project_id, model=model, since=since, until=until, num_exchanges=1, num_with_text=0,
            signals=(signal,),
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "luthier.features.monitoring.service", types.SimpleNamespace(watch=watch))


def test_settings_looks_and_the_list(luthier, sick: None) -> None:  # type: ignore[no-untyped-def]
    assert "no alert is open" in luthier("alerts", "list").out
    assert "nothing is monitored" in luthier("monitor", "check").out
    changed = luthier("alerts", "settings", "--watch", "base", "--every", "2h", "--close-after", 4, "--json").document
    assert (changed["watched"], changed["every_minutes"], changed["rule"]) == (
        ["base"], 120, {"open_after": 1, "close_after": 4},
    )  # fmt: skip
    looked = luthier("monitor", "check")
    assert looked.code == 0
    for words in ("base", "9 % (95%: 8 to 10), was 1 %", "2001-09-09", "chatcmpl-1", "look at the server"):
        assert words in looked.out
    assert "\x1b[2J" not in looked.out
    listed = luthier("alerts", "list", "--json").document
    assert [(one["model"], one["status"]) for one in listed["alerts"]] == [("base", "open")]
    assert luthier("alerts", "settings", "--leave-out", "base", "--off", "--json").document["watched"] == []
    assert "off" in luthier("alerts", "settings").out


@pytest.mark.parametrize("options", [["--every", "1m"], ["--every", "soon"], ["--email", "x"], ["--open-after", "0"]])
def test_settings_that_cannot_be(luthier, options: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert luthier("alerts", "settings", *options).code == 2


def test_a_test_says_who_cannot_be_told(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert "no one else" in luthier("alerts", "test").out
    assert "LUTHIER_SMTP" in luthier("alerts", "settings", "--email", "a@example.org").out
    failed = luthier("alerts", "test")
    assert failed.code == 1
    assert "no mail server is named" in failed.out
    with mail_server() as server:
        monkeypatch.setenv("LUTHIER_SMTP", f"smtp://{server.address}")
        assert luthier("alerts", "test", "--json").document["a@example.org"] == "sent"
    assert server.received[0][0] == ["a@example.org"]


def test_feedback_from_a_file(luthier, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        messages = ({"role": "user", "content": "Question?"},)
        traffic.record(
            context,
            Exchange(exchange_id="c-1", project_id="default", at=1e9, model="m", messages=messages, answer="Answer."),
        )
    path = tmp_path / "said.jsonl"
    said = [{"exchange_id": "c-1", "thumb": "down", "correction": "Better \x1b[2J."}, {"exchange_id": "no", "score": 1}]
    path.write_text("".join(json.dumps(one) + "\n" for one in said), encoding="utf-8")
    done = luthier("feedback", "import", path)
    assert done.code == 1
    assert "1 new" in done.out
    assert "1 correction is waiting" in done.out
    assert "line 2 refused" in done.out
    again = luthier("feedback", "import", path, "--json").document
    assert (again["new"], again["same"], [one["line"] for one in again["refused"]]) == (0, 1, [2])
    shown = luthier("feedback", "list").out
    assert "should be: Better" in shown
    assert "\x1b[2J" not in shown
    assert luthier("feedback", "import", tmp_path / "none").code == 2
    assert luthier("feedback", "queue", "m").code == 2
    queued = luthier("feedback", "queue", "m", "--sample", 5, "--json").document
    assert queued == {"queued": 0, "queued_before": 1, "without_words": 0}
