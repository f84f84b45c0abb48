"""A student is taught, trained without its teacher, and all three are evaluated; stopped anywhere, it goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from tests.fixtures.batch_provider import KEY, Provider
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import DataError, LeakageError, LuthierError, RecipeError, RequestError
from luthier.core.workflows.pipeline import ALONE, TAUGHT, TEACHER, Student
from luthier.features.planning.service import make_plan
from luthier.features.recipes.service import recipe_from
from luthier.features.training import service as training_service
from luthier.features.training.service import train
from luthier.features.workflows.distillation import rows as student_judging
from luthier.features.workflows.distillation import workflow as students
from luthier.features.workflows.distillation.request import DistilRequest, recipe_of, spec_of
from luthier.features.workflows.distillation.rows import write_gold, write_taught
from luthier.features.workflows.distillation.workflow import distil
from luthier.ml.evaluation.report import workflow_pages as distilled
from luthier.ml.inference.engine_wrappers import CachedEngine
from luthier.ml.inference.models import cache
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.planning import defaults
from luthier.ml.training import loop
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, serving
from luthier.testing.tiny import make_tiny_model

TRAINING = {
    "max_steps": 3,
    "global_batch_size": 8,
    "learning_rate": 0.01,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_every_steps": 1,
}
EVALUATION = {"metrics": ["exact_match", "token_f1", "perplexity"], "max_new_tokens": 8}
SHORT = {"training": TRAINING | {"max_steps": 2}, "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 2}}
"""Where it counts which runs there are, and not what they have learned."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "four", layers=4)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [chat_row(n) for n in range(40)])


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: Any) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({"training": TRAINING, "evaluation": EVALUATION, **sections}))
        return file

    return write


@pytest.fixture(scope="module")
def taught_home(tmp_path_factory: pytest.TempPathFactory, deep: Path, rows: Path) -> tuple[Path, str]:
    """A home with a run that has learned something, and its id: copied for each test."""
    home = tmp_path_factory.mktemp("teacher") / "home"
    document = {
        "base_model": str(deep),
        "data": {"train": str(rows)},
        "method": {"name": "lora", "rank": 4, "dropout": 0.0},
        "training": TRAINING | {"max_steps": 2},
    }
    with Context.open(home) as context:
        return home, train(context, recipe_from(document, base_dir=Path()), base_dir=Path()).record.run_id


@pytest.fixture
def teacher(taught_home: tuple[Path, str], tmp_path: Path) -> str:
    """That run in the home of `context`."""
    shutil.copytree(taught_home[0], tmp_path / "home", dirs_exist_ok=True)
    return taught_home[1]


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def figures(student: Student) -> list[dict[str, Any]]:
    assert student.evaluation is not None
    return [system.model_dump(exclude={"seconds", "adapter"}) for system in student.evaluation.systems]


def test_layers_of_a_run_learn_its_logits_and_are_judged_beside_it(
    teacher: str, context: Context, rows: Path, recipe: Callable[..., Path]
) -> None:
    request = DistilRequest(teacher, "layers:2", rows, kind="logit", recipe=recipe(objective={"name": "distillation"}))
    student = distil(context, request)
    assert student.status == "done"
    assert (student.student_model, student.layers) == (f"layers:2@{teacher}", "2")
    assert (student.num_rows, student.num_refused, student.num_held_out) == (32, 0, 8)
    assert student.taught is not None
    assert student.alone is not None
    assert (student.taught.num_steps, student.taught.num_examples) == (3, student.alone.num_examples)
    assert student.taught.weights_sha256 != student.alone.weights_sha256
    plans = [context.runs.plan(run.run_id) for run in (student.taught, student.alone)]
    assert [plan.objective.name for plan in plans] == ["distillation", "sft"]
    assert [plan.method.name for plan in plans] == ["full", "full"]
    assert plans[0].data.train.sha256 == plans[1].data.train.sha256
    assert student.evaluation is not None
    assert [system.name for system in student.evaluation.systems] == [TEACHER, ALONE, TAUGHT]
    assert student.verdict is not None
    assert student.verdict.word in ("worth it", "not worth it", "not settled")
    assert any("of the teacher's" in reason for reason in student.verdict.reasons)
    page = Path(str(student.report_path)).read_text()
    assert student.verdict.headline in unescape(page)
    assert page.count("<svg") >= 1
    kept = cache.read(context.settings.models_folder / cache_name(context, student.student_model))
    assert kept is not None
    assert kept[1].origin["adapter_sha256"] == context.runs.get(teacher).result.adapter_sha256  # type: ignore[union-attr]
    assert distil(context, request) == student
    assert spec_of(context, request)[0] == student.student_id
    assert spec_of(context, request, "proj-other")[0] != student.student_id, "each project has its own"


def test_what_no_teacher_changes_is_trained_once_as_long_as_its_weights_are_whole(
    teacher: str, context: Context, rows: Path, recipe: Callable[..., Path]
) -> None:
    def distilled(temperature: float) -> Student:
        file = recipe(objective={"name": "distillation", "temperature": temperature}, **SHORT)
        return distil(context, DistilRequest(teacher, "layers:2", rows, kind="logit", recipe=file))

    first, second = distilled(1.0), distilled(2.0)
    assert first.student_id != second.student_id
    assert first.alone is not None
    assert second.alone == first.alone
    assert second.taught != first.taught
    result = context.runs.get(first.alone.run_id).result
    assert result is not None
    (weights,) = Path(str(result.adapter_path)).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    third = distilled(3.0)
    assert third.alone is not None
    assert third.alone.run_id != first.alone.run_id
    assert third.alone.weights_sha256 == first.alone.weights_sha256


def test_an_equal_run_of_another_project_is_not_taken_for_its_own(
    teacher: str,
    context: Context,
    rows: Path,
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = recipe(objective={"name": "distillation"}, **SHORT)
    request = DistilRequest(teacher, "layers:2", rows, kind="logit", recipe=file)
    first = distil(context, request)
    project_id = create_project(context, "mine").project_id
    monkeypatch.setattr(context, "owner_project_id", project_id)  # as a job of that project has it
    second = distil(context, request, caller=Caller(project_id=project_id))
    for one, other in ((first.taught, second.taught), (first.alone, second.alone)):
        assert one is not None
        assert other is not None
        assert one.run_id != other.run_id
        assert one.weights_sha256 == other.weights_sha256
        assert context.runs.project_of(one.run_id) == "default"
        assert context.runs.project_of(other.run_id) == project_id


def test_without_values_in_the_recipe_both_have_the_batch_size_and_the_rate_of_the_one_without_a_teacher(
    context: Context, tiny_model: Path, rows: Path, recipe: Callable[..., Path]
) -> None:
    """For so few rows the defaults of plain fine-tuning are others than those of a distillation."""
    training = {"epochs": 1, "precision": "float32", "num_threads": 1}
    file = recipe(training=training, evaluation={"metrics": ["exact_match"], "max_new_tokens": 4})
    student = distil(context, DistilRequest(str(tiny_model), str(tiny_model), rows, kind="logit", recipe=file))
    assert student.taught is not None
    assert student.alone is not None
    plans = [context.runs.plan(one.run_id) for one in (student.taught, student.alone)]
    assert [plan.objective.name for plan in plans] == ["distillation", "sft"]
    gold = {"train": str(context.home / "students" / student.student_id / "train.jsonl")}
    plain = recipe_from({"base_model": str(tiny_model), "data": gold, "training": training}, base_dir=Path())
    expected = make_plan(context, plain, base_dir=Path()).training
    assert expected.num_steps == 4, "32 rows, 8 in a step"
    for plan in plans:
        assert (plan.training.global_batch_size, plan.training.num_steps) == (8, 4)
        assert plan.training.learning_rate == expected.learning_rate


def test_the_student_without_a_teacher_has_the_defaults_that_the_other_one_was_trained_with(
    context: Context,
    tiny_model: Path,
    rows: Path,
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = DistilRequest(str(tiny_model), str(tiny_model), rows, kind="logit", recipe=recipe(**SHORT))
    trained = []

    def once(*given: Any, **more: Any) -> Any:
        if trained:
            raise KeyboardInterrupt
        trained.append(train(*given, **more))
        return trained[0]

    with monkeypatch.context() as earlier:
        earlier.setattr(defaults, "WEIGHT_DECAY", (0.05, "an earlier default"))
        earlier.setattr(training_service, "train", once)
        with pytest.raises(KeyboardInterrupt):
            distil(context, request)
    student = distil(context, request)
    assert student.taught is not None
    assert student.alone is not None
    assert student.taught.run_id == trained[0].record.run_id
    plans = [context.runs.plan(one.run_id) for one in (student.taught, student.alone)]
    assert [plan.training.weight_decay for plan in plans] == [0.05, 0.05]


@pytest.mark.parametrize(
    ("objective", "teacher", "expected"),
    [
        ({"name": "sft", "loss_weighting": "sample"}, None, {"name": "sft", "loss_weighting": "sample"}),
        ("sft", None, None),
        (None, None, None),
        (
            {"name": "distillation", "alpha": 0.9, "router_aux_loss": 0.01},
            None,
            {"name": "sft", "router_aux_loss": 0.01},
        ),
        ({"name": "distillation", "alpha": 0.9}, None, None),
        ({"name": "distillation", "alpha": 0.9}, "T", {"name": "distillation", "alpha": 0.9, "teacher": "T"}),
        (None, "T", {"name": "distillation", "teacher": "T"}),
    ],
)
def test_settings_of_the_objective_hold_for_each_training_that_has_them(
    objective: Any, teacher: str | None, expected: dict[str, Any] | None, tmp_path: Path
) -> None:
    settings = {"data": {}} | ({} if objective is None else {"objective": objective})
    made = recipe_of(settings, student="org/base", rows=tmp_path / "rows.jsonl", teacher=teacher, is_whole=False)
    assert (made.objective.model_dump(exclude_none=True) if made.objective else None) == expected


def test_answers_may_be_as_long_as_those_of_the_held_out_rows(
    context: Context, tiny_model: Path, tmp_path: Path, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    template, text = ChatTemplate.load(tiny_model), "So it goes on"
    while len(template.ids(text)) < 160:
        text += " and on"
    longest = len(template.ids(text)) + 1  # with the token that ends it
    turns = [("user", "Why {}?"), ("assistant", text)]
    long = [{"messages": [{"role": r, "content": t.format(n)} for r, t in turns]} for n in range(20)]
    file = recipe(evaluation={"metrics": ["exact_match"]}, training=TRAINING | {"max_steps": 1})
    rows, server = write_rows(tmp_path / "long.jsonl", long), OpenAIServer()
    # The teacher is judged first: by then it has been asked in both ways.
    monkeypatch.setattr(student_judging, "open_engine", stopping(student_judging.open_engine, 0))
    with serving(server) as url, pytest.raises(KeyboardInterrupt):
        distil(context, DistilRequest(f"{url}#m", str(tiny_model), rows, recipe=file, max_new_tokens=99))
    (limit,) = {body["max_tokens"] for _, body in server.requests} - {99}
    assert 1.25 * longest <= limit < 1.25 * longest + 32


def cache_name(context: Context, name: str) -> str:
    from luthier.ml.inference.models import catalog

    return catalog.parse(name).safe


def test_a_server_teaches_by_its_answers_and_what_it_leaves_empty_is_learned_by_neither(
    context: Context, tiny_model: Path, rows: Path, recipe: Callable[..., Path]
) -> None:
    server = OpenAIServer(answer=lambda asked: "" if asked.endswith("7?") else f"You asked: {asked}")
    with serving(server) as url:
        request = DistilRequest(f"{url}#m", str(tiny_model), rows, recipe=recipe(evaluation={"max_new_tokens": 8}))
        student = distil(context, request)
        before = len(server.requests)
        assert distil(context, request) == student
        assert len(server.requests) == before
    assert student.num_refused > 0
    assert student.num_rows + student.num_refused == 32
    folder = context.home / "students" / student.student_id
    taught, gold = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("answers.jsonl", "gold.jsonl")
    )
    assert [row["messages"][:-1] for row in taught] == [row["messages"][:-1] for row in gold]
    assert all(row["messages"][-1]["content"].startswith("You asked") for row in taught)
    assert all(row["messages"][-1]["content"].startswith("After") for row in gold)
    assert student.evaluation is not None
    assert {name for system in student.evaluation.systems for name in system.metrics} == {
        *("rouge_1", "rouge_2", "rouge_l", "bleu", "exact_match", "exact_match_ignoring_case")
    }
    assert student.teacher_parameters is None
    assert student.verdict is not None
    assert any("left out of both" in caveat for caveat in student.verdict.caveats)


@pytest.mark.parametrize("kind", ["sequence", "logit"])
def test_stopped_at_many_moments_it_ends_with_the_same_bytes(
    kind: Any,
    tiny_model: Path,
    rows: Path,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = OpenAIServer(answer=lambda asked: f"You asked: {asked}")
    file = recipe(evaluation={"metrics": ["exact_match"], "max_new_tokens": 4})
    with serving(server) as url:
        teacher = f"{url}#m" if kind == "sequence" else str(tiny_model)
        request = DistilRequest(teacher, str(tiny_model), rows, kind=kind, recipe=file)
        with Context.open(tmp_path / "whole") as context:
            whole = distil(context, request)
        stops: list[tuple[Any, str, int]] = [
            (students, "write_taught", 0) if kind == "logit" else (CachedEngine, "generate_each", 0),
            (loop, "one_step", 0),
            (loop, "one_step", 2),  # in the middle of the first training
            (loop, "one_step", 2),  # after its last step and one of the second
            (student_judging, "open_engine", 0),
            (student_judging, "open_engine", 1),
            (distilled, "write_student_report", 0),
        ]
        with Context.open(tmp_path / "stopped") as context:
            for owner, name, after in stops:
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, stopping(getattr(owner, name), after))
                    with pytest.raises(KeyboardInterrupt):
                        distil(context, request)
            stopped = distil(context, request)
            assert len(context.runs.list()) == 2
    for one, other in ((whole.taught, stopped.taught), (whole.alone, stopped.alone)):
        assert one is not None
        assert other is not None
        assert one.weights_sha256 == other.weights_sha256
    assert figures(whole) == figures(stopped)
    folders = [tmp_path / home / "students" / whole.student_id for home in ("whole", "stopped")]
    for file in nonempty(sorted(folders[0].glob("*.jsonl"))):
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def stopping(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The function, stopped at its call number `after`."""
    calls = [0]

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    return call


def test_texts_with_line_separators_stay_rows(context: Context, tmp_path: Path) -> None:
    """JSON leaves U+2028 and U+0085 unescaped inside a text; they end no row."""
    separated = [
        {
            "messages": [
                {"role": "user", "content": f"Why{mark}{n}?"},
                {"role": "assistant", "content": f"So{mark}it is."},
            ]
        }
        for n, mark in enumerate(("\u2028", "\x85", "\u2029", " "))
    ]
    data = write_rows(tmp_path / "data.jsonl", separated)
    held_out = write_rows(tmp_path / "held.jsonl", [chat_row(n) for n in range(2)])
    folder = tmp_path / "distillation"
    folder.mkdir()
    assert write_gold(folder, data, held_out, mapping=None, seed=0)[0] == 4
    with serving(OpenAIServer(answer=lambda asked: f"You asked:\u2028{asked}")) as url:
        made = write_taught(context, folder, teacher=f"{url}#m", max_new_tokens=32, num_rows=4)
    assert (made.num_rows, made.num_refused) == (4, 0)


def test_a_teacher_answers_by_its_batch_api(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    monkeypatch.setattr(httpx2, "Client", partial(httpx2.Client, transport=httpx2.MockTransport(provider)))
    monkeypatch.setenv("LUTHIER_TEACHER_API_KEY", KEY)
    data, held_out = (
        write_rows(tmp_path / f"{name}.jsonl", [chat_row(n) for n in numbers])
        for name, numbers in (("data", range(6)), ("held", range(6, 8)))
    )
    folder = tmp_path / "distillation"
    folder.mkdir()
    write_gold(folder, data, held_out, mapping=None, seed=0)
    url = "https://provider.example/v1#m"
    made = write_taught(context, folder, teacher=url, max_new_tokens=32, num_rows=6, uses_batch_api=True)
    assert (made.num_rows, made.num_refused) == (6, 0)
    assert (len(provider.live), len(provider.batches), len(provider.asked)) == (1, 1, 5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"uses_batch_api": True}, "--batch with --kind sequence and the teacher"),
        ({"teacher": "http://127.0.0.1:1/v1#m", "kind": "logit"}, "does not give the probability"),
        ({"teacher": "http://127.0.0.1:1/v1#m", "student": "layers:2"}, "weights are on this machine"),
        ({"teacher": "http://127.0.0.1:1/v1", "student": "TINY"}, "names no model"),
        ({"student": "layers:4"}, "has 4"),
        ({"student": "layers:0,9"}, "has 4"),
        ({"student": "layers:some"}, "layers:0,2,4-29@TEACHER"),
        ({"student": "nobody"}, "nobody"),
        ({"held_out": 1.5}, "less than 1"),
        ({"held_out": 0.0}, "more than 0"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"data": Path("none.jsonl")}, "no such file"),
        ({"overrides": ("budget.hours=1",)}, "budget"),
        ({"overrides": ("data.validation=0.1",)}, "both must see the same rows"),
        ({"overrides": ("data.subset=[0, 0.5]",)}, "data.subset"),
        ({"overrides": ("objective.name=dpo",)}, "objective dpo"),
        ({"overrides": ("training.early_stopping_patience=2",)}, "training.early_stopping_patience in the recipe"),
        ({"overrides": ("evaluation.metrics=[label]",)}, "metrics"),
        ({"overrides": ("training.epoch=1",)}, "epoch"),
        ({"overrides": ("training",)}, "dotted key"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    change: dict[str, Any], match: str, context: Context, deep: Path, rows: Path, tiny_model: Path
) -> None:
    asked = {name: str(tiny_model) if value == "TINY" else value for name, value in change.items()}
    with pytest.raises(LuthierError, match=match):
        distil(context, replace(DistilRequest(str(deep), "layers:2", rows), **asked))
    assert context.runs.list() == []


def test_metrics_that_a_server_cannot_be_judged_by_are_refused(
    context: Context, rows: Path, tiny_model: Path, recipe: Callable[..., Path]
) -> None:
    file = recipe(evaluation={"metrics": ["exact_match", "perplexity"]})
    with pytest.raises(RequestError, match="gives no likelihoods"):
        distil(context, DistilRequest("http://127.0.0.1:1/v1#m", str(tiny_model), rows, recipe=file))


def test_rows_without_gold_answers_and_rows_that_leak_are_refused(
    context: Context, deep: Path, rows: Path, tmp_path: Path
) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": f"a text of {n} words"} for n in range(20)])
    with pytest.raises(DataError, match="16 rows have no prompt with a text answer"):
        distil(context, DistilRequest(str(deep), "layers:2", texts))
    held_out = write_rows(tmp_path / "held_out.jsonl", [chat_row(n) for n in range(38, 45)])
    with pytest.raises(LeakageError, match="2 of 7"):
        distil(context, DistilRequest(str(deep), "layers:2", rows, held_out=held_out))


def test_another_vocabulary_is_refused_by_logits(context: Context, deep: Path, rows: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", vocabulary=400)
    with pytest.raises(RequestError, match="another vocabulary"):
        distil(context, DistilRequest(str(deep), str(other), rows, kind="logit"))
    with pytest.raises(RecipeError):
        distil(context, DistilRequest(str(deep), "layers:2", rows, overrides=("method.name=none",)))


def test_the_command_that_resumes_it_holds_in_any_folder(
    context: Context, deep: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    _, spec = spec_of(context, DistilRequest(str(deep), "layers:2", Path(rows.name), held_out=Path(rows.name)))
    assert f"--data {rows} " in spec.command
    assert f"--held-out {rows} " in spec.command


def test_other_validation_rows_under_the_same_name_are_another_distillation(
    context: Context, deep: Path, rows: Path, tmp_path: Path
) -> None:
    file = tmp_path / "validation.jsonl"
    asked = DistilRequest(str(deep), "layers:2", rows, overrides=(f"data.validation={file}",))

    def id_with(number: int) -> str:
        write_rows(file, [chat_row(number)])
        return spec_of(context, asked)[0]

    assert id_with(50) == id_with(50)
    assert id_with(50) != id_with(51)


def test_rows_of_one_document_stay_on_one_side_and_count_together(context: Context, tmp_path: Path) -> None:
    rows = [chat_row(n) | {"provenance": {"file": f"{n // 4}.pdf"}} for n in range(80)]
    data, folder = write_rows(tmp_path / "data.jsonl", rows), tmp_path / "distillation"
    folder.mkdir()
    num_train, num_held_out, _ = write_gold(folder, data, 0.2, mapping=None, seed=0)
    held_out = read_rows(folder / "held_out.jsonl")
    groups = Counter(row["group"] for row in held_out)
    assert (num_train + num_held_out, set(groups.values())) == (80, {4})
    files = {json.dumps(row["messages"][0]): row["provenance"]["file"] for row in rows}
    trained = {files[json.dumps(row["messages"][0])] for row in read_rows(folder / "train.jsonl")}
    assert not trained & set(groups)
    assert all("group" not in row for row in nonempty(read_rows(folder / "train.jsonl")))
    named = write_rows(tmp_path / "held.jsonl", [chat_row(n) | {"customer": n % 3} for n in range(100, 112)])
    other = tmp_path / "other"
    other.mkdir()
    train_file = write_rows(tmp_path / "train.jsonl", [chat_row(n) | {"customer": n} for n in range(8)])
    write_gold(other, train_file, named, mapping={"group": "customer"}, seed=0)
    assert [row["group"] for row in read_rows(other / "held_out.jsonl")] == [str(n % 3) for n in range(100, 112)]


def test_a_verdict_on_students_counts_documents(
    teacher: str, context: Context, tmp_path: Path, recipe: Callable[..., Path]
) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", [chat_row(n) | {"provenance": {"file": f"{n // 4}.pdf"}} for n in range(120)]
    )
    request = DistilRequest(teacher, "layers:2", rows, kind="logit", recipe=recipe(**SHORT), held_out=0.25)
    student = distil(context, request)
    assert student.evaluation is not None
    num = student.num_held_out
    assert num % 4 == 0
    assert num // 4 >= 6
    note = (
        f"These {num} held-out rows are of {num // 4} groups: rows of one group count together in intervals and tests."
    )
    assert note in student.evaluation.rows_notes
