"""The quote of a recipe: exact batches, any device, a probe only here, and nothing of it in the plan's hash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.core.results.cost import Quote
from luthier.core.system.facilities import can_fork
from luthier.features.models.result_files import QUOTE_NAME
from luthier.features.planning import probes
from luthier.features.planning.quotes import (
    advise,
    compare_options,
    device_for,
    exact_batches,
    load_quote,
    quote_of,
    save_quote,
    workloads_of,
)
from luthier.features.planning.service import Prepared, prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]


@pytest.fixture
def prepared(context: Context, make_recipe: MakeRecipe) -> Prepared:
    return ready(context, make_recipe())


def ready(context: Context, recipe: Path, *overrides: str) -> Prepared:
    return prepare(context, load_recipe(recipe, overrides), base_dir=recipe.parent)


def test_batches_are_those_that_training_takes(context: Context, make_recipe: MakeRecipe) -> None:
    prepared = ready(context, make_recipe(), "training.shared_prefix=false")
    rows = prepared.train.tokenised
    schedule = StepSchedule(
        [row.num_tokens for row in rows], global_batch_size=8, micro_batch_tokens=100, order="by_length", seed=0
    )
    steps = [schedule.step(number) for number in range(prepared.plan.training.num_steps)]
    padded = [len(batch) * max(rows[i].num_tokens for i in batch) for step in steps for batch in step]
    found = exact_batches(prepared, micro_batch_tokens=100)
    assert found.num_tokens == sum(row.num_tokens for row in rows) / 5
    assert found.num_micro_batches == len(padded) / len(steps)
    assert found.num_computed == sum(padded) / len(steps)
    assert found.peak_tokens == max(padded) <= 100


def test_a_beginning_that_is_shared_is_computed_once_in_each_micro_batch(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe()
    system = {"role": "system", "content": "Count on by one. Answer in one sentence, and with nothing else."}
    rows = [{"messages": [system, *chat_row(number)["messages"]]} for number in range(40)]
    write_rows(recipe.parent / "train.jsonl", rows)
    plain, shared = (
        exact_batches(ready(context, recipe, f"training.shared_prefix={word}"), micro_batch_tokens=100_000)
        for word in ("false", "true")
    )
    assert plain.num_tokens == shared.num_tokens
    assert shared.num_computed < plain.num_computed
    saved = (shared.num_tokens - shared.num_computed) / 7  # eight rows a step, the beginning once in place of eight
    assert saved >= 16
    assert saved == pytest.approx(round(saved))


def test_devices_share_the_rows_of_a_step(prepared: Prepared) -> None:
    alone, shared = (exact_batches(prepared, micro_batch_tokens=10_000, num_devices=n) for n in (1, 4))
    assert (alone.peak_rows, shared.peak_rows) == (8, 2)
    assert (alone.num_micro_batches, shared.num_micro_batches) == (1, 4)
    assert alone.num_tokens == shared.num_tokens


def test_an_absurd_micro_batch_is_no_more_than_the_step(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    for size in ("1", "1000000000000"):
        sizes = (f"training.micro_batch_tokens={size}", "training.global_batch_size=1000000")
        made = ready(context, recipe, *sizes, "training.shared_prefix=false")
        batches = workloads_of(made, device_for(context, None))(device_for(context, "h100")).batches
        assert batches.num_tokens == made.plan.data.train.num_tokens
        assert batches.peak_rows == (1 if size == "1" else 40)


def test_this_machine_is_quoted_where_nothing_else_is_asked_for(context: Context, prepared: Prepared) -> None:
    quote = quote_of(context, prepared)
    assert quote.prediction.device == device_for(context, None)
    assert quote.prediction.num_steps == prepared.plan.training.num_steps == 10
    assert quote.num_rows == 40 + 8 + 6
    assert quote.prediction.fits
    assert not quote.prediction.calibrated
    assert quote.hours_by_part["validations"].value > 0


def test_hours_of_training_are_all_but_those_of_the_evaluation(context: Context, prepared: Prepared) -> None:
    quote = quote_of(context, prepared)
    judging = quote.hours_by_part["judging"]
    assert judging.value > 0
    assert quote.training_hours.value == pytest.approx(quote.prediction.hours.value - judging.value)
    assert quote.training_hours.high == pytest.approx(quote.prediction.hours.high - judging.high)


@pytest.mark.parametrize("name", ["h100", "a100-80g:4", "mi300x", "t4"])
def test_a_device_that_is_not_here_can_be_quoted(context: Context, prepared: Prepared, name: str) -> None:
    quote = quote_of(context, prepared, on=name)
    assert quote.prediction.device.name == name.partition(":")[0]
    assert quote.prediction.usd is not None


def test_several_accelerators_are_quoted_with_their_layout(context: Context, prepared: Prepared) -> None:
    assert quote_of(context, prepared).layouts == quote_of(context, prepared, on="h100").layouts == ()
    quote = quote_of(context, prepared, on="a100-80g:4")
    own = quote.layouts[0]
    assert own.title == "dp 4 (DDP)"
    assert own.runs_here
    assert own.tokens_per_second == quote.prediction.tokens_per_second
    assert own.peak_memory_bytes == quote.prediction.peak_memory.total_bytes
    assert "docs/scale.md" in " ".join(quote.prediction.notes)


@pytest.mark.parametrize(
    ("optimizer", "runs_here", "words"),
    [("adamw", True, "--devices 4"), ("adafactor", False, "fsdp with optimizer adafactor is not possible")],
)
def test_weights_that_are_sharded_on_request_are_quoted_so(
    optimizer: str, runs_here: bool, words: str, context: Context, make_recipe: MakeRecipe
) -> None:
    made = ready(context, make_recipe(), "training.sharding=fsdp", f"training.optimizer={optimizer}")
    own = quote_of(context, made, on="a100-80g:4").layouts[0]
    assert own.title == "dp 4 (FSDP2)"
    assert own.runs_here == runs_here
    assert words in own.words


def test_weights_are_sharded_where_a_copy_does_not_fit(
    context: Context, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.planning import predict

    monkeypatch.setattr(predict, "fits", lambda *_: False)
    recipe = make_recipe()
    titles = {
        word: quote_of(context, ready(context, recipe, *word), on="a100-80g:4").layouts[0].title
        for word in ((), ("training.sharding=ddp",), ("training.optimizer=adafactor",))
    }
    assert titles == {
        (): "dp 4 (FSDP2)",
        ("training.sharding=ddp",): "dp 4 (DDP)",
        ("training.optimizer=adafactor",): "dp 4 (DDP)",
    }


def test_tokens_are_those_of_the_steps_that_are_made(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    whole = ready(context, recipe)
    assert quote_of(context, whole).num_tokens == 2 * whole.plan.data.train.num_tokens
    fewer = quote_of(context, ready(context, recipe, "training.max_steps=5"))
    assert fewer.num_tokens == whole.plan.data.train.num_tokens


def test_each_device_is_quoted_with_the_steps_that_it_would_take(context: Context, make_recipe: MakeRecipe) -> None:
    made = ready(context, make_recipe(training={"epochs": 2, "num_threads": 1, "shared_prefix": False}))
    here, *there = (quote_of(context, made, on=name) for name in (None, "h100", "h100:16"))
    assert here.prediction.num_steps == 10  # of 8 rows
    assert [quote.prediction.num_steps for quote in there] == [6, 6]  # of 16 rows, where 8 could not be shared
    assert {quote.num_tokens for quote in (here, *there)} == {2 * made.plan.data.train.num_tokens}
    note = "a plan that is made there has 16 examples a step, and 6 steps"
    assert [note in quote.prediction.notes for quote in (here, *there)] == [False, True, True]


@pytest.mark.skipif(not can_fork(), reason="workers are forked")
def test_a_step_is_cut_for_the_workers_of_a_cpu_alone(context: Context, make_recipe: MakeRecipe) -> None:
    made = ready(context, make_recipe(), "training.num_threads=4", "training.shared_prefix=false")
    assert made.plan.training.min_micro_batches == 4
    here = device_for(context, None)
    workload_on = workloads_of(made, here)
    cpu, gpu = (workload_on(device).batches for device in (here, device_for(context, "h100")))
    assert (cpu.num_micro_batches, cpu.peak_rows) == (4, 2)
    assert (gpu.num_micro_batches, gpu.peak_rows) == (1, 8), "it computes the whole step at once, and needs the memory"


def test_several_devices_recompute_activations_where_the_plan_of_one_of_them_does(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is planned for one device, and started with several."""
    monkeypatch.setattr(
        "luthier.ml.planning.resolve_for_device.need", lambda workload, _: (workload.batches.peak_rows > 4, "")
    )
    workload_on = workloads_of(prepared, device_for(context, None))
    one, eight = (workload_on(device_for(context, name)) for name in ("h100", "h100:8"))
    assert (one.batches.peak_rows, eight.batches.peak_rows) == (8, 1)
    assert one.gradient_checkpointing
    assert eight.gradient_checkpointing


def test_devices_that_cannot_share_a_step_evenly_are_refused_as_training_refuses_them(
    context: Context, prepared: Prepared
) -> None:
    with pytest.raises(RequestError, match="global_batch_size 8 on 3 devices"):
        quote_of(context, prepared, on="h100:3")


def test_more_devices_than_rows_in_a_step_are_refused(context: Context, prepared: Prepared) -> None:
    with pytest.raises(RequestError, match="8 rows a step on 9 devices"):
        quote_of(context, prepared, on="h100:9")


def test_only_this_machine_can_be_probed(context: Context, prepared: Prepared) -> None:
    with pytest.raises(RequestError, match="a probe of h100"):
        quote_of(context, prepared, on="h100", is_probed=True)
    with pytest.raises(RequestError, match="a probe of h100, t4"):
        compare_options(context, prepared, on=["h100", "t4"], is_probed=True)


def test_a_probe_calibrates_this_machine_and_is_used_again(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.planning.predict import Measurement, fit

    here, asked = device_for(context, None), []
    measured = Measurement(workloads_of(prepared, here)(here), step_seconds=5.0, peak_memory_bytes=1e9)

    def probe(_: Context, probed: Prepared) -> object:
        asked.append(probed)
        return fit(here, [measured])

    monkeypatch.setattr(probes, "probe", probe)
    monkeypatch.setattr(probes, "stored", lambda *_, **__: fit(here, [measured]) if asked else None)
    before = quote_of(context, prepared)
    probed = quote_of(context, prepared, is_probed=True)
    again = quote_of(context, prepared)
    assert asked == [prepared]
    assert (before.prediction.calibrated, probed.prediction.calibrated) == (False, True)
    assert abs(probed.prediction.step_seconds.value - 5) < abs(before.prediction.step_seconds.value - 5)
    assert again == probed
    elsewhere = quote_of(context, prepared, on="h100")
    assert not elsewhere.prediction.calibrated


def test_options_are_of_this_machine_and_the_table_or_of_those_that_are_named(
    context: Context, prepared: Prepared
) -> None:
    named = compare_options(context, prepared, on=["cpu", "h100:2", "cpu"])
    assert {option.device for option in named} == {"cpu", "h100:2"}
    assert len(named) == 8
    with pytest.raises(RequestError, match="nodevice"):
        compare_options(context, prepared, on=["nodevice"])


def test_the_quote_is_kept_beside_the_run_and_the_plan_does_not_know_it(context: Context, prepared: Prepared) -> None:
    run_id, before = new_id("run"), prepared.plan.model_dump_json()
    assert load_quote(context, run_id) is None
    quote = save_quote(context, run_id, prepared)
    assert load_quote(context, run_id) == quote
    assert prepared.plan.model_dump_json() == before
    (context.settings.run_folder(run_id) / QUOTE_NAME).write_text("{", encoding="utf-8")
    assert load_quote(context, run_id) is None


def test_a_machine_that_nobody_knows_is_no_reason_to_fail(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.planning import devices

    def refuse(_: object) -> None:
        raise RequestError("this machine's accelerator 'Abacus'", expected="a known one", do="name one")

    monkeypatch.setattr(devices, "this_machine", refuse)
    assert save_quote(context, new_id("run"), prepared) == "no prediction: this machine's accelerator 'Abacus'"


def test_training_tells_its_quote_first_and_the_report_sets_it_beside_what_came(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe, advised = make_recipe(), []
    outcome = train(
        context,
        load_recipe(recipe),
        base_dir=recipe.parent,
        show_plan=lambda run_id, plan, quote: advised.append((run_id, plan, quote)),
    )
    [(run_id, plan, quote)] = advised
    assert isinstance(quote, Quote)
    assert load_quote(context, run_id) == quote
    assert quote.prediction.num_steps == plan.training.num_steps
    assert plan == outcome.plan
    document = json.loads(Path(str(outcome.record.report_path)).with_suffix(".json").read_text(encoding="utf-8"))
    assert document["predicted"] == json.loads(json.dumps(quote.as_json()))


def test_a_run_of_several_gpus_is_quoted_for_all_of_them(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.planning import devices

    monkeypatch.setattr(devices, "this_machine", lambda hardware: devices.device_of("a100-80g", hardware))
    quote = save_quote(context, new_id("run"), prepared, num_devices=4)
    assert not isinstance(quote, str)
    assert (quote.prediction.device.name, quote.prediction.device.num_devices) == ("a100-80g", 4)


def test_a_head_is_advised_where_answers_are_labels_and_its_reading_is_shorter(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe()
    rows = [{"prompt": f"Is {number} even?", "completion": "no" if number % 2 else "yes"} for number in range(60)]
    write_rows(recipe.parent / "train.jsonl", rows[:40])
    write_rows(recipe.parent / "held_out.jsonl", rows[40:])
    held = ("data.held_out=held_out.jsonl", "evaluation.metrics=[label_accuracy]")
    reasons = advise(context, ready(context, recipe, *held)).reasons
    advised = [reason for reason in reasons if "{name: classify}" in reason]
    assert len(advised) == 1
    assert "2 labels" in advised[0]
    assert "20 evaluated rows" in advised[0]
    texts = [{"prompt": f"Say {number}.", "completion": f"{number} it is"} for number in range(60)]
    write_rows(recipe.parent / "train.jsonl", texts[:40])
    write_rows(recipe.parent / "held_out.jsonl", texts[40:])
    other = advise(context, ready(context, recipe, "data.held_out=held_out.jsonl", "evaluation.metrics=[rouge]"))
    assert not any("{name: classify}" in reason for reason in other.reasons)
