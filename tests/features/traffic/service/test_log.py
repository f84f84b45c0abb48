"""The log takes exchanges at once, writes them in a thread of its own, and drops and counts what is too much."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.records.traffic import Exchange, TrafficPolicy
from luthier.features.traffic import files as traffic_files
from luthier.features.traffic import log as traffic_log
from luthier.features.traffic import service as traffic
from luthier.features.traffic.log import RequestRecord, keeps_words, mask_texts
from luthier.features.traffic.policy import set_traffic_policy
from luthier.ml.drift.traffic import log as traffic_log_module
from luthier.ml.drift.traffic.log import MAX_WORDS, Spool, TrafficLog
from luthier.platform.home.context import Context

ME = Caller()


def made(number: int, text: str | None = None) -> Exchange:
    one = Exchange(exchange_id=f"c-{number}", project_id="default", at=1.79e9 + number, model="m")
    words = {"messages": ({"role": "user", "content": text},), "answer": "yes"}
    return one if text is None else one.model_copy(update=words)


class Home:
    """A log that is held up until it is let go."""

    def __init__(self, context: Context, **limits: int) -> None:
        self.context, self.may_write, self.is_writing = context, threading.Event(), threading.Event()
        recorder = context.traffic_recorder
        self.log = TrafficLog(
            Spool(context.settings.traffic_folder / "spool"),
            self.mask,
            tell_lost=lambda lost: traffic_log.count_lost(context, lost),
            settle=lambda: None,
            **limits,
        )
        recorder.log = self.log

    def mask(self, groups: Sequence[Sequence[str]]) -> list[tuple[list[str], int]]:
        self.is_writing.set()
        assert self.may_write.wait(60)
        return mask_texts(groups)

    def dropped(self) -> dict[str, int]:
        self.may_write.set()
        assert self.log.flush()
        return traffic.lost(self.context, "default", 0.0, 4e9)


def test_who_answers_does_not_wait_and_too_much_is_dropped_and_counted(context: Context) -> None:
    home = Home(context, most_waiting=5)
    home.log.offer(made(0, "first"), is_masked=True)
    assert home.is_writing.wait(60)
    for number in range(1, 9):  # nothing is written meanwhile, and this returns
        home.log.offer(made(number, "more"), is_masked=True)
    assert home.dropped() == {"too many waited to be written": 3}
    assert traffic.num_dropped(context, "default", 1.79e9, 1.79e9 + 60) == 3
    assert traffic.exchanges(context, "default").height == 6


def test_what_waits_is_bounded_in_characters_too(context: Context) -> None:
    home = Home(context, most_characters=50_000)
    home.log.offer(made(0, "first"), is_masked=True)
    assert home.is_writing.wait(60)
    for number in range(1, 5):
        home.log.offer(made(number, "x" * 20_000), is_masked=True)
    home.log.offer(made(9), is_masked=True)
    assert home.dropped() == {"too many waited to be written": 2}
    assert traffic.exchanges(context, "default")["exchange_id"].to_list() == ["c-0", "c-1", "c-2", "c-9"]


def test_of_a_huge_message_only_the_words_are_lost_and_that_is_counted(context: Context) -> None:
    home = Home(context)
    home.log.offer(made(1, "x" * (MAX_WORDS + 1)), is_masked=True)
    assert home.dropped() == {"words too long to be kept": 1}
    assert traffic.num_dropped(context, "default", 0.0, 4e9) == 0
    assert traffic.exchanges(context, "default")["has_text"].to_list() == [False]


def test_words_that_cannot_be_masked_are_never_written_as_they_are(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask(groups: Sequence[Sequence[str]]) -> list[tuple[list[str], int]]:
        if any("poison" in text for group in groups for text in group):
            raise RecursionError
        return mask_texts(groups)

    home = Home(context)
    monkeypatch.setattr(home.log, "_mask", mask)
    for number, text in enumerate(["ann@firm.de", "poison", "bob@firm.de"]):
        home.log.offer(made(number, text), is_masked=True)
    assert home.dropped() == {"words that could not be masked": 1}
    assert traffic.exchanges(context, "default")["has_text"].to_list() == [True, False, True]
    on_disk = b"".join(path.read_bytes() for path in context.settings.traffic_folder.rglob("*.jsonl"))
    assert b"poison" not in on_disk
    assert b"firm.de" not in on_disk


def test_a_full_disk_is_told_once_a_minute_and_counted_when_the_database_takes_it(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    home = Home(context)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        patch.setattr(context.watches, "change", full)
        for number in range(3):
            home.log.offer(made(number), is_masked=True)
            assert home.log.flush()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text
    assert home.dropped() == {"the disk took no more": 3}
    home.log.offer(made(4), is_masked=True)
    assert home.log.flush()
    assert traffic.exchanges(context, "default")["exchange_id"].to_list() == ["c-4"]


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_half_line(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, list[int]()

    def partly(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(1)
        if len(calls) == 2:
            return write(descriptor, data[:20], offset)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", partly)
    traffic.record(context, made(1))
    with pytest.raises(OSError, match="space"):
        traffic.record(context, made(2))
    traffic.record(context, made(3))
    (segment,) = (context.settings.traffic_folder / "spool").glob("open-*.jsonl")
    assert segment.read_bytes().count(b"\n") == 2
    assert traffic.exchanges(context, "default")["exchange_id"].to_list() == ["c-1", "c-3"]


WRITER = """
import sys
from pathlib import Path
from luthier.core.records.traffic import Exchange
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context
with Context.open(Path(sys.argv[1])) as context:
    for number in range(10**6):
        values = {"exchange_id": f"c-{number}", "project_id": "default", "at": 1.79e9, "model": "m", "answer": "y"}
        traffic.record(context, Exchange(**values, messages=({"role": "user", "content": "x" * 5000},)))
        print(number, flush=True)
"""


def test_what_was_written_survives_kill_9_while_writing(context: Context) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(context.home)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = []
    for writer in writers:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 50:
            pass
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        assert writer.stdout is not None
        rest = writer.stdout.read().split("\n")
        told.append(max([50, *(int(one) for one in rest if one.isdigit())]))
        writer.wait()
        writer.stdout.close()
    assert traffic_files.settle(context) >= sum(told) + 2
    found = traffic.exchanges(context, "default", with_text=True)
    counts = found.group_by("exchange_id").len()
    assert counts.filter(exchange_id="c-50")["len"].to_list() == [2]
    assert set(found["answer"]) == {"y"}


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    with Context.open(tmp_path / "home") as context:
        exchange = RequestRecord(context, ME, "m")
        exchange.end(None)
    with Context.open(tmp_path / "home") as context:
        assert traffic.exchanges(context, "default")["exchange_id"].to_list() == [exchange.exchange_id]


def test_an_exchange_after_the_end_is_counted_and_no_error(context: Context) -> None:
    context.traffic_recorder.log.close()
    RequestRecord(context, ME, "m").end(None)
    context.traffic_recorder.log.flush()
    assert traffic.num_dropped(context, "default", 0.0, 4e9) == 1


def test_a_clock_that_jumps_changes_no_duration(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = RequestRecord(context, ME, "m")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    exchange.end(None)
    context.traffic_recorder.log.flush()
    one = traffic.exchange(context, "default", exchange.exchange_id)
    assert 0 <= one.seconds < 60
    assert one.at == exchange.at > 1e9


def test_lines_become_files_by_themselves(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_log_module, "_SETTLE_BYTES", 1)
    RequestRecord(context, ME, "m").end(None)
    deadline = time.monotonic() + 60
    while not context.traffic.list("default"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert traffic.exchanges(context, "default").height == 1


def test_the_sample_is_as_large_as_the_policy_says_and_the_same_again() -> None:
    policy = TrafficPolicy(keep="sampled", fraction=0.2)
    drawn = [keeps_words(policy, f"chatcmpl-{number}") for number in range(5000)]
    assert 850 < sum(drawn) < 1150
    assert drawn[:50] == [keeps_words(policy, f"chatcmpl-{number}") for number in range(50)]


def test_a_policy_of_another_process_is_heard_of(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert context.traffic_recorder.known("default")[0].keep == "metadata"
    set_traffic_policy(context, ME, TrafficPolicy(keep="full"))
    assert context.traffic_recorder.known("default")[0].keep == "metadata"
    monkeypatch.setattr(traffic_log, "_KNOWN_SECONDS", 0.0)
    assert context.traffic_recorder.known("default")[0].keep == "full"


def test_masks_reach_names_arguments_of_calls_and_secrets() -> None:
    secret = "ghp_" + "x7Kq2mZp9RtW4vLc8NbY3sDf6GhJ1aQe5UoT"
    texts = ["bob@firm.de", '{"to": "bob@firm.de"}', f"key {secret}", "\ud800"]
    ((kept, num_masked),) = mask_texts([texts])
    assert kept == ["person1@example.com", '{"to": "person1@example.com"}', "key <secret-1>", "?"]
    assert num_masked == 3
    assert mask_texts([]) == []
    assert mask_texts([[]]) == [([], 0)]


def test_traffic_is_masked_where_a_value_is_not_certain_too() -> None:
    """What a repair of rows leaves, since nothing makes it certain, would leak here."""
    ((texts, num_masked),) = mask_texts(
        [["It was 415-867-5309.", "At 12 Baker Street", "see 95.25.40.201", "2400/200=12"]]
    )
    assert texts == ["It was +1-201-555-0100.", "At 1 Example Street", "see 192.0.2.1", "2400/200=12"]
    assert num_masked == 3
