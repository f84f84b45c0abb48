"""A tuned model with a task head: classes with probabilities, numbers, relevance to a query, or vectors of texts.

No text is generated: each input takes a single forward pass.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError
from luthier.core.ports import Generation, Progress, ProgressTask, Prompt, Score
from luthier.core.task_head import NumberFormat, TaskHead, TaskHeadKind
from luthier.core.text.written_numbers import write_number
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.models.own_embedding import shortened
from luthier.ml.inference.models.own_reranker import pair_ids
from luthier.ml.inference.models.task_head import TaskHeadLayer, load_task_head, task_outputs
from luthier.ml.inference.pooling import pooled_states
from luthier.ml.inference.transformers_engine import MAX_SCORE_TOKENS, TransformersEngine

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_MAX_ROWS = 64
_DECIMALS = 3


class TaskModel:
    """An engine with a task head.

    Args:
        engine: of the base with its adapter, or of a whole tuned model.
        head: the content of `head.json`.
        layer: its weights; None for embeddings.
    """

    def __init__(self, engine: TransformersEngine, head: TaskHead, layer: TaskHeadLayer | None) -> None:
        self.engine, self.head, self._layer = engine, head, layer

    @classmethod
    def open(cls, engine: TransformersEngine, folder: str) -> TaskModel:
        """The head of a folder on an open engine.

        Raises:
            ModelSourceError: the head is missing or damaged.
        """
        device = str(engine.causal.device)
        return cls(engine, *load_task_head(folder, device))

    def probabilities(self, prompts: Sequence[Conversation], progress: Progress) -> Tensor:
        """[prompts, classes] float32, in the order of `head.labels`, calibrated.

        Each row sums to 1; with several labels per row, each probability is independent.

        Raises:
            RequestError: the head is not a classifier, or a prompt does not fit into the context.
        """
        self._check("classify")
        return self._outputs([self._prompt_ids(prompt) for prompt in prompts], progress)

    def number_texts(self, numbers: Tensor) -> list[str]:
        """These `numbers` as text in the format of the training rows."""
        form = self.head.number_format or NumberFormat(decimals=_DECIMALS)
        return [write_number(value, form) for value in numbers.tolist()]

    def numbers(self, prompts: Sequence[Conversation], progress: Progress) -> Tensor:
        """[prompts], in the unit of the training rows and the widest type of the device.

        Raises:
            RequestError: the head is not a regressor, or a prompt does not fit into the context.
        """
        self._check("regress")
        return self._outputs([self._prompt_ids(prompt) for prompt in prompts], progress)[:, 0]

    def relevance(self, pairs: Sequence[tuple[str, str]], progress: Progress) -> Tensor:
        """[pairs], 0 to 1, in the widest type of the device: the relevance of each (query, document).

        Raises:
            RequestError: the head is not a ranker, or a pair does not fit into the context.
        """
        self._check("rank")
        template, head = self.engine.template, self.head
        ids = [
            self._fitting(pair_ids(template, query, document, head.pair_format, head.query_prompt))
            for query, document in pairs
        ]
        return self._outputs(ids, progress)[:, 0]

    def vectors(
        self, texts: Sequence[str], progress: Progress, *, is_query: bool = False, dimensions: int | None = None
    ) -> Tensor:
        """[texts, dimensions] float32, each of length 1 unless the head says otherwise.

        Texts that are longer than the head reads are cut, which the notes of the engine say.

        Args:
            texts: non-empty texts.
            progress: shows progress.
            is_query: whether they are queries rather than documents: `head.query_prompt` is prepended.
            dimensions: one of `head.dimensions`; None for all.

        Raises:
            RequestError: the head is not an embedding head, `dimensions` was not trained, or a text does not fit.
        """
        self._check("embed")
        width = self._dimensions(dimensions)
        before = self.head.query_prompt if is_query else self.head.document_prompt
        after = self.head.end_text
        # Requests begin with the ids of a trained prompt; its states are no part of the text.
        hidden = self.engine.num_virtual_tokens
        requests = self._text_ids([before + text + after for text in texts])
        with progress.task("Embedding", len(texts), "texts") as task:
            if self.head.pooling == "last":
                # Without the trained prompt: the engine puts it before each row again. [texts, width].
                whole = torch.stack(self._last_states([ids[hidden:] for ids in requests], task)).float().cpu()
            else:
                whole = self._means(requests, hidden, task)
        return task_outputs(self.head, None, whole, width)

    def _text_ids(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """The ids of each text, behind those of a trained prompt; longer texts than the head reads are cut."""
        engine, most = self.engine, self.head.max_tokens
        if most is None:
            asked = (Prompt(text=text, max_new_tokens=1) for text in texts)
            return [engine.request_within_context(one).ids for one in asked]
        found = [engine.template.ids(text) for text in texts]
        num_cut = sum(len(ids) > most for ids in found)
        of_all = f"{num_cut:,} of {len(texts):,} texts"
        engine.note(not num_cut, f"reads the first {most:,} tokens of a text, as its files say: {of_all} were longer")
        return [engine.request_of_ids(shortened(ids, most, engine.template.tokenizer), 1).ids for ids in found]

    def _means(self, requests: Sequence[Sequence[int]], hidden: int, task: ProgressTask) -> Tensor:
        """[texts, width] float32: the mean state of each text, without those of a trained prompt of `hidden` tokens."""
        found: dict[int, Tensor] = {}
        lengths = [len(ids) for ids in requests]
        for places in length_batches(lengths, max_tokens=MAX_SCORE_TOKENS, max_rows=_MAX_ROWS):
            states = pooled_states(self.engine.causal, [requests[place] for place in places], "mean", skip=hidden)
            found.update(zip(places, states.cpu(), strict=True))
            task.advance(len(places))
        # Batches are by length, so results are put back into the order of the texts.
        return torch.stack([found[place] for place in range(len(requests))])

    def _dimensions(self, asked: int | None) -> int:
        known = self.head.dimensions or (self.head.width,)
        if asked is not None and asked not in known:
            raise RequestError(
                f"dimensions={asked}",
                expected=f"one of {', '.join(map(str, known))}, the lengths that this model was trained for",
                do="name one of them, or none for the whole vector",
            )
        return asked or self.head.width

    def _check(self, kind: TaskHeadKind) -> None:
        if self.head.kind != kind:
            raise RequestError(
                f"a model with a head of kind {self.head.kind}",
                expected=f"one of kind {kind}",
                do=f"name a model that was trained with objective: {{name: {kind}}}",
            )

    def _fitting(self, ids: Sequence[int]) -> Sequence[int]:
        self.engine.request_of_ids(ids, 1, "a query with a document")
        return ids

    def _prompt_ids(self, prompt: Conversation) -> list[int]:
        request = self.engine.request_within_context(Prompt(conversation=prompt, max_new_tokens=1))
        # `hidden_states` adds the trained prompt itself.
        return list(request.ids[self.engine.num_virtual_tokens :])

    @torch.inference_mode()
    def _outputs(self, ids: Sequence[Sequence[int]], progress: Progress) -> Tensor:
        """[rows, outputs] on the CPU, as `task_outputs` gives them."""
        assert self._layer is not None
        if not ids:
            return torch.zeros(0, self.head.num_outputs)
        with progress.task("Reading", len(ids), "rows") as task:
            # [rows, width] in the type of the model; the head computes in float32.
            states = torch.stack(self._last_states(ids, task))
        found = task_outputs(self.head, self._layer, states.to(self._layer.weight.device)).cpu()
        if not found.isfinite().all():
            raise DivergedError(
                "the head gives outputs that are not numbers",
                expected="finite outputs",
                do="its adapter or weights are too large: go back to an earlier checkpoint, or use float32",
            )
        return found

    def _last_states(self, ids: Sequence[Sequence[int]], task: ProgressTask) -> list[Tensor]:
        """The last-token state of each row, [width]."""
        # One extra token, predicted by the last one: the engine returns the states that predict learned tokens. Causal
        # attention never sees it, so any id works.
        rows = [
            TokenisedExample(f"row {n + 1}", array("i", [*row, row[-1]]), bytes([*bytes(len(row)), 1]))
            for n, row in enumerate(ids)
        ]
        return [states[-1] for states in self.engine.hidden_states(rows, task)]


class TaskAnswers:
    """A task model as an engine whose answers are labels or numbers, so that it is evaluated like a text model.

    Args:
        model: of kind classify or regress.
    """

    def __init__(self, model: TaskModel) -> None:
        self.model = model
        self.probabilities: Tensor | None = None
        """Label probabilities of the last prompts, [prompts, classes] on the CPU; None for numbers."""

    @property
    def name(self) -> str:
        """`transformers`, the underlying engine."""
        return self.model.engine.name

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the underlying engine."""
        return self.model.engine.notes

    @property
    def template(self) -> ChatTemplate:
        """The template that renders prompts."""
        return self.model.engine.template

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """The label or number of each prompt; no token is generated.

        Raises:
            RequestError: a prompt is not a conversation, or the head is neither a classifier nor a regressor.
        """
        conversations = [prompt.conversation for prompt in prompts if prompt.conversation is not None]
        if len(conversations) < len(prompts):
            raise RequestError(
                "a plain text for a model with a task head",
                expected="conversations, as the head was trained on",
                do="send messages",
            )
        if self.model.head.kind == "regress":
            texts = self.model.number_texts(self.model.numbers(conversations, progress))
        else:
            self.probabilities = self.model.probabilities(conversations, progress)
            texts = [self.model.head.label_text(row) for row in self.probabilities.tolist()]
        return [Generation(text=text, num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop") for text in texts]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Not supported.

        Raises:
            RequestError: always: a task head has no text likelihoods.
        """
        raise RequestError(
            f"the likelihood of {len(examples):,} texts by a model with a task head",
            expected="a model that writes",
            do="use the base model, or evaluate by metrics of whole answers",
        )

    def close(self) -> None:
        """Free the model."""
        self.model.engine.close()
