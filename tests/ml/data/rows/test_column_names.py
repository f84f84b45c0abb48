"""Columns by other names: capitals, spaces, questions and answers, texts with their classes; and what is not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.rows.formats import load_file

Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write rows as JSONL."""

    def write(*rows: object) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_capitals_and_spaces_do_not_matter(written: Write) -> None:
    loaded = load_file(written({" Prompt ": "q", "COMPLETION": "a", "Notes": "n"}))
    assert (loaded.shape, loaded.examples[0].reference) == ("prompt_completion", "a")
    assert loaded.shape_reason == (
        "every row has prompt and completion (prompt =  Prompt , completion = COMPLETION; not used: Notes)"
    )
    assert (loaded.mapping, loaded.unused) == ({"prompt": " Prompt ", "completion": "COMPLETION"}, ("Notes",))


def test_a_mapping_finds_columns_in_other_capitals(written: Write) -> None:
    path = written({"Frage": "q", "Antwort": "a", "Doc": "d"})
    loaded = load_file(path, mapping={"prompt": "frage", "completion": "ANTWORT"}, group_by="doc")
    assert (loaded.examples[0].reference, loaded.examples[0].group) == ("a", "d")


def test_two_columns_that_could_be_one_field_are_refused_with_the_choices(written: Write) -> None:
    with pytest.raises(
        DataError, match=r"2 columns that may be 'prompt': 'Prompt', 'PROMPT'[\s\S]*--map prompt='Prompt'"
    ):
        load_file(written({"Prompt": "q", "PROMPT": "r", "completion": "a"}))
    assert load_file(written({"Prompt": "q", "prompt": "r", "completion": "a"})).unused == ("Prompt",)


def test_a_question_beside_a_passage_is_not_guessed(written: Write) -> None:
    with pytest.raises(DataError, match=r"Question and answer, and context which the questions may need"):
        load_file(written({"Question": "q", "answer": "a", "context": "c"}))
    loaded = load_file(written({"Question": "q", "answer": "a", "id": 1}))
    assert (loaded.shape, loaded.examples[0].reference, loaded.unused) == ("prompt_completion", "a", ("id",))


@pytest.mark.parametrize(("label", "learned"), [("good", "good"), (4, "4"), (1.5, "1.5"), (True, "true")])
def test_a_text_with_its_label_is_a_classification(written: Write, label: object, learned: str) -> None:
    path = written(*({"text": f"text {n}", "label": label, "id": n} for n in range(30)))
    loaded = load_file(path)
    assert (loaded.shape, {one.reference for one in loaded.examples}) == ("prompt_completion", {learned})
    assert loaded.shape_reason == (
        "every row has text and label, a classification (prompt = text, completion = label; not used: id)"
    )
    table = build_table(path)
    assert (table.problems, table.frame["completion"][0], table.unused) == ((), learned, ("id",))


def test_the_text_alone_is_learned_where_a_person_says_so(written: Write) -> None:
    path = written({"text": "one", "label": "a"}, {"text": "two", "label": "b"})
    loaded = load_file(path, mapping={"text": "text"})
    assert (loaded.shape, loaded.unused) == ("text", ("label",))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([f"free text {n}" for n in range(20)], "20 different values of label for 20 texts"),
        (["a", None, "b"], "1 of 3 rows of rows.jsonl have a text and no label"),
        ([["a", "b"], ["c"]], "2 rows of rows.jsonl have a label of several values"),
    ],
)
def test_what_may_be_no_class_is_asked(written: Write, labels: list[object], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_file(written(*({"text": "t", "label": label} for label in labels)))
    assert said in str(caught.value)
    assert "--map prompt=text --map completion=label" in str(caught.value)


def test_columns_that_may_be_classes_are_named_with_what_learns_them(written: Write) -> None:
    loaded = load_file(written({"text": "t", "Intent": "buy"}))
    assert loaded.shape_reason == (
        "every row has text (not used: Intent; to learn Intent: --map prompt=text --map completion=Intent)"
    )


def test_every_unused_column_is_listed(written: Write) -> None:
    loaded = load_file(written({"text": "t"} | {f"extra {n}": n for n in range(50)}))
    assert len(loaded.unused) == 50
    assert all(name in loaded.shape_reason for name in loaded.unused)
