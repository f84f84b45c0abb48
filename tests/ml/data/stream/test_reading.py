"""Records of a stream: each once an epoch, in an order of the seed, and the same ones after any interruption."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.data_stream import LanePlace, StreamCounts, StreamPosition
from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.files.source import Source, open_source
from luthier.ml.data.stream import reading
from luthier.ml.data.stream.reading import RecordStream, Selection, Shard, all_records
from luthier.ml.data.stream.records import RawRecord

Write = Callable[[Path, Sequence[int]], None]
MEMORY = 1 << 24


def write_jsonl(path: Path, numbers: Sequence[int]) -> None:
    # A blank line between two rows is none, and letters beyond ASCII have several bytes.
    path.write_text(
        "".join(json.dumps({"n": n, "text": "ü" * (n % 7)}, ensure_ascii=False) + "\n\n" for n in numbers),
        encoding="utf-8",
    )


def write_gzip(path: Path, numbers: Sequence[int]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"n": n}) + "\n" for n in numbers).encode()))


def write_csv(path: Path, numbers: Sequence[int]) -> None:
    path.write_text("n,text\n" + "".join(f'{n},"two\nlines"\n' for n in numbers))


def write_parquet(path: Path, numbers: Sequence[int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": list(numbers)}), path, row_group_size=5)


FORMATS: dict[str, Write] = {
    "jsonl": write_jsonl, "jsonl.gz": write_gzip, "csv": write_csv, "parquet": write_parquet,
}  # fmt: skip


def shards(
    folder: Path, sizes: Sequence[int], kind: str = "jsonl", first: int = 0, source: int = 0
) -> tuple[Shard, ...]:
    """Files of rows that are numbered from `first` on."""
    made = []
    for place, size in enumerate(sizes):
        path = folder / f"{source}-{place}.{kind}"
        if size:
            FORMATS[kind](path, range(first, first + size))
        else:
            path.write_bytes(b"")
        made.append(Shard(source, path.name, opener(path)))
        first += size
    return tuple(made)


def opener(path: Path) -> Callable[[], Source | None]:
    return lambda: open_source(path) if path.stat().st_size else None


def stream(
    lanes: Sequence[tuple[Shard, ...]],
    *,
    size: int = 7,
    seed: int = 3,
    weights: Sequence[float] | None = None,
    memory_bytes: int = MEMORY,
    selections: Mapping[int, Selection] | None = None,
) -> RecordStream:
    return RecordStream(lanes, weights, seed=seed, buffer_size=size, memory_bytes=memory_bytes, selections=selections)


def numbers(records: RecordStream, count: int) -> list[int]:
    found = [records.next().row() for _ in range(count)]
    return [int(row.fields["n"]) for row in found if isinstance(row, Row)]


def test_an_epoch_holds_each_record_once_and_each_epoch_has_another_order(tmp_path: Path) -> None:
    lane = shards(tmp_path, (9, 3, 20, 8))
    found = numbers(stream([lane]), 120)
    epochs = [found[:40], found[40:80], found[80:]]
    assert [sorted(one) for one in epochs] == [list(range(40))] * 3
    assert len({tuple(one) for one in epochs}) == 3
    assert numbers(stream([lane]), 120) == found
    assert numbers(stream([lane], seed=4), 40) != epochs[0]
    assert numbers(stream([lane], size=100), 40) != list(range(40)), "a buffer larger than the rows shuffles them all"


def test_without_a_buffer_records_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    assert numbers(stream([shards(tmp_path, (4, 3))], size=1), 14) == [*range(7), *range(7)]


def test_a_stream_goes_on_from_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    lane = shards(tmp_path, (9, 3, 0, 20, 8))
    whole = numbers(stream([lane]), 130)
    records = stream([lane])
    for done in range(100):
        position = records.position()
        again = stream([lane])
        again.restore(position)
        assert numbers(again, 30) == whole[done : done + 30], f"after {done} records"
        again.restore(position)
        assert again.position() == position.model_copy(update={"counts": again.position().counts})
        records.next()


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv", "parquet"])
def test_each_format_goes_on_from_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    lane = shards(tmp_path, (17,), kind)
    records = stream([lane], size=3)
    before = numbers(records, 11)
    position = records.position()
    assert position.refill_lanes[0].row > 0, "it is not read from the beginning"
    rest = numbers(records, 10)
    assert sorted([*before, *rest][:17]) == list(range(17))
    records.restore(position)
    assert numbers(records, 10) == rest
    records.close()


def test_what_was_read_long_ago_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 10)
    lane = shards(tmp_path, (400,))
    records = stream([lane], size=5)
    numbers(records, 300)
    place = records.position().refill_lanes[0]
    assert 200 < place.row <= 300
    lines = (tmp_path / "0-0.jsonl").read_bytes()[place.offset :].split(b"\n")
    assert json.loads(next(line for line in lines if line))["n"] == place.row


def test_sources_with_weights_are_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    lanes = [shards(tmp_path, (6, 4)), shards(tmp_path, (30,), first=100, source=1)]
    records = stream(lanes, weights=(3, 1))
    found = numbers(records, 400)
    first = [n for n in found if n < 100]
    assert abs(len(first) - 300) < 45, "five standard deviations of 400 draws"
    times = Counter(first).values()
    assert max(nonempty(list(times))) - min(times) <= 3, "a source that is done begins again"
    assert records.num_epochs == 0
    position, rest = records.position(), numbers(records, 60)
    again = stream(lanes, weights=(3, 1))
    again.restore(position)
    assert numbers(again, 60) == rest


def test_an_empty_shard_is_passed_over_and_counted_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    records = stream([shards(tmp_path, (4, 0, 5))])
    assert sorted(numbers(records, 9)) == list(range(9))
    assert records.num_empty_shards == 1
    numbers(records, 9)
    assert (records.num_empty_shards, records.num_epochs) == (2, 2)
    with pytest.raises(DataError, match=r"1-0\.jsonl, 1-1\.jsonl hold no rows"):
        stream([shards(tmp_path, (0, 0), source=1)]).next()


def test_a_shard_that_has_shrunk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    records = stream([shards(tmp_path, (30,))], size=3)
    numbers(records, 20)
    position = records.position()
    write_jsonl(tmp_path / "0-0.jsonl", range(12))
    with pytest.raises(DataError, match=r"0-0\.jsonl was changed while it was read"):
        records.restore(position)


def test_a_buffer_stays_within_its_memory(tmp_path: Path) -> None:
    (tmp_path / "0-0.jsonl").write_text("".join(json.dumps({"n": n, "text": "x" * 400}) + "\n" for n in range(9)))
    lane = (Shard(0, "0-0.jsonl", opener(tmp_path / "0-0.jsonl")),)
    with pytest.raises(DataError, match=r"a row of 0-0\.jsonl takes 0\.0 MiB in memory, more than the shuffle buffer"):
        stream([lane], memory_bytes=500).next()
    with pytest.raises(DataError, match=r"3 rows of the shuffle buffer of 7 take more than 0\.0 MiB"):
        stream([lane], memory_bytes=1600).next()
    assert sorted(numbers(stream([lane], size=2, memory_bytes=1600), 9)) == list(range(9))


def test_a_position_names_places_alone(tmp_path: Path) -> None:
    records = stream([shards(tmp_path, (9,))])
    numbers(records, 2)
    position = records.position()
    assert position.refill_lanes == (LanePlace(),)
    assert "ü" not in position.model_dump_json()


def test_the_next_shard_is_fetched_while_one_is_read(tmp_path: Path) -> None:
    asked: list[str] = []
    lane = tuple(replace(shard, prefetch=partial(asked.append, shard.name)) for shard in shards(tmp_path, (3, 3, 3)))
    records = stream([lane], size=1)
    numbers(records, 1)
    assert asked == ["0-1.jsonl"]
    numbers(records, 7)
    assert asked == ["0-1.jsonl", "0-2.jsonl"]


def first_rows(number: int, source: int = 0) -> dict[int, Selection]:
    return {source: Selection("faq", number)}


def test_the_first_rows_of_a_source_are_the_same_in_every_epoch(tmp_path: Path) -> None:
    lane = shards(tmp_path, (4, 5, 6)) + shards(tmp_path, (7, 3), first=100, source=1)
    records = stream([lane], selections=first_rows(7))
    found = numbers(records, 3 * 17)
    epochs = [found[start : start + 17] for start in (0, 17, 34)]
    assert [sorted(one) for one in epochs] == [[*range(7), *range(100, 110)]] * 3
    assert len({tuple(one) for one in epochs}) == 3
    assert (records.num_epochs, records.short_sources, records.num_empty_shards) == (3, (), 0)
    assert [record.row().line for record in all_records(lane, first_rows(7))][:7] == [1, 3, 5, 7, 1, 3, 5]


def test_a_source_with_fewer_rows_than_asked_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    records = stream([shards(tmp_path, (4, 5))], size=2, selections=first_rows(20))
    assert sorted(numbers(records, 9)) == list(range(9))
    assert records.short_sources == ("faq (9 of 20 rows)",)
    position = records.position().model_copy(update={"counts": StreamCounts(short_sources=records.short_sources)})
    again = stream([shards(tmp_path, (4, 5))], size=2, selections=first_rows(20))
    again.restore(position)
    assert again.short_sources == ("faq (9 of 20 rows)",)


@pytest.mark.parametrize("weights", [None, (1.0, 2.0)])
def test_a_stream_of_parts_goes_on_from_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[float, float] | None
) -> None:
    monkeypatch.setattr(reading, "_ROWS_A_MARK", 4)
    one, other = shards(tmp_path, (4, 0, 9, 6)), shards(tmp_path, (12, 8), first=100, source=1)
    lanes = [one + other] if weights is None else [one, other]
    selections = first_rows(6) | {1: Selection("odd", is_used=is_odd)}
    whole = numbers(stream(lanes, weights=weights, selections=selections), 90)
    assert set(whole) == {*range(6), *range(101, 120, 2)}
    records = stream(lanes, weights=weights, selections=selections)
    for done in range(0, 60, 3):
        position = records.position()
        again = stream(lanes, weights=weights, selections=selections)
        again.restore(StreamPosition.model_validate_json(position.model_dump_json()))
        assert numbers(again, 30) == whole[done : done + 30], f"after {done} records"
        numbers(records, 3)


def is_odd(record: RawRecord) -> bool:
    row = record.row()
    return isinstance(row, Row) and row.fields["n"] % 2 == 1
