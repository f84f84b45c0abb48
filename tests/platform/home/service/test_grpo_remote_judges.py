"""Reinforcement with judges behind servers: the same bytes when resumed, paid once, counted, and capped."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError, RequestError
from luthier.core.events import StepDone
from luthier.core.ports import Generation
from luthier.features.planning import judges
from luthier.features.planning.format import bill_line, plan_lines
from luthier.features.planning.remote_judges import JudgeServerError, open_remote
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.runs.view import costs
from luthier.features.training.launchers.here import silent_hooks, train_worker
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.openai import http
from luthier.ml.training import loop
from luthier.ml.training.distributed import World
from luthier.ml.training.ledger import JUDGE_CALLS, JudgeCalls
from luthier.ml.training.objectives import grpo
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, Trouble, serving
from luthier.testing.world import in_world

MakeRecipe = Callable[..., Path]

TRAINING = {
    "max_steps": 6,
    "global_batch_size": 4,
    "learning_rate": 0.02,
    "precision": "float32",
    "num_threads": 1,
    "validate_every_steps": 3,
    "checkpoint_every_steps": 2,
}
DATA = {"train": "train.jsonl", "validation": "valid.jsonl"}


@dataclass
class Judge:
    """A judge behind a server.

    Attributes:
        server: that answers.
        address: of the judge, with its model.
    """

    server: OpenAIServer
    address: str

    @property
    def questions(self) -> list[str]:
        """All that it was asked, in order."""
        return [json.dumps([body["messages"], body["seed"]]) for _, body in self.server.requests]


def grade(body: Mapping[str, Any]) -> str:
    """A digit by the text of the question; about one of eight replies has none, and is read nowhere."""
    number = sum(map(ord, body["messages"][-1]["content"])) % 8
    return "no opinion" if number == 7 else f"0.{number}"


@pytest.fixture
def judge() -> Iterator[Judge]:
    server = OpenAIServer(reply=grade)
    with serving(server) as url:
        yield Judge(server, f"{url}#grader")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda *_: 0.0)


def with_prices(context: Context, monkeypatch: pytest.MonkeyPatch, usd: float) -> None:
    more = {"teacher_usd_per_million_prompt_tokens": usd, "teacher_usd_per_million_new_tokens": 2 * usd}
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update=more))


def score(address: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Grade {{sample.output_text}} against {{item.reference}}"}]
    return {"type": "score_model", "name": "opinion", "model": address, "input": messages} | changes


def objective(*graders: Mapping[str, Any]) -> dict[str, Any]:
    rewards = [{"grader": dict(grader)} for grader in graders]
    return {"name": "grpo", "rewards": rewards, "num_samples": 4, "max_new_tokens": 3}


def run(context: Context, recipe: Path) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent)


def measures(context: Context, run_id: str) -> list[dict[str, float]]:
    return [e.measures for e in context.runs.events(run_id) if isinstance(e, StepDone)]


def samples(context: Context, run_id: str) -> dict[str, bytes]:
    folder = context.settings.run_folder(run_id) / grpo.FOLDER
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_killed_run_ends_with_the_same_bytes_and_no_stored_reply_is_paid_for_again(
    context: Context, make_recipe: MakeRecipe, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        objective=objective(score(judge.address)), training=TRAINING, data=DATA, method={"name": "lora"}
    )
    with Context.open(tmp_path / "other") as other:
        whole = run(other, recipe)
        run_id = whole.record.run_id
        expected = (measures(other, run_id), samples(other, run_id), whole.as_json()["adapter_sha256"])
    alone = Counter(judge.questions)
    assert set(alone.values()) == {1}
    lines = [json.loads(line) for file in expected[1].values() for line in file.decode().splitlines()]
    assert any("is_ungraded" in line for line in lines)
    assert len({line["reward"] for line in lines}) > 2
    judge.server.requests.clear()
    real, calls = loop.one_step, 0

    def killed(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*given)
        if calls == 4:  # its answers are graded, its weights are lost
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(context, recipe)
    monkeypatch.setattr(loop, "one_step", real)
    num_before = len(judge.questions)
    again = resume(context, context.runs.list(limit=1)[0].run_id)
    run_id = again.record.run_id
    assert again.as_json()["adapter_sha256"] == expected[2]
    assert (measures(context, run_id), samples(context, run_id)) == expected[:2]
    assert Counter(judge.questions) == alone
    assert 0 < num_before < len(judge.questions)
    bill = again.record.result.bill if again.record.result else None
    assert bill is not None
    assert bill.judges is not None
    # The bill has the calls of both processes, and each of them once.
    assert bill.judges.calls == len(judge.questions)
    assert bill.judges.prompt_tokens > bill.judges.new_tokens > 0
    assert bill.judges.usd is None


def test_a_server_that_is_dead_ends_the_run_and_grades_no_answer_by_that(
    context: Context, make_recipe: MakeRecipe, judge: Judge, tmp_path: Path
) -> None:
    recipe = make_recipe(
        objective=objective(score(judge.address)), training=TRAINING, data=DATA, method={"name": "lora"}
    )
    num_attempts = Counter[str]()

    def refuse(body: Mapping[str, Any]) -> Trouble | None:
        # Lets the trial and the first steps through.
        if len(judge.server.requests) <= 20:
            return None
        num_attempts[json.dumps(body["messages"])] += 1
        return Trouble(503, {"error": {"message": "overloaded"}})

    judge.server.refuse = refuse
    with pytest.raises(JudgeServerError) as caught:
        run(context, recipe)
    (record,) = context.runs.list()
    assert f"luthier train --resume {record.run_id}" in caught.value.do
    assert judge.address in caught.value.came
    assert "tried 6 times" in caught.value.came
    assert max(num_attempts.values()) == 6
    assert record.status == "failed"
    graded = samples(context, record.run_id)
    judge.server.refuse = lambda _: None
    again = resume(context, record.run_id)
    assert again.record.status == "succeeded"
    after = samples(context, record.run_id)
    assert graded
    assert {name: after[name] for name in graded} == graded
    # Nothing of the failure is left: it is the run of a server that answered all along.
    with Context.open(tmp_path / "other") as other:
        whole = run(other, recipe)
        assert after == samples(other, whole.record.run_id)
        assert again.as_json()["adapter_sha256"] == whole.as_json()["adapter_sha256"]


def test_two_graders_and_the_parts_of_a_multi_ask_two_servers_with_the_key_of_the_environment(
    context: Context, make_recipe: MakeRecipe, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_TEACHER_API_KEY", "key-of-the-judge")
    judge.server.key = "key-of-the-judge"
    other = OpenAIServer(answer=lambda _: "yes")
    with serving(other) as url:
        label = score(f"{url}/#labels", type="label_model", name="label", labels=["yes", "no"], passing_labels=["yes"])
        parts = {"type": "multi", "graders": {"a": score(judge.address), "b": label}, "calculate_output": "a + b"}
        recipe = make_recipe(
            objective=objective(parts, label),
            training=TRAINING | {"max_steps": 2},
            data=DATA,
            method={"name": "lora"},
        )
        outcome = run(context, recipe)
    plan = context.runs.plan(outcome.record.run_id)
    assert [one.name for one in plan.objective.remote_judges or ()] == [judge.address, f"{url}#labels"]
    assert plan.objective.judges is None
    assert "key-of-the-judge" not in plan.model_dump_json()
    assert set(judge.server.authorizations) == {"Bearer key-of-the-judge"}
    lines = [
        json.loads(line)
        for file in samples(context, outcome.record.run_id).values()
        for line in file.decode().splitlines()
    ]
    assert all(line["reward"] >= 2.0 for line in nonempty([line for line in lines if "is_ungraded" not in line]))
    assert len(other.requests) > 0
    # Both graders that ask the second server ask the same: it is paid for once.
    questions = [json.dumps(body["messages"]) for _, body in other.requests]
    assert len(questions) == len(set(questions))


def test_the_plan_and_the_bill_count_calls_tokens_and_money(
    context: Context, make_recipe: MakeRecipe, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_prices(context, monkeypatch, usd=100.0)
    recipe = make_recipe(
        objective=objective(score(judge.address)), training=TRAINING, data=DATA, method={"name": "lora"}
    )
    plan = prepare(context, load_recipe(recipe), base_dir=recipe.parent).plan
    (planned,) = plan.objective.remote_judges or ()
    assert planned.step is not None
    assert planned.run is not None
    assert (planned.step.num_calls.low, planned.step.num_calls.value) == (4, 16)
    usd = planned.usd_of(planned.run)
    assert usd is not None
    assert 0 < usd.low < usd.value < usd.high
    (line,) = [line for line in plan_lines("", plan) if "graded by" in line]
    assert judge.address in line
    assert "USD" in line
    assert "calls" in line
    outcome = run(context, recipe)
    assert outcome.record.result is not None
    bill = outcome.record.result.bill
    assert bill is not None
    assert bill.judges is not None
    assert planned.run.num_calls.low <= bill.judges.calls == len(judge.questions) <= planned.run.num_calls.high
    paid = (bill.judges.prompt_tokens * 100 + bill.judges.new_tokens * 200) / 1e6
    assert bill.judges.usd == pytest.approx(paid)
    assert bill.usd is not None
    assert bill.usd.low > paid
    assert f"{bill.judges.calls:,} calls" in bill_line(bill)
    (shown,) = [one for one in costs(bill, plan.budget) if one["name"] == "Judges"]
    assert str(bill.judges.calls) in shown["so_far"][0]
    # Neither prices nor counts are part of what is trained.
    without = tuple(one.model_copy(update={"run": None, "prompt_usd": None}) for one in (planned,))
    changed = plan.objective.model_copy(update={"remote_judges": without})
    assert plan.model_copy(update={"objective": changed}).hash == plan.hash


def test_a_budget_counts_what_judges_cost_and_pauses_the_run_before_a_step_that_is_too_much(
    context: Context, make_recipe: MakeRecipe, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_prices(context, monkeypatch, usd=1e5)
    asked = {"objective": objective(score(judge.address, sampling_params={"max_completions_tokens": 2}))}
    asked |= {"training": TRAINING, "data": DATA, "method": {"name": "lora"}}
    plan = prepare(context, load_recipe(path := make_recipe(**asked)), base_dir=path.parent).plan
    assert plan.budget is not None
    assert plan.budget.judges is not None
    step_usd = plan.budget.judges.step_usd
    assert step_usd is not None
    recipe = make_recipe(**asked, budget={"usd": step_usd.value / 2})
    with pytest.raises(RecipeError, match="the first step alone should take"):
        prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    cap = 1.5 * step_usd.value
    outcome = run(context, make_recipe(**asked, budget={"usd": cap}))
    assert outcome.record.status == "paused"
    assert 0 < len(measures(context, outcome.record.run_id)) < 6
    assert outcome.record.result is not None
    bill = outcome.record.result.bill
    assert bill is not None
    assert bill.judges is not None
    assert 0 < (bill.judges.usd or 0) < cap + step_usd.value
    assert outcome.record.result.stopped_because is not None
    assert "USD spent" in outcome.record.result.stopped_because


def test_a_budget_of_money_without_prices_of_the_judge_is_refused(
    context: Context, make_recipe: MakeRecipe, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_prices(context, monkeypatch, usd=1.0)
    elsewhere = context.settings.model_copy(update={"teacher": "https://example.com/v1#another"})
    monkeypatch.setattr(context, "settings", elsewhere)
    recipe = make_recipe(
        objective=objective(score(judge.address)), training=TRAINING, data=DATA, method={"name": "lora"},
        budget={"usd": 5},
    )  # fmt: skip
    with pytest.raises(RecipeError, match="has no price"):
        prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert judge.server.requests == []


@pytest.mark.parametrize(
    ("address", "words"),
    [("https://example.com/v1", "names no model"), ("https://user:secret@example.com/v1#m", "carries a user")],
)
def test_an_address_that_cannot_be_asked_is_refused_with_the_plan(
    context: Context, make_recipe: MakeRecipe, address: str, words: str
) -> None:
    recipe = make_recipe(objective=objective(score(address)), training=TRAINING, data=DATA, method={"name": "lora"})
    with pytest.raises(RequestError, match=words) as caught:
        prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert "secret" not in str(caught.value)


def test_of_two_that_ask_the_same_at_once_both_use_the_reply_that_is_stored_first(
    context: Context, make_recipe: MakeRecipe, judge: Judge, tmp_path: Path
) -> None:
    recipe = make_recipe(
        objective=objective(score(judge.address)), training=TRAINING, data=DATA, method={"name": "lora"}
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    (planned,) = prepared.plan.objective.remote_judges or ()
    numbers = iter(range(100))
    judge.server.reply = lambda _: f"reply {next(numbers)}"
    both = threading.Barrier(2)

    class Waits:
        """Both have looked for the reply before either asks."""

        def __init__(self) -> None:
            self.store, self.has_looked = judges.replies_of(context), False

        def find(self, keys: Any) -> dict[str, Generation]:
            found = self.store.find(keys)
            if not self.has_looked:
                self.has_looked = True
                both.wait(30)
            return found

        def keep(self, new: Mapping[str, Generation], *, engine: str) -> None:
            self.store.keep(new, engine=engine)

    from luthier.core.conversation import Conversation, Message
    from luthier.core.ports import Prompt, SilentProgress

    prompt = Prompt(conversation=Conversation(messages=(Message(role="user", content="same"),)), max_new_tokens=8)
    said: list[str] = []

    def ask() -> None:
        engine = open_remote(planned, Waits(), JudgeCalls(tmp_path), "run")
        said.append(engine.generate([prompt], SilentProgress())[0].text)
        engine.close()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(judge.server.requests) == 2
    assert len(said) == 2
    assert len(set(said)) == 1
    # Both were paid for.
    assert JudgeCalls(tmp_path).total().judge_calls == 2


def test_a_torn_line_of_a_paid_reply_does_not_hide_the_others(tmp_path: Path) -> None:
    first = JudgeCalls(tmp_path)
    first.add("a", 10, 2, 0.5)
    first.close()
    with (tmp_path / JUDGE_CALLS).open("ab") as file:
        file.write(b'{"judge": "a", "pro')
    assert first.total().judge_calls == 1
    second = JudgeCalls(tmp_path)
    second.add("b", 5, 1, None)
    second.close()
    for one in (first, second, JudgeCalls(tmp_path)):
        total = one.total()
        assert (total.judge_calls, total.judge_prompt_tokens, total.judge_new_tokens) == (2, 15, 3)
        assert total.judge_usd == 0.5


def worker(world: World, prepared: Prepared, folder: Path, home: Path) -> None:
    torch.set_num_threads(1)
    with Context.open(home) as own:
        train_worker(prepared, silent_hooks(folder, replies=judges.replies_of(own)), world)


def test_two_processes_grade_as_one_does_and_note_the_replies_of_both(
    context: Context, make_recipe: MakeRecipe, judge: Judge, tmp_path: Path
) -> None:
    recipe = make_recipe(
        objective=objective(score(judge.address)),
        # An epsilon above the smallest gradients: else Adam makes steps of full size of their rounding.
        training=TRAINING | {"max_steps": 3, "optimizer": {"name": "adamw", "epsilon": 1e-3}},
        data=DATA,
        method={"name": "lora"},
    )
    prepared = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    train_worker(prepared, silent_hooks(tmp_path / "one"))
    of_one = set(judge.questions)
    judge.server.requests.clear()
    ended = in_world(2, worker, prepared, tmp_path / "two", context.home)
    assert [one.error for one in ended] == ["", ""]
    # The same answers were graded in each step, by a judge whose replies follow from the question.
    assert set(judge.questions) == of_one
    alone, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert len(alone) > 0
    for name, expected in alone.items():
        torch.testing.assert_close(two[name], expected, atol=1e-5, rtol=0)
    assert JudgeCalls(tmp_path / "two").total().judge_calls == len(judge.server.requests) > 0
