"""A file split into files: whole groups, rows unchanged, and a proof from what was written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, DataError, LeakageError, RequestError
from luthier.core.ids import sha256_file
from luthier.ml.data.files.row_frames import Texts, text_parts
from luthier.ml.data.split import split_file as module
from luthier.ml.data.split.split_file import FileSplit, split_file
from luthier.ml.data.split.split_request import SplitRequest, default_folder

Write = Callable[..., Path]


def alone(texts: Texts, *, threshold: float, progress: object) -> npt.NDArray[np.int64]:
    """No text is near another one."""
    return np.arange(len(texts), dtype=np.int64)


def by_first_word(texts: Texts, *, threshold: float, progress: object) -> npt.NDArray[np.int64]:
    """Texts of one first word are near."""
    first: dict[str, int] = {}
    every = [text for part in text_parts(texts) for text in part]
    return np.array([first.setdefault(text.split()[0], n) for n, text in enumerate(every)], dtype=np.int64)


def pair(n: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{n} is it?", "completion": f"a{n}", **more}


def lines(made: FileSplit) -> dict[str, list[str]]:
    return {
        side: (made.folder / part["file"]).read_text(encoding="utf-8").splitlines()
        for side, part in made.document["sides"].items()
    }


def test_rows_pass_through_as_they_are(jsonl: Write, tmp_path: Path) -> None:
    rows = [f'{{"completion":  "caf\\u00e9 {n}", "prompt": "p{n}", "x": 1e5}}' for n in range(100)]
    made = split_file(SplitRequest(jsonl(*rows), tmp_path / "out"), near_groups=alone)
    parts = lines(made)
    assert {side: len(part) for side, part in parts.items()} == {"train": 80, "validation": 10, "held_out": 10}
    assert sorted(row for part in parts.values() for row in part) == sorted(rows)
    for part in parts.values():
        assert part == sorted(part, key=rows.index)
    document = json.loads((made.folder / "split.json").read_text(encoding="utf-8"))
    assert document == made.document
    assert document["sides"]["train"]["sha256"] == sha256_file(made.folder / "train.jsonl")
    assert document["proof"]["num_rows"] == 100
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_options_give_the_same_bytes(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*(pair(n) for n in range(60)))
    for folder in ("one", "two"):
        split_file(SplitRequest(file, tmp_path / folder), near_groups=alone)
    for name in ("train.jsonl", "validation.jsonl", "held_out.jsonl", "split.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    split_file(SplitRequest(file, tmp_path / "three", seed=1), near_groups=alone)
    assert (tmp_path / "one" / "train.jsonl").read_bytes() != (tmp_path / "three" / "train.jsonl").read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 25)), min_size=30, max_size=60), st.randoms())
def test_groups_never_part_and_the_order_of_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, int]], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [json.dumps(pair(text, doc=f"d{doc}", row=n)) for n, (doc, text) in enumerate(keys)]
    moved = list(rows)
    random.shuffle(moved)
    sides: list[dict[str, str]] = []
    for name, some in (("one", rows), ("two", moved)):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(some), encoding="utf-8")
        request = SplitRequest(file, folder / name, group_by="doc", validation=0.2, held_out=0.2)
        with contextlib.suppress(DataError):  # one component of all rows; told by another test
            sides.append({})
            made = split_file(request, near_groups=alone)
            sides[-1] = {row: side for side, part in lines(made).items() for row in part}
            assert len(sides[-1]) == len(rows)
            assert (made.proof.exact, made.proof.same_group, made.proof.near_duplicate) == (0, 0, 0)
        where: dict[str, set[str]] = {}
        for row, side in sides[-1].items():
            fields = json.loads(row)
            where.setdefault(fields["doc"], set()).add(side)
            where.setdefault(fields["prompt"], set()).add(side)
        assert all(len(found) == 1 for found in where.values())
    assert sides[0] == sides[1]


def test_documents_of_ingest_stay_together_without_being_asked(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"text": f"passage {n}", "provenance": {"file": f"doc{n % 10}.pdf"}} for n in range(100)))
    made = split_file(SplitRequest(file, tmp_path / "auto"), near_groups=alone)
    assert made.document["grouped_by"] == "provenance.file"
    assert "--group-by none" in made.document["grouping"]
    assert made.document["num_groups"] == 10
    assert made.proof.same_group == 0
    off = split_file(SplitRequest(file, tmp_path / "off", group_by="none"), near_groups=alone)
    assert (off.document["grouped_by"], off.document["num_groups"]) == (None, 100)
    source = split_file(SplitRequest(file, tmp_path / "source", group_by="source"), near_groups=alone)
    assert source.document["sides"] == made.document["sides"]


def test_pairs_written_from_one_passage_stay_together_where_it_is_of_no_file(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(
        *(
            {
                "prompt": f"question {n}",
                "completion": f"answer {n}",
                "provenance": {"kind": "qa", "source_row": f"texts.jsonl:{n // 4}"},
            }
            for n in range(80)
        ),
        {"prompt": "more", "completion": "and more", "provenance": {"kind": "answer", "source_row": "texts.jsonl:1"}},
    )
    made = split_file(SplitRequest(file, tmp_path / "auto"), near_groups=alone)
    assert (made.document["grouped_by"], made.document["num_groups"]) == ("provenance.source_row", 21)
    sides: dict[str, set[str]] = {}
    for side, part in lines(made).items():
        for row in part:
            provenance = json.loads(row)["provenance"]
            sides.setdefault(f"{provenance['kind']} {provenance['source_row']}", set()).add(side)
    assert len(sides) == 21
    assert all(len(found) == 1 for found in sides.values())
    off = split_file(SplitRequest(file, tmp_path / "off", group_by="none"), near_groups=alone)
    assert off.document["num_groups"] == 81


def test_half_of_a_surrogate_pair_in_a_group_or_a_label_ends_no_split(jsonl: Write, tmp_path: Path) -> None:
    rows = [f'{{"text": "passage {n}", "doc": "\\ud83d{n % 10}", "label": "\\udc00"}}' for n in range(40)]
    request = SplitRequest(jsonl(*rows), tmp_path / "out", group_by="doc", stratify_by="label")
    made = split_file(request, near_groups=alone)
    assert made.document["num_groups"] == 10
    assert sorted(row for part in lines(made).values() for row in part) == sorted(rows)


def test_one_document_cannot_be_split_and_the_answer_says_how_else(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"text": f"passage {n}", "provenance": {"file": "doc.pdf"}} for n in range(20)))
    with pytest.raises(DataError, match=r"20 rows in 1 groups(.|\n)*--group-by none"):
        split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_near_duplicates_stand_on_one_side(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"text": f"w{n % 30} text {n}"} for n in range(90)))
    made = split_file(SplitRequest(file, tmp_path / "out"), near_groups=by_first_word)
    sides: dict[str, set[str]] = {}
    for side, part in lines(made).items():
        for row in part:
            sides.setdefault(json.loads(row)["text"].split()[0], set()).add(side)
    assert all(nonempty(len(found) == 1 for found in sides.values()))
    off = split_file(SplitRequest(file, tmp_path / "off", near_threshold=None), near_groups=by_first_word)
    assert off.proof.near_duplicate is None
    assert any("near-duplicates were not searched" in warning for warning in off.document["warnings"])


def test_a_giant_component_is_told(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"text": f"{'same' if n < 90 else n} text {n}"} for n in range(100)))
    made = split_file(SplitRequest(file, tmp_path / "out"), near_groups=by_first_word)
    assert any("one group of 90 rows (90.0%) is larger than the whole share of train" in warning
               for warning in made.document["warnings"])  # fmt: skip
    assert any("validation has" in warning and "instead of 10.0%" in warning for warning in made.document["warnings"])


def test_strata_have_their_share_and_missing_values_are_a_stratum(jsonl: Write, tmp_path: Path) -> None:
    rows = [pair(n, label="rare" if n % 10 == 0 else "usual") for n in range(200)] + [pair(n) for n in range(200, 220)]
    made = split_file(SplitRequest(jsonl(*rows), tmp_path / "out", stratify_by="label"), near_groups=alone)
    assert made.document["strata"] == {
        "(none)": {"train": 16, "validation": 2, "held_out": 2},
        "rare": {"train": 16, "validation": 2, "held_out": 2},
        "usual": {"train": 144, "validation": 18, "held_out": 18},
    }


def test_the_same_prompt_is_reported_and_allowed(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"prompt": "Say a number.", "completion": str(n)} for n in range(50)))
    made = split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)
    assert made.proof.same_prompt == 10
    assert made.proof.exact == 0


def test_a_leak_is_found_in_what_was_written(jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof does not trust the way in which the sides were made."""
    file = jsonl(*(pair(n % 10, doc=n % 10) for n in range(40)))
    each = module.Groups(module.hashes_of(map(str, range(40)), 0), np.arange(40), np.ones(40, dtype=np.int64))
    monkeypatch.setattr(module, "_components", lambda table, groups, near, seed: each)
    with pytest.raises(LeakageError, match=r"texts, 0 clusters of near-duplicates and [1-9]\d* groups"):
        split_file(SplitRequest(file, tmp_path / "out", group_by="doc"), near_groups=alone)
    assert not list((tmp_path / "out").glob("*"))


def test_an_earlier_split_is_not_replaced_in_silence(jsonl: Write, tmp_path: Path) -> None:
    file, out = jsonl(*(pair(n) for n in range(50))), tmp_path / "out"
    split_file(SplitRequest(file, out), near_groups=alone)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConflictError, match="already exists"):
        split_file(SplitRequest(file, out, seed=1), near_groups=alone)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    made = split_file(SplitRequest(file, out, validation=0.0, seed=1, force=True), near_groups=alone)
    assert made.document["removed"] == ["validation.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == ["held_out.jsonl", "split.json", "train.jsonl"]


def test_a_split_that_was_stopped_can_be_done_again(jsonl: Write, tmp_path: Path) -> None:
    file, out = jsonl(*(pair(n) for n in range(50))), tmp_path / "out"
    split_file(SplitRequest(file, out), near_groups=alone)
    (out / "split.json").unlink()
    (out / "held_out.jsonl").unlink()
    split_file(SplitRequest(file, out), near_groups=alone)
    (out / "split.json").unlink()
    (out / "train.jsonl").write_text("a file of somebody\n", encoding="utf-8")
    with pytest.raises(ConflictError, match=r"train\.jsonl already exists"):
        split_file(SplitRequest(file, out), near_groups=alone)
    assert (out / "train.jsonl").read_text(encoding="utf-8") == "a file of somebody\n"


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(pair(n)) + "\n" for n in range(50)), encoding="utf-8")
    with pytest.raises(RequestError, match="the file that is read"):
        split_file(SplitRequest(file, tmp_path, force=True), near_groups=alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0, "held_out": 0.0}, "nothing to split off"),
        ({"validation": 0.6, "held_out": 0.4}, "leave no row to train on"),
        ({"group_by": "dok"}, r"no field 'dok'(.|\n)*did you mean 'doc'"),
        ({"stratify_by": "lable"}, "no field 'lable'"),
        ({"group_by": "some"}, "20 of 40 rows of rows.jsonl cannot be split"),
        ({"stratify_by": "list"}, "is no plain value"),
    ],
)
def test_what_cannot_be_done_is_said(jsonl: Write, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    file = jsonl(*(pair(n, doc=n, list=[n]) | ({"some": n} if n % 2 else {}) for n in range(40)))
    with pytest.raises(DataError, match=message):
        split_file(SplitRequest(file, tmp_path / "out", **options), near_groups=alone)


def test_rows_that_cannot_be_read_are_named(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*(pair(n) for n in range(20)), "{broken")
    with pytest.raises(DataError, match=r"1 of 21 rows(.|\n)*rows\.jsonl:21"):
        split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)


def test_csv_and_nested_parquet_become_jsonl(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion\n" + "".join(f'"q, {n}",é{n}\n' for n in range(30)), encoding="utf-8")
    made = split_file(SplitRequest(table, tmp_path / "csv"), near_groups=alone)
    rows = [json.loads(row) for part in lines(made).values() for row in part]
    assert {"prompt": "q, 3", "completion": "é3"} in rows
    nested = tmp_path / "rows.parquet"
    messages = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(30)]
    pl.DataFrame({"messages": messages}).write_parquet(nested)
    made = split_file(SplitRequest(nested, tmp_path / "parquet"), near_groups=alone)
    assert len(lines(made)["train"]) == 24
    assert {"messages": messages[3]} in [json.loads(row) for part in lines(made).values() for row in part]


def test_the_folder_by_default() -> None:
    assert default_folder(Path("a/rows.v2.jsonl.gz")) == Path("a/rows.v2-split")
    assert default_folder(Path("rows.csv")) == Path("rows-split")


def test_a_group_can_be_said_by_the_mapping_but_not_twice(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*(pair(n, doc=n % 20, other=n) for n in range(100)))
    made = split_file(SplitRequest(file, tmp_path / "out", mapping={"group": "doc"}), near_groups=alone)
    assert (made.document["grouped_by"], made.document["num_groups"]) == ("doc", 20)
    with pytest.raises(DataError, match="given twice"):
        split_file(SplitRequest(file, tmp_path / "two", mapping={"group": "doc"}, group_by="other"), near_groups=alone)


def test_rows_of_no_known_shape_are_split_by_all_their_texts(jsonl: Write, tmp_path: Path) -> None:
    file = jsonl(*({"foo": f"bar {n % 25}", "n": n} for n in range(50)))
    made = split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)
    assert (made.document["shape"], made.document["num_groups"], made.proof.exact) == (None, 25, 0)
    assert any("fit no shape" in warning for warning in made.document["warnings"])


def test_values_that_json_does_not_have_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    rows = [{**pair(n), "day": date(2026, 1, 1 + n), "raw": b"x" if n == 3 else None} for n in range(20)]
    pl.DataFrame(rows).write_parquet(file)
    with pytest.raises(DataError, match=r"1 of 20 rows(.|\n)*rows\.parquet:4: cannot be written as JSON: raw bytes"):
        split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)
    pl.DataFrame(rows).drop("raw").write_parquet(file)
    made = split_file(SplitRequest(file, tmp_path / "out"), near_groups=alone)
    assert {**pair(3), "day": "2026-01-04"} in [json.loads(row) for part in lines(made).values() for row in part]


def chat(system: str, user: str, answer: str, **more: str) -> dict[str, Any]:
    turns: list[dict[str, str]] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": [*turns, {"role": "assistant", "content": answer, **more}]}


def test_a_shared_system_prompt_makes_no_near_duplicates(jsonl: Write, tmp_path: Path) -> None:
    """Of 321 words 300 are shared: with these compared, each row would be near to every other one."""
    system = " ".join(f"rule{n}" for n in range(300))
    rows = [chat(system, " ".join(f"w{n}x{k}" for k in range(20)), f"a{n}") for n in range(60)]
    near = [chat(system, " ".join(f"w{n}x{k}" for k in range(20)) + "!", f"a{n} then") for n in range(0, 60, 2)]
    for name, order in (("one", 1), ("two", -1)):
        made = split_file(SplitRequest(jsonl(*[*rows, *near][::order], name=f"{name}.jsonl"), tmp_path / name))
        assert made.document["num_groups"] == 60
        sides: dict[str, set[str]] = {}
        for side, part in lines(made).items():
            for row in part:
                sides.setdefault(json.loads(row)["messages"][1]["content"].split()[0], set()).add(side)
        assert len(sides) == 60
        assert all(len(found) == 1 for found in sides.values())


def test_rows_that_differ_in_their_thoughts_stay_on_one_side(jsonl: Write, tmp_path: Path) -> None:
    questions = [" ".join(f"w{n}x{k}" for k in range(20)) for n in range(40)]
    thoughts = [" ".join(f"t{n}x{k}" for k in range(60)) for n in range(80)]
    rows = [chat("Think.", questions[n // 2] + "!" * (n % 2), "yes", reasoning_content=thoughts[n]) for n in range(80)]
    made = split_file(SplitRequest(jsonl(*rows), tmp_path / "out"))
    assert made.document["num_groups"] == 40


def chat_log(conversation: int, num_rows: int) -> list[dict[str, Any]]:
    turns = [
        {"role": role, "content": f"{role} {n} of {conversation}"}
        for n in range(num_rows)
        for role in ("user", "assistant")
    ]
    return [{"messages": turns[: 2 * n + 2]} for n in range(num_rows)]


def test_conversations_stay_with_the_rows_that_continue_them(jsonl: Write, tmp_path: Path) -> None:
    rows = [row for conversation in range(30) for row in chat_log(conversation, 3)]
    made = split_file(SplitRequest(jsonl(*rows), tmp_path / "out", near_threshold=None))
    sides: dict[str, set[str]] = {}
    for side, part in lines(made).items():
        for line in part:
            sides.setdefault(json.loads(line)["messages"][0]["content"], set()).add(side)
    assert len(sides) == 30
    assert all(len(found) == 1 for found in sides.values())
    assert made.proof.continued == 0
    assert made.document["proof"]["continued"] == 0


def test_a_conversation_that_is_continued_on_another_side_fails_the_proof(
    jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for conversation in range(30) for row in chat_log(conversation, 3)]
    parts = module._components

    def apart(table: Any, columns: Any, near: Any, seed: int) -> Any:
        columns.continued = np.arange(len(columns.continued))
        return parts(table, columns, near, seed)

    monkeypatch.setattr(module, "_components", apart)
    with pytest.raises(LeakageError, match="conversations with what continues them"):
        split_file(SplitRequest(jsonl(*rows), tmp_path / "out", near_threshold=None))
