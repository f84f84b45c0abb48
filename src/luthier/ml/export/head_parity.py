"""The parity check of an export with a task head: its outputs must equal those of the trained model.

The source is the base in float32 with the adapter unmerged over it and the head from its own files (`TaskModel`); the
export reads the same texts in its real runtime, in padded batches. The tokens of every text are compared, and every
probability, number (in standard deviations of the training rows), relevance, or vector (by distance: components of a
vector of length 1 are small, so that most vectors would pass a bound on components).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource, HeadParityReport
from luthier.ml.export.exporters.companions import source_template
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS, open_head
from luthier.ml.inference.engine_prompts import rewritten, text_of
from luthier.ml.inference.models.architecture import context_tokens
from luthier.ml.inference.models.loading import attach_adapter
from luthier.ml.inference.models.merging import wide_model
from luthier.ml.inference.models.own_reranker import pair_text
from luthier.ml.inference.task_model import TaskModel
from luthier.ml.inference.tool_calls.forms import form_of
from luthier.ml.inference.transformers_engine import TransformersEngine

_One = TypeVar("_One")
_MAX_AT_ONCE = 4
_MAX_CHARACTERS = 2000


def prove_head(
    source: ExportSource,
    folder: Path,
    name: str,
    precision: ExportPrecision,
    examples: Sequence[Example],
    progress: Progress,
) -> HeadParityReport:
    """Compare an export with its source on held-out examples.

    Args:
        source: The model.
        folder: The exported folder.
        name: Name of the format.
        precision: Precision of its weights.
        examples: Held-out examples.
        progress: Advanced by each text.

    Raises:
        RequestError: No example has a prompt that fits.
        ModelSourceError: Source or export does not load.
    """
    texts, ids, expected, kind, scale = _source_side(source, examples, progress)
    format = HEAD_FORMATS[name]
    runtime, found = open_head(format, folder), []
    # Tokens first: with another tokenizer the numbers below would differ for a reason that they do not show.
    num_same = sum(runtime.tokens(text) == row for text, row in zip(texts, ids, strict=True))
    with progress.task(f"Proving it equal in {runtime.name}", len(texts), "texts") as task:
        for first in range(0, len(texts), _MAX_AT_ONCE):
            found.append(runtime.outputs(texts[first : first + _MAX_AT_ONCE]))
            task.advance(len(found[-1]))
    made, bound = np.concatenate(found), format.precisions[precision]
    reasons = []
    difference = float("inf")
    if num_same < len(texts):
        reasons.append(f"The tokens of {len(texts) - num_same} of {len(texts)} texts differ: another tokenizer.")
    if made.shape != expected.shape:
        reasons.append(f"The export gives {made.shape[1:]} numbers a text, the source {expected.shape[1:]}.")
    elif not np.isfinite(made).all():
        reasons.append("Outputs of the export are not finite numbers.")
    else:
        # [texts] for vectors, [texts, outputs] otherwise; the largest one decides.
        apart = np.linalg.norm(made - expected, axis=1) if kind == "embed" else np.abs(made - expected)
        difference = float(apart.max()) / scale
        if difference > bound:
            reasons.append(f"An output differs by {difference:.3g}, more than the {bound:g} allowed.")
    return HeadParityReport(
        format=name,
        precision=precision,
        runtime=runtime.name,
        runtime_version=runtime.version,
        kind=kind,
        num_inputs=len(texts),
        num_inputs_same_tokens=num_same,
        # JSON has no infinity.
        max_difference=difference if np.isfinite(difference) else None,
        bound=bound,
        passed=not reasons,
        reasons=tuple(reasons),
    )


def _source_side(
    source: ExportSource, examples: Sequence[Example], progress: Progress
) -> tuple[list[str], list[list[int]], np.ndarray, str, float]:
    """Texts, their ids, outputs [texts, outputs], the kind of the head, and the divisor of differences."""
    template = source_template(source)
    model = wide_model(source.base_path, source.quantisation, source.precision, writes=False)
    # Unmerged and in float32: the reference must not contain the rounding that is to be measured.
    adapted = model if source.adapter_path is None else attach_adapter(model, source.adapter_path)
    engine = TransformersEngine(adapted, template, opted_turns=source.opted_turns)
    task = TaskModel.open(engine, source.folder)
    head = task.head
    pairs = [pair for pair in map(_pair, examples) if pair is not None]
    if head.kind == "rank":
        texts = [
            pair_text(template, query, document, head.pair_format, head.query_prompt) or "" for query, document in pairs
        ]
    elif head.kind == "embed":
        texts = [
            before + text
            for pair in pairs
            for before, text in zip((head.query_prompt, head.document_prompt), pair, strict=True)
        ]
    else:
        form = form_of(text_of(template))
        prompts = [one for one in map(_prompt, examples) if one is not None]
        texts = [
            template.render(rewritten(source.opted_turns, one, form), add_generation_prompt=True) for one in prompts
        ]
    # What ends each text is no part of it: the tokenizer of the export adds it.
    rows = [template.ids(text + head.end_text) for text in texts]
    room = context_tokens(model.config)
    fits = [0 < len(row) < room for row in rows]
    if not any(fits):
        raise RequestError(
            f"{len(examples)} examples, none of them with a prompt of less than {room} tokens",
            expected="held-out examples that fit into the context of the model",
            do="prove the export on other held-out rows: --data FILE",
        )

    def fitting(some: Sequence[_One]) -> list[_One]:
        return [one for one, does_fit in zip(some, fits, strict=True) if does_fit]

    if head.kind == "rank":
        outputs = task.relevance(fitting(pairs), progress)[:, None]
    elif head.kind == "embed":
        # Their prompts are already in the texts.
        plain = TaskModel(engine, head.model_copy(update={"query_prompt": "", "document_prompt": ""}), None)
        outputs = plain.vectors(fitting(texts), progress)
    elif head.kind == "regress":
        outputs = task.numbers(fitting(prompts), progress)[:, None]
    else:
        outputs = task.probabilities(fitting(prompts), progress)
    return fitting(texts), fitting(rows), outputs.numpy(), head.kind, head.scale if head.kind == "regress" else 1.0


def _prompt(example: Example) -> Conversation | None:
    """The input of a classifier: the turns before the last answer, or a plain text as the only turn."""
    if example.conversation is None:
        text = (example.text or "").strip()[:_MAX_CHARACTERS]
        return Conversation(messages=(Message(role="user", content=text),)) if text else None
    last = example.conversation.last_answer
    return example.conversation if last is None else example.conversation.up_to(last)


def _pair(example: Example) -> tuple[str, str] | None:
    """A query and a document, or two texts: the last turn before the answer, and the answer."""
    if example.conversation is None:
        text = (example.text or "").strip()[:_MAX_CHARACTERS]
        # A plain text has no query: two halves are as good to compare outputs by.
        half = len(text) // 2
        return (text[:half], text[half:]) if text[:half].strip() and text[half:].strip() else None
    prompt, answer = _prompt(example), example.reference
    turns = [] if prompt is None else [one.content for one in prompt.messages if one.content]
    return (turns[-1], answer) if turns and answer else None
