"""The check of toxicity: the list with its limits, or a model in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.audit.toxicity import check


def test_the_list_finds_rows_and_says_what_it_cannot_see(jsonl: Callable[..., Path]) -> None:
    rows = [{"text": f"row {n}, a stupid lid"} for n in range(300)]
    path = jsonl(*rows, {"text": "what a load of shit"}, {"text": "you fucking bitch"})
    (finding,) = check(AuditRequest(build_table(path)))
    assert (finding.check, finding.severity, finding.count, finding.lines) == ("toxicity", "info", 2, (301, 302))
    assert finding.message == "2 rows are likely to be toxic, according to the word list (probability 0.5 or more)"
    assert [example.row for example in finding.examples] == ["rows.jsonl:302", "rows.jsonl:301"]
    assert finding.examples[0].note.endswith(": profanity, insult")
    assert finding.details["rows_by_class"] == {"insult": 1, "profanity": 2}
    assert "HateCheck" in finding.details["cannot_see"]
    assert finding.details["measured"]["davidson_2017_other_40_percent"]["precision"][0] > 0.9


def test_from_one_row_in_a_hundred_on_it_is_a_warning(jsonl: Callable[..., Path]) -> None:
    path = jsonl(*({"text": f"row {n}"} for n in range(99)), {"text": "shit"})
    assert [f.severity for f in check(AuditRequest(build_table(path)))] == ["warning"]


def test_a_model_replaces_the_list(jsonl: Callable[..., Path]) -> None:
    asked: list[str] = []

    def model(texts: Sequence[str]) -> list[float]:
        asked.extend(texts)
        return [0.9 if "hidden" in text else 0.499 for text in texts]

    path = jsonl({"text": "shit"}, {"text": "a hidden insult"})
    request = AuditRequest(build_table(path), toxicity_model=model, toxicity_model_name="my-model")
    (finding,) = check(request)
    assert finding.lines == (2,)
    assert finding.details == {"judge": "my-model", "threshold": 0.5}
    assert "1 row is likely to be toxic, according to the my-model" in finding.message
    assert asked == ["shit", "a hidden insult"]


def test_a_clean_file_has_no_finding(jsonl: Callable[..., Path]) -> None:
    assert check(AuditRequest(build_table(jsonl({"text": "a fine pan, hello"})))) == []
