"""A request of inputs that go through a model once: vectors of texts, or what a task head gives."""

from __future__ import annotations

from pydantic import Field

from luthier.core.conversation import AS_THEY_ARE, Conversation, OptedTurns
from luthier.core.frozen_model import FrozenModel
from luthier.core.published_head import PairFormat, Pooling
from luthier.core.recipe import TemplateOption
from luthier.core.task_head import TaskHeadKind


class PoolingRequest(FrozenModel):
    """Inputs that go through the model once, without anything being written: a vector, or what a task head gives.

    Exactly one of `inputs`, `conversations` and `pairs` has items.

    Attributes:
        inputs: texts as they are, each as text or as token ids.
        conversations: prompts, written by the chat template up to where an answer would begin.
        pairs: (query, document) of each.
        kind: `embed` gives vectors, also of models without a head; the others need a head of that kind.
        pooling: embed: which states make the vector. The other heads read that of the last token.
        dimensions: embed: the requested length of a vector; None for all.
        is_normalised: embed: whether vectors have length 1.
        max_tokens: embed, rank: texts, or the documents of pairs, are cut to that many tokens, and the result names
            those that were; None for no cutting.
        pair_format, instruction: rank: how a pair is read, as of `OwnReranker`.
        adds_ending: embed: whether texts, not token ids, get the token that the model's tokenizer puts behind them.
        trained_options, opted_turns: as of `TextRequest`.
    """

    inputs: tuple[str | tuple[int, ...], ...] = ()
    conversations: tuple[Conversation, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    kind: TaskHeadKind = "embed"
    pooling: Pooling = "mean"
    dimensions: int | None = None
    is_normalised: bool = True
    max_tokens: int | None = None
    pair_format: PairFormat = "turns"
    instruction: str = ""
    adds_ending: bool = False
    trained_options: dict[str, TemplateOption] = Field(default_factory=dict)
    opted_turns: OptedTurns = AS_THEY_ARE
