"""Lines become files by day, small files larger ones, old ones go; and a kill at any step loses and doubles nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from luthier.core.access import Caller
from luthier.core.errors import StorageFullError
from luthier.core.records.traffic import Exchange, Feedback, TrafficPolicy
from luthier.features.traffic import files as traffic_files
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy, user_digest, user_key
from luthier.platform.db.tables import feedback
from luthier.platform.home.context import Context

ME = Caller()
DAY = 86_400.0


def made(number: int, at: float, **fields: object) -> Exchange:
    values: dict[str, object] = {"exchange_id": f"chatcmpl-{number}", "project_id": "default", "at": at, "model": "m"}
    return Exchange(**(values | fields))


def ids(context: Context, **asked: object) -> list[str]:
    return traffic.exchanges(context, "default", **asked)["exchange_id"].to_list()  # type: ignore[arg-type]


def parquet(context: Context) -> list[str]:
    folder = traffic.files_folder(context, "default")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


def spooled(context: Context) -> list[Path]:
    return list((context.settings.traffic_folder / "spool").glob("*.jsonl"))


@pytest.fixture
def now(context: Context) -> float:
    return context.access.now()


def test_lines_become_a_file_a_project_and_day(context: Context, now: float) -> None:
    before = now - 3 * DAY
    for number, at in enumerate([now, before, now - 1]):
        traffic.record(context, made(number, at, messages=({"role": "user", "content": "x"},), answer="y"))
    assert traffic_files.settle(context) == 3
    assert not spooled(context)
    files = context.traffic.list("default")
    assert files[0].num_exchanges == 1
    assert sum(one.num_exchanges for one in files) == 3
    assert parquet(context) == sorted(one.file for one in files)
    assert ids(context) == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-0"]
    assert ids(context, since=now - DAY) == ["chatcmpl-2", "chatcmpl-0"]
    assert traffic.exchange(context, "default", "chatcmpl-1").answer == "y"


def test_only_files_that_may_hold_what_is_asked_for_are_opened(context: Context, now: float) -> None:
    traffic.record(context, made(1, now, model="a"))
    traffic_files.settle(context)
    traffic.record(context, made(2, now, model="b"))
    traffic_files.settle(context)
    (of_a, _) = context.traffic.list("default")
    (traffic.files_folder(context, "default") / of_a.file).write_bytes(b"no file of ours")
    assert ids(context, model="b") == ["chatcmpl-2"]


def test_many_models_are_summed_up_in_the_index_and_still_found(context: Context, now: float) -> None:
    for number in range(120):
        traffic.record(context, made(number, now, model=f"model-{number}"))
    traffic_files.settle(context)
    (one,) = context.traffic.list("default")
    assert len(one.num_by_hour) == 101
    assert sum(sum(hours.values()) for hours in one.num_by_hour.values()) == 120
    assert all(ids(context, model=f"model-{number}") == [f"chatcmpl-{number}"] for number in (0, 60, 119))


def test_small_files_are_joined_and_nothing_comes_twice(context: Context, now: float) -> None:
    for number in range(20):
        traffic.record(context, made(number, now - number))
        traffic_files.settle(context)
    assert len(parquet(context)) < 8 + 2
    assert sorted(ids(context)) == sorted(f"chatcmpl-{number}" for number in range(20))


def test_a_kill_between_file_and_index_and_between_index_and_lines_doubles_nothing(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic.record(context, made(1, now))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the file is written, the index does not know it
        patch.setattr(context.traffic, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            traffic_files.settle(context)
    assert ids(context) == ["chatcmpl-1"]
    with monkeypatch.context() as patch:  # the index knows it, the lines are still there
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            traffic_files.settle(context)
    assert len(spooled(context)) == 1
    assert ids(context) == ["chatcmpl-1"]
    traffic_files.settle(context)
    assert (ids(context), len(parquet(context))) == (["chatcmpl-1"], 1)
    assert not spooled(context)


def test_a_full_disk_loses_nothing_that_is_written_and_says_what_to_do(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic.record(context, made(1, now))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(StorageFullError, match="luthier traffic policy"):
            traffic_files.settle(context)
    assert ids(context) == ["chatcmpl-1"]
    traffic_files.settle(context)
    assert ids(context) == ["chatcmpl-1"]
    assert len(parquet(context)) == 1


def test_a_line_that_was_cut_off_is_counted(context: Context, now: float) -> None:
    traffic.record(context, made(1, now))
    with spooled(context)[0].open("ab") as file:
        file.write(b'{"exchange_id": "chat')
    traffic_files.settle(context)
    assert ids(context) == ["chatcmpl-1"]
    assert traffic.num_dropped(context, "default", now - 3600, now + 3600) == 1
    assert traffic.num_dropped(context, "default", 0.0, now - 7200) == 0


def test_a_file_that_is_damaged_or_elsewhere_is_left_out_and_told(
    context: Context, now: float, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        traffic.record(context, made(number, now + number))
        traffic_files.settle(context)
    first, second, _ = (
        traffic.files_folder(context, "default") / name.file for name in context.traffic.list("default")
    )
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    assert ids(context) == ["chatcmpl-2"]
    assert "is damaged" in caplog.text
    assert "is not on this machine" in caplog.text
    gone = {"in files that are not on this machine": 1}
    assert traffic.lost(context, "default", 0.0, now + DAY) == gone
    assert traffic.num_dropped(context, "default", 0.0, now + DAY) == 1
    assert traffic.lost(context, "default", now - 9 * DAY, now - 8 * DAY) == {}


def test_a_clock_that_was_ahead_does_not_keep_anything_for_years(context: Context, now: float) -> None:
    traffic.record(context, made(1, now + 4000 * DAY))
    traffic.record(context, made(2, 1e300))
    traffic.record(context, made(3, -1e300))
    traffic_files.settle(context)
    assert ids(context, since=now - 60, until=now + 60) == ["chatcmpl-1", "chatcmpl-2"]
    assert ids(context, until=now - DAY) == ["chatcmpl-3"]
    traffic_files.sweep(context)
    assert ids(context) == ["chatcmpl-1", "chatcmpl-2"]


def test_files_of_a_clock_that_was_put_right_afterwards_are_dated_anew(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic.record(context, made(1, now + 400 * DAY))
    with monkeypatch.context() as patch:
        patch.setattr(context.access, "now", lambda: now + 400 * DAY)
        traffic_files.settle(context)
    assert context.traffic.list("default")[0].first_at > now + 399 * DAY
    traffic_files.sweep(context)
    (one,) = context.traffic.list("default")
    assert abs(one.first_at - now) < 600
    assert parquet(context) == [one.file]


def test_what_the_policy_does_not_keep_any_longer_goes(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_traffic_policy(context, ME, TrafficPolicy(keep_days=7))
    for number, days in enumerate([0, 3, 9, 20]):
        traffic.record(context, made(number, now - days * DAY))
    traffic_files.settle(context)
    left = traffic.files_folder(context, "default") / "2020-01-01" / "traffic-left-by-a-kill.parquet"
    left.parent.mkdir()
    left.touch()
    assert traffic_files.sweep(context) == 2
    assert ids(context) == ["chatcmpl-1", "chatcmpl-0"]
    assert len(parquet(context)) == 2
    assert not left.parent.exists()
    assert traffic_files.sweep(context) == 0


@pytest.mark.parametrize("keep_days", [36_500, 999_999, 10**30])
def test_a_policy_that_keeps_for_thousands_of_years_does_not_end_the_sweep_of_others(
    context: Context, now: float, keep_days: int
) -> None:
    set_traffic_policy(context, ME, TrafficPolicy(keep_days=keep_days))
    traffic.record(context, made(1, now - 99 * DAY))
    traffic_files.settle(context)
    assert traffic_files.sweep(context) == 0
    assert ids(context) == ["chatcmpl-1"]


def test_a_sweep_that_is_killed_is_finished_by_the_next_one(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between index and files: the project has no row any more, and its old exchanges must go all the same."""
    traffic.record(context, made(1, now - 40 * DAY))
    traffic_files.settle(context)
    set_traffic_policy(context, ME, TrafficPolicy(keep="full", keep_days=7))
    with monkeypatch.context() as patch:
        patch.setattr(traffic_files, "_unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            traffic_files.sweep(context)
    assert (context.traffic.projects(), len(parquet(context))) == ([], 1)
    traffic_files.sweep(context)
    assert parquet(context) == []


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_user_is_forgotten_in_lines_and_files_with_what_was_said_of_them(context: Context, now: float) -> None:
    theirs = user_digest(user_key(context, "default"), "anna@example.com")
    for number, digest in enumerate([theirs, "", theirs, "another"]):
        traffic.record(context, made(number, now - number, user_digest=digest))
        if number == 1:
            traffic_files.settle(context)
    said = Feedback(feedback_id="f", project_id="default", exchange_id="chatcmpl-2", model="m", thumb="up")
    with context.database.write() as connection:
        values = said.model_dump(include={"feedback_id", "project_id", "exchange_id", "model", "created_at"})
        connection.execute(feedback.insert().values(**values, author_digest="0", document=said.model_dump_json()))
    assert traffic_files.forget_user(context, ME, "anna@example.com").num_exchanges == 2
    assert ids(context) == ["chatcmpl-3", "chatcmpl-1"]
    on_disk = [pl.read_parquet(path) for path in traffic.files_folder(context, "default").rglob("*.parquet")]
    assert theirs not in pl.concat(on_disk)["user_digest"]
    assert not spooled(context)
    with context.database.read() as connection:
        assert connection.execute(feedback.select()).all() == []
    entry = context.audit_log.newest(limit=1)[0]
    assert (entry.action, "anna" in entry.model_dump_json()) == ("traffic.user_forgotten", False)
    assert traffic_files.forget_user(context, ME, "nobody").num_exchanges == 0
    assert traffic_files.forget_user(context, ME, "").num_exchanges == 0


def test_forgetting_looks_into_what_a_kill_has_left_and_tells_what_it_cannot_read(context: Context, now: float) -> None:
    theirs = user_digest(user_key(context, "default"), "anna")
    traffic.record(context, made(1, now, user_digest=theirs))
    traffic_files.settle(context)
    (one,) = context.traffic.list("default")
    path = traffic.files_folder(context, "default") / one.file
    left = path.with_name("left.parquet")
    left.write_bytes(path.read_bytes())
    path.write_bytes(b"PAR1 no more")
    assert traffic_files.forget_user(context, ME, "anna").unreadable == (one.file,)
    assert not left.exists()


def test_projects_have_keys_of_their_own(context: Context) -> None:
    context.access.add_project("other", "other")
    mine, others = user_key(context, "default"), user_key(context, "other")
    assert mine == user_key(context, "default") != others
    assert user_digest(mine, "anna") != user_digest(others, "anna")


def test_what_belongs_to_no_project_is_not_kept(context: Context, now: float) -> None:
    traffic.record(context, made(1, now, project_id="../../gone"))
    traffic.record(context, made(2, now))
    assert traffic_files.settle(context) == 1
    assert ids(context) == ["chatcmpl-2"]
    assert not (context.home / "gone").exists()


Step = Callable[[Context], object]


@pytest.mark.parametrize("meanwhile", [traffic_files.settle, traffic_files.sweep], ids=["settle", "sweep"])
def test_reading_sees_each_exchange_once_while_lines_become_files(
    context: Context, now: float, monkeypatch: pytest.MonkeyPatch, meanwhile: Step
) -> None:
    """Lines are read, then become a file before the index is read: at the worst moment."""
    traffic.record(context, made(1, now - 2 * DAY))
    traffic_files.settle(context)
    traffic.record(context, made(2, now - 2 * DAY))
    listed, done = context.traffic.list, []

    def late(*arguments: object, **named: object) -> object:
        if not done:
            done.append(1)
            monkeypatch.setattr(context.traffic, "list", listed)
            meanwhile(context)
        return listed(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(context.traffic, "list", late)
    assert sorted(ids(context)) == ["chatcmpl-1", "chatcmpl-2"]
    assert done
