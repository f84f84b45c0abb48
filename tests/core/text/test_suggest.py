"""Suggested names."""

from __future__ import annotations

from luthier.core.text.suggest import suggest_ids


def test_the_beginning_of_a_longer_name_is_near() -> None:
    known = ("smollm3-3b", "qwen3-0.6b", "smollm2-135m-instruct")
    assert suggest_ids("smolm2", known) == "nearest: smollm2-135m-instruct, smollm3-3b"
    assert suggest_ids("SmolLM2-135M-Instruct", known).startswith("nearest: smollm2-135m-instruct")
    assert suggest_ids("a", known) == "there are: smollm3-3b, qwen3-0.6b, smollm2-135m-instruct"
