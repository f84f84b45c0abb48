"""Adapters on embeddings and head, tied or not: the loss and gradients of PEFT, its files, and one true merge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tests.ml.training.test_loop import KilledError, run, weights
from tests.vacuous import nonempty
from torch import nn
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import merged_model
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.training.checkpoint import save_model
from luthier.ml.training.low_rank import Dropout, keep
from luthier.ml.training.methods.lora import AdaptedForward, Lora
from luthier.ml.training.model import TrainableModel, collate

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
IDS = torch.arange(40).reshape(2, 20)
PLACES = pytest.mark.parametrize("targets", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head", "q_proj")])
TIED = pytest.mark.parametrize("is_tied", [True, False])


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


def plan_on(make_plan: MakePlan, path: Path, targets: Sequence[str], **settings: object) -> Plan:
    plan = make_plan("lora", settings={"targets": targets, "rank": 4}, **settings)
    return plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"path": str(path)})})


@PLACES
@TIED
def test_loss_and_gradients_are_pefts(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], base_path: Callable[[bool], Path],
    targets: tuple[str, ...], is_tied: bool,
) -> None:  # fmt: skip
    plan = plan_on(make_plan, base_path(is_tied), targets)
    ours = make_model(plan, torch.float64)
    base = AutoModelForCausalLM.from_pretrained(plan.base_model.path, dtype=torch.float64)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM")
    with quiet_peft():
        theirs = get_peft_model(base, config, autocast_adapter_dtype=False)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for (name, p), (other, q) in nonempty(
            zip(ours.module.named_parameters(), theirs.named_parameters(), strict=True)
        ):
            assert name == other
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype) * 0.1)
                q.copy_(p)
    chosen = examples[:5]
    total, _ = ours.loss_sum(collate(chosen, ours.pad_id, "cpu"))
    each = ours.log_probabilities(collate(chosen, ours.pad_id, "cpu"))  # what losses on preferences are made of
    torch.testing.assert_close(-each.sum().detach(), total.detach())
    total.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for example in chosen:
        ids = torch.tensor(list(example.input_ids))
        logits = theirs(input_ids=ids[None]).logits[0, :-1]
        learned = torch.tensor(list(example.loss_mask[1:]), dtype=torch.bool)
        expected = expected + F.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
    expected.backward()
    torch.testing.assert_close(total.detach(), expected.detach())
    trained = [
        (name, p.grad, q.grad)
        for (name, p), q in zip(ours.module.named_parameters(), theirs.parameters(), strict=True)
        if p.requires_grad
    ]
    assert len(trained) == 2 * len(targets) + (2 if "q_proj" in targets else 0)  # two layers
    for name, one, other in trained:
        torch.testing.assert_close(one, other, msg=name)
    assert plan.method.num_trainable_parameters == ours.num_trainable_parameters


def test_dropout_at_the_head_is_that_of_every_other_matrix(
    make_plan: MakePlan, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    model = make_model(plan_on(make_plan, tiny_model, ("lm_head",)), torch.float64)
    assert isinstance(model.method, Lora)
    forward = model.method.head_forward
    assert forward is not None
    with torch.no_grad():
        forward.b.normal_()
    drawn = Dropout(0.5, 7)
    monkeypatch.setattr(AdaptedForward, "draw", lambda _: drawn)
    hidden = torch.randn(6, model.head.shape[1], dtype=torch.float64)
    rows, head = model.method.logit_parts(hidden, model.head)
    torch.testing.assert_close(rows @ head.t(), forward(hidden))  # the fused product, held equal to PEFT's
    assert not torch.equal(keep(hidden, drawn.mask(hidden)), hidden)


@PLACES
@TIED
def test_it_resumes_to_the_bit_loads_with_peft_and_merges_into_the_same_function(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], base_path: Callable[[bool], Path],
    tmp_path: Path, targets: tuple[str, ...], is_tied: bool,
) -> None:  # fmt: skip
    plan = plan_on(make_plan, base_path(is_tied), targets, dropout=0.2, learning_rate=0.05, num_steps=8)
    model, resumed = make_model(plan), make_model(plan)
    run(plan, model, tmp_path / "a", examples, with_validation=False)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path / "b", examples, kill_at=3, with_validation=False)
    run(plan, resumed, tmp_path / "b", examples, with_validation=False)
    assert all(nonempty(torch.equal(weights(resumed)[name], weight) for name, weight in weights(model).items()))
    folder, _ = save_model(model, Path(plan.base_model.path), tmp_path)

    model.module.eval()
    with torch.no_grad():
        hidden = model.method.hidden(model.body, IDS, torch.arange(20)[None]).flatten(0, 1)
        rows, head = model.method.logit_parts(hidden, model.head)
        expected = (rows @ head.t()).view(2, 20, -1)
        base = load_model(plan.base_model.path, dtype="float32", attention="sdpa")
        before = base(IDS).logits
        adapted = attach_adapter(base, folder)
        merged = merged_model(plan.base_model.path, folder, dtype="float32")
        merged.save_pretrained(str(tmp_path / "merged"))
        again = load_model(tmp_path / "merged", dtype="float32", attention="sdpa")
        tolerance = 2e-5 * float(expected.abs().max())
        for found in (adapted(IDS).logits, merged(IDS).logits, again(IDS).logits):
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        assert float((expected - before).abs().max()) > 100 * tolerance, "the run must have changed something"
        with quiet_peft():
            naive = adapted.merge_and_unload()(IDS).logits
        # PEFT adds the update of one of two tied matrices to both: the reason for a merge of our own
        is_wrong = float((naive - expected).abs().max()) > 100 * tolerance
        assert is_wrong == is_tied
    engine = TransformersEngine.open(str(plan.base_model.path), adapter_path=str(folder), dtype="float32")
    scores = engine.score(examples[:5], SilentProgress())
    with torch.no_grad():
        total, correct = model.loss_sum(collate(examples[:5], model.pad_id, "cpu"))
    assert sum(score.nll_nats for score in scores) == pytest.approx(float(total), rel=1e-5)
    assert sum(score.num_correct for score in scores) == int(correct)


def test_what_cannot_carry_such_an_adapter_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"method dora on model\.embed_tokens[\s\S]*lora, rslora, qlora"):
        make_plan("dora", settings={"targets": ("embed_tokens", "q_proj")})
    with pytest.raises(RecipeError, match=r"method\.rank is 64, but model\.embed_tokens is"):
        make_plan("lora", settings={"targets": ("embed_tokens",), "rank": 64})
