"""Pairs from passages: a teacher writes, the passage decides, and what is refused is listed with its reason.

passage -> prompt -> teacher -> pair -> self-contained? new? supported by the passage? -> judge, where there is one
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal

from luthier.core.conversation import ends_in_thoughts, without_thoughts
from luthier.core.defaults import SECOND_VERDICT_TOKENS, SYNTHESIS_TOKENS
from luthier.core.errors import OverlongError
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Progress, Prompt
from luthier.core.records.support import Support, support
from luthier.ml.data.provenance import PROVENANCE
from luthier.ml.data.rows.answer_prompts import leans_on_passage
from luthier.ml.data.synthesis.synthesis_prompts import (
    Kind,
    Unparsable,
    judge_prompt,
    pair_prompt,
    parse_pair,
    parse_verdict,
)
from luthier.ml.data.text.normalise import normalised
from luthier.ml.inference.engine_wrappers import CachedEngine

ReasonCode = Literal[
    "blank_passage",
    "too_long",
    "cut_off",
    "unparsable",
    "not_self_contained",
    "same_as_question",
    "duplicate",
    "unsupported_number",
    "unsupported_name",
    "low_support",
    "judged_unsupported",
    "judge_unsure",
]
BATCH_PASSAGES: Final = 32
_JUDGE_TOKENS: Final = 16
_MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class SynthesisOptions:
    """What to write and what to keep.

    Attributes:
        kind: questions with answers, or instructions with responses.
        pairs_per_passage: pairs that are requested of each passage.
        min_support: least share of the answer's content words that occur in the passage, 0 to 1.
        max_new_tokens: most tokens of a reply.
        temperature: 0 is greedy.
        seed: of the draws.
    """

    kind: Kind = "qa"
    pairs_per_passage: int = 1
    min_support: float = 0.6
    max_new_tokens: int = SYNTHESIS_TOKENS
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A row to write pairs from.

    Attributes:
        id: `rows.jsonl:17`.
        text: the passage.
        provenance: the row's own record of where it comes from.
    """

    id: str
    text: str
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SyntheticPair:
    """One pair that was requested, and its fate.

    Attributes:
        passage: what it is written from.
        reply: what the teacher wrote.
        prompt: the question or instruction; None where the reply has none.
        completion: the answer; None where the reply has none.
        support: how much of the answer is in the passage; None where it was not measured.
        reason: why it is refused; None where it is kept.
        explanation: the reason for people.
    """

    passage: Passage
    reply: str = ""
    prompt: str | None = None
    completion: str | None = None
    support: Support | None = None
    reason: ReasonCode | None = None
    explanation: str = ""

    def refused(self, reason: ReasonCode, explanation: str) -> SyntheticPair:
        """The same attempt, not to be kept."""
        return replace(self, reason=reason, explanation=explanation)


def attempts(
    passages: Iterable[Passage],
    teacher: CachedEngine,
    judge: CachedEngine | None,
    options: SynthesisOptions,
    progress: Progress,
    *,
    batch_done: Callable[[int], None] = lambda _: None,
    batch_passages: int = BATCH_PASSAGES,
) -> Iterator[SyntheticPair]:
    """Every pair that was requested, kept or refused, in the order of the passages; at least one for each passage.

    The passages are streamed in batches; `batch_done` is called after each with its number of passages. Of a
    passage that yields a refused pair the next pair is requested all the same, unless the answer could only be the same
    again. Equal options, passages and answers give equal attempts. A passage that is too long for the teacher is
    refused, and raises no OverlongError.

    Args:
        passages: read as they are needed.
        teacher: writes the pairs.
        judge: checks them against the passage; None for none.
        options: what to write, and what to keep.
        progress: shows the replies.
        batch_done: called after each batch with its number of passages.
        batch_passages: passages of a batch, which the teacher gets at once.
    """
    kept: dict[str, str] = {}
    stream = iter(passages)
    while batch := list(islice(stream, batch_passages)):
        # By passage: rounds go over all passages, and the output is in the order of the passages.
        made: list[list[SyntheticPair]] = [[] for _ in batch]
        for number in range(options.pairs_per_passage):
            _write_round(batch, made, number, teacher, judge, options, progress, kept)
        for of_passage in made:
            yield from of_passage
        batch_done(len(batch))


def row_of(
    attempt: SyntheticPair, options: SynthesisOptions, *, teacher: str, judge: str | None, with_passage: bool = False
) -> dict[str, Any]:
    """The row of a kept pair: prompt, completion, and a provenance that marks it as synthetic.

    Args:
        attempt: the pair.
        options: with which it was written.
        teacher: the name of the model that wrote it.
        judge: the name of the model that has judged it; None where none has.
        with_passage: whether the provenance holds the passage, too, and what a reader should check (`warnings_of`).
    """
    provenance = _provenance(attempt, options, teacher, judge)
    if with_passage:
        provenance |= {"passage": attempt.passage.text, "warnings": warnings_of(attempt)}
    return {"prompt": attempt.prompt, "completion": attempt.completion, PROVENANCE: provenance}


_SURE_SUPPORT: Final = 0.8
_COPIED_SHARE: Final = 0.9


def warnings_of(attempt: SyntheticPair) -> list[str]:
    """What a reader should check of a kept pair; empty for most, and wrong for certain for none."""
    prompt, completion = attempt.prompt or "", attempt.completion or ""
    found = []
    if attempt.support is not None and attempt.support.fraction < _SURE_SUPPORT:
        missing = _listed(attempt.support.unsupported_words)
        share = 1 - attempt.support.fraction
        found.append(f"{share:.0%} of the answer's words are not in the passage: {missing}")
    if len(completion) > _COPIED_SHARE * len(attempt.passage.text):
        found.append("the answer repeats the whole passage")
    if normalised(completion) in normalised(prompt):
        found.append("the question already contains the answer")
    return found


def refused_row_of(
    attempt: SyntheticPair, options: SynthesisOptions, *, teacher: str, judge: str | None
) -> dict[str, Any]:
    """The row of a refused pair, with its reason and the whole reply.

    Args:
        attempt: the pair.
        options: with which it was written.
        teacher: the name of the model that wrote it.
        judge: the name of the model that has judged it; None where none has.
    """
    return {
        "source_row": attempt.passage.id,
        "reason": attempt.reason,
        "explanation": attempt.explanation,
        "prompt": attempt.prompt,
        "completion": attempt.completion,
        "reply": _writable(attempt.reply),
        PROVENANCE: _provenance(attempt, options, teacher, judge),
    }


def _provenance(attempt: SyntheticPair, options: SynthesisOptions, teacher: str, judge: str | None) -> dict[str, Any]:
    return {
        **attempt.passage.provenance,
        "synthetic": True,
        "teacher": teacher,
        "kind": options.kind,
        "support": round(attempt.support.fraction, 4) if attempt.support else None,
        "source_row": attempt.passage.id,
        "judge": judge,
    }


def _write_round(
    batch: Sequence[Passage],
    made: list[list[SyntheticPair]],
    number: int,
    teacher: CachedEngine,
    judge: CachedEngine | None,
    options: SynthesisOptions,
    progress: Progress,
    kept: dict[str, str],
) -> None:
    """Pair `number` (from 0) of each passage of a batch, appended to `made`.

    Args:
        batch: the passages.
        made: the attempts of each passage so far.
        number: which pair of a passage this is.
        teacher: writes the pairs.
        judge: checks them against the passage; None for none.
        options: what to write, and what to keep.
        progress: shows the replies.
        kept: normalised prompt -> its row.
    """
    asked = [
        place for place in range(len(batch)) if batch[place].text.strip() and not _is_hopeless(made[place], options)
    ]
    if number == 0:
        for place in set(range(len(batch))) - set(asked):
            made[place].append(SyntheticPair(batch[place]).refused("blank_passage", "the passage holds no text"))
    prompts = [_teacher_prompt(batch[place], made[place], number, options) for place in asked]
    replies = teacher.generate_each(prompts, progress)
    # One round of all passages is one call to the teacher, so that it can batch them.
    new = {p: _examined(batch[p], reply, options, kept) for p, reply in zip(asked, replies, strict=True)}
    if judge is not None:
        _judge(new, judge, options.seed, progress)
    for place, attempt in new.items():
        # Checked again: another pair of the same round may have the same question.
        made[place].append(final := _if_new(attempt, kept))
        if final.reason is None:
            kept[normalised(final.prompt or "")] = final.passage.id


def _is_hopeless(so_far: Sequence[SyntheticPair], options: SynthesisOptions) -> bool:
    """Whether asking again can only give the same: over the context, or greedy with nothing new in the prompt."""
    # At temperature 0 the same prompt has the same reply; only a kept question changes the next prompt.
    greedy: tuple[ReasonCode, ...] = ("unparsable", "cut_off") if options.temperature == 0 else ()
    return any(attempt.reason in ("too_long", *greedy) for attempt in so_far)


def _teacher_prompt(
    passage: Passage, so_far: Sequence[SyntheticPair], number: int, options: SynthesisOptions
) -> Prompt:
    earlier = [attempt.prompt for attempt in so_far if attempt.prompt is not None]
    # From the passage and not from its line, so that rows put before it change neither the draws nor the cache.
    seed = int(sha256_document([options.seed, number, passage.text])[:7], 16)
    return Prompt(
        conversation=pair_prompt(options.kind, passage.text, provenance=passage.provenance, earlier=earlier),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=seed,
    )


def _examined(
    passage: Passage, reply: Generation | OverlongError, options: SynthesisOptions, kept: Mapping[str, str]
) -> SyntheticPair:
    """The attempt after everything that needs no judge."""
    if isinstance(reply, OverlongError):
        return SyntheticPair(passage).refused("too_long", f"{reply.came}; expected {reply.expected}")
    attempt = SyntheticPair(passage, reply=reply.text)
    found = parse_pair(reply.text, options.kind)
    is_cut = reply.finish_reason == "length"
    if is_cut and (isinstance(found, Unparsable) or found.is_open):
        words = f"the reply was cut off after {reply.num_new_tokens} tokens, before its end"
        return attempt.refused("cut_off", words)
    if isinstance(found, Unparsable):
        return attempt.refused("unparsable", found.reason)
    attempt = replace(attempt, prompt=found.prompt, completion=found.completion)
    return _if_new(_if_supported(_if_standing_alone(attempt), options), kept)


def _if_standing_alone(attempt: SyntheticPair) -> SyntheticPair:
    prompt, completion = attempt.prompt or "", attempt.completion or ""
    if normalised(prompt) == normalised(completion):
        return attempt.refused("same_as_question", "question and answer are the same")
    for text in (prompt, completion):
        if words := leans_on_passage(text):
            return attempt.refused("not_self_contained", f"refers to {words!r}, which a reader does not see")
    return attempt


def _if_supported(attempt: SyntheticPair, options: SynthesisOptions) -> SyntheticPair:
    if attempt.reason is not None:
        return attempt
    prompt, completion = attempt.prompt or "", attempt.completion or ""
    found = support(completion, attempt.passage.text)
    asked = support(prompt, attempt.passage.text)
    # Kept also where the pair is refused, so that the list of refusals shows how near it was.
    attempt = replace(attempt, support=found)
    # An instruction may set its own number ("in two sentences"); a question takes its numbers from the passage.
    numbers = found.unsupported_numbers + (asked.unsupported_numbers if options.kind == "qa" else ())
    if numbers:
        return attempt.refused("unsupported_number", f"not in the passage: {_listed(numbers)}")
    if names := found.unsupported_names + asked.unsupported_names:
        return attempt.refused("unsupported_name", f"not in the passage: {_listed(names)}")
    if found.num_content_words == 0:
        return attempt.refused("low_support", "the answer has no word that could be compared with the passage")
    if found.fraction < options.min_support:
        share = f"{found.fraction:.2f} of {found.num_content_words} content words are in the passage"
        words = f"{share}, less than {options.min_support:g}; not there: {_listed(found.unsupported_words)}"
        return attempt.refused("low_support", words)
    return attempt


def _if_new(attempt: SyntheticPair, kept: Mapping[str, str]) -> SyntheticPair:
    if attempt.reason is not None:
        return attempt
    earlier = kept.get(normalised(attempt.prompt or ""))
    return attempt.refused("duplicate", f"asked before, from {earlier}") if earlier is not None else attempt


def _judge(new: dict[int, SyntheticPair], judge: CachedEngine, seed: int, progress: Progress) -> None:
    """Ask the judge about every attempt that is not refused yet, and refuse where it does not say yes."""
    # The judge is asked last, and only about pairs that all cheaper checks have passed.
    standing = [place for place, attempt in new.items() if attempt.reason is None]
    prompts = [
        Prompt(
            conversation=judge_prompt(a.passage.text, a.prompt or "", a.completion or ""),
            max_new_tokens=_JUDGE_TOKENS,
            seed=seed,
        )
        for a in (new[place] for place in standing)
    ]
    replies = judge.generate_each(prompts, progress)
    # The thought of a model behind a server counts among the tokens of its answer, which then never begins.
    again = [number for number, reply in enumerate(replies) if _is_all_thought(reply)]
    longer = [prompts[number].model_copy(update={"max_new_tokens": SECOND_VERDICT_TOKENS}) for number in again]
    for number, reply in zip(again, judge.generate_each(longer, progress) if longer else (), strict=True):
        replies[number] = reply
    for place, reply in zip(standing, replies, strict=True):
        if isinstance(reply, OverlongError):
            new[place] = new[place].refused("judge_unsure", f"the judge could not be asked: {reply.came}")
        elif (verdict := parse_verdict(reply.text)) is None:
            words = f"the judge answered neither yes nor no: {_writable(reply.text.strip()[:80])!r}"
            # No clear yes is a no: a wrong pair is learned, a refused one is only missing.
            new[place] = new[place].refused("judge_unsure", words)
        elif not verdict:
            new[place] = new[place].refused("judged_unsupported", "the judge says that the passage does not support it")


def _is_all_thought(reply: Generation | OverlongError) -> bool:
    """Whether a reply was cut off before its answer began."""
    if isinstance(reply, OverlongError) or reply.finish_reason != "length":
        return False
    text = without_thoughts(reply.text)
    return reply.ends_in_thought or not text.strip() or ends_in_thoughts(text)


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _MAX_NAMED
    return ", ".join(words[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _writable(text: str) -> str:
    """Text as UTF-8 can hold it: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()
