from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.records.traffic import Exchange
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context


def made(number: int, **fields: object) -> Exchange:
    values: dict[str, object] = {
        "exchange_id": f"chatcmpl-{number}",
        "project_id": "default",
        "at": 1_790_000_000.0 + number,
        "model": "support",
        "target": "run-1",
        "num_prompt_tokens": 10,
        "num_new_tokens": number,
        "seconds": 0.5,
        "first_token_seconds": 0.1,
    }
    return Exchange(**(values | fields))


def with_words(number: int, question: str, answer: str) -> Exchange:
    return made(number, messages=({"role": "user", "content": question},), answer=answer)


def test_what_was_recorded_is_read_at_once_with_and_without_its_words(context: Context) -> None:
    asked = with_words(1, "Was nun?", "Nichts.")
    traffic.record(context, asked)
    traffic.record(context, made(0))
    frame = traffic.exchanges(context, "default")
    assert frame["exchange_id"].to_list() == ["chatcmpl-0", "chatcmpl-1"]  # by time, not by when it was written
    assert set(Exchange.model_fields) <= set(frame.columns)
    assert frame["messages"].to_list() == [None, None]
    assert frame["has_text"].to_list() == [False, True]
    words = traffic.exchanges(context, "default", with_text=True)
    assert json.loads(words["messages"][1]) == [{"role": "user", "content": "Was nun?"}]
    assert traffic.exchange(context, "default", "chatcmpl-1") == asked
    assert traffic.exchange(context, "default", "chatcmpl-0") == made(0)


def test_only_what_is_asked_for_is_read(context: Context) -> None:
    for number in range(4):
        traffic.record(context, made(number, model="ab"[number % 2]))
    traffic.record(context, made(9, project_id="other"))
    at = 1_790_000_000.0
    assert traffic.exchanges(context, "default", model="a")["num_new_tokens"].to_list() == [0, 2]
    assert traffic.exchanges(context, "default", since=at + 1, until=at + 3)["num_new_tokens"].to_list() == [1, 2]
    assert traffic.exchanges(context, "default", model="none").height == 0
    assert traffic.exchanges(context, "other").height == 1


def test_another_projects_exchange_is_unknown(context: Context) -> None:
    traffic.record(context, made(1))
    with pytest.raises(NotFoundError, match="chatcmpl-1"):
        traffic.exchange(context, "other", "chatcmpl-1")


def test_a_home_without_traffic_has_none(context: Context) -> None:
    assert traffic.exchanges(context, "default").height == 0
    assert traffic.num_dropped(context, "default", 0.0, 2e9) == 0


@pytest.mark.parametrize("text", ["\ud800 half", "\x00\x1b[31m", "</script><b>", "a\nb\r\u2028c", "é" * 100_000, ""])
def test_hostile_text_comes_back_as_it_was(context: Context, text: str) -> None:
    traffic.record(context, with_words(1, text, text))
    found = traffic.exchange(context, "default", "chatcmpl-1")
    assert found.answer == text.replace("\ud800", "?")
    assert found.messages == ({"role": "user", "content": found.answer},)


def test_a_line_that_a_kill_cut_off_spoils_no_other(context: Context, tmp_path: Path) -> None:
    traffic.record(context, made(1))
    (segment,) = (context.settings.traffic_folder / "spool").glob("open-*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"exchange_id": "chatcmpl-2", "proj')
    traffic.record(context, made(3))
    assert traffic.exchanges(context, "default")["exchange_id"].to_list() == ["chatcmpl-1", "chatcmpl-3"]


def test_the_newest_exchanges_open_no_older_files(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three days of a file each, and one exchange that is in no file yet."""
    import polars as pl

    from luthier.features.traffic.files import settle
    from luthier.ml.drift.traffic import files

    for number in range(12):
        at = 1_790_000_000.0 + 86_400 * (number // 4) + number
        traffic.record(context, made(number, at=at, status=500 if number == 1 else 200))
    settle(context)
    traffic.record(context, made(12, at=1_790_000_000.0 + 3 * 86_400))
    opened: list[str] = []
    of_files = files._of_files

    def noted(paths: list[Path], condition: pl.Expr, columns: list[str]) -> pl.DataFrame:
        opened.extend(path.parent.name for path in paths)
        return of_files(paths, condition, columns)

    monkeypatch.setattr(files, "_of_files", noted)
    found, is_all = traffic.newest_rows(context, "default", limit=3)
    assert (found["num_new_tokens"].to_list()[-3:], is_all, len(set(opened))) == ([10, 11, 12], False, 1)
    found, is_all = traffic.newest_rows(context, "default", limit=9, until=1_790_000_000.0 + 2 * 86_400)
    assert (found["num_new_tokens"].to_list(), is_all) == (list(range(8)), True)
    found, is_all = traffic.newest_rows(context, "default", limit=1, condition=pl.col("status") >= 400)
    assert found["num_new_tokens"].to_list() == [1]
    assert [one.num_new_tokens for one in traffic.newest(context, "default", limit=2)] == [12, 11]
    assert traffic.newest_rows(context, "default", model="none")[0].height == 0
    newest = traffic.newest(context, "default", since=1_790_000_000.0 + 3 * 86_400)
    assert [one.num_new_tokens for one in newest] == [12]
