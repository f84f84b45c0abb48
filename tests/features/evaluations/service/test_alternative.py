"""How to use what is recommended in place of the tuned model: the program does what the evaluation has measured."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from tests.ml.evaluation.judged_cases import judged, system

from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation, SystemKind
from luthier.core.evaluation_plan import Prompting
from luthier.features.evaluations.alternative import alternative_of
from luthier.ml.baselines.labels import popular_among_offered
from luthier.ml.baselines.predict import (
    COPY,
    EMBEDDED,
    LINEAR,
    MAJORITY,
    NEAREST,
    POPULARITY,
    RIDGE,
    UNCHANGED,
    function_of,
)

ROWS = {
    LINEAR: [(f"the wine tastes {'sweet' if n % 2 else 'sour'} {n}", "good" if n % 2 else "bad") for n in range(40)],
    NEAREST: [("where is the bridge", "in the town"), ("who made the violin", "a luthier")],
    RIDGE: [(f"{n} metres", str(2 * n)) for n in range(40)],
    COPY: [(f"colour: blue{n} shape: round{n}", f"round{n}") for n in range(40)],
    UNCHANGED: [
        (f"Correct: {text}", f"{text}.")
        for n in range(40)
        for text in (f"{n} bows need {n + 3} hours of {('glue', 'sanding', 'work')[n % 3]}",)
    ],
}
KINDS: dict[str, SystemKind] = {
    LINEAR: "linear",
    NEAREST: "nearest",
    RIDGE: "ridge",
    COPY: "copy",
    UNCHANGED: "copy",
    EMBEDDED: "nearest",
}
QUESTIONS = {
    LINEAR: ("the wine tastes sweet", "['good']"),
    NEAREST: ("who plays the violin", "['a luthier']"),
    RIDGE: ("20 metres", "['40']"),
    COPY: ("colour: red shape: square", "['square']"),
    UNCHANGED: ("Correct: nine bows need a day of glue", "['nine bows need a day of glue']"),
}


def recommending(name: str, kind: SystemKind = "model", prompting: Prompting | None = None) -> Evaluation:
    rival = system(name, 0.9, kind=kind, prompting=prompting, num_few_shot=2 if prompting else 0)
    return judged(0.5, [system("base", 0.1), rival], ["better", "worse"], word="worse")


@pytest.mark.parametrize("name", ROWS)
def test_the_program_answers_as_the_baseline_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = alternative_of(recommending(name, KINDS[name]))
    assert found.kind == "program"
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in ROWS[name]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    question, answer = QUESTIONS[name]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(found.text.replace("YOUR QUESTION", question), {})
    assert printed.getvalue().strip() == answer


def test_a_baseline_that_answers_from_rows_alone_names_its_function() -> None:
    assert function_of(POPULARITY) is popular_among_offered
    for name in (MAJORITY, EMBEDDED, "tuned"):
        assert function_of(name) is None, name


def test_a_method_that_needs_a_model_is_described_and_has_no_program() -> None:
    found = alternative_of(recommending(EMBEDDED, "nearest"))
    assert found.text == ""
    assert "documentation" in found.notes[0]


def test_nearest_examples_have_a_place_in_the_messages() -> None:
    own = Prompting(kind="few_shot", examples="nearest", instruction="Be brief.", extra_prompt_tokens=80)
    found = alternative_of(recommending("base + 2 nearest examples", prompting=own))
    roles = [message["role"] for message in json.loads(found.text)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "2 examples differ by question" in found.notes[0]


@pytest.mark.parametrize("own", [None, Prompting(kind="few_shot", examples="drawn", extra_prompt_tokens=80)])
def test_examples_of_an_old_evaluation_are_said_to_be_missing(own: Prompting | None) -> None:
    evaluation = recommending("base + 2 examples", prompting=own)
    if own is None:
        systems = tuple(
            one.model_copy(update={"num_few_shot": 2}) if one.name == "base + 2 examples" else one
            for one in evaluation.systems
        )
        evaluation = evaluation.model_copy(update={"systems": systems})
    assert any("are not stored" in note for note in alternative_of(evaluation).notes)


def test_the_tuned_model_is_no_alternative() -> None:
    with pytest.raises(NotFoundError, match="does not recommend"):
        alternative_of(judged(0.9, [system("base", 0.1)], ["better"], word="better"))
