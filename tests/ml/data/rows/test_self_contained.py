"""Questions that lean on a passage that nobody sees."""

from __future__ import annotations

import pytest

from luthier.ml.data.rows.answer_prompts import leans_on_passage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What does the passage say about maple?", "the passage"),
        ("According to the  given\ntext, who died?", "the given text"),
        ("What is the main idea of This Article?", "This Article"),
        ("Which of the methods mentioned above is best?", "mentioned above"),
        ("Summarise the following paragraph.", "the following paragraph"),
        ("What does the author think?", "the author"),
        ("According to the information, what is spruce?", "According to the information"),
        ("Using the context provided, say why.", "the context"),
    ],
)
def test_what_leans(text: str, words: str) -> None:
    assert leans_on_passage(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "Which wood is used for the front of a violin?",
        "Who signed the text of the treaty of Utrecht?",
        "What is a passage grave?",
        "How is a context manager written in Python?",
        "Why is the back made of maple?",
    ],
)
def test_what_stands_alone(text: str) -> None:
    assert leans_on_passage(text) is None
