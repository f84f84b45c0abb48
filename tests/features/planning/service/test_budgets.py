"""Training under a cap, from recipe to resume: where it stops, what it says, and what goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.features.training.service.test_service import SLOW, Child, _same_story
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.errors import MemoryShortError, NotFoundError, RecipeError, RequestError
from luthier.core.events import BillUpdated
from luthier.core.recipe import BudgetRecipe
from luthier.core.results.cost import Device
from luthier.core.run import StopReason
from luthier.features.planning.budgets import asked_budget, merged, stop_check, with_budget
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.training.budget import Meter
from luthier.ml.training.ledger import LEDGER, Ledger
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]


def run(context: Context, recipe: Path, *overrides: str, prices: Path | None = None) -> TrainOutcome:
    return train(context, load_recipe(recipe, overrides), base_dir=recipe.parent, prices=prices)


@pytest.fixture
def quiet_recipe(make_recipe: MakeRecipe) -> Path:
    """Ten steps; judged by likelihood alone."""
    return make_recipe(evaluation={"metrics": ["perplexity"], "few_shot": 0, "max_new_tokens": 4})


def test_paused_at_a_cap_and_resumed_with_a_larger_one_gives_the_undisturbed_adapter(
    context: Context, quiet_recipe: Path
) -> None:
    free = run(context, quiet_recipe).as_json()
    outcome = run(context, quiet_recipe, "budget.tokens=1500")
    document = outcome.as_json()
    assert document["status"] == "paused"
    assert document["stopped_because"].startswith("budget of 1500 tokens: ")
    assert document["plan_hash"] == free["plan_hash"]
    assert document["budget"]["tokens"] == 1500
    assert document["bill"]["tokens"] == document["num_tokens"] <= 1500
    assert document["go_on"] == f"luthier train --resume {document['run_id']} --budget-tokens 3000"
    assert json.loads(json.dumps(document)) == document
    assert context.runs.get(document["run_id"]).status == "paused"
    assert "budget of 1500 tokens" in Path(document["report_path"]).read_text(encoding="utf-8")

    done = resume(context, document["run_id"], budget=BudgetRecipe(tokens=100_000)).as_json()
    assert done["status"] == "succeeded"
    assert done["adapter_sha256"] == free["adapter_sha256"]
    assert done["go_on"] is None
    assert done["budget"]["tokens"] == 100_000
    assert context.runs.plan(document["run_id"]).budget == resume_budget(context, document["run_id"])
    _same_story(context, document["run_id"], free["run_id"])


def resume_budget(context: Context, run_id: str) -> Any:
    plan = context.runs.plan(run_id)
    assert plan.budget is not None
    assert plan.budget.tokens == 100_000
    assert any(row["name"] == "budget.tokens" and row["value"] == 100_000 for row in plan.values())
    return plan.budget


def test_the_bill_grows_from_process_to_process(context: Context, quiet_recipe: Path) -> None:
    first = run(context, quiet_recipe, "budget.tokens=1500").record.result
    assert first is not None
    second = resume(context, context.runs.list()[0].run_id, budget=BudgetRecipe(tokens=10**6)).record.result
    assert second is not None
    assert first.bill is not None
    assert second.bill is not None
    assert second.bill.hours > first.bill.hours > first.seconds / 3600
    assert second.bill.tokens == second.num_tokens
    assert second.bill.final_hours.value == second.bill.hours
    assert first.bill.final_hours.value > first.bill.hours
    events = context.runs.events(context.runs.list()[0].run_id)
    assert [e.step for e in events if isinstance(e, BillUpdated)] == list(range(1, 11))


def test_a_resume_that_has_nothing_left_is_refused_before_anything_is_loaded(
    context: Context, quiet_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run(context, quiet_recipe, "budget.tokens=1500").record.run_id
    monkeypatch.setattr(
        "luthier.features.training.service.prepare_again", lambda *_: pytest.fail("must not be reached")
    )
    for budget in (None, BudgetRecipe(tokens=1501), BudgetRecipe(tokens=700)):
        with pytest.raises(RequestError, match=r"budget of \d+ tokens[\s\S]*larger one: luthier train --resume"):
            resume(context, run_id, budget=budget)
    plan = context.runs.plan(run_id)
    assert plan.budget is not None
    assert plan.budget.tokens == 1500, "a cap that was refused is not kept"
    assert context.runs.get(run_id).status == "paused"


def test_money_is_counted_at_ones_own_price(context: Context, quiet_recipe: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("as_of: 2026-11-01\ndevices: {cpu: {on_demand: 1000}}\n", encoding="utf-8")
    recipe = load_recipe(quiet_recipe, ["budget.usd=1000"])
    budget = prepare(context, recipe, base_dir=quiet_recipe.parent, prices=prices).plan.budget
    assert budget is not None
    # Twice the first step, some tens of milliseconds: a lower cap would be refused, and reading the rows takes longer.
    usd = f"{2 * budget.first.step_seconds.value * 1000 / 3600:.4f}"
    outcome = run(context, quiet_recipe, f"budget.usd={usd}", prices=prices)
    assert outcome.record.status == "paused", "reading the rows alone takes longer"
    assert outcome.record.stopped_because is not None
    assert outcome.record.stopped_because.startswith(f"budget of {float(usd):g} USD")
    assert context.runs.get(outcome.record.run_id).stop_cause == "budget"
    assert outcome.record.step == 0
    bill = outcome.record.result.bill if outcome.record.result else None
    assert bill is not None
    assert bill.usd is not None
    assert bill.usd.value == bill.usd.high == pytest.approx(bill.hours * 1000)
    cheaper = prices.with_name("cheaper.yaml")
    cheaper.write_text("as_of: 2026-11-02\ndevices: {cpu: {on_demand: 0.0001}}\n", encoding="utf-8")
    done = resume(context, outcome.record.run_id, prices=cheaper)
    assert done.record.status == "succeeded", "the cap stayed, the price did not"
    assert context.runs.get(outcome.record.run_id).stop_cause == "completed"


def test_judging_counts_and_stops_at_the_cap_with_the_weights_kept(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(evaluation={"metrics": ["perplexity", "exact_match"], "few_shot": 0, "max_new_tokens": 4})
    free = run(context, recipe).as_json()
    seen: list[float] = []

    def overrun(self: Meter) -> str | None:
        seen.append(self.spent.seconds)
        return StopReason("budget of 1 h: 1 h spent", "budget") if len(seen) == 2 else None

    monkeypatch.setattr(Meter, "overrun", overrun)
    document = run(context, recipe, "budget.hours=1").as_json()
    assert len(seen) == 2, "judging ended at the very advance that was over"
    assert document["status"] == "paused"
    reason = "budget of 1 h: 1 h spent. The weights are trained and kept, but not evaluated"
    assert document["stopped_because"] == reason
    assert context.runs.get(document["run_id"]).stop_cause == "budget"
    assert document["adapter_sha256"] == free["adapter_sha256"]
    assert "verdict" not in document
    assert Path(document["adapter_path"]).is_dir()
    done = resume(context, document["run_id"]).as_json()
    assert done["status"] == "succeeded"
    assert done["verdict"]["word"] == free["verdict"]["word"]
    assert done["adapter_sha256"] == free["adapter_sha256"]


def test_a_run_that_died_in_its_evaluation_is_evaluated_though_training_has_spent_its_budget(
    context: Context, quiet_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run(context, quiet_recipe)
    assert free.record.result is not None
    assert free.record.result.bill is not None
    # One token more than training takes: no further step fits, and an evaluation counts no tokens.
    cap = f"budget.tokens={free.record.result.bill.tokens + 1}"
    seen: list[tuple[bool, str]] = []

    def dies(context: Context, run_id: str, *_: Any, **__: Any) -> Any:
        seen.append((context.runs.get(run_id).is_trained, context.runs.get(run_id).status))
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("luthier.features.evaluations.service.judge_run", dies)
        with pytest.raises(MemoryShortError, match="memory ran out"):
            run(context, quiet_recipe, cap)
    assert seen == [(True, "running")]
    died = context.runs.list(1)[0]
    assert (died.status, died.evaluation_id) == ("failed", None)
    done = resume(context, died.run_id)
    assert (done.record.status, done.record.evaluation_id is not None) == ("succeeded", True)
    assert done.as_json()["adapter_sha256"] == free.as_json()["adapter_sha256"]


def test_judging_is_not_begun_where_it_is_known_to_take_longer(context: Context, quiet_recipe: Path) -> None:
    class Knowing(Meter):
        def expected_seconds(self, action: Any, tokens: int) -> float:
            return 7200.0 if action == "judging" else 0.0

    meter = Knowing(run(context, quiet_recipe, "budget.hours=1").plan.budget)
    assert meter.refuses("judging") is not None
    assert meter.refuses_to_go_on(training_is_done=True) is not None
    assert meter.refuses_to_go_on(training_is_done=False) is None


def test_work_stops_for_a_signal_or_for_the_budget() -> None:
    class Spent:
        def overrun(self) -> str | None:
            return "budget of 1 h: 1 h spent"

    class Plenty:
        def overrun(self) -> str | None:
            return None

    assert stop_check(Plenty(), lambda: None)() is None  # type: ignore[arg-type]
    assert stop_check(Plenty(), lambda: "SIGTERM received")() == "SIGTERM received"  # type: ignore[arg-type]
    assert stop_check(Spent(), lambda: None)() == "budget of 1 h: 1 h spent"  # type: ignore[arg-type]
    assert stop_check(Spent(), lambda: "SIGTERM received")() == "SIGTERM received"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budget.hours=0", "budget.hours: has 0, expected a number greater than 0"),
        ("budget.usd=-3", "budget.usd: has -3"),
        ("budget.hours=.nan", "budget.hours: has nan"),
        ("budget.energy_kwh=.inf", "budget.energy_kwh: has inf, expected a finite number"),
        ("budget.tokens=2.5", "budget.tokens: has 2.5, expected a whole number"),
        ("budget.tokens=0", "budget.tokens: has 0"),
        ("budget.hour=3", "nearest known: budget.hours"),
    ],
)
def test_a_budget_that_is_no_amount_is_named(quiet_recipe: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as told:
        load_recipe(quiet_recipe, [override])
    assert words in str(told.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_so_is_one_of_the_command_line(value: float) -> None:
    with pytest.raises(RequestError, match=r"--budget-usd [\s\S]*above 0[\s\S]*--budget-usd 3"):
        asked_budget(hours=None, usd=value, tokens=None, energy_kwh=None)


def test_caps_given_later_replace_those_given_first() -> None:
    first, later = BudgetRecipe(hours=1.0, usd=2.0), BudgetRecipe(usd=5.0, tokens=7)
    assert merged(first, later) == BudgetRecipe(hours=1.0, usd=5.0, tokens=7)
    assert merged(first, None) == first
    assert merged(None, later) == later
    assert asked_budget(hours=None, usd=None, tokens=None, energy_kwh=None) is None


@pytest.mark.parametrize(
    ("override", "error"),
    [("budget.hours=1.0e-12", RecipeError), ("budget.tokens=20", RecipeError), ("budget.usd=1.0e-15", RecipeError)],
)
def test_less_than_a_step_leaves_no_run_behind(
    context: Context, quiet_recipe: Path, override: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="the first step alone"):
        run(context, quiet_recipe, override)
    assert context.runs.list() == []


def test_a_price_file_that_is_not_there(context: Context, quiet_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no price file"):
        run(context, quiet_recipe, prices=tmp_path / "nowhere.yaml")


@pytest.fixture
def long_recipe(make_recipe: MakeRecipe) -> Path:
    """A hundred steps: long enough to be caught in the middle."""
    return make_recipe(training=SLOW, evaluation={"few_shot": 0, "max_new_tokens": 4})


@pytest.mark.drill
def test_kill_9_forgets_nothing_that_was_spent(
    context: Context, long_recipe: Path, fork_server: SessionForkServer
) -> None:
    child = Child(fork_server, context.home, "train", str(long_recipe))
    run_id = child.wait_for_step(context, 13)
    child.process.kill()
    child.process.communicate()
    spent = Ledger(context.settings.run_folder(run_id)).last().settled()
    assert spent.seconds > spent.interrupted_seconds > 0
    document = Child(fork_server, context.home, "resume", run_id).finish()
    assert document["status"] == "succeeded"
    bill = document["bill"]
    assert bill["hours"] * 3600 > spent.seconds
    assert bill["interrupted_hours"] * 3600 == pytest.approx(spent.interrupted_seconds)
    assert bill["tokens"] > document["num_tokens"], "steps that were trained twice are paid twice"


@pytest.mark.drill
def test_drill_kills_at_random_moments_around_a_cap(
    context: Context, long_recipe: Path, fork_server: SessionForkServer
) -> None:
    """Killed again and again, raised little by little: the same adapter, every process counted, never a step over."""
    import random
    import time

    expected = run(context, long_recipe).as_json()
    draw, whole = random.Random(1), expected["num_tokens"]
    outcome = run(context, long_recipe, f"budget.tokens={whole // 10}")
    run_id, cap = outcome.record.run_id, whole // 10
    last = 0.0
    for _ in range(12):
        cap += whole // 8
        context.runs.set_budget(run_id, _with_tokens(context, run_id, cap))
        child = Child(fork_server, context.home, "resume", run_id)
        time.sleep(draw.uniform(0.0, 9.0))
        child.process.kill()
        child.process.communicate()
        spent = Ledger(context.settings.run_folder(run_id)).last().settled()
        assert last <= spent.seconds
        assert spent.tokens <= cap
        last = spent.seconds
        if context.runs.get(run_id).status == "succeeded":
            break
    context.runs.set_budget(run_id, _with_tokens(context, run_id, 100 * whole))
    if context.runs.get(run_id).status != "succeeded":
        assert (
            Child(fork_server, context.home, "resume", run_id).finish()["adapter_sha256"] == expected["adapter_sha256"]
        )
    _same_story(context, run_id, expected["run_id"])
    assert (context.settings.run_folder(run_id) / LEDGER).is_file()


def _with_tokens(context: Context, run_id: str, tokens: int) -> Any:
    plan = context.runs.plan(run_id)
    assert plan.budget is not None
    return plan.model_copy(update={"budget": plan.budget.model_copy(update={"tokens": tokens})})


@pytest.mark.parametrize(("device", "times"), [("a100-80g", 4), ("cpu", 1)])
def test_as_many_gpus_are_paid_for_as_train_and_processes_of_a_cpu_share_it(
    context: Context, quiet_recipe: Path, monkeypatch: pytest.MonkeyPatch, device: str, times: int
) -> None:
    from luthier.ml.planning import devices

    plan = prepare(context, load_recipe(quiet_recipe), base_dir=quiet_recipe.parent).plan
    monkeypatch.setattr(devices, "this_machine", lambda hardware: devices.device_of(device, hardware))
    one, four = (with_budget(context, plan, None, None, num_devices=n).budget for n in (1, 4))
    assert one is not None
    assert four is not None
    assert one.usd_per_hour is not None
    assert four.usd_per_hour is not None
    assert one.watts is not None
    assert four.watts is not None
    assert four.usd_per_hour.value == pytest.approx(times * one.usd_per_hour.value)
    assert four.watts.value == pytest.approx(times * one.watts.value)
    several = with_budget(context, plan, None, None, num_devices=4, num_machines=3).budget
    assert several is not None
    assert several.usd_per_hour is not None
    machines = 3 if device == "cpu" else times
    assert several.usd_per_hour.value == pytest.approx(machines * one.usd_per_hour.value)


def test_a_step_that_draws_answers_counts_them_on_an_accelerator_that_is_not_known(
    context: Context, quiet_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.planning import devices

    def unknown(hardware: object) -> Device:
        raise RequestError("an accelerator that no table has", expected="a known one", do="name it")

    plan = prepare(context, load_recipe(quiet_recipe), base_dir=quiet_recipe.parent).plan
    draws = {"num_samples": 4, "max_new_tokens": 50, "num_iterations": 2}
    plan = plan.model_copy(update={"objective": plan.objective.model_copy(update=draws)})
    monkeypatch.setattr(devices, "this_machine", unknown)
    budget = with_budget(context, plan, None, None).budget
    assert budget is not None
    assert budget.first is not None
    rows = plan.data.train
    num_prompt_tokens = rows.num_tokens - rows.num_trained_tokens
    drawn = 2 * 4 * (num_prompt_tokens + 50 * rows.num_examples) / plan.training.num_steps_per_epoch
    assert budget.first.step_tokens == pytest.approx(drawn)
