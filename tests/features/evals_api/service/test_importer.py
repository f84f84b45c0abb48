"""Evals of OpenAI's API become suites, with a run or with rows of one's own; what has no counterpart is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import EvalRetrieveResponse

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.results.suite import GradedTask
from luthier.features.evals_api.importer import import_evals
from luthier.features.suites.definition import Seen, files_in, load_suite, load_task

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]}
# As `client.evals.retrieve(...)` returned it, with the nulls that `model_dump_json()` writes.
EVAL: dict[str, Any] = {
    "id": "eval_67b7fa9a81a88190ab4aa417e397ea21",
    "object": "eval",
    "created_at": 1740110490,
    "name": "Support: Tone & Facts",
    "metadata": {},
    "data_source_config": {
        "type": "custom",
        "schema": {
            "type": "object",
            "properties": {"item": SCHEMA, "sample": {"type": "object"}},
            "required": ["item", "sample"],
        },
    },
    "testing_criteria": [
        {
            "name": "exact",
            "type": "string_check",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.a }}",
            "operation": "ilike",
        },
        {
            "name": "alike",
            "type": "text_similarity",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.a }}",
            "evaluation_metric": "fuzzy_match",
            "pass_threshold": 0.8,
        },
        {
            "name": "vectors",
            "type": "text_similarity",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.a }}",
            "evaluation_metric": "cosine",
            "pass_threshold": 0.8,
        },
        {
            "name": "tone",
            "type": "label_model",
            "model": "o3-mini",
            "input": [
                {"type": "message", "role": "developer", "content": {"type": "input_text", "text": "Rate the tone."}},
                {"type": "message", "role": "user", "content": "{{ sample.output_text }}"},
            ],
            "labels": ["polite", "rude"],
            "passing_labels": ["polite"],
        },
        {"name": "length", "type": "python", "source": "def grade(sample, item):\n    return 1.0", "image_tag": None},
    ],
}
RUN: dict[str, Any] = {
    "id": "evalrun_1",
    "object": "eval.run",
    "created_at": 2,
    "eval_id": EVAL["id"],
    "data_source": {
        "type": "completions",
        "model": "gpt-4o-mini",
        "input_messages": {
            "type": "template",
            "template": [
                {"type": None, "role": "system", "content": {"type": "input_text", "text": "Answer {{item.a}}."}},
                {"type": None, "role": "user", "content": "{{item.q}}"},
            ],
        },
        "source": {
            "type": "file_content",
            "content": [
                {"item": {"q": "Why?", "a": "So"}, "sample": None},
                {"item": {"q": "Who?", "a": "Me", "more": None}, "sample": {"output_text": "You"}},
            ],
        },
        "sampling_params": None,
    },
}


def imported(tmp_path: Path, documents: Any, **options: Any) -> Any:
    (found,) = import_evals(json.dumps(documents), tmp_path, **options)
    return found


def test_an_eval_with_a_run_becomes_a_suite_that_can_be_run(tmp_path: Path) -> None:
    found = imported(tmp_path, [EVAL, RUN | {"id": "older", "created_at": 1, "data_source": {}}, RUN])
    assert (found.suite.name, found.num_rows) == ("support_tone_facts.yaml", 2)
    assert found.graders == ("exact", "alike", "tone", "length")
    notes = " ".join(found.notes)
    for part in (
        "'vectors' was left out: evaluation_metric cosine",
        "asked o3-mini",
        "--judge",
        "--allow-code",
        "sample",
    ):
        assert part in notes
    suite = load_suite(found.suite)
    (task,) = suite.tasks
    assert isinstance(task, GradedTask)
    assert [one.pass_threshold for one in task.graders] == [0.5, 0.8, 0.5, 0.5]
    assert task.allow_code
    rows = load_task(task, files_in(tmp_path), seen=Seen(), seed=0).rows
    assert [row.item["item"]["a"] for row in rows] == ["So", "Me"]
    prompt = rows[0].example.prompt
    assert prompt is not None
    assert [(one.role, one.content) for one in prompt.messages] == [("system", "Answer So."), ("user", "Why?")]


def test_a_grader_with_sampling_parameters_is_taken_without_them(tmp_path: Path) -> None:
    grader = {
        "name": "tone", "type": "score_model", "model": "o3-mini", "input": [{"role": "user", "content": "Good?"}],
        "sampling_params": {"reasoning_effort": "high", "top_p": 0.5, "seed": 1},
    }  # fmt: skip
    found = imported(tmp_path, [EVAL | {"testing_criteria": [grader]}, RUN])
    assert found.graders == ("tone",)
    assert "The sampling_params of grader 'tone' were left out: the judge answers at temperature 0." in found.notes


def test_parameters_of_the_run_that_a_suite_does_not_have_are_named(tmp_path: Path) -> None:
    parameters = {"temperature": 0.7, "response_format": {"type": "json_object"}, "seed": None}
    found = imported(tmp_path, [EVAL, RUN | {"data_source": RUN["data_source"] | {"sampling_params": parameters}}])
    said = "The sampling_params of its run were left out: response_format, temperature."
    assert [note for note in found.notes if "of its run" in note] == [f"{said} Answers of a suite are greedy."]
    assert not [note for note in imported(tmp_path, [EVAL, RUN], force=True).notes if "of its run" in note]


def test_a_page_of_evals_with_rows_and_a_prompt_of_ones_own(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"item": {"q": "Why?", "a": "So"}}\n\n')
    page = {"object": "list", "data": [EVAL, EVAL]}
    found = import_evals(json.dumps(page), tmp_path / "out", data=data, prompt="q")
    assert [one.suite.name for one in found] == ["support_tone_facts.yaml", "support_tone_facts_2.yaml"]
    line = json.loads(found[1].rows.read_text())
    assert line == {"prompt": "Why?", "item": {"q": "Why?", "a": "So"}}
    with pytest.raises(ConflictError):
        import_evals(json.dumps(page), tmp_path / "out", data=data, prompt="q")
    assert len(import_evals(json.dumps(page), tmp_path / "out", data=data, prompt="q", force=True)) == 2


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ("{", {}, "not JSON"),
        (EVAL | {"testing_criteria": None}, {}, "holds no eval"),
        ({"object": "list", "data": []}, {}, "holds no eval"),
        (EVAL, {}, "no rows, and no run of it is in the JSON"),
        ([EVAL, RUN | {"data_source": RUN["data_source"] | {"source": {"type": "file_id", "id": "file-1"}}}], {},
         "its run names them by file_id"),
        ([EVAL, RUN], {"prompt": "none"}, "no field 'none'"),
        (EVAL | {"testing_criteria": [EVAL["testing_criteria"][2]]}, {}, "none of its graders has a counterpart"),
        ([EVAL, RUN | {"data_source": {"type": "jsonl", "source": RUN["data_source"]["source"]}}], {},
         "does not contain the prompt"),
    ],
)  # fmt: skip
def test_what_cannot_become_a_suite_says_what_is_missing(
    tmp_path: Path, documents: Any, options: dict[str, Any], message: str
) -> None:
    text = documents if isinstance(documents, str) else json.dumps(documents)
    with pytest.raises(RequestError, match=message):
        import_evals(text, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_rows_and_evals_are_read_as_other_programs_write_them(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    # A byte order mark, line breaks of Windows, and within a text what only some call a line break.
    lines = ('{"item": {"q": "Why?\u2028Or\x85", "a": "So"}}', '{"item": {"q": "Who?", "a": "Me"}}')
    data.write_bytes("\r\n".join(["\ufeff" + lines[0], lines[1]]).encode())
    for config in (EVAL["data_source_config"], None, {"type": "logs"}, {"schema": {"properties": []}}):
        text = "\ufeff" + json.dumps(EVAL | {"data_source_config": config})
        (found,) = import_evals(text, tmp_path / "out", data=data, prompt="q", force=True)
        rows = [json.loads(line) for line in found.rows.read_bytes().decode().split("\n") if line]
        assert [row["prompt"] for row in rows] == ["Why?\u2028Or\x85", "Who?"]
    without = {name: value for name, value in EVAL.items() if name != "data_source_config"}
    (found,) = import_evals(json.dumps(without), tmp_path / "out", data=data, prompt="q", force=True)
    assert found.num_rows == 2


def test_rows_that_do_not_fit_the_schema_are_named(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"item": {"q": "Why?"}}\n{"q": 1}\n{"item": {"q": "Why?", "a": "So"}}\n')
    with pytest.raises(RequestError, match=r"2 rows do not fit: line 1: .*the column 'a' is missing.*line 2: "):
        import_evals(json.dumps(EVAL), tmp_path, data=data, prompt="q")
    data.write_text('\n{"item": {"q": "Why?"}}\n')
    with pytest.raises(RequestError, match="1 row does not fit: line 2: "):
        import_evals(json.dumps(EVAL), tmp_path, data=data, prompt="q")
    with pytest.raises(NotFoundError):
        import_evals(json.dumps(EVAL), tmp_path, data=tmp_path / "none", prompt="q")


def test_an_eval_is_read_as_openai_s_client_writes_what_the_hosted_service_returned(tmp_path: Path) -> None:
    # The hosted service gives each grader an id; the client's class calls the field of `schema` otherwise.
    criteria = [one | {"id": f"{one['name']}-c4fdf789"} for one in EVAL["testing_criteria"][:2]]
    given = EVAL | {"testing_criteria": criteria}
    text = EvalRetrieveResponse.model_validate(given).model_dump_json()
    assert '"id":"exact-c4fdf789"' in text
    data = tmp_path / "rows.jsonl"
    data.write_text('{"item": {"q": "Why?", "a": "So"}}\n')
    (found,) = import_evals(text, tmp_path / "out", data=data, prompt="q")
    assert (found.graders, found.num_rows, found.notes) == (("exact", "alike"), 1, ())
    data.write_text('{"item": {"q": "Why?"}}\n')
    with pytest.raises(RequestError, match="the column 'a' is missing"):
        import_evals(text, tmp_path / "again", data=data, prompt="q")


def test_parts_of_a_multi_grader_with_ids_are_taken_also_one_that_is_called_id(tmp_path: Path) -> None:
    exact = EVAL["testing_criteria"][0]
    parts = {"id": exact | {"name": "id", "id": "id-1"}, "alike": EVAL["testing_criteria"][1] | {"id": "alike-1"}}
    multi = {"name": "both", "type": "multi", "id": "both-1", "graders": parts, "calculate_output": "(id + alike) / 2"}
    listed = multi | {"name": "listed", "graders": list(parts.values())}
    found = imported(tmp_path, [EVAL | {"testing_criteria": [multi, listed]}, RUN])
    assert (found.graders, [note for note in found.notes if "left out" in note and "sample" not in note]) == (
        ("both", "listed"),
        [],
    )


@pytest.mark.parametrize("place", ["{{ sample.finish_reason }}", "{{sample.choices}}"])
def test_a_grader_of_what_a_suite_does_not_keep_of_an_answer_is_left_out_with_a_note(
    tmp_path: Path, place: str
) -> None:
    exact = EVAL["testing_criteria"][0]
    parts = {"a": exact, "b": exact | {"name": "b", "input": place}}
    criteria = [
        exact, exact | {"name": "field", "input": place},
        {"name": "both", "type": "multi", "graders": parts, "calculate_output": "a * b"},
    ]  # fmt: skip
    found = imported(tmp_path, [EVAL | {"testing_criteria": criteria}, RUN])
    assert found.graders == ("exact",)
    left_out = [note for note in found.notes if "was left out" in note]
    assert [note.split()[1] for note in left_out] == ["'field'", "'both'"]
    assert all(place.strip("{} ") in note for note in left_out)


def test_a_grader_of_an_answer_as_json_becomes_one_of_the_suite(tmp_path: Path) -> None:
    field = EVAL["testing_criteria"][0] | {"name": "field", "input": "{{ sample.output_json.city }}"}
    found = imported(tmp_path, [EVAL | {"testing_criteria": [field]}, RUN])
    assert (found.graders, [note for note in found.notes if "was left out" in note]) == (("field",), [])
    (task,) = load_suite(found.suite).tasks
    assert isinstance(task, GradedTask)
    assert getattr(task.graders[0].grader, "input", None) == "{{ sample.output_json.city }}"
