"""Forms of workflows: what they take over from the commands, what they refuse, and the command lines that they show."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.cli.main import command_tree
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.workflows.declared_forms import FORMS
from luthier.features.workflows.forms import (
    check_values,
    command_line,
    fields_of,
    find_form,
    read_form,
    recipe_of,
)

FILLED: dict[str, dict[str, list[str]]] = {
    "tune": {
        "base_model": ["tiny"],
        "train": ["file-1"],
        "validation": ["0,2"],
        "budget_hours": ["1.5"],
        "trials": ["8"],
        "sampler": ["random"],
        "warm_start": ["true"],
        "recipe": ["training: {epochs: 3}\ndata: {group_by: customer}"],
    },
    "compare-models": {
        "models": ["tiny", "other"],
        "data": ["file-1"],
        "held_out": ["file-2"],
        "budget_hours": ["1"],
        "mapping": ["prompt=question\r\ncompletion=answer"],
        "instruction": ["Answer with it's name"],
        "probe.shown": ["1"],
    },
    "automl": {
        "data": ["file-1"],
        "goal": ["Answer with one SQL query."],
        "budget_hours": ["2"],
        "tune_anyway.shown": ["1"],
        "tune_anyway": ["true"],
    },
    "distill": {"teacher": ["run-1"], "student": ["tiny"], "data": ["file-1"], "kind": ["logit"]},
    "retrain": {"model": ["support"], "panel": ["panel-1", "panel-2"], "start": ["last"], "canary": ["0.1"]},
}
ARGUMENTS = ("recipe", "teacher", "model")
NAMES = {"file-1": "train.jsonl", "file-2": "my test.jsonl"}


def parsed(line: str) -> dict[str, Any]:
    """What the command reads from a line, without carrying it out."""
    words = shlex.split(line)
    tree = command_tree()
    command = tree.commands[words[1]]
    return dict(command.make_context(words[1], words[2:]).params)


def test_every_form_has_a_command_and_takes_help_and_bounds_from_it() -> None:
    tree = command_tree()
    for name in nonempty(FORMS):
        options = {one.name: one for one in tree.commands[name].params}
        for field in nonempty(fields_of(name)):
            if field.entry.name in options and not field.entry.recipe_key and field.entry.name not in ARGUMENTS:
                option = options[field.entry.name]
                assert field.option in option.opts
                assert (field.help == str(option.help or "")) != bool(field.entry.help)
            assert field.help or field.entry.kind == "flag", (name, field.entry.name)


@pytest.mark.parametrize("name", FILLED)
def test_the_command_line_says_the_same_as_the_form(name: str) -> None:
    values, problems = read_form(name, FILLED[name])
    assert problems == {}
    line = command_line(name, values, NAMES)
    given = parsed(line)
    for field in nonempty(fields_of(name)):
        entry, value = field.entry, values.get(field.entry.name)
        if entry.recipe_key or entry.name == "recipe" or value is None:
            continue
        read = given[entry.name]
        if entry.kind == "file":
            assert str(read) == NAMES[value]
        elif entry.kind == "models":
            assert read.split(",") == value
        elif entry.kind == "mapping":
            assert dict(one.split("=") for one in read) == value
        else:
            assert (list(read) if isinstance(read, list | tuple) else type(value)(read)) == value, entry.name


def test_what_is_left_out_is_left_to_the_command() -> None:
    values, _ = read_form("automl", FILLED["automl"])
    line = command_line("automl", values, NAMES)
    assert line == (
        "luthier automl --data train.jsonl --goal 'Answer with one SQL query.' --budget-hours 2 --tune-anyway"
    )
    values, _ = read_form("compare-models", FILLED["compare-models"])
    assert "--no-probe" in command_line("compare-models", values, NAMES), "its box is on the form, and not ticked"


def test_layers_take_the_place_of_a_student() -> None:
    values, problems = read_form("distill", FILLED["distill"] | {"layers": ["15"]})
    assert problems == {}
    assert parsed(command_line("distill", values, NAMES))["student"] == "layers:15"


@pytest.mark.parametrize(("text", "hours"), [("1,000", 1000.0), ("2,5", 2.5), ("0,125", 0.125), ("1.5", 1.5)])
def test_a_number_of_a_form_may_have_thousands_or_a_decimal_comma(text: str, hours: float) -> None:
    values, problems = read_form("tune", FILLED["tune"] | {"budget_hours": [text]})
    assert (problems, values["budget_hours"]) == ({}, hours)


def test_fields_of_the_recipe_win_over_its_free_keys() -> None:
    values, _ = read_form("tune", FILLED["tune"] | {"recipe": ["base_model: x\ndata: {train: y, group_by: z}"]})
    assert recipe_of("tune", values) == {
        "base_model": "tiny",
        "data": {"train": "file-1", "group_by": "z", "validation": 0.2},
    }


@pytest.mark.parametrize(
    ("name", "sent", "place", "words"),
    [
        ("tune", {"budget_hours": ["soon"]}, "budget_hours", "is not a number"),
        ("tune", {"budget_hours": ["0"]}, "budget_hours", "at least 0.001"),
        ("tune", {"budget_hours": ["nan"]}, "budget_hours", "out of range"),
        ("tune", {"trials": ["1.5"]}, "trials", "is not a whole number"),
        ("automl", {"seed": ["1" * 400]}, "seed", "out of range: at least 0"),
        ("tune", {"trials": ["0"]}, "trials", "at least 1"),
        ("tune", {"workers": ["65"]}, "workers", "at most 64"),
        ("tune", {"sampler": ["dice"]}, "sampler", "one of tpe, cmaes, random"),
        ("tune", {"train": [" "]}, "train", "is missing"),
        ("tune", {"recipe": ["a: [1"]}, "recipe", "Other keys"),
        ("tune", {"recipe": ["- 1"]}, "recipe", "not a mapping"),
        ("tune", {"recipe": ["a: &x {b: 1}\nc: *x"]}, "recipe", "write it out"),
        ("compare-models", {"mapping": ["question"]}, "mapping", "FIELD=COLUMN"),
        ("compare-models", {"models": [f"m{n}" for n in range(51)]}, "models", "too long"),
        ("automl", {"goal": ["x" * 20_001]}, "goal", "too long"),
        ("retrain", {"canary": ["1"]}, "canary", "at most 0.999"),
    ],
)
def test_wrong_fields_are_named(name: str, sent: dict[str, list[str]], place: str, words: str) -> None:
    _, problems = read_form(name, FILLED[name] | sent)
    assert list(problems) == [place]
    assert words in problems[place]


def test_json_values_are_checked_as_those_of_a_page() -> None:
    given = {"models": ["tiny"], "data": "file-1", "held_out": "file-2", "budget_hours": 1, "probe": False}
    values = check_values("compare-models", given | {"mapping": {"prompt": "question"}})
    assert (values["probe"], values["mapping"], values["budget_hours"]) == (False, {"prompt": "question"}, 1.0)
    with pytest.raises(RequestError, match="unknown: colour"):
        check_values("compare-models", given | {"colour": "red"})
    with pytest.raises(RequestError, match="Budget is missing"):
        check_values("compare-models", {**given, "budget_hours": None})
    with pytest.raises(NotFoundError, match="no workflow 'fly'"):
        find_form("fly")


def test_several_sources_of_the_recipe_stand_in_for_the_field_of_a_file() -> None:
    text = "data:\n  train:\n  - {path: file-1, weight: 3}\n  - {path: file-2, weight: 1}\n  validation: file-3\n"
    sent = FILLED["tune"] | {"train": ["sources"], "validation": [""], "recipe": [text]}
    values, problems = read_form("tune", sent)
    assert problems == {}
    recipe = recipe_of("tune", values)
    assert [one["path"] for one in recipe["data"]["train"]] == ["file-1", "file-2"]
    assert recipe["data"]["validation"] == "file-3"
    chosen, problems = read_form("tune", sent | {"train": ["file-4"]})
    assert (problems, recipe_of("tune", chosen)["data"]["train"]) == ({}, "file-4"), "a file takes their place"
    _, problems = read_form("tune", sent | {"recipe": ["training: {epochs: 3}"]})
    assert problems == {
        "train": "Rows to train on is missing",
        "validation": "Share for validation is missing",
    }
    values = check_values("tune", {"base_model": "tiny", "budget_hours": 2, "recipe": text})
    assert "train" not in values
