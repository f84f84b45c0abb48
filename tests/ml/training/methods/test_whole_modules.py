"""Embeddings and head in whole beside an adapter: PEFT's loss, gradients and files, exact resume, the bare base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from torch import nn
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.export.runtimes.transformers_runtime import TransformersModel
from luthier.ml.inference.low_rank import why_not_shared
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import merged_model, without_adapter
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives.first_weights import FirstWeights
from luthier.ml.training.sharding import refuse_unspreadable

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
IDS = torch.arange(40).reshape(2, 20)
PLACES = pytest.mark.parametrize("saved", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
TIED = pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
WITH_THEM = [name for name, rules in METHODS.items() if "modules_to_save" in rules.settings]


@pytest.fixture
def base_path(tiny_model: Path, tmp_path: Path) -> Callable[[bool], Path]:
    """The tiny model, whose embeddings and head are one, or the same with a head of its own."""

    def path(is_tied: bool) -> Path:
        if is_tied:
            return tiny_model
        shutil.copytree(tiny_model, tmp_path / "untied")  # with its tokenizer
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(5)
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
        model.config.tie_word_embeddings = False
        model.save_pretrained(str(tmp_path / "untied"))
        return tmp_path / "untied"

    return path


def plan_on(
    make_plan: MakePlan, path: Path, saved: Sequence[str], method: str = "lora", is_tied: bool = False, **values: object
) -> Plan:
    plan = make_plan(method, settings={"modules_to_save": saved}, **values)
    # The fixture plans for the tied model.
    names = plan.method.modules_to_save if is_tied else tuple(saved)
    return plan.model_copy(
        update={
            "base_model": plan.base_model.model_copy(update={"path": str(path)}),
            "method": plan.method.model_copy(update={"modules_to_save": names}),
        }
    )


@PLACES
@TIED
def test_loss_and_gradients_are_pefts(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], base_path: Callable[[bool], Path],
    saved: tuple[str, ...], is_tied: bool,
) -> None:  # fmt: skip
    plan = plan_on(make_plan, base_path(is_tied), saved, is_tied=is_tied)
    ours = make_model(plan, torch.float64)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float64)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(plan.method.targets), task_type="CAUSAL_LM",
        modules_to_save=["embed_tokens", "lm_head"] if is_tied else list(saved),
    )  # fmt: skip
    with quiet_peft():
        theirs = get_peft_model(base, config, autocast_adapter_dtype=False)
    draw, of_peft = torch.Generator().manual_seed(3), dict(theirs.named_parameters())
    trained = [(name, p) for name, p in ours.module.named_parameters() if p.requires_grad]

    def copies(name: str) -> list[torch.Tensor]:
        """PEFT's parameters that are one of ours."""
        if name in of_peft and ".lora_" in name:
            return [of_peft[name]]
        kinds = ("embed_tokens", "lm_head") if is_tied else (name.split(".")[-2],)
        found = [p for n, p in of_peft.items() if any(f"{kind}.modules_to_save.default" in n for kind in kinds)]
        assert len(found) == len(kinds)
        return found

    with torch.no_grad():
        for name, p in nonempty(trained):
            p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype) * 0.1)
            for q in copies(name):
                q.copy_(p)
    chosen = examples[:5]
    total, _ = ours.loss_sum(collate(chosen, ours.pad_id, "cpu"))
    total.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for example in chosen:
        ids = torch.tensor(list(example.input_ids))
        logits = theirs(input_ids=ids[None]).logits[0, :-1]
        learned = torch.tensor(list(example.loss_mask[1:]), dtype=torch.bool)
        expected = expected + F.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
    expected.backward()
    torch.testing.assert_close(total.detach(), expected.detach())
    whole = [name for name, _ in trained if ".lora_" not in name]
    assert len(whole) == (1 if is_tied else len(saved)), "a shared matrix is trained once"
    for name, p in trained:
        gradients = [q.grad for q in copies(name) if q.grad is not None]
        torch.testing.assert_close(p.grad, sum(gradients[1:], gradients[0]), msg=name)


@PLACES
@TIED
def test_it_resumes_to_the_bit_loads_with_peft_and_merges_into_the_same_function(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], base_path: Callable[[bool], Path],
    tmp_path: Path, saved: tuple[str, ...], is_tied: bool,
) -> None:  # fmt: skip
    plan = plan_on(make_plan, base_path(is_tied), saved, is_tied=is_tied, dropout=0.2, learning_rate=0.05, num_steps=8)
    path = plan.base_model.path
    model, resumed = make_model(plan), make_model(plan)
    run(plan, model, tmp_path / "a", examples, with_validation=False)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=3, with_validation=False)
    run(plan, resumed, tmp_path / "b", examples, with_validation=False)
    assert all(nonempty(torch.equal(weights(resumed)[name], weight) for name, weight in weights(model).items()))
    folder, digest = save_model(model, Path(path), tmp_path / "a")
    assert save_model(resumed, Path(path), tmp_path / "b")[1] == digest

    names = ["embed_tokens", "lm_head"] if is_tied else list(saved)
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == names
    held = {name for name in load_file(folder / "adapter_model.safetensors") if ".lora_" not in name}
    of_name = {
        "embed_tokens": "base_model.model.model.embed_tokens.weight",
        "lm_head": "base_model.model.lm_head.weight",
    }
    assert held == {of_name[name] for name in names}

    model.module.eval()
    with torch.no_grad():
        hidden = model.method.hidden(model.body, IDS, torch.arange(20)[None]).flatten(0, 1)
        expected = (hidden @ model.head.t()).view(2, 20, -1)
        base = load_model(path, dtype="float32", attention="sdpa")
        before = base(IDS).logits
        with quiet_peft():  # which fears for tied weights that are to be merged
            plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), str(folder)).eval()
        adapted = attach_adapter(base, folder)
        merged = merged_model(path, folder, dtype="float32")
        merged.save_pretrained(str(tmp_path / "merged"))
        again = load_model(tmp_path / "merged", dtype="float32", attention="sdpa")
        tolerance = 2e-5 * float(expected.abs().max())
        for found in (plain(IDS).logits, adapted(IDS).logits, merged(IDS).logits, again(IDS).logits):
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        assert float((expected - before).abs().max()) > 100 * tolerance, "the run must have changed something"
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == is_tied
        # Who turns the adapter off gets the base, or is told that it is not to be had so.
        with without_adapter(adapted.get_base_model()) as is_base:
            assert not is_base
        with adapted.disable_adapter():
            assert torch.equal(adapted(IDS).logits, before)
    assert why_not_shared(folder) == "it has modules_to_save"
    exported = TransformersModel(path, folder)
    with exported.without_adapter():
        found = torch.tensor(exported.log_probabilities(IDS[0].tolist()))
    torch.testing.assert_close(found, torch.log_softmax(before[0], -1), atol=1e-4, rtol=0)
    engine = TransformersEngine.open(path, adapter_path=str(folder), dtype="float32")
    scores = engine.score(examples[:5], SilentProgress())
    with torch.no_grad():
        total, correct = model.loss_sum(collate(examples[:5], model.pad_id, "cpu"))
    assert sum(score.nll_nats for score in scores) == pytest.approx(float(total), rel=1e-5)
    assert sum(score.num_correct for score in scores) == int(correct)
    assert torch.equal(engine.head(), model.head.detach()), "the head that judging multiplies by is the trained one"


@pytest.mark.parametrize("method", WITH_THEM)
@TIED
def test_every_variant_saves_them_for_peft(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], base_path: Callable[[bool], Path],
    tmp_path: Path, method: str, is_tied: bool,
) -> None:  # fmt: skip
    saved = ("embed_tokens", "lm_head")
    plan = plan_on(make_plan, base_path(is_tied), saved, method, is_tied, learning_rate=0.05, num_steps=12)
    model = make_model(plan)
    run(plan, model, tmp_path, examples, with_validation=False)
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)
    model.module.eval()
    base = load_model(plan.base_model.path, dtype="float32", attention="sdpa", quantisation=plan.method.quantisation)
    table = base.get_input_embeddings().weight.clone()
    with torch.no_grad(), quiet_peft():
        hidden = model.method.hidden(model.body, IDS, torch.arange(20)[None]).flatten(0, 1)
        expected = (hidden @ model.head.t()).view(2, 20, -1)
        found = PeftModel.from_pretrained(base, str(folder)).eval()(IDS).logits
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    assert not torch.equal(model.base.get_input_embeddings().weight, table)


@pytest.mark.parametrize("method", WITH_THEM)
@PLACES
def test_the_plan_counts_what_is_trained(
    make_plan: MakePlan, make_model: MakeModel, method: str, saved: tuple[str, ...]
) -> None:
    plan = make_plan(method, settings={"modules_to_save": saved})
    without = make_plan(method)
    table = make_model(plan).vocabulary_size * 32
    assert plan.method.modules_to_save == ("embed_tokens", "lm_head"), "they share one matrix"
    assert plan.method.num_saved_parameters == table
    assert plan.method.num_trainable_parameters == make_model(plan).num_trainable_parameters
    assert plan.method.num_trainable_parameters == without.method.num_trainable_parameters + table


def test_first_weights_are_those_of_the_base(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tiny_model: Path, tmp_path: Path
) -> None:
    plan = plan_on(make_plan, tiny_model, ("embed_tokens", "lm_head"), is_tied=True, learning_rate=0.05)
    model = make_model(plan)
    first = FirstWeights(model)
    batch = collate(examples[:5], model.pad_id, "cpu")
    with torch.no_grad():
        before = model.log_probabilities(batch)
    run(plan, model, tmp_path, examples, with_validation=False)
    model.module.eval()
    with torch.no_grad():
        after = model.log_probabilities(batch)
        with first.restored(model):
            assert torch.equal(model.log_probabilities(batch), before)
        assert torch.equal(model.log_probabilities(batch), after)
    assert not torch.allclose(after, before)


def test_what_cannot_be_trained_in_whole_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"'norm' is neither embeddings nor output head[\s\S]*embed_tokens, lm_head"):
        make_plan("lora", settings={"modules_to_save": ("norm",)})
    with pytest.raises(RecipeError, match=r"method\.modules_to_save and method\.targets both name model\.embed_tokens"):
        make_plan("lora", settings={"modules_to_save": "lm_head", "targets": ("embed_tokens", "q_proj")})
    plan = make_plan("lora", settings={"modules_to_save": "lm_head"})
    with pytest.raises(RecipeError, match=r"fsdp with embed_tokens, lm_head trained in whole[\s\S]*modules_to_save"):
        refuse_unspreadable(plan)


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_plan_without_them_keeps_its_hash(make_plan: MakePlan, is_saved: bool) -> None:
    plan = make_plan("lora")
    more = {"modules_to_save": ("lm_head",), "num_saved_parameters": 7} if is_saved else {"modules_to_save": ()}
    changed = plan.model_copy(update={"method": plan.method.model_copy(update=more)})
    assert (changed.hash != plan.hash) == is_saved
