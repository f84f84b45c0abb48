"""Ways to prompt the base model: judged beside a run and in an evaluation, said in the verdict, and priced."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError, NotFoundError, RecipeError, RequestError
from luthier.features.evaluations.prompted import AskedPrompts
from luthier.features.evaluations.service import evaluate
from luthier.features.recipes.service import recipe_from
from luthier.features.training.service import train
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, Trouble, serving
from luthier.testing.tiny import make_tiny_model

LABELS = ("bad", "good", "great")
WOODS = ("spruce", "maple", "cedar", "oak", "ebony")


def write_bare(file: Path, num: int, first: int = 0) -> Path:
    """Rows of a bare input and a label: nothing in them says which labels there are."""
    rows = [
        {"prompt": f"{WOODS[n % 5]} {n} {WOODS[n * 3 % 5]}", "completion": LABELS[n % 3]}
        for n in range(first, first + num)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def recipe(folder: Path, model: Path, **evaluation: Any) -> Any:
    write_bare(folder / "train.jsonl", 36)
    write_bare(folder / "test.jsonl", 9, first=100)
    document = {
        "base_model": str(model),
        "data": {"train": "train.jsonl", "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 2},
        "training": {"max_steps": 2, "global_batch_size": 12, "precision": "float32", "num_threads": 1},
        "evaluation": {"metrics": ["label_accuracy", "perplexity"], "max_new_tokens": 3} | evaluation,
    }
    return recipe_from(document, base_dir=folder)


def test_a_run_is_held_against_every_way_to_prompt_its_base(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    asked = recipe(tmp_path, tiny_model, few_shot=2, few_shot_draws=3, optimised_prompt={"budget_tokens": 60_000})
    outcome = train(context, asked, base_dir=tmp_path)
    plan, found = outcome.plan.evaluation, context.evaluations.get(str(outcome.record.evaluation_id))
    assert (plan.few_shot_draws, plan.few_shot_nearest, plan.optimised_prompt_tokens) == (3, True, 60_000)
    assert plan.instruction == "Answer with one of: bad, good, great. Write nothing else."
    models = {one.name: one for one in found.systems if one.kind == "model"}
    assert list(models)[:4] == ["base", "base + 2 examples", "base + 2 nearest examples", "base + instruction"]
    assert list(models)[-1] == "tuned"
    drawn = models["base + 2 examples"]
    assert drawn.prompting is not None
    assert (drawn.prompting.num_draws, drawn.prompting.examples, drawn.num_few_shot) == (3, "drawn", 2)
    assert [turn.role for turn in drawn.prompting.turns] == ["user", "assistant"] * 2
    assert all(nonempty(turn.content for turn in drawn.prompting.turns))
    told = models["base + instruction"]
    assert told.prompting is not None
    assert (told.prompting.kind, told.num_few_shot, told.prompting.instruction) == ("instruction", 0, plan.instruction)
    for one in nonempty([one for one in models.values() if one.prompting is not None]):
        assert one.prompting is not None
        assert one.prompting.extra_prompt_tokens > 0
    tests = {one.baseline: one.test for one in found.comparisons if one.candidate == "tuned"}
    assert tests["base + 2 examples"] == "draws"
    verdict = found.verdict
    assert verdict is not None
    kinds = {one.name: one.kind for one in verdict.alternatives}
    assert kinds["base + 2 nearest examples"] == "few_shot"
    assert kinds["base + instruction"] == "instruction"
    notes = " ".join(found.rows_notes)
    assert "means over 3 draws" in notes
    assert plan.instruction in notes
    assert "of 60,000 tokens" in notes
    page = Path(str(outcome.record.report_path)).read_text(encoding="utf-8")
    assert ">Prompts</h2>" in page
    assert plan.instruction in page
    assert "mean of 3 draws" in page


def test_the_search_never_sees_a_judged_row_and_is_judged_once(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_bare(tmp_path / "test.jsonl", 9, first=100),
        few_shot=1,
        few_shot_from=write_bare(tmp_path / "train.jsonl", 36),
        prompts=AskedPrompts(draws=1, nearest=False, instruction=False, search_tokens=60_000),
        metrics=["label_accuracy"],
        max_new_tokens=3,
    )
    searched = [one for one in found.systems if one.prompting is not None and one.prompting.kind == "optimised_prompt"]
    (note,) = [note for note in found.rows_notes if note.startswith("A search over")]
    assert "on 12 rows that are not evaluated" in note
    assert len(searched) == (0 if "None of them did better" in note else 1)
    for one in searched:
        assert one.prompting is not None
        assert 0 < one.prompting.search_tokens <= 60_000
        assert one.num_samples == 9


def test_a_search_is_the_same_each_time(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    test, shown = write_bare(tmp_path / "test.jsonl", 6, first=100), write_bare(tmp_path / "train.jsonl", 36)
    asked: dict[str, Any] = {"few_shot_from": shown, "metrics": ["label_accuracy"], "max_new_tokens": 3}
    asked["prompts"] = AskedPrompts(search_tokens=30_000)
    first, second = (evaluate(context, [str(tiny_model)], data=test, **asked) for _ in range(2))
    assert first.rows_notes == second.rows_notes


def test_examples_that_do_not_fit_are_left_out_of_all_draws_and_the_name_says_so(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{WOODS[n % 5]} " * 40 + str(n), "completion": LABELS[n % 3]} for n in range(60)]
    for name, part in (("train.jsonl", rows[:50]), ("test.jsonl", rows[50:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    found = evaluate(
        context,
        [str(tiny_model)],
        data=tmp_path / "test.jsonl",
        few_shot=6,
        few_shot_from=tmp_path / "train.jsonl",
        metrics=["label_accuracy"],
        max_new_tokens=2,
    )
    drawn = next(one for one in found.systems if one.num_few_shot and one.prompting and one.prompting.num_draws > 1)
    assert drawn.num_few_shot < 6
    assert drawn.name.endswith(f"({drawn.num_few_shot} fit)")
    assert sum(" fit)" in one.name and ", draw" not in one.name for one in found.systems) >= 2
    assert not any(", draw" in one.name for one in found.systems)


def test_too_few_rows_for_four_draws_are_said(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_bare(tmp_path / "test.jsonl", 4, first=100),
        few_shot=3,
        few_shot_from=write_bare(tmp_path / "train.jsonl", 6),
        metrics=["exact_match"],
        max_new_tokens=2,
    )
    assert any(note.startswith("4 draws of 3 examples were requested") for note in found.rows_notes)


@pytest.mark.parametrize(
    ("asked", "came"),
    [
        ({"prompts": AskedPrompts(draws=3)}, "draws of few-shot examples requested"),
        ({"prompts": AskedPrompts(nearest=True)}, "nearest few-shot examples requested"),
        ({"prompts": AskedPrompts(search_tokens=10_000)}, "without rows to find it on"),
        ({"prompts": AskedPrompts(instruction=True)}, "without rows to find it on"),
        ({"few_shot": 2}, "--few-shot 2 without rows"),
        ({"prompts": AskedPrompts(reflection_model="m")}, "without a search for a prompt"),
    ],
)
def test_what_an_evaluation_cannot_try_is_refused(
    context: Context, tiny_model: Path, tmp_path: Path, asked: dict[str, Any], came: str
) -> None:
    data = write_bare(tmp_path / "test.jsonl", 4)
    with pytest.raises(RequestError, match=came):
        evaluate(context, [str(tiny_model)], data=data, metrics=["exact_match"], **asked)


def test_too_small_a_budget_is_refused_with_what_it_takes(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a budget of 50 tokens") as caught:
        evaluate(
            context,
            [str(tiny_model)],
            data=write_bare(tmp_path / "test.jsonl", 4, first=100),
            few_shot_from=write_bare(tmp_path / "train.jsonl", 36),
            prompts=AskedPrompts(search_tokens=50),
            metrics=["exact_match"],
            max_new_tokens=2,
        )
    assert "at least" in caught.value.expected


@pytest.mark.parametrize(
    ("evaluation", "came"),
    [
        ({"few_shot": 0, "few_shot_draws": 2}, "few_shot_draws is 2"),
        ({"metrics": ["perplexity"], "optimised_prompt": {"budget_tokens": 10_000}}, "optimised_prompt is set"),
        ({"metrics": ["perplexity"], "instruction": True}, "instruction is set"),
    ],
)
def test_what_a_recipe_cannot_try_is_refused(
    context: Context, tiny_model: Path, tmp_path: Path, evaluation: dict[str, Any], came: str
) -> None:
    from luthier.features.planning.service import prepare

    with pytest.raises(RecipeError, match=came):
        prepare(context, recipe(tmp_path, tiny_model, **evaluation), base_dir=tmp_path)


def test_a_run_whose_search_does_not_fit_is_judged_without_it_and_says_so(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    asked = recipe(tmp_path, tiny_model, few_shot=1, optimised_prompt={"budget_tokens": 50})
    outcome = train(context, asked, base_dir=tmp_path)
    assert outcome.record.status == "succeeded"
    found = context.evaluations.get(str(outcome.record.evaluation_id))
    assert any(note.startswith("No prompt was searched for: a budget of 50 tokens") for note in found.rows_notes)


def test_a_row_that_an_instruction_makes_too_long_costs_that_prompt_and_not_the_evaluation(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    template, prompt, room = ChatTemplate.load(str(tiny_model), "auto"), "spruce", 512 - 20
    while len(template.ids(template.render(asked_by(f"{prompt} oak"), add_generation_prompt=True))) < room:
        prompt += " oak"
    long = json.dumps({"prompt": prompt, "completion": "good"}) + "\n"
    for name, num, first in (("train.jsonl", 60, 0), ("test.jsonl", 6, 100)):
        file = write_bare(tmp_path / name, num, first)
        file.write_text(file.read_text() + long.replace("spruce", f"spruce {name[:2]}"), encoding="utf-8")
    found = evaluate(
        context,
        [str(tiny_model)],
        data=tmp_path / "test.jsonl",
        few_shot=1,
        few_shot_from=tmp_path / "train.jsonl",
        prompts=AskedPrompts(search_tokens=40_000),
        metrics=["label_accuracy"],
        max_new_tokens=3,
    )
    left_out = [line for line in found.baselines_left_out if "+ instruction" in line]
    assert len(left_out) == 2  # alone, and with examples
    assert not any("instruction" in one.name for one in found.systems)
    assert any(note.startswith("A search over") for note in found.rows_notes)


def asked_by(text: str) -> Conversation:
    return Conversation(messages=(Message(role="user", content=text),))


def test_prompts_without_words_have_no_nearest_examples_and_a_note_says_so(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "!?" * (n + 1), "completion": LABELS[n % 3]} for n in range(30)]
    for name, part in (("train.jsonl", rows[:24]), ("test.jsonl", rows[24:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    found = evaluate(
        context,
        [str(tiny_model)],
        data=tmp_path / "test.jsonl",
        few_shot=1,
        few_shot_from=tmp_path / "train.jsonl",
        metrics=["exact_match"],
        max_new_tokens=2,
    )
    assert any(note.startswith("No nearest examples") for note in found.rows_notes)
    assert not any("nearest example" in one.name for one in found.systems)


def numbered() -> Callable[[str], str]:
    """What a server writes: another instruction each time."""
    numbers = itertools.count(1)
    return lambda _: f"Think. <instruction>Say one word of three, {next(numbers)}.</instruction>"


def test_a_reflection_model_behind_a_server_reads_training_rows_alone_within_the_budget(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    server = OpenAIServer(answer=numbered())
    test, shown = write_bare(tmp_path / "test.jsonl", 9, first=100), write_bare(tmp_path / "train.jsonl", 60)
    with serving(server) as url:
        asked = AskedPrompts(search_tokens=20_000, reflection_model=f"{url}#writer")
        found = evaluate(
            context, [str(tiny_model)], data=test, few_shot_from=shown, prompts=asked, metrics=["label_accuracy"],
            max_new_tokens=3,
        )  # fmt: skip
    texts = [body["messages"][-1]["content"] for _, body in nonempty(server.requests)]
    own = [json.loads(line)["prompt"] for line in shown.read_text().splitlines()]
    held_out = [json.loads(line)["prompt"] for line in test.read_text().splitlines()]
    assert all(any(row in text for row in own) for text in nonempty(texts))
    assert not any(row in text for row in nonempty(held_out) for text in texts)
    (note,) = [note for note in found.rows_notes if "from mistakes on" in note]
    assert note.startswith(f"{url}#writer wrote {len(texts)} new instructions from mistakes on 10 training rows")
    (search,) = [note for note in found.rows_notes if note.startswith("A search over")]
    assert int(search.split("read and wrote ")[1].split(" of ")[0].replace(",", "")) <= 20_000
    for one in nonempty(found.systems):
        if one.prompting is not None and one.prompting.reflection_model:
            assert one.prompting.reflection_model == f"{url}#writer"
            assert one.prompting.instruction.startswith("Say one word")


def test_a_reflection_model_of_this_machine_is_loaded_by_turns(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    writer = make_tiny_model(tmp_path / "writer", seed=3, context_length_tokens=4096)
    found = evaluate(
        context,
        [str(tiny_model)],
        data=write_bare(tmp_path / "test.jsonl", 6, first=100),
        few_shot_from=write_bare(tmp_path / "train.jsonl", 60),
        prompts=AskedPrompts(search_tokens=12_000, reflection_model=str(writer)),
        metrics=["label_accuracy"],
        max_new_tokens=3,
    )
    (note,) = [note for note in found.rows_notes if "from mistakes on" in note]
    assert note.startswith(f"{writer} wrote ")
    (spent,) = [one for one in found.rows_notes if one.endswith("for these instructions.")]
    tokens = int(spent.split("read and wrote ")[1].split(" token")[0].replace(",", ""))
    assert 0 < tokens < 12_000


def test_a_run_whose_reflection_model_fails_is_judged_with_the_best_known_wording_and_says_so(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    server = OpenAIServer(refuse=lambda _: Trouble(400, {"error": {"message": "no such model here"}}))
    with serving(server) as url:
        search = {"budget_tokens": 15_000, "reflection_model": f"{url}#writer"}
        outcome = train(
            context,
            recipe(tmp_path, tiny_model, few_shot=1, few_shot_draws=1, optimised_prompt=search),
            base_dir=tmp_path,
        )
        assert outcome.record.status == "succeeded"
        assert outcome.plan.evaluation.reflection_model == f"{url}#writer"
        assert "is sent some training rows" in outcome.plan.sources["evaluation.reflection_model"].why
        found = context.evaluations.get(str(outcome.record.evaluation_id))
        assert any("wrote no more instructions: " in note and "no such model here" in note for note in found.rows_notes)
        with pytest.raises(LuthierError, match="no such model here"):
            evaluate(
                context,
                [str(tiny_model)],
                data=tmp_path / "test.jsonl",
                few_shot_from=tmp_path / "train.jsonl",
                prompts=AskedPrompts(search_tokens=15_000, reflection_model=f"{url}#writer"),
                metrics=["label_accuracy"],
                max_new_tokens=3,
            )


@pytest.mark.parametrize(
    ("search", "error", "came"),
    [
        ({"budget_tokens": 5_000, "reflection_model": "no-such-model"}, NotFoundError, "no-such-model"),
        ({"budget_tokens": 5_000, "reflection_model": "http://127.0.0.1:1/v1"}, RequestError, "names no model"),
        ({"budget_tokens": 5_000, "reflection_model": "http://me:key@host/v1#m"}, RequestError, "carries a user"),
        ({"budget_tokens": 0, "reflection_model": "no-such-model"}, RecipeError, "no search"),
        ({"reflection_model": "no-such-model"}, RecipeError, "budget_tokens"),
    ],
)
def test_a_reflection_model_that_cannot_be_asked_is_refused_before_training(
    context: Context, tiny_model: Path, tmp_path: Path, search: dict[str, Any], error: type[Exception], came: str
) -> None:
    from luthier.features.planning.service import prepare

    with pytest.raises(error, match=came):
        prepare(context, recipe(tmp_path, tiny_model, optimised_prompt=search), base_dir=tmp_path)


def test_a_plan_has_the_size_of_a_reflection_model_of_this_machine(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    from luthier.features.planning.service import prepare

    writer = make_tiny_model(tmp_path / "writer", seed=3, layers=4)
    plans = {
        name: prepare(context, recipe(tmp_path, tiny_model, optimised_prompt=asked), base_dir=tmp_path).plan
        for name, asked in {
            "here": {"budget_tokens": 5_000, "reflection_model": str(writer)},
            "server": {"budget_tokens": 5_000, "reflection_model": "http://127.0.0.1:1/v1#m"},
            "none": 5_000,
        }.items()
    }
    num = {name: plan.evaluation.reflection_parameters for name, plan in plans.items()}
    assert num == {"here": read_structure(str(writer)).num_parameters, "server": 0, "none": 0}
    assert num["here"] > plans["here"].base_model.num_parameters
    assert "a server has it" in plans["server"].sources["evaluation.reflection_parameters"].why
    assert "evaluation.reflection_parameters" in plans["none"].sources
    assert len({plan.hash for plan in plans.values()}) == 1


def test_a_number_alone_is_the_budget_of_a_search(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    from luthier.features.planning.service import prepare

    plan = prepare(context, recipe(tmp_path, tiny_model, optimised_prompt=5_000), base_dir=tmp_path).plan
    assert (plan.evaluation.optimised_prompt_tokens, plan.evaluation.reflection_model) == (5_000, None)
