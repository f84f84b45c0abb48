"""Rows are tokenised once; what is read from the cache is what was made, or is made again."""

from __future__ import annotations

import os
import time
import tracemalloc
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import OverlongError
from luthier.ml.data.files import sequences
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise import tokenised_cache
from luthier.ml.data.tokenise.token_store import StoredRows, row_writer
from luthier.ml.data.tokenise.tokenised_cache import TokenisedCache, key_of
from luthier.ml.data.tokenise.tokenised_rows import Tokenised, tokenise_all
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


class Shown:
    """Progress that remembers its titles."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> Shown:
        self.titles.append(title)
        return self

    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def example(number: int, answer: str = "It is known.", weight: float | None = None) -> Example:
    turns = (
        Message(role="user", content=f"What is {number}?"),
        Message(role="assistant", content=answer, weight=1),
        Message(role="user", content="Say more."),
        Message(role="assistant", content=f"{number} " * number, weight=weight),
    )
    return Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=turns))


ROWS = [example(n) for n in range(1, 12)]
Ask = Callable[..., Tokenised]


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def ask(chat: ChatTemplate, tmp_path: Path, shown: Shown) -> Ask:
    def call(rows: Sequence[Example] = ROWS, *, max_bytes: int = 1 << 20, **changed: Any) -> Tokenised:
        settings: Any = {"max_length_tokens": 40, "overlong": "truncate"} | changed
        return TokenisedCache(tmp_path / "cache", max_bytes).tokenise_all(rows, chat, progress=shown, **settings)

    return call


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def refuse(*_: Any, **__: Any) -> Tokenised:
    raise AssertionError("tokenised again")


def test_the_second_time_is_read_and_the_same(
    ask: Ask, chat: ChatTemplate, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly = tokenise_all(ROWS, chat, max_length_tokens=40, overlong="truncate", progress=shown)
    assert plainly.truncated_ids  # or the test would say little
    shown.titles.clear()
    assert ask() == plainly
    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    assert ask() == plainly
    assert shown.titles == ["Tokenising", "Tokens from the cache"]


def test_preferences_and_labels_are_remembered(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        Example(
            id=f"p:{n}",
            conversation=Conversation(messages=(Message(role="user", content="Why?"), said("So it is."))),
            rejected=Conversation(messages=(Message(role="user", content="Why?"), said(f"Not {n}."))),
        )
        for n in range(4)
    ]
    labelled = [row.model_copy(update={"is_wanted": n % 2 == 0}) for n, row in enumerate(ROWS)]
    first = [ask(rows, max_length_tokens=500) for rows in (pairs, labelled)]
    assert first[0].rows_per_example == 2
    assert {row.is_wanted for row in first[1].examples} == {True, False}
    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    assert [ask(rows, max_length_tokens=500) for rows in (pairs, labelled)] == first


def test_every_field_is_kept() -> None:
    # a new field has to be written and read, too: then it joins these
    assert [f.name for f in fields(TokenisedExample)] == [
        "id", "input_ids", "loss_mask", "num_truncated_tokens", "is_wanted", "is_replayed",
        "has_thought", "skips_thought", "is_joined", "differs", "target",
    ]  # fmt: skip
    assert [f.name for f in fields(Tokenised)] == [
        "examples", "dropped_ids", "truncated_ids", "kept", "rows_per_example", "row_counts",
    ]  # fmt: skip


def said(content: str) -> Message:
    return Message(role="assistant", content=content)


def test_left_out_rows_are_remembered(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = sorted(e.num_tokens for e in ask(max_length_tokens=10_000).examples)
    first = ask(overlong="drop", max_length_tokens=lengths[5])
    assert first.dropped_ids
    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    assert ask(overlong="drop", max_length_tokens=lengths[5]) == first


def test_whatever_changes_the_tokens_changes_the_name(chat: ChatTemplate, plain: ChatTemplate) -> None:
    settings = {"max_length_tokens": 40, "overlong": "drop"}
    names = [
        key_of(ROWS, chat, settings),
        key_of(ROWS[:-1], chat, settings),
        key_of([*ROWS[:-1], example(11, "It is not.")], chat, settings),
        key_of([*ROWS[:-1], example(11, weight=0)], chat, settings),
        key_of(ROWS[::-1], chat, settings),
        key_of(ROWS, plain, settings),
        key_of(ROWS, chat, settings | {"max_length_tokens": 41}),
        key_of(ROWS, chat, settings | {"overlong": "error"}),
    ]
    assert len(set(names)) == len(names)
    assert key_of([example(n) for n in range(1, 12)], chat, settings) == names[0]


def test_another_tokenizer_or_template_or_version_is_another_entry(
    chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [key_of(ROWS, chat, {})]
    monkeypatch.setattr(chat.tokenizer, "chat_template", chat.tokenizer.chat_template + " ")
    names.append(key_of(ROWS, chat, {}))
    monkeypatch.setattr(tokenised_cache, "version", lambda name: "99")
    names.append(key_of(ROWS, chat, {}))
    monkeypatch.undo()
    tokenizer = type(chat.tokenizer.backend_tokenizer).from_str(chat.tokenizer.backend_tokenizer.to_str())
    tokenizer.add_tokens(["Spruce"])
    monkeypatch.setattr(type(chat.tokenizer), "backend_tokenizer", tokenizer)
    names.append(key_of(ROWS, chat, {}))
    assert len(set(names)) == 4


def test_another_special_token_is_another_entry(chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that writes `bos_token` renders other tokens, though neither it nor the vocabulary has changed."""
    before = key_of(ROWS, chat, {})
    other = chat.tokenizer.special_tokens_map | {"bos_token": "<|im_start|>"}
    assert other != chat.tokenizer.special_tokens_map
    monkeypatch.setattr(type(chat.tokenizer), "special_tokens_map", other)
    assert key_of(ROWS, chat, {}) != before


def test_an_entry_whose_time_cannot_be_set_is_read_all_the_same(
    ask: Ask, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's entry may be read, but not touched."""

    def refused(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    whole = ask()
    shown.titles.clear()
    monkeypatch.setattr(os, "utime", refused)
    assert ask() == whole
    assert shown.titles == ["Tokens from the cache"]


@pytest.mark.parametrize("at", ["first", "header", "ids", "masks", "last", "cut", "empty"])
def test_a_damaged_entry_is_told_of_and_made_anew(
    at: str, ask: Ask, tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask()
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    places = {"first": 0, "header": 30, "ids": len(data) * 2 // 3, "masks": len(data) - 40, "last": len(data) - 1}
    if at in places:
        data[places[at]] ^= 1
    entry.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(at, data))
    shown.titles.clear()
    assert ask() == whole
    assert shown.titles == [f"Rows are tokenised again: entry {entry.name[:12]} of the cache is damaged", "Tokenising"]
    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    assert ask() == whole


def test_what_a_kill_leaves_is_no_entry_and_goes_in_time(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Tokenised) -> Any:
        yield b"luthier-tokenised 2\n"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenised_cache, "_pieces", killed)
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert entries(tmp_path) == []
    # SIGKILL gives no time to remove it
    young, old = (tmp_path / "cache" / f".{name}.partial" for name in ("young", "old"))
    for partial in (young, old):
        partial.write_bytes(b"luthier")
    os.utime(old, (time.time() - 4000,) * 2)
    ask()
    assert not old.exists()
    assert young.exists()
    assert len(entries(tmp_path)) == 2


def test_writers_at_the_same_time_leave_one_whole_entry(ask: Ask, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ask(), range(8)))
    assert all(nonempty(one == found[0] for one in found))
    assert len(entries(tmp_path)) == 1


def test_the_entries_read_longest_ago_make_room(ask: Ask, tmp_path: Path) -> None:
    ask()
    (first,) = entries(tmp_path)
    size = first.stat().st_size
    limit = int(2.5 * size)
    ask(max_length_tokens=39, max_bytes=limit)
    (second,) = set(entries(tmp_path)) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    ask(max_bytes=limit)  # the first is read: now the second is the one not used for longest
    ask(max_length_tokens=38, max_bytes=limit)
    left = entries(tmp_path)
    assert first in left
    assert second not in left
    assert len(left) == 2
    assert sum(entry.stat().st_size for entry in left) <= limit


def test_what_is_larger_than_the_whole_cache_is_not_kept_and_that_is_shown(
    ask: Ask, tmp_path: Path, shown: Shown
) -> None:
    made = ask(max_bytes=100)
    assert made == ask(max_bytes=0)
    assert not (tmp_path / "cache").exists()
    size = 5 * sum(row.num_tokens for row in made.examples)
    said = f"Tokens are not cached: they take {size:,} bytes, and the whole cache 100"
    assert shown.titles == ["Tokenising", said, "Tokenising"]


def test_a_folder_that_cannot_be_written_is_told_of(ask: Ask, tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert ask().examples
    assert shown.titles[0].startswith("Rows are tokenised again: an entry of the cache cannot be read")
    assert shown.titles[-1].startswith("Tokens are not cached: ")


def test_rows_that_are_refused_leave_nothing(ask: Ask, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(OverlongError):
            ask(overlong="error", max_length_tokens=20)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_rows_in_files_are_kept_and_read_as_those_in_memory(
    overlong: str, ask: Ask, chat: ChatTemplate, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenise_all(ROWS, chat, max_length_tokens=10_000, overlong="error", progress=shown)
    most = sorted(row.num_tokens for row in whole.examples)[5]
    how: dict[str, Any] = {"overlong": overlong, "max_length_tokens": most}
    shown.titles.clear()
    monkeypatch.setattr(tokenised_cache, "_ROWS_AT_A_TIME", 4)
    place = tmp_path / "scratch"
    first = ask(spill=Spill(0, place), **how)
    assert first.dropped_ids or first.truncated_ids
    assert isinstance(first.examples, StoredRows)
    (entry,) = entries(tmp_path)
    monkeypatch.setattr(tokenised_cache, "tokenise_all", refuse)
    again = ask(spill=Spill(0, place), **how)
    assert isinstance(again.examples, StoredRows)
    in_memory = ask(**how)
    assert entries(tmp_path) == [entry]
    assert shown.titles == ["Tokenising", "Tokens from the cache", "Tokens from the cache"]
    for found in (first, again):
        assert tuple(found.examples) == in_memory.examples
        assert (tuple(found.kept), tuple(found.row_counts)) == (in_memory.kept, in_memory.row_counts)
        assert (found.dropped_ids, found.truncated_ids) == (in_memory.dropped_ids, in_memory.truncated_ids)
    monkeypatch.undo()
    assert ask(max_bytes=0, **how) == in_memory


def test_an_entry_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised_cache, "_ROWS_AT_A_TIME", 20)
    monkeypatch.setattr(sequences, "_BLOCK_RECORDS", 20)
    num, length = 2_000, 1_000
    writer = row_writer(Spill(0, tmp_path))
    for number in range(num):
        writer.append(TokenisedExample(f"r:{number}", array("i", [number]) * length, b"\0" + b"\1" * (length - 1)))
    made = Tokenised(writer.sequence(), (), (), array("q", range(0, num, 2)), row_counts=array("i", [2]) * (num // 2))
    cache, place = TokenisedCache(tmp_path / "cache"), tmp_path / "cache" / "entry"
    tracemalloc.start()
    try:
        cache._keep(place, made)
        found, trouble = tokenised_cache._read(place, Spill(0, tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert trouble is None
    assert found is not None
    assert list(found.examples) == list(made.examples)
    assert (found.kept, found.row_counts) == (made.kept, made.row_counts)
    assert place.stat().st_size > 5 * num * length
    assert peak < place.stat().st_size / 3
