"""What a plan does otherwise on an accelerator: rows end to end, compiled layers. Older plans keep their hash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.ml.planning.conftest import profile
from tests.ml.planning.shapes import seven_billion

from luthier.core.errors import RecipeError
from luthier.core.plan import ObjectivePlan, Plan
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import resolve_for_device
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hardware import measure
from luthier.ml.planning.resolve_for_device import COMPILE_SECONDS, NUMBA_SECONDS, compiled_for
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import packs_on, workload_of

MakePlan = Callable[..., Plan]
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def large() -> Structure:
    return seven_billion()


@pytest.mark.parametrize(
    ("accelerator", "asked", "packs", "order"),
    [
        (None, None, False, "by_length"),
        (None, "auto", False, "by_length"),
        (None, True, True, "shuffled"),
        (H100, None, True, "shuffled"),
        (H100, "auto", True, "shuffled"),
        (H100, False, False, "by_length"),
    ],
)
def test_rows_are_packed_on_an_accelerator_or_where_asked(
    make_plan: MakePlan, accelerator: str | None, asked: object, packs: bool, order: str
) -> None:
    plan = make_plan({"training": {} if asked is None else {"packing": asked}}, accelerator=accelerator)
    assert (plan.training.packing, plan.training.order) == (packs, order)
    source = plan.sources["training.packing"].source
    assert source == ("asked" if isinstance(asked, bool) else "derived")


def test_rows_that_are_one_anothers_negatives_are_not_sorted_by_length(make_plan: MakePlan) -> None:
    plan = make_plan({"objective": {"name": "embed"}})
    assert plan.training.order == "shuffled"
    assert "compared with one another" in plan.sources["training.order"].why
    asked = make_plan({"objective": {"name": "embed"}, "training": {"order": "by_length"}})
    assert asked.training.order == "by_length"
    assert make_plan({"objective": {"name": "orpo"}}, shape="preference").training.order == "by_length"


def test_an_order_that_is_asked_for_stays(make_plan: MakePlan) -> None:
    plan = make_plan({"training": {"order": "by_length"}}, accelerator=H100)
    assert (plan.training.packing, plan.training.order) == (True, "by_length")


def test_what_is_off_leaves_the_hash_as_it_was(make_plan: MakePlan) -> None:
    plan = make_plan()
    document = plan.model_dump(mode="json")
    for name in ("packing", "compile", "numba_kernels"):
        del document["training"][name]
        changed = plan.model_copy(update={"training": plan.training.model_copy(update={name: True})})
        assert changed.hash != plan.hash
    assert Plan.model_validate(document).hash == plan.hash


def test_compiling_pays_for_long_runs_only(make_plan: MakePlan, large: Structure) -> None:
    """The saving is the difference of two predicted steps, times the steps."""
    step = make_plan(accelerator=H100, structure=large, num_examples=160)
    device = device_of("h100", measure())
    plain = workload_of(step, large, device)
    gain = step_seconds(plain, device).value - step_seconds(replace(plain, is_compiled=True), device).value
    assert gain > 0
    for num_steps, does in ((1, False), (int(3 * COMPILE_SECONDS / gain), True)):
        plan = make_plan({"training": {"max_steps": num_steps}}, accelerator=H100, structure=large, num_examples=160)
        assert plan.training.compile is does
        why = plan.sources["training.compile"].why
        said = re.search(r"save ([0-9,]+) s of this run, for about 180 s", why)
        assert said is not None
        assert int(said[1].replace(",", "")) == round(num_steps * gain)


@pytest.mark.parametrize(
    ("document", "accelerator", "why"),
    [
        ({}, None, "on a CPU"),
        ({"method": {"name": "qlora", "quantisation": "int8"}}, H100, "matrices of method qlora"),
        ({}, "Unheard Of 3000", "not known"),
    ],
)
def test_why_nothing_is_compiled(make_plan: MakePlan, document: dict[str, object], accelerator: str, why: str) -> None:
    plan = make_plan(document | {"training": {"max_steps": 10**6}}, accelerator=accelerator)
    assert not plan.training.compile
    assert why in plan.sources["training.compile"].why


def test_compiling_as_asked(make_plan: MakePlan) -> None:
    assert make_plan({"training": {"compile": True}}).training.compile
    assert not make_plan({"training": {"compile": False, "max_steps": 10**6}}, accelerator=H100).training.compile
    with pytest.raises(RecipeError, match="compile is true with method qlora"):
        make_plan({"method": {"name": "qlora", "quantisation": "int8"}, "training": {"compile": True}})


def test_nothing_is_compiled_where_the_model_writes_answers(make_plan: MakePlan, structure: Structure) -> None:
    machine = measure().model_copy(update={"device": "cuda", "accelerators": (H100,)})
    drawing = ObjectivePlan(name="grpo", num_samples=4)
    plan = make_plan({"training": {"max_steps": 10**6}}, accelerator=H100).model_copy(update={"objective": drawing})
    decided = compiled_for(plan, structure, machine)
    assert not decided.training.compile
    assert "writes answers" in decided.sources["training.compile"].why
    asked = make_plan({"training": {"compile": True}}, accelerator=H100).model_copy(update={"objective": drawing})
    with pytest.raises(RecipeError, match="compile is true with objective grpo"):
        compiled_for(asked, structure, machine)


def test_another_device_packs_as_it_would_by_itself(make_plan: MakePlan) -> None:
    cpu, gpu = device_of("cpu", measure()), device_of("h100", measure())
    for asked, on_cpu, on_gpu in ((None, False, True), (True, True, True), (False, False, False)):
        training = {} if asked is None else {"packing": asked}
        for accelerator in (None, H100):
            plan = make_plan({"training": training}, accelerator=accelerator)
            assert (packs_on(plan, cpu), packs_on(plan, gpu)) == (on_cpu, on_gpu)


def test_a_packed_run_is_predicted_without_padding(make_plan: MakePlan, structure: Structure) -> None:
    gpu = device_of("h100", measure())
    documents = [{"training": {"packing": packing, "order": "shuffled"}} for packing in (True, False)]
    packed, padded = (workload_of(make_plan(one, accelerator=H100), structure, gpu).batches for one in documents)
    assert packed.num_computed == packed.num_tokens == padded.num_tokens < padded.num_computed


@pytest.mark.parametrize(
    ("document", "accelerator", "found", "why"),
    [
        ({}, None, (2, 2), "with one thread"),
        ({"training": {"num_threads": 3}}, None, (3, 3), "with one thread"),
        ({"training": {"num_threads": 1}}, None, (1, 1), "one thread"),
        ({"training": {"micro_batch_workers": 1}}, None, (1, 1), "in the recipe"),
        ({"training": {"micro_batch_workers": 5}}, None, (5, 5), "in the recipe"),
        ({"training": {"global_batch_size": 1}}, None, (1, 1), "a step is one example"),
        ({"training": {"compile": True}}, None, (1, 1), "compiled layers"),
        ({"objective": {"name": "kto"}}, None, (1, 1), "sees the rows of a step"),
        ({}, H100, (1, 1), "follow one another on cuda"),
    ],
)
def test_each_thread_of_a_processor_gets_micro_batches_of_its_own(
    make_plan: MakePlan, document: dict[str, object], accelerator: str | None, found: tuple[int, int], why: str
) -> None:
    shape = {"shape": "preference"} if "objective" in document else {}
    plan = make_plan(document, accelerator=accelerator, **shape)
    assert (plan.training.micro_batch_workers, plan.training.min_micro_batches) == found
    assert why in plan.sources["training.micro_batch_workers"].why


def test_workers_that_cannot_be_are_refused_where_they_are_asked_for(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match="micro_batch_workers is 2, but micro-batches follow one another on cuda"):
        make_plan({"training": {"micro_batch_workers": 2}}, accelerator=H100)


def test_how_many_workers_compute_does_not_change_what_is_trained(make_plan: MakePlan) -> None:
    plan = make_plan()
    two, three = (
        plan.model_copy(update={"training": plan.training.model_copy(update={"micro_batch_workers": n})})
        for n in (2, 3)
    )
    assert two.hash == three.hash
    alone = plan.training.model_copy(update={"micro_batch_workers": 1, "min_micro_batches": 1})
    document = plan.model_copy(update={"training": alone}).model_dump(mode="json")
    for name in ("micro_batch_workers", "min_micro_batches"):
        del document["training"][name]
    assert Plan.model_validate(document).hash == plan.model_copy(update={"training": alone}).hash != plan.hash


def test_workers_are_left_out_where_memory_is_short(make_plan: MakePlan, large: Structure) -> None:
    """7 billion parameters do not fit into 8 GiB in any way; there workers only make it worse."""
    plan = make_plan(structure=large)
    assert plan.training.micro_batch_workers == 1
    assert "would take up to" in plan.sources["training.micro_batch_workers"].why
    asked = make_plan({"training": {"micro_batch_workers": 2}}, structure=large)
    assert asked.training.micro_batch_workers == 2


@pytest.mark.parametrize(
    ("document", "accelerator", "num", "why"),
    [
        ({}, None, 2, "with one thread"),
        ({"training": {"num_threads": 3}}, None, 3, "with one thread"),
        ({"training": {"num_threads": 1}}, None, 1, "one thread"),
        ({"training": {"micro_batch_workers": 1}}, None, 1, "training.micro_batch_workers in the recipe"),
        ({"training": {"micro_batch_workers": 5}}, None, 5, "training.micro_batch_workers in the recipe"),
        ({"training": {"global_batch_size": 1}}, None, 2, "with one thread"),
        ({}, H100, 1, "follow one another on cuda"),
    ],
)
def test_a_plan_says_how_many_workers_judge_and_why(
    make_plan: MakePlan, document: dict[str, object], accelerator: str | None, num: int, why: str
) -> None:
    plan = make_plan(document, accelerator=accelerator, held_out=profile("held_out", 50))
    assert plan.evaluation.num_workers == num
    assert why in plan.sources["evaluation.num_workers"].why
    (shown,) = [row for row in plan.values() if row["name"] == "evaluation.num_workers"]
    assert shown["value"] == num


def test_no_workers_judge_where_no_rows_are_held_out(make_plan: MakePlan) -> None:
    plan = make_plan()
    assert plan.evaluation.num_workers == 1
    assert plan.sources["evaluation.num_workers"].why == "no held-out rows: nothing is evaluated"


def test_how_many_workers_judge_does_not_change_the_hash(make_plan: MakePlan) -> None:
    plan = make_plan(held_out=profile("held_out", 50))
    others = [
        plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"num_workers": n})}) for n in (1, 7)
    ]
    assert {plan.hash} == {other.hash for other in others}


def test_workers_do_not_judge_where_memory_is_short(make_plan: MakePlan, large: Structure) -> None:
    plan = make_plan(structure=large, held_out=profile("held_out", 50))
    assert plan.evaluation.num_workers == 1
    assert "would take up to" in plan.sources["evaluation.num_workers"].why


def test_loops_compiled_by_numba_pay_for_long_runs_only(make_plan: MakePlan, large: Structure) -> None:
    """The saving is the difference of two predicted steps, times the steps, and steps are predicted with them then."""
    saved = {}
    for num_steps, structure in ((1, {}), (1, {"structure": large}), (100, {"structure": large})):
        plan = make_plan({"training": {"max_steps": num_steps}}, num_examples=1600, **structure)
        said = re.search(r"save ([0-9,]+) s of this run; loading", plan.sources["training.numba_kernels"].why)
        assert said is not None
        saved[num_steps, bool(structure)] = int(said[1].replace(",", ""))
        assert plan.training.numba_kernels is (saved[num_steps, bool(structure)] > NUMBA_SECONDS)
    assert saved[1, False] == 0
    # of one step it is written without decimals
    assert saved[1, True] - 0.5 <= saved[100, True] / 100 <= saved[1, True] + 0.5
    assert saved[100, True] > NUMBA_SECONDS
    plain = workload_of(plan, large, device_of("cpu", measure()))
    assert plain.has_numba_kernels
    slower = replace(plain, has_numba_kernels=False)
    device = device_of("cpu", measure())
    assert step_seconds(plain, device).value < step_seconds(slower, device).value


@pytest.mark.parametrize("asked", [True, False])
def test_loops_compiled_by_numba_are_as_requested(make_plan: MakePlan, asked: bool) -> None:
    plan = make_plan({"training": {"numba_kernels": asked}})
    assert plan.training.numba_kernels is asked
    assert plan.sources["training.numba_kernels"].source == "asked"


@pytest.mark.parametrize(
    ("training", "accelerator", "is_installed", "why"),
    [
        ({}, H100, True, "the loops are for CPUs"),
        ({}, None, False, "Numba is not installed"),
        ({"compile": True}, None, True, "compiled layers fuse elementwise work"),
        ({"num_threads": 8, "micro_batch_workers": 1}, None, True, "torch spreads its operations over all threads"),
    ],
)
def test_loops_compiled_by_numba_are_not_used_where_they_cannot_or_do_not_help(
    make_plan: MakePlan,
    monkeypatch: pytest.MonkeyPatch,
    large: Structure,
    training: dict[str, object],
    accelerator: str | None,
    is_installed: bool,
    why: str,
) -> None:
    monkeypatch.setattr(resolve_for_device, "has_numba", lambda: is_installed)
    values = {"accelerator": accelerator, "structure": large, "num_examples": 1600}
    plan = make_plan({"training": training}, **values)
    assert plan.training.numba_kernels is False
    assert why in plan.sources["training.numba_kernels"].why
    with pytest.raises(RecipeError, match=why):
        make_plan({"training": training | {"numba_kernels": True}}, **values)
