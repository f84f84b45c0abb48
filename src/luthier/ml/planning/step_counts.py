"""Activation bytes and floating-point operations of a training step, counted from the architecture.

The tensors that a layer keeps for the backward pass are counted individually, for the layers of today (RMS norms, gated
MLPs, grouped attention, adapters) and for this project's own kernels, which keep less: see ml/training/kernels.py and
ml/training/attention.py. Tests hold the counts against autograd's own.

A multiply-add counts as two operations: 2 N forward and 4 N backward a token. A frozen base needs no gradient of its
weights, which leaves 2 N + 2 N, and its adapters 6 times their own parameters. Experts count if a token meets
them; padding counts, since it is computed.

Sources: Korthikanti et al., 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198,
section 4. Kaplan et al., 2020, arXiv:2001.08361, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.ml.planning.batch_shapes import BLOCK_SCORES, BLOCK_TOKENS, KEPT_MAX_TOKENS, blocked_keys
from luthier.ml.planning.workload import Workload, kinds_of

_FP32: Final = 4.0
CHUNK_ROWS: Final = 512
"""Learned tokens whose logits exist at one time (ml/training/losses/cross_entropy.py; a test holds them equal)."""
WIDE_ROWS: Final = 16
"""Of these, how many are widened to fp32 at one time (the same)."""
DISTILLED_CHUNK_ROWS: Final = 128
"""The same of a student and its teacher (ml/training/losses/divergence.py; a test checks that they are equal)."""
DISTILLED_TENSORS: Final = 8.0
"""Tensors in fp32 as large as the logits that are widened at one time: logits and log-probabilities of both, what is
between them, gradient."""
OWN_CHUNK_ROWS: Final = 128
"""Learned tokens whose logits a model's own head forms at one time (ml/training/losses/logit_rows.py; a test holds them
equal).
"""
OWN_TENSORS: Final = 4.0
"""Tensors in fp32 as large as such a chunk's logits: logits, log-probabilities, and the gradient of each."""
# torchtune cuts the tokens of a batch into this many pieces for its loss
_NUM_CHUNKS_OF_ALL: Final = 8
_NUM_OF_ROUTER: Final = 4.0
_HEAD_TENSORS: Final = 3.0
"""Tensors as large as the outputs of a task head: outputs, targets, log-probabilities; as many gradients."""
FUSED_QUERIES: Final = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
_LAST_OF_MLP: Final = ("down_proj", "fc2", "c_proj", "dense_4h_to_h")
# Of each expert that a token meets: its index, its place before and after sorting, its weight and the sum of weights.
_ROUTE_BYTES: Final = 4 * 8.0 + 2 * 4.0


@dataclass(frozen=True, slots=True)
class LayerCount:
    """Bytes a token of one layer.

    Attributes:
        kept: for the way back.
        recomputed: made again on the way back from what is kept.
        transient: the maximum in addition, in the backward pass; the MLP comes first, so what it kept is freed when
            attention's gradients come.
    """

    kept: float
    recomputed: float
    transient: float


def keeps_probabilities(workload: Workload, length: float) -> bool:
    """Whether the probabilities of attention are kept for the way back."""
    if workload.attention == "eager":
        return True
    if workload.batches.shared_keys:
        return workload.batches.shared_kept_keys > 0
    return workload.attention == "by_length" and length <= KEPT_MAX_TOKENS


def num_keys(workload: Workload, length: float) -> float:
    """Keys that a token meets on average in rows of `length` tokens, what a mask hides but is computed included."""
    if workload.attention == "eager":
        return length
    if workload.attention == "by_length":
        return max(blocked_keys(length), workload.batches.shared_keys)
    return length / 2


def layer_count(workload: Workload, length: int) -> LayerCount:
    """What a middle layer keeps of each token in rows of `length` tokens."""
    read, product = _norm_outputs(workload), _mlp_product(workload)
    read_again = read if _norms_recompute(workload) else 0.0
    if workload.method == "full" and workload.structure.num_experts:
        read_again /= 2  # of the two that are read, routers keep theirs: they are no plain linear layers
    product_again = product if _mlp_recomputes(workload) else 0.0
    mlp = _mlp(workload) + product - product_again
    kept = _norms(workload) + read - read_again + _attention(workload, length) + mlp + _thin(workload)
    transient = max(_mlp_transient(workload), _attention_transient(workload, length) - mlp)
    return LayerCount(kept=kept, recomputed=read_again + product_again, transient=transient)


def saved_activation_bytes(workload: Workload) -> float:
    """Bytes kept at the end of the forward pass of the largest micro-batch, logits aside."""
    s, e = workload.structure, workload.element_bytes
    tokens, length = workload.batches.peak_tokens, workload.batches.peak_length
    if workload.gradient_checkpointing:
        held = 0.0 if workload.keeps_checkpoints_on_host else s.num_layers * s.hidden_size * e
        return tokens * (held + _last_norm(workload))
    body = s.num_layers * layer_count(workload, length).kept
    # The mask is one for the whole micro-batch; all else here is a token's.
    body += _mask(workload, length) / tokens
    if not workload.trains_embeddings:  # nothing below the first adapter needs a gradient: its norm keeps nothing
        body -= _FP32 if _norms_recompute(workload) else _norm_saved_bytes(workload, s.hidden_size)
    return tokens * (body + _last_norm(workload))


def router_bytes(workload: Workload) -> float:
    """Of the loss of the routers: logits, probabilities and their gradients of every token in every layer with experts,
    in fp32, and the choices of its experts, a whole number of 8 bytes for each expert that it might have chosen."""
    s = workload.structure
    if not workload.has_router_loss or not s.num_experts:
        return 0.0
    num_layers = len({layer.layer for layer in s.experts}) or s.num_layers
    one = s.num_experts * (_NUM_OF_ROUTER * _FP32 + s.num_active_experts * (8.0 + _FP32))
    return workload.batches.peak_tokens * num_layers * one


def backward_bytes(workload: Workload) -> float:
    """The maximum in the backward pass in addition to what was kept: gradients in flight, one recomputed layer."""
    count = layer_count(workload, workload.batches.peak_length)
    recomputed = count.kept if workload.gradient_checkpointing else 0.0
    return workload.batches.peak_tokens * (recomputed + count.transient)


def logits_bytes(workload: Workload) -> float:
    """The most that the losses hold: logits of one chunk or of all tokens, and the gradients they leave; what the
    loss of the routers holds comes on top."""
    return _loss_bytes(workload) + router_bytes(workload)


def _loss_bytes(workload: Workload) -> float:
    s, e = workload.structure, workload.element_bytes
    batches = workload.batches
    one = s.vocabulary_size * (_FP32 + (e if e < _FP32 else 0.0))
    if workload.loss == "task_head":
        rows = max(1.0, batches.peak_tokens * min(1.0, batches.num_learned / max(1.0, batches.num_tokens)))
        # The gradient of all states; of each row its state and outputs in fp32, with the gradient of each.
        outputs = 2 * rows * (s.hidden_size + _HEAD_TENSORS * workload.num_head_outputs) * _FP32
        return batches.peak_tokens * s.hidden_size * e + outputs
    if workload.loss == "fused":
        return min(batches.peak_tokens, CHUNK_ROWS) * one + batches.peak_tokens * s.hidden_size * e
    if workload.loss == "learned_chunks":
        learned = batches.peak_tokens * min(1.0, batches.num_learned / max(1.0, batches.num_tokens))
        rows = min(max(learned, 1.0), CHUNK_ROWS)
        hidden = (2 * learned + batches.peak_tokens) * s.hidden_size * e  # chosen rows, their gradient, all rows
        # a few rows at a time are widened, and their log-probabilities are kept with that
        wide = min(rows, WIDE_ROWS) * s.vocabulary_size * _FP32 * (2 if e < _FP32 else 1)
        if workload.teacher is not None:  # smaller chunks, of both, and more tensors of the widened rows
            rows = min(rows, DISTILLED_CHUNK_ROWS)
            num_wide = min(rows, WIDE_ROWS) if workload.widens_few_rows else rows
            wide = num_wide * s.vocabulary_size * DISTILLED_TENSORS * _FP32
        logits = rows * s.vocabulary_size * e * (1 if workload.teacher is None else 2)
        if not workload.trains_head and not workload.adapts_head:
            return logits + wide + hidden
        # the head's gradient adds up in fp32; a chunk's part of it is made when its wide logits are freed
        beside = s.vocabulary_size * workload.adapter_rank if workload.adapts_head else 0
        head = s.head_parameters + beside
        copied = head * e if workload.adapts_head else 0.0  # matrix and adapter side by side
        return logits + max(wide, head * e) + hidden + head * _FP32 + copied
    if workload.loss in ("own_chunks", "own_all"):
        return _own_logits_bytes(workload)
    if workload.loss == "all_chunks":  # all logits as computed, one piece of them in fp32 with its gradient
        return batches.peak_tokens * s.vocabulary_size * (e + 2 * _FP32 / _NUM_CHUNKS_OF_ALL)
    # logits as computed, their fp32 copy, and its gradient
    return batches.peak_tokens * s.vocabulary_size * (e + 2 * _FP32)


def _own_logits_bytes(workload: Workload) -> float:
    """Where the model forms its own logits: those of one chunk, or those of all tokens besides the learned ones.

    All tokens: theirs are there when the learned ones are picked out of them, and again as the gradient of that.
    """
    s, e, batches = workload.structure, workload.element_bytes, workload.batches
    learned = batches.peak_tokens * min(1.0, batches.num_learned / max(1.0, batches.num_tokens))
    rows = min(max(learned, 1.0), OWN_CHUNK_ROWS)
    chunk = rows * s.vocabulary_size * (OWN_TENSORS * _FP32 + (e if e < _FP32 else 0.0))
    head = s.head_parameters * e if workload.trains_head else 0.0
    if workload.loss == "own_chunks":
        return chunk + head + (2 * learned + batches.peak_tokens) * s.hidden_size * e
    picked = 2 * learned * s.vocabulary_size * e  # and their gradient
    return max(picked + chunk, picked + batches.peak_tokens * s.vocabulary_size * e + head)


def _keeps_input(workload: Workload, *kinds: str) -> bool:
    """Whether any of these matrices keeps what it is given: where it is trained or carries an adapter."""
    if workload.method == "full":
        return True
    return not kinds_of(workload.targeted).isdisjoint(kinds) or not workload.structure.linear_layers


def _norm_saved_bytes(workload: Workload, width: float) -> float:
    """Of one normalisation: x / rms in the activations' own precision, or x in fp32 where the plain module runs.

    A compiler recomputes elementwise work, as our kernels do, instead of storing it.
    """
    if workload.is_compiled or (workload.has_fused_kernels and workload.structure.has_plain_rms_norm):
        return width * workload.element_bytes + _FP32
    # Trained, its own weight needs the other factor: rounded in w * x / rms, in fp32 in (1 + w) * x / rms.
    wanted = workload.element_bytes if workload.structure.has_plain_rms_norm else _FP32
    return width * _FP32 + _FP32 + (width * wanted if workload.method == "full" else 0.0)


def _norms(workload: Workload) -> float:
    s = workload.structure
    kept = max(2, s.num_norms) * _norm_saved_bytes(workload, s.hidden_size)
    if s.has_head_norms:
        heads = s.num_heads + s.num_kv_heads
        kept += heads * _norm_saved_bytes(workload, s.head_size)
    return kept


def _norm_outputs(workload: Workload) -> float:
    """What queries, keys and values read, and what the MLP reads."""
    outputs = int(_keeps_input(workload, "q_proj", "k_proj", "v_proj", "qkv_proj"))
    outputs += _keeps_input(workload, "gate_proj", "up_proj", "gate_up_proj")
    return outputs * workload.structure.hidden_size * workload.element_bytes


def _norms_recompute(workload: Workload) -> bool:
    """Whether x / rms is kept alone, and what the matrices read is made of it again."""
    return workload.recomputes_inputs and workload.structure.has_plain_rms_norm


def _mlp_recomputes(workload: Workload) -> bool:
    """Whether the input of the last matrix is made of gate and up again."""
    return workload.recomputes_inputs and _has_gate_kernel(workload)


def _last_norm(workload: Workload) -> float:
    return _norm_saved_bytes(workload, workload.structure.hidden_size)


def _attention(workload: Workload, length: int) -> float:
    """Queries, keys, values; probabilities or the output with its log-sums; the input of the output matrix."""
    s, e = workload.structure, workload.element_bytes
    query, key = s.num_heads * s.head_size, s.num_kv_heads * s.head_size
    # values cut out of one product of queries, keys and values keep the whole of it, and the answer is copied once
    is_cut = not kinds_of(s.linear_layers).isdisjoint(FUSED_QUERIES)
    values = query + 2 * key if is_cut else key
    window = min(length, s.sliding_window or length)
    if workload.attention == "eager":  # keys and values are copied to every head; softmax in fp32, then rounded
        return (3 * query * e) + s.num_heads * window * (_FP32 + e) + query * e
    if workload.attention == "by_length":
        output = query * e if _keeps_input(workload, "o_proj") else 0.0
        keys = workload.batches.shared_kept_keys or num_keys(workload, length)
        kept = s.num_heads * keys * e if keeps_probabilities(workload, length) else 0.0
        return (query + 2 * key) * e + kept + output
    return ((3 if is_cut else 2) * query + key + values) * e + s.num_heads * _FP32


def _mask(workload: Workload, length: int) -> float:
    """Bytes of the mask, all tokens together, that layers share where they look back a few tokens only."""
    s = workload.structure
    is_masked = s.num_windowed_layers and length > (s.sliding_window or length)
    return length**2 * workload.element_bytes if is_masked and workload.attention == "by_length" else 0.0


def _mlp(workload: Workload) -> float:
    """Gate and up, and the activated gate where no kernel computes it again."""
    s, e = workload.structure, workload.element_bytes
    if s.num_experts:
        # plain modules: what is gated, the activated gate, the answer to be weighed, and where trained, both inputs
        kept = 3 * s.intermediate_size + s.hidden_size
        if workload.method == "full":
            kept += s.intermediate_size + s.hidden_size
        return s.num_active_experts * (kept * e + _ROUTE_BYTES) + s.num_experts * _FP32
    tensors = 1 if not s.is_gated else 2 if workload.is_compiled or _has_gate_kernel(workload) else 3
    return tensors * s.intermediate_size * e


def _has_gate_kernel(workload: Workload) -> bool:
    s = workload.structure
    is_cut = "gate_up_proj" in kinds_of(s.linear_layers)  # one product of both: no kernel of ours
    return workload.has_fused_kernels and s.is_silu_gated and not s.num_experts and not is_cut


def _mlp_product(workload: Workload) -> float:
    """The input of the last matrix; that of experts is counted with them."""
    s = workload.structure
    is_read = not s.num_experts and _keeps_input(workload, *_LAST_OF_MLP)
    return s.intermediate_size * workload.element_bytes if is_read else 0.0


def _thin(workload: Workload) -> float:
    """The thin products of the adapters; plain modules also keep a dropped-out input and its mask for each of them."""
    e = workload.element_bytes
    per_layer = len(workload.targeted) / workload.structure.num_layers
    kept = per_layer * workload.adapter_rank * e
    if not workload.has_fused_kernels and workload.dropout:
        inputs = sum(layer.num_inputs for layer in workload.targeted) / workload.structure.num_layers
        kept += inputs * (e + 1.0)
    return kept


def _mlp_transient(workload: Workload) -> float:
    """Gradients in flight in the MLP, or in the norm before it; the last matrix's input is used up by then."""
    s, e = workload.structure, workload.element_bytes
    width = s.intermediate_size * max(1, s.num_active_experts)
    tensors = 4 if s.is_gated else 2
    if _mlp_product(workload) and not workload.dropout and not _mlp_recomputes(workload):
        tensors -= 1  # with dropout, masks are stored with it
    return max(tensors * width * e, 3 * s.hidden_size * _FP32) + s.hidden_size * e


def _attention_transient(workload: Workload, length: int) -> float:
    """Gradients in flight in attention: of probabilities and scores, or of queries, keys and values."""
    s, e = workload.structure, workload.element_bytes
    width, keys = s.num_heads * s.head_size, s.num_kv_heads * s.head_size
    if workload.attention == "by_length":  # of keys and values added up in fp32; of scores only those of one block
        tokens = workload.batches.peak_tokens
        one_row = s.num_heads * min(BLOCK_TOKENS, length) * length
        scores = max(one_row, min(BLOCK_SCORES, tokens / length * one_row)) / tokens
        return (2 * width + s.hidden_size + 3 * scores) * e + 2 * keys * _FP32
    inside = 2 * s.num_heads * length if workload.attention == "eager" else 3 * width
    return (inside + width + s.hidden_size) * e


_FIRST = ("q_proj", "k_proj", "v_proj", *FUSED_QUERIES)


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of one optimizer step on all devices together.

    Attributes:
        matrices: layers, adapters and head.
    """

    matrices: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrices + self.attention


def step_flops(workload: Workload) -> StepFlops:
    """Forward and backward of one global batch, recomputation included, and what an objective computes in addition."""
    b = workload.batches
    at_head = b.num_learned if workload.loss in ("learned_chunks", "own_chunks") else b.num_computed
    if workload.loss == "task_head":
        at_head = 0.0  # one row of a few outputs for each row of the data: nothing next to the layers
    passes = workload.step_passes + workload.reference_step_passes
    beside = passes * forward_flops(workload, b.num_computed)
    return StepFlops(
        matrices=b.num_computed * layers_flops(workload) + at_head * head_flops(workload) + beside,
        attention=b.num_computed * attention_flops(workload, b.length),
    )


def validation_flops(workload: Workload) -> float:
    """One forward pass over the validation rows, and what an objective computes in addition."""
    return (1 + workload.step_passes) * forward_flops(workload, workload.num_validation_tokens)


def forward_flops(workload: Workload, num_tokens: float) -> float:
    """One pass forward over that many tokens, the head at as large a share of them as in a step; without attention."""
    s, b = workload.structure, workload.batches
    # A multiply and an add for each parameter and token.
    forward = 2.0 * s.num_active_parameters + 2.0 * _adapter_parameters(workload)
    learned = 0.0 if workload.loss == "task_head" else b.num_learned / max(1.0, b.num_computed)
    return num_tokens * (forward + learned * 2.0 * s.head_parameters)


def teacher_flops(workload: Workload) -> float:
    """A teacher's one pass forward over all rows, up to its last hidden states; its head is not asked."""
    teacher = workload.teacher
    if teacher is None:
        return 0.0
    return teacher.num_tokens * 2.0 * max(0, teacher.num_parameters - teacher.head_parameters)


def layers_flops(workload: Workload) -> float:
    """A token's operations in the matrices of all layers, there and back."""
    count, adapters = workload.structure.num_active_parameters, _adapter_parameters(workload)
    # A parameter takes 2 operations forward, 2 for the gradient of inputs, 2 for that of weights, which a frozen
    # base does not need.
    passes = 6.0 if workload.method == "full" else 4.0
    again = 2.0 * (count + adapters) - _not_again(workload) if workload.gradient_checkpointing else 0.0
    return passes * count + 6.0 * adapters + again - _nothing_below(workload)


def _nothing_below(workload: Workload) -> float:
    """What the first layer's adapters save: below queries, keys and values nothing is trained, so no gradient goes.

    Not with checkpoints: they ask for the gradient of what goes into a layer.
    """
    if workload.gradient_checkpointing or workload.trains_embeddings:
        return 0.0
    first = [layer for layer in workload.targeted if ".layers.0." in f".{layer.name}" and layer.kind in _FIRST]
    return sum(
        2.0 * (layer.num_inputs * layer.num_outputs + workload.adapter_rank * layer.num_inputs) for layer in first
    )


def _not_again(workload: Workload) -> float:
    """The last product of a layer, which is not computed again unless its adapter or a norm keeps something of it."""
    s = workload.structure
    if s.num_experts or s.num_norms > 2 or "down_proj" in kinds_of(workload.targeted):
        return 0.0
    return 2.0 * s.num_layers * s.hidden_size * s.intermediate_size


def head_flops(workload: Workload) -> float:
    """A learned token's operations in the output head, there and back; in a teacher's head only there."""
    is_trained = workload.trains_head or workload.adapts_head
    passes = (6.0 if is_trained else 4.0) + (2.0 if workload.loss == "own_chunks" else 0.0)  # formed again, going back
    own = passes * workload.structure.head_parameters
    return own + (2.0 * workload.teacher.head_parameters if workload.teacher else 0.0)


def attention_flops(workload: Workload, length: float) -> float:
    """A token's operations in queries x keys and probabilities x values, there and back, in rows of that length.

    Kept probabilities: twice as much on the way back. Fused (Dao, 2023, arXiv:2307.08691, section 4.1), or formed
    again: the backward pass computes the scores again. Pairs ahead are skipped except for those inside a block of
    queries; on a CPU windows skip nothing.
    """
    s = workload.structure
    # In units of the forward pass (two products): four products back, or five where the scores are formed again.
    back = 2.0 if keeps_probabilities(workload, length) else 2.5
    again = 1.0 if workload.gradient_checkpointing else 0.0
    if workload.attention in ("by_length", "eager"):
        pairs = s.num_layers * num_keys(workload, length)
    else:
        window = min(length, float(s.sliding_window or length))
        # a row of T tokens that look back w at most has T w - w^2 / 2 pairs
        windowed = window - window**2 / (2 * length)
        pairs = (s.num_layers - s.num_windowed_layers) * length / 2 + s.num_windowed_layers * windowed
    return 4.0 * s.num_heads * s.head_size * pairs * (1.0 + back + again)


def _adapter_parameters(workload: Workload) -> float:
    return 0.0 if workload.method == "full" else workload.num_active_trainable
