"""The weights of a task head, and the two files that hold them beside an adapter or a whole model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.task_head import TASK_HEAD_FILE, TASK_HEAD_WEIGHTS, TaskHead, TaskHeadKind

_INSTEAD: Final[Mapping[TaskHeadKind, str]] = {
    "classify": "ask it for labels: luthier eval, or `TaskModel.probabilities`",
    "regress": "ask it for numbers: luthier eval, or `TaskModel.numbers`",
    "rank": "ask it for the relevance of documents: `TaskModel.relevance`",
    "embed": "ask it for vectors: `TaskModel.vectors`",
}


class TaskHeadLayer(nn.Module):
    """A linear layer from a hidden state to the outputs of a head, in float32 whatever the model computes in.

    Args:
        width: of the hidden states.
        num_outputs: at least 1; embeddings have no layer.
    """

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        # Zeros: the first outputs are all the same, so the first steps are not spent on unlearning random classes.
        self.weight = nn.Parameter(torch.zeros(num_outputs, width))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, states: Tensor) -> Tensor:
        """Outputs [N, outputs] in float32 of states [N, width]."""
        return nn.functional.linear(states.float(), self.weight.float(), self.bias.float())


def is_task_model(folder: str | Path) -> bool:
    """Whether the folder of an adapter or model holds a task head, so that it does not write text."""
    return (Path(folder) / TASK_HEAD_FILE).is_file()


def refuse_task_model(folder: str | Path) -> None:
    """Refuse a folder whose model has a task head, for those who want text.

    Raises:
        RequestError: it has one.
    """
    if is_task_model(folder):
        kind = read_task_head(folder).kind
        raise RequestError(
            f"text from {folder}, whose model has a head of kind {kind} and does not write",
            expected="a model that writes",
            do=f"{_INSTEAD[kind]}; or train with objective: {{name: sft}} to have answers written",
        )


def read_task_head(folder: str | Path) -> TaskHead:
    """What `head.json` says.

    Raises:
        ModelSourceError: it is missing or damaged, or of a newer version.
    """
    path = Path(folder) / TASK_HEAD_FILE
    try:
        return TaskHead.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ModelSourceError(
            f"{path}: {type(error).__name__}: {error}",
            expected="a head.json as Luthier writes it (format_version 1)",
            do="use the folder of a finished run with a task head, or copy the file again",
        ) from error


def save_task_head(folder: Path, head: TaskHead, layer: TaskHeadLayer | None) -> None:
    """Write `head.json` and, where the head has weights, `head.safetensors`: the same bytes each time."""
    document = json.dumps(head.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / TASK_HEAD_FILE).write_text(document + "\n", encoding="utf-8")
    if layer is not None:
        tensors = {"weight": layer.weight, "bias": layer.bias}
        save_file(
            {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()},
            folder / TASK_HEAD_WEIGHTS,
            metadata={"format": "pt"},
        )


def load_task_head(folder: str | Path, device: str = "cpu") -> tuple[TaskHead, TaskHeadLayer | None]:
    """The head of a folder and its layer, in evaluation mode; no layer for embeddings.

    Raises:
        ModelSourceError: a file is missing or damaged, or the weights have another shape than `head.json` says.
    """
    head, path = read_task_head(folder), Path(folder) / TASK_HEAD_WEIGHTS
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
