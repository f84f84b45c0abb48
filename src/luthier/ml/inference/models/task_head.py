"""The weights of a task head, and its two files next to an adapter or a full model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.task_head import (
    TASK_HEAD_FILE,
    TASK_HEAD_WEIGHTS,
    TaskHead,
    has_head_file,
    how_it_is_asked,
    is_task_model,
    read_task_head,
)
from luthier.ml.inference.accelerator import widest_float
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.own_embedding import own_ending
from luthier.ml.inference.models.own_reranker import own_score

__all__ = [
    "TaskHeadLayer",
    "is_task_model",
    "load_task_head",
    "read_task_head",
    "refuse_task_model",
    "save_task_head",
    "start_from_own",
    "task_outputs",
]


class TaskHeadLayer(nn.Module):
    """A linear layer from a hidden state to the outputs of a head, in float32 regardless of the model's precision.

    Args:
        width: of the hidden states.
        num_outputs: at least 1; embeddings have no layer.
    """

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        # Zeros: the first outputs are all equal, so no steps are spent on unlearning random classes.
        self.weight = nn.Parameter(torch.zeros(num_outputs, width))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, states: Tensor) -> Tensor:
        """Outputs [N, outputs] in float32 of states [N, width]."""
        return nn.functional.linear(states.float(), self.weight.float(), self.bias.float())


def task_outputs(head: TaskHead, layer: TaskHeadLayer | None, states: Tensor, dimensions: int | None = None) -> Tensor:
    """The output of a head, [N, outputs] in float32; numbers and relevance in the widest type of the device.

    classify: probabilities; regress: the number in the unit of the training rows; rank: relevance, 0 to 1; embed: a
    vector, of length 1 unless the head says otherwise.

    Args:
        head: its kind, scale and temperature.
        layer: its weights; None for embed.
        states: pooled states [N, width].
        dimensions: of embed: only the first numbers, before the length is set; None for all.
    """
    if head.kind == "embed":
        # Truncated first: a part of a unit vector is shorter than 1.
        vectors = states.float()[:, :dimensions]
        return nn.functional.normalize(vectors, dim=-1) if head.is_normalised else vectors
    assert layer is not None
    outputs: Tensor = layer(states)
    if head.kind in ("regress", "rank"):
        # In float32 numbers far from 0, such as times, would lose their last digits; and all scores above 17 would
        # become 1, so that their documents had no order.
        outputs = outputs.to(widest_float(outputs.device))
    if head.kind == "regress":
        return head.offset + head.scale * outputs
    logits = outputs / head.temperature
    return logits.softmax(-1) if head.kind == "classify" and not head.is_multi_label else logits.sigmoid()


def refuse_task_model(folder: str | Path) -> None:
    """Reject a folder whose model has a task head, where text is required.

    Raises:
        RequestError: it has one.
    """
    if is_task_model(folder):
        kind = read_task_head(folder).kind
        raise RequestError(
            f"text from {folder}, whose model has a head of kind {kind} and does not write",
            expected="a model that writes",
            do=how_it_is_asked(kind)
            + ("; or train with objective: {name: sft} to have answers written" if has_head_file(folder) else ""),
        )


def save_task_head(folder: Path, head: TaskHead, layer: TaskHeadLayer | None) -> None:
    """Write `head.json` and, if the head has weights, `head.safetensors`, deterministically."""
    document = json.dumps(head.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / TASK_HEAD_FILE).write_text(document + "\n", encoding="utf-8", newline="\n")
    if layer is not None:
        tensors = {"weight": layer.weight, "bias": layer.bias}
        save_file(
            {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()},
            folder / TASK_HEAD_WEIGHTS,
            metadata={"format": "pt"},
        )


def load_task_head(folder: str | Path, device: str = "cpu") -> tuple[TaskHead, TaskHeadLayer | None]:
    """The head of a folder and its layer, in evaluation mode; None as the layer for embeddings.

    Raises:
        ModelSourceError: a file is missing or damaged, or the weights have another shape than `head.json` says.
    """
    head, path = read_task_head(folder), Path(folder) / TASK_HEAD_WEIGHTS
    if not has_head_file(folder):
        return _published(folder, head, device)
    if not head.num_outputs:
        return head, None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelSourceError(
            f"{path}: {type(error).__name__}: {error}",
            expected=f"the weights of a head with {head.num_outputs:,} outputs",
            do="copy the whole folder again",
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"weight": (head.num_outputs, head.width), "bias": (head.num_outputs,)}:
        raise ModelSourceError(
            f"{path} holds {shapes}",
            expected=f"weight {(head.num_outputs, head.width)} and bias {(head.num_outputs,)}, as head.json says",
            do="copy the whole folder again: the two files are not of one model",
        )
    layer = TaskHeadLayer(head.width, head.num_outputs)
    layer.load_state_dict(tensors)
    return head, layer.eval().requires_grad_(False).to(device)


def start_from_own(layer: TaskHeadLayer, folder: str | Path) -> None:
    """Copy what makes the score of a published reranker into a layer, which is trained from there.

    Args:
        layer: of a run with objective rank over it.
        folder: of the base model.

    Raises:
        ModelSourceError: the files of the base are not those of a reranker, or damaged.
    """
    weight, bias = own_score(folder, load_tokenizer(folder))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _published(folder: str | Path, head: TaskHead, device: str) -> tuple[TaskHead, TaskHeadLayer | None]:
    """The head of a published model: of an embedding model its tokenizer says how texts end."""
    if head.kind == "embed":
        return head.model_copy(update={"end_text": own_ending(load_tokenizer(folder))}), None
    layer = TaskHeadLayer(head.width, head.num_outputs)
    start_from_own(layer, folder)
    return head, layer.eval().requires_grad_(False).to(device)
