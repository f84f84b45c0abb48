"""Bytes that a step keeps and holds, held against what autograd really saves and what really lives at one time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luthier.core.forward_path import ForwardPath
from luthier.core.results.cost import Device
from luthier.ml.inference.models.attention_proof import use_attention
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning import batch_shapes, step_counts
from luthier.ml.planning.adapter import resolve_modules_to_save
from luthier.ml.planning.inference_cost import TeacherPass
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import Workload
from luthier.ml.training import attention, prefix_attention
from luthier.ml.training.losses import cross_entropy, divergence, logit_rows
from luthier.ml.training.model import MicroBatch, TrainableModel

Make = Callable[..., Any]


def test_the_constants_are_those_of_training() -> None:
    assert batch_shapes.KEPT_MAX_TOKENS == attention.KEPT_MAX_TOKENS
    assert batch_shapes.BLOCK_TOKENS == attention.BLOCK_TOKENS
    assert batch_shapes.BLOCK_SCORES == prefix_attention.BLOCK_SCORES
    assert step_counts.CHUNK_ROWS == cross_entropy.CHUNK_ROWS
    assert step_counts.DISTILLED_CHUNK_ROWS == divergence.CHUNK_ROWS
    assert step_counts.WIDE_ROWS == cross_entropy.WIDE_ROWS
    assert step_counts.OWN_CHUNK_ROWS == logit_rows.CHUNK_ROWS


def saved_bytes(
    model: TrainableModel, rows: int, length: int, layout: prefix_attention.PrefixLayout | None = None
) -> int:
    """What autograd keeps of the layers' forward pass: each storage once, parameters not."""
    parameters = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.int64)
    positions = torch.arange(length)[None] if layout is None else layout.positions(ids.device)
    shared = {} if layout is None else {"prefix_layout": layout}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.body(input_ids=ids, position_ids=positions, use_cache=False, **shared)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("rows", "length"), [(4, 48), (1, 600), (1, 1100)])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "llama_untied", "gemma3", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe"])
def test_kept_bytes_are_what_autograd_saves(
    name: str, method: str, rows: int, length: int, architecture: Make, make_workload: Make, make_model: Make
) -> None:
    config = architecture(name)
    work = make_workload(structure_of(config), method, rows=rows, length=length)
    counted = step_counts.saved_activation_bytes(work)
    # rotary tables (sine and cosine in bfloat16) and masks are shared by all layers, and these layers are very small
    tables = length * 2 * work.structure.head_size * 2
    assert counted == pytest.approx(saved_bytes(make_model(config, work), rows, length) - tables, rel=0.025)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_with_checkpoints_only_the_inputs_of_layers_are_kept(
    name: str, method: str, architecture: Make, make_workload: Make, make_model: Make
) -> None:
    config = architecture(name)
    work = make_workload(structure_of(config), method, gradient_checkpointing=True)
    counted = step_counts.saved_activation_bytes(work)
    assert counted == pytest.approx(saved_bytes(make_model(config, work), 4, 48), rel=0.02)
    assert counted < 0.2 * step_counts.saved_activation_bytes(replace(work, gradient_checkpointing=False))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",), ("gate_proj", "o_proj")])
def test_matrices_without_an_adapter_keep_nothing(
    targets: tuple[str, ...], architecture: Make, make_workload: Make, make_model: Make
) -> None:
    # of the first layer nothing is kept below its first adapter; the count lets that go by
    config = architecture("llama", num_hidden_layers=12)
    work = make_workload(structure_of(config), targets=targets)
    counted = step_counts.saved_activation_bytes(work)
    saved = saved_bytes(make_model(config, work), 4, 48)
    assert saved <= 1.01 * counted < (1 + 1.2 / 12) * saved
    assert counted < step_counts.saved_activation_bytes(make_workload(work.structure))


class Living(TorchDispatchMode):
    """Bytes of all tensors that operations make, and their peak: what an ideal allocator would need.

    Weights, and gradients that are there before, do not count.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        before = [tensor for p in module.parameters() for tensor in (p, p.grad) if tensor is not None]
        self.known = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self.known.pop(key)


def living_bytes(model: TrainableModel, rows: int, length: int, learned: float) -> int:
    """Peak of all tensors but the weights in one micro-batch, there and back."""
    ids, num = torch.ones(rows, length, dtype=torch.int64), int(rows * length * learned)
    batch = MicroBatch(ids, torch.arange(num), ids.flatten()[:num], (num,), rows * length)
    with Living(model.module) as living:
        loss, _ = model.loss_sum(batch)
        (loss / num).backward()
    return living.peak


@pytest.mark.parametrize(
    ("name", "method", "dropout", "recompute", "vocabulary", "rows", "length", "learned"),
    [
        ("llama", "lora", 0.0, False, 512, 8, 64, 0.2),
        ("llama", "lora", 0.1, True, 512, 8, 64, 0.2),
        ("llama", "full", 0.0, True, 4096, 8, 64, 0.2),
        ("llama_untied", "lora", 0.0, True, 4096, 2, 400, 1.0),
        ("llama_untied", "full", 0.0, False, 4096, 2, 400, 1.0),
        ("qwen3", "lora", 0.1, False, 256, 1, 700, 0.5),
        ("qwen3", "full", 0.0, True, 256, 1, 700, 0.5),
        ("gemma3", "lora", 0.0, False, 512, 8, 64, 0.5),
        ("gemma3", "full", 0.0, True, 512, 8, 64, 0.5),
        ("mixtral", "lora", 0.0, True, 256, 2, 200, 0.2),
        ("mixtral", "full", 0.0, False, 256, 2, 200, 0.2),
    ],
)
def test_the_parts_that_come_and_go_are_what_lives_at_one_time(
    name: str,
    method: str,
    dropout: float,
    recompute: bool,
    vocabulary: int,
    rows: int,
    length: int,
    learned: float,
    architecture: Make,
    make_workload: Make,
    make_model: Make,
    device: Device,
) -> None:
    config = architecture(name, vocab_size=vocabulary, num_hidden_layers=5)
    work: Workload = make_workload(
        structure_of(config),
        method,
        rows=rows,
        length=length,
        learned=learned,
        dropout=dropout,
        gradient_checkpointing=recompute,
    )
    found = predict_memory(work, device)
    summed = work.num_trainable * 4.0  # gradients are added up in fp32 by the optimizer, which does not run here
    counted = found.activations_bytes + found.logits_bytes + found.gradients_bytes - summed
    lived = living_bytes(make_model(config, work), rows, length, learned)
    assert 0.96 * lived < counted < 1.16 * lived


@pytest.mark.parametrize("saved", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
@pytest.mark.parametrize("name", ["llama", "llama_untied"])
@pytest.mark.parametrize(("recompute", "vocabulary", "rows", "length"), [(True, 4096, 8, 64), (False, 4096, 2, 400)])
def test_embeddings_and_head_in_whole_live_as_they_are_counted(
    saved: tuple[str, ...],
    name: str,
    recompute: bool,
    vocabulary: int,
    rows: int,
    length: int,
    architecture: Make,
    make_workload: Make,
    make_model: Make,
    device: Device,
) -> None:
    config = architecture(name, vocab_size=vocabulary, num_hidden_layers=5)
    structure = structure_of(config)
    names = resolve_modules_to_save(structure, saved, ())
    work: Workload = make_workload(
        structure, rows=rows, length=length, gradient_checkpointing=recompute, modules_to_save=names
    )
    found = predict_memory(work, device)
    counted = found.activations_bytes + found.logits_bytes + found.gradients_bytes - work.num_trainable * 4.0
    model = make_model(config, work)
    assert model.num_trainable_parameters == work.num_trainable
    lived = living_bytes(model, rows, length, 0.5)
    assert 0.96 * lived < counted < 1.16 * lived
    kept = saved_bytes(model, rows, length) - 2 * length * structure.head_size * 2
    assert step_counts.saved_activation_bytes(work) == pytest.approx(kept, rel=0.025)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("attention_kind", "logits", "vocabulary", "rows", "length", "learned"),
    [
        ("fast", "head", 4096, 2, 400, 0.5),
        ("fast", "head", 4096, 8, 64, 0.2),
        ("eager", "product", 512, 2, 400, 0.5),
        ("eager", "head", 4096, 2, 400, 0.5),
        ("eager", "model", 4096, 2, 400, 0.5),
        ("eager", "model", 4096, 8, 64, 0.2),
    ],
)
def test_slower_paths_hold_what_they_are_counted_to_hold(
    attention_kind: str,
    logits: str,
    vocabulary: int,
    rows: int,
    length: int,
    learned: float,
    method: str,
    architecture: Make,
    make_workload: Make,
    make_model: Make,
    device: Device,
) -> None:
    config = architecture("llama_untied", vocab_size=vocabulary, num_hidden_layers=5)
    kinds = {"product": "learned_chunks", "head": "own_chunks", "model": "own_all"}
    fast: Workload = make_workload(structure_of(config), method, rows=rows, length=length, learned=learned)
    attention_of = {} if attention_kind == "fast" else {"attention": "eager"}
    work = replace(fast, loss=kinds[logits], **attention_of)
    found = predict_memory(work, device)
    counted = found.activations_bytes + found.logits_bytes + found.gradients_bytes - work.num_trainable * 4.0
    model = make_model(config, work)
    model.path = ForwardPath(attention=attention_kind, logits=logits)
    if attention_kind == "eager":
        use_attention(model.body, "eager")
    lived = living_bytes(model, rows, length, learned)
    assert 0.9 * lived < counted < 1.35 * lived
    assert counted > 0.9 * predict_memory(fast, device).activations_bytes


def test_logits_by_hand(architecture: Make, make_workload: Make) -> None:
    # vocabulary 256, width 64, bf16; 4 x 48 = 192 positions, 96 of them learned
    structure = structure_of(architecture("llama"))
    logits = 96 * 256 * 2 + 16 * 256 * 4 * 2
    hidden = (2 * 96 + 192) * 64 * 2
    assert step_counts.logits_bytes(make_workload(structure)) == logits + hidden
    many = make_workload(structure, rows=100, learned=1.0)
    assert step_counts.logits_bytes(many) == 512 * 256 * 2 + 16 * 256 * 4 * 2 + 3 * 4800 * 64 * 2
    assert step_counts.logits_bytes(replace(many, loss="all")) == 4800 * 256 * (2 + 4 + 4)
    full = make_workload(structure, "full")
    # wide logits stand beside the fp32 gradient of the head
    assert step_counts.logits_bytes(full) == logits + hidden + 256 * 64 * 4


@pytest.mark.parametrize("is_learned", [0.25, 1.0])
def test_logits_of_a_teacher_are_what_lives_at_one_time(
    is_learned: float, architecture: Make, make_workload: Make
) -> None:
    """Those of a chunk of both models, and several tensors of the few rows that are in fp32."""
    structure = structure_of(architecture("llama"))
    vocabulary, width, num = structure.vocabulary_size, structure.hidden_size, 400
    teacher = TeacherPass(1, vocabulary, width, "bfloat16", "bfloat16", num, num)
    work = make_workload(structure, rows=4, length=100, learned=is_learned)
    work = replace(work, teacher=teacher, widens_few_rows=True)
    learned = int(num * is_learned)
    shapes = [(learned, width), (vocabulary, width), (learned, width), (vocabulary, width)]
    given = torch.nn.ParameterList([torch.randn(shape).bfloat16() for shape in shapes])
    for one in list(given)[1:]:
        one.requires_grad_(False)
    hidden, head, states, other = given
    targets, mixing = torch.zeros(learned, dtype=torch.int64), divergence.Mixing("forward_kl", 1.0, 0.5)
    with Living(given) as living:
        loss = divergence.distillation_sum(hidden, head, targets, states, other, mixing)[0]
    # without the states of all tokens, and the learned ones, which the loss is given
    counted = step_counts.logits_bytes(work) - (num + learned) * width * 2
    assert float(loss.detach()) > 0
    assert counted == pytest.approx(living.peak, rel=0.1)
    # an accelerator widens a chunk of both: 8 tensors of so many rows
    chunk = min(learned, 128) - 16
    more = step_counts.logits_bytes(replace(work, widens_few_rows=False)) - step_counts.logits_bytes(work)
    assert more == chunk * vocabulary * 8 * 4


def test_attention_on_a_cpu_keeps_probabilities_of_short_rows_only(architecture: Make, make_workload: Make) -> None:
    structure = structure_of(architecture("llama"))
    short, long = (make_workload(structure, length=n) for n in (1024, 1025))
    assert step_counts.keeps_probabilities(short, 1024)
    assert not step_counts.keeps_probabilities(long, 1025)
    assert step_counts.layer_count(short, 1024).kept > step_counts.layer_count(long, 1025).kept + 3 * 512
    assert not step_counts.keeps_probabilities(replace(short, attention="flash"), 512)
    assert step_counts.keeps_probabilities(replace(short, attention="eager"), 5000)


@pytest.mark.parametrize(
    ("length", "by_hand"), [(100, 100.0), (128, 128.0), (129, (128 * 128 + 129) / 129), (256, 192.0)]
)
def test_a_block_of_queries_meets_the_keys_up_to_its_end(length: int, by_hand: float) -> None:
    assert batch_shapes.blocked_keys(length) == pytest.approx(by_hand)


@pytest.mark.parametrize("num_prefix", [100, 600, 1000])
def test_kept_bytes_of_a_shared_beginning(
    num_prefix: int, architecture: Make, make_workload: Make, make_model: Make
) -> None:
    num, own = 12, 40
    config = architecture("llama")
    batches = batch_shapes.batches_of([[[num_prefix + own] * num]], learned_fraction=0.5, shared=[[(num_prefix,)]])
    size = num_prefix + num * own
    work = replace(make_workload(structure_of(config)), batches=batches)
    layout = prefix_attention.PrefixLayout((num_prefix,), (own,) * num)
    saved = saved_bytes(make_model(config, work), 1, size, layout)
    assert step_counts.saved_activation_bytes(work) == pytest.approx(saved, rel=0.06)
