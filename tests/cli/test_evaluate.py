"""`luthier eval`, short of the judging itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.cli.evaluate import parse_metrics
from luthier.core.errors import RequestError
from luthier.service import evaluations
from luthier.testing.records import make_evaluation


def test_what_was_asked_reaches_the_service(luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked: dict[str, Any] = {}

    def evaluate(_: object, systems: list[str], **options: Any) -> Any:
        asked.update(options, systems=systems)
        return make_evaluation()

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    arguments = ["eval", "run-1", "--data", "t.jsonl", "--against", "a", "--against", "b", "--few-shot", "4"]
    arguments += ["--few-shot-from", "train.jsonl", "--metrics", "bleu,rouge", "--max-new-tokens", "9"]
    arguments += ["--max-samples", "7", "--allow-leakage", "--map", "prompt=question"]
    document = luthier(*arguments, "--json").document
    assert asked == {
        "systems": ["run-1", "a", "b"],
        "data": Path("t.jsonl"),
        "few_shot": 4,
        "few_shot_from": Path("train.jsonl"),
        "metrics": ["bleu", "rouge"],
        "mapping": {"prompt": "question"},
        "max_new_tokens": 9,
        "max_samples": 7,
        "allow_leakage": True,
    }
    assert [system["name"] for system in document["systems"]] == ["base", "tuned"]
    assert document["comparisons"][0]["verdict"] == "not distinguishable"
    text = luthier(*arguments).out
    for words in ("exact_match", "0.5 [0.25, 0.75]", "about 400 rows would tell", "Cannot tell.", "Note: few rows"):
        assert words in text


def test_metrics_are_named_by_commas() -> None:
    assert parse_metrics(" rouge, bleu ,") == ["bleu", "rouge"]
    for text in ("", " , "):
        with pytest.raises(RequestError, match="names none"):
            parse_metrics(text)
    with pytest.raises(RequestError, match=r"unknown rogue; nearest known: rouge"):
        parse_metrics("bleu,rogue")
