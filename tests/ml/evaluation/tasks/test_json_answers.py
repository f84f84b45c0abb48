"""JSON in answers: what is found, what is right, and what wrong schemas and rows are told."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.results.suite import JsonTask
from luthier.ml.evaluation.metrics.structured_output import JsonValue, equal, find_json, read_json, value_at
from luthier.ml.evaluation.tasks.text import JsonAnswers

SCHEMA = {
    "type": "object",
    "required": ["product", "count"],
    "properties": {"product": {"$ref": "#/$defs/text"}, "count": {"type": "integer"}},
    "$defs": {"text": {"type": "string"}},
}
OWN = '{"product": "lamp", "count": 2}'


def task(**settings):
    return JsonTask(kind="json", name="order", data="rows.jsonl", **settings)


def test_each_figure(bench):
    outputs = {
        OWN: (2, 1, 1, 1, 0),
        '```json\n{"count": 2, "product": "lamp"}\n```\n': (2, 1, 1, 1, 0),
        '{"product": "lamp", "count": 3}': (1, 0, 1, 1, 0),
        '{"product": "lamp", "count": "2"}': (1, 0, 1, 0, 0),
        '{"product": "lamp", "count": 2, "note": ""}': (2, 0, 1, 1, 0),
        f"Here it is: {OWN}": (0, 0, 0, 0, 1),
        f"Sure!\n```\n{OWN}\n```": (0, 0, 0, 0, 1),
        "{'product': 'lamp'}": (0, 0, 0, 0, 0),
        "[]": (0, 0, 1, 0, 0),
        "": (0, 0, 0, 0, 0),
    }
    for output, (fields, exact, valid, fits, prose) in outputs.items():
        found = bench.figures(JsonAnswers(), task(json_schema=SCHEMA), [bench.row(1, answer=OWN)], [output])
        assert list(found.values()) == [fields / 2, exact, valid, fits, prose], output
    rows = [bench.row(n, answer=OWN) for n in range(len(outputs))]
    found = bench.figures(JsonAnswers(), task(json_schema=SCHEMA), rows, outputs)
    assert found["field_accuracy"] == pytest.approx(8 / 20)  # micro: fields right of fields expected


def test_named_fields_may_lie_deeper(bench):
    row = bench.row(1, answer='{"to": {"city": "Bonn", "zip": 1}, "id": 7}')
    found = bench.figures(JsonAnswers(), task(fields=("to.city", "id")), [row], ['{"to": {"city": "Bonn"}, "id": 8}'])
    assert found["field_accuracy"] == 0.5
    assert "schema_valid" not in found


def test_an_answer_that_is_no_object_is_one_field(bench):
    rows = [bench.row(1, answer="[1, 2]"), bench.row(2, answer="null")]
    found = bench.figures(JsonAnswers(), task(), rows, ["[1, 2.0]", "null"])
    assert found["field_accuracy"] == found["json_exact"] == 1.0


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_what_json_writes_is_found_and_equal_to_itself(value):
    text = json.dumps(value)
    assert equal(find_json(text).value, JsonValue(value))
    assert equal(find_json(f"```json\n{text}\n```").value, JsonValue(value))


def test_json_is_strict():
    for text in ("NaN", '{"a": 1, "a": 2}', "{}{}", "[1,]", "[" * 100_000, "1" * 10_000, "﻿{}"):
        assert read_json(text) is None, text[:10]
    assert not equal(JsonValue(True), JsonValue(1))
    assert not equal(JsonValue([0]), JsonValue([False]))
    assert equal(JsonValue(1), JsonValue(1.0))
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == JsonValue(1)
    assert value_at([1], "a") is None


def test_a_schema_in_a_file(bench, tmp_path):
    (tmp_path / "order.json").write_text(json.dumps(SCHEMA))
    found = bench.figures(JsonAnswers(), task(json_schema="order.json"), [bench.row(1, answer=OWN)], [OWN])
    assert found["schema_valid"] == 1.0
    with pytest.raises(NotFoundError):
        bench.metrics(JsonAnswers(), task(json_schema="no.json"), [bench.row(1, answer=OWN)])
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(RequestError, match="no JSON object"):
        bench.metrics(JsonAnswers(), task(json_schema="bad.json"), [bench.row(1, answer=OWN)])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "json_schema is wrong at type"),
        ({"$ref": "https://example.invalid/schema.json"}, "refers to 'https://example.invalid/schema.json'"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "refers to '#/\\$defs/none'"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_before_anything_is_asked(bench, schema, message):
    with pytest.raises(RequestError, match=message):
        JsonAnswers().check(task(json_schema=schema), [bench.row(1, answer=OWN)])


def test_rows_that_are_no_json_or_do_not_fit_are_all_named(bench):
    rows = [bench.row(1, answer="a lamp"), bench.row(2, answer=OWN), bench.row(3, answer='{"product": "lamp"}')]
    with pytest.raises(DataError) as caught:
        JsonAnswers().check(task(fields=("count",)), rows)
    assert [problem.line for problem in caught.value.problems] == [1, 3]
    with pytest.raises(DataError, match="'count' is a required property"):
        bench.metrics(JsonAnswers(), task(json_schema=SCHEMA), rows[1:])
