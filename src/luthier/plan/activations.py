"""What a training step keeps and holds for a moment, in bytes a token: counted tensor by tensor.

Korthikanti et al., 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198, section 4,
counts the tensors that a GPT layer keeps for the way back. The same count is made here for the layers of today (RMS
norms, gated MLPs, grouped attention, adapters) and for this project's own kernels, which keep less: see
train/kernels.py, train/attention.py, train/methods/lora.py. Tests hold the counts against autograd's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.plan.workload import UNFUSED_MAX_TOKENS, Workload

_FP32: Final = 4.0
CHUNK_ROWS: Final = 512
"""Learned tokens whose logits exist at one time (train/objectives/sft.py; a test holds them equal)."""
# torchtune cuts the tokens of a batch into this many pieces for its loss
_NUM_CHUNKS_OF_ALL: Final = 8


@dataclass(frozen=True, slots=True)
class LayerCount:
    """Bytes a token of one layer. kept: for the way back. transient: the most that is held besides, on the way back."""

    kept: float
    transient: float


def uses_unfused_attention(workload: Workload, length: int) -> bool:
    """Whether the probabilities of every pair of tokens are formed and kept."""
    if workload.attention == "eager":
        return True
    return workload.attention == "by_length" and length <= UNFUSED_MAX_TOKENS


def layer_count(workload: Workload, length: int) -> LayerCount:
    """What a middle layer keeps of each token in rows of `length` tokens."""
    kept = _norms(workload) + _attention(workload, length) + _mlp(workload) + _thin(workload)
    return LayerCount(kept=kept, transient=_transient(workload, length))


def kept_bytes(workload: Workload) -> float:
    """Bytes kept at the end of the forward pass of the largest micro-batch, logits aside."""
    s, e = workload.structure, workload.element_bytes
    tokens, length = workload.batches.peak_tokens, workload.batches.peak_length
    if workload.gradient_checkpointing:
        held = 0.0 if workload.keeps_checkpoints_on_host else s.num_layers * s.hidden_size * e
        return tokens * (held + _last_norm(workload))
    body = s.num_layers * layer_count(workload, length).kept
    if workload.method != "full":  # nothing below the first adapter needs a gradient: its norm keeps nothing
        body -= _norm_kept(workload, s.hidden_size)
    return tokens * (body + _last_norm(workload))


def backward_bytes(workload: Workload) -> float:
    """The most that is held on the way back besides what was kept: gradients in flight, one recomputed layer."""
    count = layer_count(workload, workload.batches.peak_length)
    recomputed = count.kept if workload.gradient_checkpointing else 0.0
    return workload.batches.peak_tokens * (recomputed + count.transient)


def logits_bytes(workload: Workload) -> float:
    """The most that the loss holds: logits of one chunk or of all tokens, and the gradients they leave."""
    s, e = workload.structure, workload.element_bytes
    batches = workload.batches
    one = s.vocabulary_size * (_FP32 + (e if e < _FP32 else 0.0))
    if workload.loss == "fused":
        return min(batches.peak_tokens, CHUNK_ROWS) * one + batches.peak_tokens * s.hidden_size * e
    if workload.loss == "learned_chunks":
        learned = batches.peak_tokens * min(1.0, batches.num_learned / max(1.0, batches.num_tokens))
        head = s.head_parameters * (_FP32 + e) if workload.method == "full" else 0.0
        hidden = (2 * learned + batches.peak_tokens) * s.hidden_size * e  # chosen rows, their gradient, all rows
        return min(max(learned, 1.0), CHUNK_ROWS) * one + hidden + head
    if workload.loss == "all_chunks":  # all logits as computed, one piece of them in fp32 with its gradient
        return batches.peak_tokens * s.vocabulary_size * (e + 2 * _FP32 / _NUM_CHUNKS_OF_ALL)
    # logits as computed, their fp32 copy, and its gradient
    return batches.peak_tokens * s.vocabulary_size * (e + 2 * _FP32)


def _keeps_input(workload: Workload, *kinds: str) -> bool:
    """Whether any of these matrices keeps what it is given: where it is trained or carries an adapter."""
    if workload.method == "full":
        return True
    targeted = {layer.kind for layer in workload.targeted}
    known = {layer.kind for layer in workload.structure.linear_layers}
    return any(kind in targeted for kind in kinds) or not known


def _norm_kept(workload: Workload, width: float) -> float:
    """Of one normalisation: x / rms in the activations' own precision, or x in fp32 where the plain module runs."""
    if workload.has_fused_kernels and workload.structure.has_plain_rms_norm:
        return width * workload.element_bytes + _FP32
    # Trained, its own weight wants what it is multiplied with: rounded in w * x / rms, in fp32 in (1 + w) * x / rms.
    wanted = workload.element_bytes if workload.structure.has_plain_rms_norm else _FP32
    return width * _FP32 + _FP32 + (width * wanted if workload.method == "full" else 0.0)


def _norms(workload: Workload) -> float:
    s, e = workload.structure, workload.element_bytes
    kept = max(2, s.num_norms) * _norm_kept(workload, s.hidden_size)
    if s.has_head_norms:
        heads = s.num_heads + s.num_kv_heads
        kept += heads * _norm_kept(workload, s.head_size)
    outputs = int(_keeps_input(workload, "q_proj", "k_proj", "v_proj", "qkv_proj"))
    outputs += _keeps_input(workload, "gate_proj", "up_proj", "gate_up_proj")
    return kept + outputs * s.hidden_size * e


def _last_norm(workload: Workload) -> float:
    return _norm_kept(workload, workload.structure.hidden_size)


def _attention(workload: Workload, length: int) -> float:
    """Queries, keys, values; probabilities or the output with its log-sums; the input of the output matrix."""
    s, e = workload.structure, workload.element_bytes
    query, key = s.num_heads * s.head_size, s.num_kv_heads * s.head_size
    window = min(length, s.sliding_window or length)
    if workload.attention == "eager":  # keys and values are copied to every head; softmax in fp32, then rounded
        return (3 * query * e) + s.num_heads * window * (_FP32 + e) + query * e
    if uses_unfused_attention(workload, length):
        output = query * e if _keeps_input(workload, "o_proj") else 0.0
        return (query + 2 * key) * e + s.num_heads * length * e + output
    return (2 * query + 2 * key) * e + s.num_heads * _FP32


def _mlp(workload: Workload) -> float:
    """Gate and up, the activated gate where no kernel computes it again, and the input of the last matrix."""
    s, e = workload.structure, workload.element_bytes
    if s.num_experts:  # plain modules: also what each expert is given, and what it answers, to be weighed
        return s.num_active_experts * (4 * s.intermediate_size + 2 * s.hidden_size) * e
    product = 1 if _keeps_input(workload, "down_proj", "fc2", "c_proj", "dense_4h_to_h") else 0
    if not s.is_gated:
        return (1 + product) * s.intermediate_size * e
    tensors = 2 if workload.has_fused_kernels and s.is_silu_gated else 3
    return (tensors + product) * s.intermediate_size * e


def _thin(workload: Workload) -> float:
    """The thin products of the adapters; plain modules also keep a dropped-out input and its mask for each of them."""
    e = workload.element_bytes
    per_layer = len(workload.targeted) / workload.structure.num_layers
    kept = per_layer * workload.adapter_rank * e
    if not workload.has_fused_kernels and workload.dropout:
        inputs = sum(layer.num_inputs for layer in workload.targeted) / workload.structure.num_layers
        kept += inputs * (e + 1.0)
    return kept


def _transient(workload: Workload, length: int) -> float:
    """The largest set of gradients that are in flight at one moment inside a layer."""
    s, e = workload.structure, workload.element_bytes
    width = s.intermediate_size * max(1, s.num_active_experts)
    mlp = (4 if s.is_gated else 2) * width * e
    norm = 3 * s.hidden_size * _FP32
    unfused = uses_unfused_attention(workload, length)
    attention = (2 * s.num_heads * length if unfused else 3 * s.num_heads * s.head_size) * e
    return max(mlp, norm, attention) + s.hidden_size * e
