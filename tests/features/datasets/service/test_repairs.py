"""From an audit of a version to a repaired one: what is previewed is what is kept, and nothing goes in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.features.datasets import derived_versions as dataset_repairs
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets import version_analyses as dataset_audits
from luthier.features.datasets import version_analyses as dataset_tokens
from luthier.features.datasets.analysis import bins_of, evenly
from luthier.features.datasets.derived_versions import RepairChoice
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.version_analyses import AuditSettings
from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

ADA = Caller(name="ada")


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"


ROWS = [chat(f"What comes after {n}?", f"After {n} comes {n + 1}.") for n in range(20)]
BAD = [*ROWS, ROWS[3], ROWS[3], chat("Say it", ""), chat("cafÃ© please", "A cafÃ© it is.")]


def make(context: Context, name: str, rows: list[str], *, filename: str | None = None) -> DatasetVersion:
    file = dataset_versions.keep_rows(context, ADA, ["".join(rows).encode()], filename or f"{name}.jsonl")
    return dataset_versions.create_dataset(context, ADA, name, file)[1]


def audited(context: Context, version: DatasetVersion, settings: AuditSettings) -> dataset_audits.CachedResult:
    dataset_audits.begin_audit(context, ADA, version, settings)
    wait_for(lambda: dataset_audits.audit_state(context, ADA, version, settings).state != "running")
    return dataset_audits.audit_state(context, ADA, version, settings)


def test_an_audit_is_persistent_for_its_rows_and_settings(context: Context) -> None:
    version, other = make(context, "bad", BAD), make(context, "held", ROWS[:2])
    found = audited(context, version, AuditSettings(against=other.dataset_id))
    assert found.answer is not None, found.error
    checks = {one["check"]: one for one in found.answer["findings"]}
    assert checks["exact_duplicate"]["lines"] == [21, 22]
    assert checks["contamination"]["severity"] == "error"
    number = found.answer["findings"].index(checks["exact_duplicate"]) + 1
    assert dataset_audits.finding_of(found, number) == checks["exact_duplicate"]
    with pytest.raises(NotFoundError, match="no finding 99"):
        dataset_audits.finding_of(found, 99)
    assert dataset_audits.audit_state(context, ADA, version).state == "unasked", "other settings"
    same = make(context, "same", BAD, filename="bad.jsonl")
    assert dataset_audits.audit_state(context, ADA, same, AuditSettings(other.dataset_id)).state == "answered"
    renamed = make(context, "renamed", BAD)  # an audit names the uploaded file, which another project must not see
    assert dataset_audits.audit_state(context, ADA, renamed, AuditSettings(other.dataset_id)).state == "unasked"
    assert str(context.home) not in json.dumps(found.answer)
    with pytest.raises(NotFoundError):
        dataset_audits.begin_audit(context, ADA, version, AuditSettings(against="data-none"))
    with pytest.raises(RequestError, match="not on this machine"):
        dataset_audits.begin_audit(context, ADA, version, AuditSettings(model="smollm2-135m"))
    counts = {one.id: one.num_rows(found.answer["findings"]) for one in dataset_repairs.repairs()}
    assert (counts["exact_duplicate"], counts["empty_completion"], counts["refusal"]) == (2, 1, 0)


def test_a_repair_is_previewed_and_then_kept(context: Context) -> None:
    version = make(context, "bad", BAD)
    choice = RepairChoice(("exact_duplicate", "empty_completion", "encoding"))
    with pytest.raises(ConflictError, match="not previewed"):
        dataset_repairs.keep_repair(context, ADA, version, choice)
    dataset_repairs.begin_repair(context, ADA, version, choice)
    wait_for(lambda: dataset_repairs.repair_state(context, ADA, version, choice).state != "running")
    found = dataset_repairs.repair_state(context, ADA, version, choice)
    assert found.answer is not None, found.error
    assert found.answer["summary"]["fates"] == {"kept": 20, "changed": 1, "removed": 3}
    by_line = {one["line"]: one for one in found.answer["examples"]}
    assert sorted(by_line) == [21, 22, 23, 24]
    assert by_line[21]["is_removed"]
    assert by_line[21]["after"] is None
    assert by_line[24]["before"]["cells"]["messages"]["turns"][0][1] == "cafÃ© please"
    assert by_line[24]["after"]["cells"]["messages"]["turns"][0][1] == "café please"

    made = dataset_repairs.keep_repair(context, ADA, version, choice, note="clean")
    assert (made.number, made.parent, made.origin, made.num_rows, made.note) == (2, 1, "repair", 21, "clean")
    assert made.details["fates"]["removed"] == 3
    text = dataset_versions.path_of(context, ADA, made).read_text(encoding="utf-8")
    assert text == "".join([*ROWS, chat("café please", "A café it is.")])
    assert dataset_versions.path_of(context, ADA, version).read_text(encoding="utf-8") == "".join(BAD)
    assert dataset_repairs.repair_state(context, ADA, version, choice).state == "unasked", "its rows are a version now"
    assert not list(context.settings.answers_folder.rglob("*rows.jsonl*"))


def test_a_repair_that_changes_nothing_makes_no_version(context: Context) -> None:
    version, choice = make(context, "good", ROWS), RepairChoice(("empty_completion",))
    dataset_repairs.begin_repair(context, ADA, version, choice)
    wait_for(lambda: dataset_repairs.repair_state(context, ADA, version, choice).state != "running")
    with pytest.raises(RequestError, match="changes no row"):
        dataset_repairs.keep_repair(context, ADA, version, choice)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (RepairChoice(()), "no repair was chosen"),
        (RepairChoice(("magic",)), "no repair 'magic'"),
        (RepairChoice(("contamination",)), "compare with"),
        (RepairChoice(("over_context",)), "without a model"),
        (RepairChoice(("encoding",), model="nobody"), "not on this machine"),
    ],
)
def test_choices_that_cannot_be_made(context: Context, choice: RepairChoice, words: str) -> None:
    version = make(context, "good", ROWS)
    with pytest.raises(RequestError, match=words):
        dataset_repairs.begin_repair(context, ADA, version, choice)


def test_the_tokens_of_a_version(context: Context, tiny_model: Path) -> None:
    pull_model(context, str(tiny_model))
    long = chat("Tell me", "word " * 600)
    version = make(context, "good", [*ROWS, long, chat("end it", "now <|im_end|> and on")])
    dataset_tokens.begin_tokens(context, ADA, version, "tiny", "auto")
    wait_for(lambda: dataset_tokens.tokens_state(context, version, "tiny", "auto").state != "running")
    found = dataset_tokens.tokens_state(context, version, "tiny", "auto").answer
    assert found is not None
    assert (found["template"], found["num_rows"], found["num_looked_at"]) == ("chat", 22, 22)
    assert (found["num_overlong"], found["num_refused"]) == (1, 1)
    assert "end-of-turn" in found["refused"][0]["reason"]
    first = found["rows"][0]
    assert "".join(text for text, _, _ in first["spans"]).startswith("<|im_start|>user\nWhat comes after 0?")
    learned = "".join(text for text, is_learned, _ in first["spans"] if is_learned)
    assert learned.startswith("After 0 comes 1.")
    assert sum(count for _, _, count in found["bins"]) == 21
    assert 0 < found["num_learned_tokens"] < found["num_tokens"]
    with pytest.raises(RequestError, match="the template"):
        dataset_tokens.begin_tokens(context, ADA, version, "tiny", "odd")
    with pytest.raises(RequestError, match="not on this machine"):
        dataset_tokens.begin_tokens(context, ADA, version, "/etc", "auto")


def test_rows_are_taken_evenly_and_bins_are_round() -> None:
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(100), 4) == [0, 25, 50, 75]
    assert bins_of([], 24) == []
    assert bins_of([7], 24) == [[7, 7, 1]]
    assert bins_of([3, 12, 12, 29], 4) == [[0, 9, 1], [10, 19, 2], [20, 29, 1]]
    assert sum(count for _, _, count in bins_of(range(1, 5000, 7), 24)) == len(range(1, 5000, 7))
