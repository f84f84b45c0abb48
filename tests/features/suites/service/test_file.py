"""Suites from files: every wrong place is named, and the fingerprint follows the content of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.features.suites.definition import digests_of, load_suite

GOOD = """\
name: demo
tasks:
  - name: answers
    kind: generate
    data: rows.jsonl
    few_shot: 2
    few_shot_from: shown.jsonl
  - {name: schema, kind: json, data: rows.jsonl, json_schema: schema.json}
  - {name: cited, kind: citations, data: rows.jsonl, corpus: corpus}
  - {name: foreign, kind: lm_eval, task: own.yaml}
"""


def suite(folder: Path, text: str = GOOD) -> Path:
    (folder / "corpus").mkdir(exist_ok=True)
    for name in ("rows.jsonl", "shown.jsonl", "schema.json", "own.yaml", "corpus/one.txt"):
        (folder / name).write_text(name)
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def test_the_fingerprint_follows_the_suite_and_all_of_its_files(tmp_path: Path) -> None:
    loaded = load_suite(suite(tmp_path))
    before = digests_of(loaded, tmp_path)
    assert set(before) == {"rows.jsonl", "shown.jsonl", "schema.json", "own.yaml", "corpus"}
    fingerprints = {loaded.fingerprint(before)}
    for name in ("rows.jsonl", "corpus/one.txt"):
        (tmp_path / name).write_text("changed")
        fingerprints.add(loaded.fingerprint(digests_of(loaded, tmp_path)))
    fingerprints.add(loaded.model_copy(update={"seed": 1}).fingerprint(before))
    assert len(fingerprints) == 4
    (tmp_path / "schema.json").unlink()
    with pytest.raises(NotFoundError, match=r"task schema: no file schema\.json"):
        digests_of(loaded, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: demo\ntasks: []\n", "tasks"),
        ("tasks:\n  - {name: a, kind: generate, data: x}\n", "name: is missing"),
        (GOOD + "speed: 3\n", "line 11, speed: unknown key; nearest known: seed"),
        (GOOD.replace("few_shot: 2", "few_shots: 2"), "task answers: line 6, few_shots: unknown key"),
        (GOOD.replace("few_shot: 2", "few_shot: many"), "task answers: line 6, few_shot: has 'many', expected a whole"),
        (GOOD.replace("kind: json", "kind: jsn"), r"line 8, tasks\[1\].kind: has 'jsn'.*nearest: json"),
        (GOOD.replace("kind: json, ", ""), r"line 8, tasks\[1\].kind: is missing"),
        (GOOD.replace("name: schema", "name: answers"), "a different name for each task"),
        (GOOD.replace("    few_shot_from: shown.jsonl\n", ""), "few_shot_from: a file with rows that are not eval"),
        (GOOD.replace("name: schema", "name: Schema!"), "name: has 'Schema!'"),
        ("name: demo\ntasks:\n  - just words\n", r"tasks\[0\]: has 'just words', expected a mapping"),
        ("name: demo\ntasks: [1\n", "not valid YAML"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_every_wrong_place_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_suite(suite(tmp_path, text))


def test_several_wrong_places_come_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("few_shot: 2", "few_shots: 2").replace("corpus: corpus", "corpus: 3")
    with pytest.raises(RequestError, match="2 problems") as error:
        load_suite(suite(tmp_path, text))
    assert "suite.yaml" in error.value.came


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    suite(tmp_path)
    with pytest.raises(NotFoundError, match=r"suit\.yaml.*suite\.yaml"):
        load_suite(tmp_path / "suit.yaml")


def test_the_fingerprint_follows_the_data_that_a_task_of_the_harness_names(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name in ("rows.jsonl", "more-1.jsonl", "tasks/utils.py", "other.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tasks" / "common.yaml").write_text("dataset_path: json\nprocess_docs: !function utils.first\n")
    (tmp_path / "tasks" / "own.yaml").write_text(
        'include: common.yaml\ntask: own\ndoc_to_text: "other.jsonl"\n'
        "dataset_kwargs: {data_files: {test: rows.jsonl, train: ['more-*.jsonl']}, revision: \"none\"}\n"
    )
    (tmp_path / "suite.yaml").write_text("name: s\ntasks:\n  - {name: own, kind: lm_eval, task: tasks/own.yaml}\n")
    loaded = load_suite(tmp_path / "suite.yaml")
    fingerprints = [loaded.fingerprint(digests_of(loaded, tmp_path))]
    for name in ("rows.jsonl", "more-1.jsonl", "tasks/utils.py", "tasks/common.yaml", "tasks/own.yaml"):
        with (tmp_path / name).open("a") as file:
            file.write("\n# changed\n")
        fingerprints.append(loaded.fingerprint(digests_of(loaded, tmp_path)))
    assert len(set(fingerprints)) == 6
    (tmp_path / "other.jsonl").write_text("changed")
    assert loaded.fingerprint(digests_of(loaded, tmp_path)) == fingerprints[-1], "it is a text of a prompt"
