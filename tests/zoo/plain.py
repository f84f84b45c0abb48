"""What plain transformers and PEFT compute: the measure for all that Luthier computes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from luthier.core.dataset import TokenisedExample
from luthier.ml.inference.models.quiet import quiet_peft, quiet_transformers

LOSS_SHARE: Final = 1e-6
"""What a loss in float32 may differ from that of plain transformers and PEFT, as a share of it."""
GRADIENT_SHARE: Final = 1e-5
"""What a gradient may differ, as a share of the norm of all gradients."""
FLOAT64_SHARE: Final = 1e-10
"""What losses and gradients may differ where both sides compute in float64 throughout: rounding alone is 1e-13."""


def plain_model(folder: Path) -> PreTrainedModel:
    """The class that the folder was published as, in float32 with eager attention and in eval mode."""
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, config.architectures[0])
        model: PreTrainedModel = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def with_adapter(folder: Path, adapter: Path) -> PeftModel:
    """The model with an adapter over it whose weights have gradients."""
    with quiet_transformers(), quiet_peft():
        return PeftModel.from_pretrained(plain_model(folder), str(adapter), is_trainable=True).eval()


def logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """[tokens, vocabulary] of one row, in float32, without a cache."""
    causal = callable_model(model)
    found: Tensor = causal(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
    return found


def callable_model(model: nn.Module) -> Any:
    """The model itself, or the causal model inside it where its own forward cannot be called.

    Llama4ForConditionalGeneration of transformers 5.24 asks its language model for `image_outputs`, which that has not.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.language_model if type(base).__name__ == "Llama4ForConditionalGeneration" else model


def loss_sum(model: nn.Module, row: TokenisedExample) -> Tensor:
    """Summed cross-entropy in nats over the learned tokens of one row."""
    ids = torch.tensor(list(row.input_ids))
    learned = torch.tensor(list(row.loss_mask), dtype=torch.bool)[1:]
    return F.cross_entropy(logits(model, row.input_ids)[:-1][learned], ids[1:][learned], reduction="sum")


def loss_and_gradients(
    model: nn.Module, rows: Sequence[TokenisedExample], *, wants_gradients: bool = True
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss a learned token over the rows, each computed alone, and the gradients of what is trainable by name."""
    num = sum(sum(row.loss_mask) for row in rows)
    total = 0.0
    with torch.set_grad_enabled(wants_gradients):
        for row in rows:
            loss = loss_sum(model, row) / num
            total += float(loss.detach())
            if wants_gradients:
                loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total, found


def greedy(model: nn.Module, ids: Sequence[int], num_new: int, ends: set[int]) -> list[int]:
    """The new tokens of transformers' own `generate`, up to the first that ends a turn. ends: which do."""
    causal = callable_model(model)
    with torch.no_grad(), quiet_transformers():
        found = causal.generate(
            input_ids=torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=num_new,
            do_sample=False,
            use_cache=False,  # the cache of some models gives other logits than their forward (MiniMax, after a block)
            eos_token_id=sorted(ends),
        )
    new = [int(token) for token in found[0, len(ids) :]]
    return next((new[:place] for place, token in enumerate(new) if token in ends), new)


def wrong_text(tokenizer: Any, ids: Sequence[int], reasoning: str | None, text: str) -> str | None:
    """Why a text is not what the folder's tokenizer makes of these tokens; None where it is.

    A thought is told apart from its answer by marks, which are in neither; so with a thought, and with tokens that have
    a name, every stretch between such tokens must be found in its order. Text with broken characters is left out:
    SentencePiece decodes such bytes by what follows them, which a stream has sent already.
    """
    whole = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "\ufffd" in whole:
        return None
    named = [token.content for token in tokenizer.added_tokens_decoder.values()]
    if reasoning is None and not any(name in whole for name in named):
        return None if text == whole else f"{text!r} is not {whole!r}"
    said, place = f"{reasoning or ''}{text}", 0
    for part in re.split("|".join(map(re.escape, sorted(named, key=len, reverse=True))), whole):
        found = said.find(part.strip(), place)
        if found < 0:
            return f"{part.strip()!r} is not in {said[place:]!r}"
        place = found + len(part.strip())
    return None if not said[place:].strip() else f"{said[place:]!r} is more than {whole!r}"


def relative(one: float, other: float) -> float:
    """The difference as a share of the second; infinite where one of them is no number."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(other), 1e-30)


def worst_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of a gradient as a share of the norm of all of them, and whose it is."""
    norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in theirs.values())) or 1e-30
    gaps = {}
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        either = one if other is None else other
        assert either is not None
        zero = torch.zeros_like(either)
        gap = float(((zero if one is None else one).double() - (zero if other is None else other).double()).norm())
        gaps[name] = gap / norm if math.isfinite(gap) else math.inf
    worst = max(gaps, key=lambda name: gaps[name])
    return gaps[worst], worst


def has_dropout(folder: Path) -> bool:
    """Whether the published config has a dropout, or a noise on routers, that training would draw."""
    config = AutoConfig.from_pretrained(folder).get_text_config().to_dict()
    return any(
        value
        for name, value in config.items()
        if name.endswith(("dropout", "pdrop", "drop", "layerdrop", "jitter_noise"))
    )


def reach(folder: Path, trained: Sequence[str], experts: Sequence[str] = ()) -> tuple[float, int]:
    """The share of the language model's matrix parameters that adapters lie on, and how many parameters these are.

    trained: names of PEFT's trainable tensors. experts: ends of the names of tensors of experts, whose adapters PEFT
    names by their module alone. Matrices are all tensors of two dimensions and more, but
    biases, embeddings, head, tables of positions, and in a model of several parts all that lies beside the language
    model: towers, and what joins them to it.
    """
    model = plain_model(folder)
    is_composite = model.config.get_text_config() is not model.config
    language_model = callable_model(model).get_decoder() if is_composite else model
    inside = {id(p) for p in language_model.parameters()}
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    adapted = {_base_name(name) for name in trained}
    matrices = {
        name: p.numel()
        for name, p in model.named_parameters()
        if _is_matrix(name, p) and id(p) in inside - outer and not _is_table(name)
    }
    reached = sum(
        num
        for name, num in matrices.items()
        if name.removesuffix(".weight") in adapted
        or (name.rpartition(".")[0] in adapted and any(f".{name}".endswith(f".{end}") for end in experts))
    )
    return reached / max(1, sum(matrices.values())), sum(matrices.values())


def _base_name(trained: str) -> str:
    """The name that a matrix has in the base, of the name of a tensor of its adapter."""
    name = trained.removeprefix("base_model.model.")
    return re.sub(r"\.(?:lora_\w+|base_layer)\b.*$", "", name)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Not so the biases of experts, which have two dimensions, too."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _is_table(name: str) -> bool:
    return "wpe" in name or "embed" in name
