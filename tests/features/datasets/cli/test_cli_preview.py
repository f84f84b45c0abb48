"""`luthier data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import RequestError
from luthier.platform.cli.command import parse_mapping, parse_template_options


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"Why {n}?", "answer": f"So [b]{n}."}) + "\n" for n in range(4)))
    return path


def test_preview_marks_what_is_learned(luthier, file: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = (
        "data",
        "preview",
        file,
        "--model",
        tiny_model,
        "--map",
        "prompt=question",
        "--map",
        "completion=answer",
    )
    text = luthier(*arguments, "--num-rows", 1).out
    assert "[[" in text.split("assistant\n")[1]
    assert "So" in text.replace("|", "")
    assert "[b]0." in text.replace("|", "")
    assert "... and 3 more rows" in text
    document = luthier(*arguments, "--json").document
    assert len(document["rows"]) == 3
    assert set(document) == {"file", "model", "template", "shape", "shape_reason", "num_rows", "rows"}
    assert set(document["rows"][0]["tokens"][0]) == {"id", "text", "learned"}
    every = luthier(*arguments, "--all", "--json").document["rows"]
    assert [row["id"] for row in every] == [f"rows.jsonl:{line}" for line in range(1, 5)]
    assert all(len(row["input_ids"]) == len(row["learned"]) == row["num_tokens"] for row in every)


def test_bad_rows_are_told_with_their_places(luthier, file: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    with file.open("a") as rows:
        rows.write("not json\n")
    done = luthier("data", "preview", file, "--model", tiny_model, "--map", "prompt=question", "--json")
    assert done.code == 2
    assert done.document["error"]["problems"][0]["line"] == 5
    assert "rows.jsonl:5" in done.err


def test_values_of_template_options_are_read_as_yaml_has_them() -> None:
    pairs = ["enable_thinking=false", "reasoning_effort=low", "budget=12", "tools=no"]
    found = {"enable_thinking": False, "reasoning_effort": "low", "budget": 12, "tools": "no"}
    assert parse_template_options(pairs) == found
    for wrong in (["x"], ["=x"], ["x="], ["x=[1]"], ["x={"], ["x=1", "x=2"]):
        with pytest.raises(RequestError, match="--template-option"):
            parse_template_options(wrong)


@pytest.mark.parametrize("pairs", [["prompt"], ["=x"], ["prompt="], ["prompt=a", "prompt=b"]])
def test_a_wrong_mapping(pairs: list[str]) -> None:
    with pytest.raises(RequestError, match="--map"):
        parse_mapping(pairs)


def test_a_field_may_have_an_equals_sign() -> None:
    assert parse_mapping(["prompt=a=b"]) == {"prompt": "a=b"}


def test_blocks_are_shown_with_the_borders_of_their_pieces(luthier, tmp_path: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("why " * 60, "so", "then")))
    arguments = ("data", "preview", path, "--model", tiny_model, "--block-tokens", "64", "--num-rows", "9")
    text = luthier(*arguments).out
    assert "3 texts in" in text
    assert "1 text cut into several" in text
    assert "-- texts.jsonl:2, " in text
    assert "part 1 of" in text
    assert "every row has text" in text
    assert luthier(*arguments, "--json").document["packed"]["num_documents"] == 3


THINKS = {"role": "assistant", "reasoning_content": "Two and two.", "content": "Four."}


@pytest.mark.parametrize(("choice", "text"), [("as_text", "<think>\nTwo and two.\n</think>"), ("drop", "Four.")])
def test_turns_are_shown_as_opted(luthier, tmp_path: Path, tiny_model: Path, choice: str, text: str) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "thoughts.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "2 + 2?"}, THINKS]}) + "\n")
    refused = luthier("data", "preview", file, "--model", tiny_model, "--json")
    assert refused.code == 2
    assert "data.reasoning: as_text" in refused.out
    done = luthier("data", "preview", file, "--model", tiny_model, "--reasoning", choice, "--json")
    shown = "".join(token["text"] for token in done.document["rows"][0]["tokens"])
    assert text in shown
    assert ("Two and two." in shown) is (choice == "as_text")


def test_blocks_take_no_option_of_conversations(luthier, tmp_path: Path, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "one two three"}) + "\n")
    done = luthier("data", "preview", file, "--model", tiny_model, "--block-tokens", 8, "--tools", "as_text")
    assert done.code == 2
    assert "--block-tokens" in done.err
