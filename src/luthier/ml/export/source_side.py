"""Outputs of the source model in a parity check, and the built-in prompts of a model without held-out rows.

The source is the base in float32 with the unmerged adapter over it, without any merge, rounding or conversion. Its
outputs are computed once. Only the likeliest tokens of each position are kept, so source and export are never in memory
together.

The built-in prompts are easy on purpose: two runtimes must give the same answer, right or wrong. They contain digits,
accents, code, blank lines and other scripts, where tokenizers differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DivergedError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportSource
from luthier.ml.export.exporters.proof_prompts import NUM_NEW_TOKENS, ProofPrompt, SourcePrompts, source_prompts
from luthier.ml.export.runtimes.protocol import LogProbabilities

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

_PAIRS: tuple[tuple[str, str], ...] = (
    ("Which wood is the front of a violin made of?", "Spruce."),
    ("Name three string instruments.", "Violin, cello and guitar."),
    ("What is 17 plus 25?", "42"),
    ("Count from 1998 to 2003.", "1998, 1999, 2000, 2001, 2002, 2003"),
    ("Translate to French: the bridge is too low.", "Le chevalet est trop bas."),
    ("Translate to German: the strings are old.", "Die Saiten sind alt."),
    ("Write a haiku about varnish.", "Amber on the wood\nthin as breath on winter glass\nslow light settles in"),
    ("Is ebony harder than willow? Answer with one word.", "Yes"),
    ("Put these in order: cello, violin, viola.", "violin, viola, cello"),
    ("Finish the sentence: A luthier is a person who", "builds and repairs stringed instruments."),
    ("What does this print?\n\n    for i in range(3):\n        print(i * 10)", "0\n10\n20"),
    ('Return JSON with the keys "wood" and "year".', '{"wood": "maple", "year": 1721}'),
    ("Correct the spelling: The gitar is out of toon.", "The guitar is out of tune."),
    ("Which is longer, 64.5 cm or 0.7 m?", "0.7 m"),
    ("Summarise: The post stands inside. Moving it changes the tone.", "A moved post changes the tone."),
    ("Give the opposite of 'bright'.", "dark"),
    ("How many strings has a violin?", "4"),
    ("Write one line of SQL that counts the rows of the table repairs.", "SELECT COUNT(*) FROM repairs;"),
    ("Rewrite politely: Pay now.", "Could you please settle the invoice?"),
    ("What is the capital of Italy?", "Rome"),
    ("¿De qué color es el ébano?", "Negro."),
    ("Quel est le mot pour « archet » en anglais ?", "Bow."),
    ("日本語で「木」は何と読みますか。", "き"),
    ("Напиши слово «скрипка» по-английски.", "violin"),
    ("Reply with an emoji of a violin.", "🎻"),
    ("Is 91 a prime number?", "No: 91 = 7 * 13."),
    ("List the even numbers below 10, one a line.", "2\n4\n6\n8"),
    ("What comes next: 3, 6, 12, 24, ...?", "48"),
    ("Make a title for a note on humidity.", "Keep the Room at Fifty Percent"),
    ("Explain in one sentence why hide glue is used.", "Heat and water open the joint again without harm."),
    ("Write def twice(x) in Python.", "def twice(x):\n    return 2 * x"),
    ("Say nothing but the word done.", "done"),
)


def built_in_examples() -> tuple[Example, ...]:
    """32 examples with one question and one answer."""
    return tuple(
        Example(
            id=f"built-in:{number}",
            conversation=Conversation(
                messages=(Message(role="user", content=question), Message(role="assistant", content=answer))
            ),
        )
        for number, (question, answer) in enumerate(_PAIRS, start=1)
    )


NUM_TOP = 10
# Likelihoods of the whole vocabulary are kept for this number of positions, the last ones of prompt and answer.
MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of some positions, best first.

    Attributes:
        ids: [positions, NUM_TOP].
        nats: [positions, NUM_TOP], the log-probabilities of these tokens.
    """

    ids: NDArray[np.int64]
    nats: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceAnswer(ProofPrompt):
    """The source's outputs for one prompt.

    Attributes:
        start: The first compared position.
        top: The likeliest tokens of the positions from `start`.
        base_nats: Log-probabilities of these tokens by the base without the adapter; None without an adapter.
        nll_nats: Total for the reference.
        greedy_ids: The greedy text of the source.
        greedy_top: The likeliest tokens at the positions of these and of the next token.
    """

    start: int
    top: Likeliest
    base_nats: NDArray[np.float32] | None
    nll_nats: float
    greedy_ids: tuple[int, ...]
    greedy_top: Likeliest


@dataclass(frozen=True, slots=True)
class ObservedSource:
    """The source's outputs for a parity check.

    Attributes:
        prompts: the way the source writes prompts.
        answers: the outputs for each prompt.
        vocabulary: the number of its logits.
    """

    prompts: SourcePrompts
    answers: tuple[SourceAnswer, ...]
    vocabulary: int

    @property
    def source(self) -> ExportSource:
        """The model."""
        return self.prompts.source


def observe_source(
    source: ExportSource,
    examples: Sequence[Example],
    progress: Progress,
    *,
    prompts: SourcePrompts | None = None,
    rounded_to: Literal["bfloat16", "float16"] | None = None,
) -> ObservedSource:
    """Run the source on the prompts of held-out examples (`source_prompts`).

    Memory: the source's weights in float32, and `MAX_POSITIONS` x vocabulary x 8 bytes.

    Args:
        source: The model.
        examples: Held-out examples.
        progress: Advanced by each prompt.
        prompts: The prompts of the examples, if already made.
        rounded_to: Merge the adapter and round the weights of the source first, as an export in 16 bits does. The base
            without the adapter is then not run.

    Raises:
        RequestError: no example fits, or none has a reference.
        DivergedError: the source's likelihoods are not finite.
        NotFoundError, ModelSourceError: the model is missing or damaged.
        TemplateError: the template cannot write an example.
    """
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

    seen = prompts if prompts is not None else source_prompts(source, examples)
    model = TransformersModel(
        source.base_path, source.adapter_path, source.quantisation, source.precision, rounded_to=rounded_to
    )
    # Ends of the template and not of generation_config.json, which exports may rewrite.
    ends = frozenset(source_template(source).end_of_turn_ids)
    answers, vocabulary = [], 0
    with progress.task("Running the source", len(seen.prompts), "prompts") as task:
        for prompt in seen.prompts:
            answer, vocabulary = _answer(model, ends, source, prompt, with_base=rounded_to is None)
            answers.append(answer)
            task.advance()
    return ObservedSource(seen, tuple(answers), vocabulary)


def likeliest(rows: LogProbabilities) -> Likeliest:
    """The `NUM_TOP` likeliest tokens of each row."""
    num_top = min(NUM_TOP, rows.shape[1])
    # Partition first: sorting the whole vocabulary at each position would take most of the time.
    some = np.argpartition(-rows, num_top - 1, axis=1)[:, :num_top]
    nats = np.take_along_axis(rows, some, axis=1)
    order = np.argsort(-nats, axis=1, kind="stable")
    return Likeliest(np.take_along_axis(some, order, axis=1), np.take_along_axis(nats, order, axis=1))


def reference_nll(rows: LogProbabilities, start: int, num_prompt: int, reference: Sequence[int]) -> float:
    """Total negative log-likelihood of the reference, in nats.

    Args:
        rows: [positions, vocabulary] of the positions of prompt and reference from `start`.
        start: the first of these positions.
        num_prompt: tokens of the prompt.
        reference: tokens of the reference.
    """
    # Row i predicts token i + 1; rows before `start` were not computed.
    first = max(num_prompt - 1, start)
    targets = np.asarray(reference[first - (num_prompt - 1) :], dtype=np.int64)
    places = np.arange(first - start, first - start + len(targets))
    return -float(rows[places, targets].astype(np.float64).sum())


def _answer(
    model: TransformersModel, ends: frozenset[int], source: ExportSource, prompt: ProofPrompt, *, with_base: bool
) -> tuple[SourceAnswer, int]:
    """The source's outputs for a prompt, and the number of its logits."""
    ids, num_prompt = prompt.ids, len(prompt.prompt_ids)
    start = max(0, len(ids) - MAX_POSITIONS)
    rows = model.log_probabilities(ids, start)
    if not np.isfinite(rows).all():
        raise DivergedError(
            f"{source.name}: a likelihood is not a finite number",
            expected="finite logits",
            do="the weights contain NaN or infinity: export an earlier checkpoint of the run",
        )
    top, nll = likeliest(rows), reference_nll(rows, start, num_prompt, prompt.reference_ids)
    base = None
    if with_base and source.adapter_path is not None:
        with model.without_adapter():
            base = np.take_along_axis(model.log_probabilities(ids, start), top.ids, axis=1)
    written = model.greedy(prompt.prompt_ids, NUM_NEW_TOKENS, ends)
    # One row more than tokens: the last one gives the end or a further token.
    drawn_from = likeliest(model.log_probabilities([*prompt.prompt_ids, *written], num_prompt - 1))
    answer = SourceAnswer(
        prompt.conversation,
        prompt.text,
        prompt.prompt_ids,
        prompt.reference_ids,
        start=start,
        top=top,
        base_nats=base,
        nll_nats=nll,
        greedy_ids=tuple(written),
        greedy_top=drawn_from,
    )
    return answer, rows.shape[1]
