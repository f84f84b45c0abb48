"""Examples that are chosen for each prompt."""

from __future__ import annotations

import pytest
from tests.ml.prompting.test_instructions import row

from luthier.ml.baselines.nearest import nearest_examples
from luthier.ml.baselines.rows import NotApplicable

POOL = [
    row(1, "spruce top with maple back", "violin"),
    row(2, "cedar top", "guitar"),
    row(3, "spruce top", "piano"),
    row(4, "brass bell", "trumpet"),
]


def test_the_nearest_comes_last() -> None:
    (found,) = nearest_examples(POOL, [row(9, "a maple back and a spruce top", "?")], 2)
    assert [shot.reference for shot in found] == ["piano", "violin"]


def test_rows_that_are_asked_are_never_shown_and_fewer_are_shown_where_the_pool_has_fewer() -> None:
    asked = [row(8, "spruce top", "other"), row(9, "brass bell", "?")]
    found = nearest_examples(POOL, asked, 4)
    assert [len(shots) for shots in found] == [2, 2]
    assert {shot.id for shots in found for shot in shots} == {"train.jsonl:1", "train.jsonl:2"}
    held = nearest_examples(POOL, [row(9, "cedar", "?")], 4, held_out=[row(7, "cedar top", "?")])
    assert "train.jsonl:2" not in {shot.id for shot in held[0]}
    assert nearest_examples(POOL, asked, 0) == [(), ()]
    assert nearest_examples([], asked, 2) == [(), ()]


def test_prompts_without_words_have_none_that_are_near() -> None:
    with pytest.raises(NotApplicable, match="no words"):
        nearest_examples([row(1, "!!", "a"), row(2, "??", "b")], [row(3, "...", "?")], 1)
