"""Names of runs: short, readable, the same on every machine."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from luthier.core.text.names import display_name, distinct_names, family_name, shortened

NOVEMBER = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)


def test_dataset_family_and_day() -> None:
    assert display_name("Client questions", "SmolLM2", NOVEMBER) == "Client questions · SmolLM2 · 28 Nov"
    assert display_name("Client questions", "smollm2-135m-instruct", NOVEMBER) == "Client questions · SmolLM2 · 28 Nov"


def test_of_several_with_one_name_each_has_the_end_of_its_id() -> None:
    names = {"run-20261128-093000-aaaaaa": "Orders", "run-20261128-094500-bbbbbb": "Orders", "tiny": "tiny"}
    assert list(distinct_names(names).values()) == ["Orders (aaaaaa)", "Orders (bbbbbb)", "tiny"]


def test_what_is_unknown_is_left_out_and_what_is_long_is_cut() -> None:
    assert display_name("", "Qwen3 0.6B", NOVEMBER) == "Qwen3 · 28 Nov"
    assert display_name("Client\nquestions", "", NOVEMBER) == "Client questions · 28 Nov"
    long = display_name("word " * 30, "", NOVEMBER)
    assert long.endswith("… · 28 Nov")
    assert len(long) <= 40 + len(" · 28 Nov")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("SmolLM2 135M Instruct", "SmolLM2"),
        ("hub:HuggingFaceTB/SmolLM2-135M-Instruct@main", "SmolLM2"),
        ("Gemma 3 270M (base model)", "Gemma 3"),
        ("qwen3-0.6b", "Qwen3"),
        ("/somewhere/on/a/disk/tiny/", "tiny"),
        ("mixtral-8x7b-v0.1", "Mixtral"),
        ("7b", "7b"),
        ("", ""),
    ],
)
def test_the_family_of_a_base_model(name: str, family: str) -> None:
    assert family_name(name) == family


def test_a_text_that_is_too_long_ends_with_an_ellipsis() -> None:
    assert [shortened(text, 5) for text in ("", "lathe", "lathes")] == ["", "lathe", "lath…"]
