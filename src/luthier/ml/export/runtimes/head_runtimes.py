"""Exports with a task head in their users' runtimes: texts in, outputs of the head out."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from luthier.core.errors import ModelSourceError
from luthier.core.task_head import HEAD_DOCUMENT, TaskHead
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.quiet import quiet_transformers

Outputs = NDArray[np.float32]


class HeadRuntime(Protocol):
    """An open export.

    Attributes:
        name: Name of the program.
        version: Its version.
    """

    name: str
    version: str

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text."""
        ...

    def outputs(self, texts: Sequence[str]) -> Outputs:
        """[texts, outputs]: probabilities, numbers, relevance, or vectors of length 1."""
        ...


class SentenceTransformersRuntime:
    """A sentence-transformers folder: run by that library if installed, else by transformers from the same files."""

    def __init__(self, folder: Path) -> None:
        self._head, self._folder = _head(folder), folder
        self._library: Any = None
        self.name, self.version = "transformers", version("transformers")
        self._tokenizer = load_tokenizer(folder)
        with quiet_transformers():
            if importlib.util.find_spec("sentence_transformers") is not None:
                # By name: the library is not a dependency of this project.
                opener = importlib.import_module("sentence_transformers").SentenceTransformer
                self.name, self.version = "sentence-transformers", version("sentence-transformers")
                self._library = opener(str(folder), device="cpu").float()
            else:
                from transformers import AutoModel

                self._body = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()

    def tokens(self, text: str) -> list[int]:
        """As `HeadRuntime.tokens`."""
        return [int(token) for token in self._tokenizer(text).input_ids]

    @torch.inference_mode()
    def outputs(self, texts: Sequence[str]) -> Outputs:
        """As `HeadRuntime.outputs`, without a prompt before a text."""
        if self._library is not None:
            made = torch.from_numpy(self._library.encode(list(texts), prompt=""))
        else:
            given = self._tokenizer(list(texts), padding=True, return_tensors="pt")
            states, mask = self._body(**given).last_hidden_state, given["attention_mask"]
            made = self._modules(states, mask)
        return _probabilities(self._head, made)

    def _modules(self, states: Tensor, mask: Tensor) -> Tensor:
        """The outputs of the modules after the body for states [texts, tokens, width]."""
        for module in json.loads((self._folder / "modules.json").read_text(encoding="utf-8"))[1:]:
            place, kind = self._folder / module["path"], module["type"].rpartition(".")[2]
            settings = json.loads((place / "config.json").read_text(encoding="utf-8"))
            if kind == "Pooling" and settings["pooling_mode_lasttoken"]:
                states = states[torch.arange(len(states)), mask.sum(1) - 1]
            elif kind == "Pooling":
                states = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            elif kind == "Dense":
                tensors = load_file(place / "model.safetensors")
                states = torch.nn.functional.linear(states, tensors["linear.weight"], tensors["linear.bias"])
            else:
                states = torch.nn.functional.normalize(states, dim=-1)
        return states


class SequenceClassificationRuntime:
    """A folder of `AutoModelForSequenceClassification`."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        self.name, self.version = "transformers", version("transformers")
        self._head, self._tokenizer = _head(folder), load_tokenizer(folder)
        with quiet_transformers():
            found, report = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=torch.float32, output_loading_info=True
            )
        # A missing weight is initialised at random, and an unknown one is ignored, both silently.
        if lost := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
            raise ModelSourceError(
                f"{folder}: transformers does not read {', '.join(lost[:3])}",
                expected="all weights, and no others",
                do="export with --to sentence_transformers or --to onnx",
            )
        self._model = found.eval()

    def tokens(self, text: str) -> list[int]:
        """As `HeadRuntime.tokens`."""
        return [int(token) for token in self._tokenizer(text).input_ids]

    @torch.inference_mode()
    def outputs(self, texts: Sequence[str]) -> Outputs:
        """As `HeadRuntime.outputs`."""
        given = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        return _probabilities(self._head, self._model(**given).logits)


class OnnxHeadRuntime:
    """A graph in ONNX Runtime, with the tokenizer next to it."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.name, self.version = "onnxruntime", version("onnxruntime")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        try:
            self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base class
            raise ModelSourceError(
                f"ONNX Runtime cannot load {folder}: {error}", expected="a complete export", do="export it again"
            ) from error

    def tokens(self, text: str) -> list[int]:
        """As `HeadRuntime.tokens`."""
        return [int(token) for token in self._tokenizer.encode(text).ids]

    def outputs(self, texts: Sequence[str]) -> Outputs:
        """As `HeadRuntime.outputs`."""
        rows = [self.tokens(text) for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
        found: Outputs = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return found


def _head(folder: Path) -> TaskHead:
    return TaskHead.model_validate_json((folder / HEAD_DOCUMENT).read_text(encoding="utf-8"))


def _probabilities(head: TaskHead, made: Tensor) -> Outputs:
    """The function that users apply to the output (the export's warnings state it)."""
    if head.kind == "classify" and not head.is_multi_label:
        made = made.softmax(-1)
    elif head.kind in ("classify", "rank"):
        made = made.sigmoid()
    found: Outputs = made.float().numpy()
    return found
