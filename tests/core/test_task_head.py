"""What a head tells a person of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core import published_head
from luthier.core.task_head import TaskHead, is_task_model

MANY = tuple(f"label {n}" for n in range(60))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            {"kind": "classify", "labels": ("bug", "praise"), "label_counts": (9, 1200), "temperature": 1.25},
            {
                "gives": "classes with probabilities",
                "labels": "bug (9), praise (1,200); in brackets: training rows",
                "temperature": "1.25, fitted on the validation rows",
                "pooling": "last: the state of the last token",
            },
        ),
        (
            {"kind": "classify", "labels": ("bug",), "is_multi_label": True, "threshold": 0.4},
            {
                "labels": "bug",
                "labels of a row": "any number, each from a probability of 0.4 on",
                "temperature": "1, not fitted: probabilities are as they were trained",
            },
        ),
        (
            {"kind": "regress", "lowest": 1.5, "highest": 9.0, "offset": 4.0},
            {"numbers": "from 1.5 to 9, mean 4 in the training rows"},
        ),
        ({"kind": "rank", "temperature": 2.0}, {"temperature": "2, fitted on the validation rows"}),
        (
            {"kind": "embed", "dimensions": (8, 4), "pooling": "mean", "query_prompt": "query: "},
            {
                "gives": "vectors of texts",
                "dimensions": "8, 4",
                "pooling": "mean: the mean of the states of all tokens",
                "query prompt": '"query: "',
            },
        ),
        ({"kind": "embed"}, {"dimensions": "8"}),
    ],
)
def test_facts_name_what_it_gives_and_how(head: dict[str, Any], expected: dict[str, str]) -> None:
    facts = TaskHead(width=8, **head).facts
    assert {name: facts.get(name) for name in expected} == expected
    assert next(iter(facts)) == "gives"
    assert ("temperature" in facts) == (head["kind"] in ("classify", "rank"))


def test_of_many_labels_the_commonest_are_listed() -> None:
    head = TaskHead(kind="classify", width=8, labels=MANY, label_counts=tuple(range(60, 0, -1)))
    assert head.facts["labels"].startswith("label 0 (60), label 1 (59)")
    assert "label 49 (11) and 10 more" in head.facts["labels"]
    assert head.summary.endswith("label 7 (53) and 52 more")


def test_a_list_of_models_reads_the_config_of_each_once_and_again_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    read, original = list[Path](), published_head.read_document
    monkeypatch.setattr(published_head, "read_document", lambda file: read.append(file) or original(file))
    assert [is_task_model(tmp_path) for _ in range(3)] == [False] * 3
    assert read == [config]
    scoring = {"architectures": ["LlamaForCausalLM"], "classifier_from_token": ["no", "yes"]}
    config.write_text(json.dumps(scoring), encoding="utf-8")
    assert is_task_model(tmp_path)
    config.unlink()
    assert not is_task_model(tmp_path)
