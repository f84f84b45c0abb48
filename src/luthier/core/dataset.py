"""Rows, examples and tokenised examples: the three states of data, and which split they come from.

    row (raw fields from a file) -> example (mapped, trainable) -> tokenised example (ids and loss mask)

`SplitProvenance` is the split that made the sides of a run, with its proof, as a plan carries it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.conversation import Conversation, Message, split_tags
from luthier.core.frozen_model import FrozenModel

if TYPE_CHECKING:
    from luthier.core.plan import DataPlan

Shape = Literal["chat", "prompt_completion", "alpaca", "sharegpt", "text", "preference", "unpaired"]
Split = Literal["train", "validation", "held_out", "replay", "replay_held_out"]
Overlong = Literal["error", "drop", "truncate"]
CUT_REASON: Final = "the chat template rewrites earlier turns once others follow, so each answer has its own sequence"


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record.

    Attributes:
        file: The name of its file.
        line: The line in the file, from 1 on; the number of the row for JSON arrays, CSV and Parquet.
        fields: Its values by column.
    """

    file: str
    line: int
    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """`name.jsonl:17`, the name of this row in messages and reports."""
        return f"{self.file}:{self.line}"


class Example(FrozenModel):
    """A row mapped to something that can be trained on: either a conversation or plain text, never both.

    Attributes:
        id: the id of its row.
        conversation: the turns; None for plain text.
        text: plain text, all of which is learned; None for a conversation.
        rejected: in a preference pair, the prompt with the rejected completion; `conversation` then ends with
            the chosen one.
        is_wanted: whether the completion of an unpaired row is a good one; None where it is not stated.
        group: the value that keeps rows together in a split (a source document, a module), or None.
        goes_on: the text is a piece that another follows, so that it does not end with the end-of-text token.
        has_answer: whether the answer is the row's own; False where a row that ends with a prompt was given one.
    """

    id: str
    conversation: Conversation | None = None
    text: str | None = None
    rejected: Conversation | None = None
    is_wanted: bool | None = None
    group: str | None = None
    goes_on: bool = False
    has_answer: bool = True

    @property
    def sides(self) -> tuple[Example, ...]:
        """What is tokenised side by side: chosen and rejected of a preference pair, else the example itself."""
        if self.rejected is None:
            return (self,)
        chosen = self.model_copy(update={"rejected": None, "is_wanted": True})
        return (chosen, chosen.model_copy(update={"conversation": self.rejected, "is_wanted": False}))

    @property
    def prompt(self) -> Conversation | None:
        """The conversation before its last learned answer; None for plain text or where nothing is learned."""
        if self.conversation is None or (last := self.conversation.last_answer) is None:
            return None
        return self.conversation.up_to(last)

    @property
    def reference(self) -> str | None:
        """The text of the last learned answer; None for plain text, or where the answer is only tool calls.

        Without its thought, also where that is in the text, in `<think>` tags before the answer.
        """
        if self.conversation is None or (last := self.conversation.last_answer) is None:
            return None
        content = self.conversation.messages[last].content
        return None if content is None else split_tags(content)[1]

    @property
    def thought(self) -> str | None:
        """What comes before the last learned answer as its thought, in a field or in its text; None without one."""
        if self.conversation is None or (last := self.conversation.last_answer) is None:
            return None
        message = self.conversation.messages[last]
        return message.reasoning or split_tags(message.content or "")[0]

    @property
    def last_answer_only(self) -> Example:
        """The same with all answers but the last as context."""
        if self.conversation is None or (last := self.conversation.last_answer) is None:
            return self
        messages = tuple(
            message.model_copy(update={"weight": 0}) if message.is_learned and place != last else message
            for place, message in enumerate(self.conversation.messages)
        )
        return self.model_copy(update={"conversation": self.conversation.model_copy(update={"messages": messages})})

    @property
    def learned_bytes(self) -> int:
        """UTF-8 bytes of all text that is learned: the denominator of bits per byte."""
        return self.learned_bytes_with(None)

    def learned_bytes_with(self, reasoning: bool | None) -> int:
        """`learned_bytes` where thoughts are learned or not, unless a turn says otherwise; None learns them."""
        if self.conversation is None:
            return len((self.text or "").encode())
        learned = (message for message in self.conversation.messages if message.is_learned)
        return sum(len(_learned_text(message, reasoning).encode()) for message in learned)


def _learned_text(message: Message, reasoning: bool | None) -> str:
    calls = "".join(str(call.get("function", {}).get("arguments", "")) for call in message.tool_calls)
    learns = reasoning if message.learn_reasoning is None else message.learn_reasoning
    if learns is False:
        return split_tags(message.content or "")[1] + calls
    return (message.reasoning or "") + (message.content or "") + calls


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """Token ids and the loss mask of one example.

    Attributes:
        id: the id of its row.
        input_ids: int32 array of length T.
        loss_mask: T bytes; 1 at position t means that token t is learned, i.e. predicted from the tokens before t.
            Position 0 is never 1.
        num_truncated_tokens: tokens cut off the end.
        is_wanted: whether what is learned is to become more likely or less; None where it is not stated.
        is_replayed: whether it is a general row, trained against forgetting.
        has_thought: whether an answer holds a thought.
        skips_thought: whether one continues without a thought where the prompt lets the model think.
        is_joined: whether its answers were joined into one sequence, though the template needs one for each.
        differs: how earlier answers of a joined row differ from what inference would show of them.
        target: what a task head learns of the row: the numbers of its classes, or its number. Empty without a head.
    """

    id: str
    input_ids: array[int]
    loss_mask: bytes
    num_truncated_tokens: int = 0
    is_wanted: bool | None = None
    is_replayed: bool = False
    has_thought: bool = False
    skips_thought: bool = False
    is_joined: bool = False
    differs: tuple[str, ...] = ()
    target: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return len(self.input_ids)

    @property
    def num_trained_tokens(self) -> int:
        """How many tokens have loss mask 1."""
        return self.loss_mask.count(1)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the last learned answer; all of them where nothing is learned."""
        # The position behind the last 0 that comes before the last 1: where the last run of learned tokens begins.
        return self.loss_mask.rfind(0, 0, self.loss_mask.rfind(1) + 1) + 1 if 1 in self.loss_mask else self.num_tokens


def shareable_tokens(row: TokenisedExample) -> int:
    """How many tokens from the start may be shared: up to the first learned one, and never all of them.

    The prediction of the first learned token comes from the token before it, which may be shared: each row adds its own
    loss there.
    """
    first = row.loss_mask.find(1)
    return min(row.num_tokens - 1, first if first >= 0 else row.num_tokens)


def common_beginning(rows: Sequence[TokenisedExample], *, are_cut: bool = False) -> int:
    """How many tokens all rows begin with, if they may be shared (`shareable_tokens`).

    Learned tokens are shared then, too: those that one of them learns are context of the others.

    Args:
        rows: the rows of a group.
        are_cut: they are the answers of one conversation.
    """
    # As bytes: comparing slices of memory takes no copy and no loop in Python. Prefixes agree up to a point, so bisect.
    starts = [memoryview(row.input_ids).cast("B") for row in rows]
    size = memoryview(rows[0].input_ids).itemsize
    low, high = 0, min(row.num_tokens - 1 if are_cut else shareable_tokens(row) for row in rows)
    while low < high:
        middle = (low + high + 1) // 2
        if all(start[: middle * size] == starts[0][: middle * size] for start in starts[1:]):
            low = middle
        else:
            high = middle - 1
    return low


class PackedProfile(FrozenModel):
    """How documents fall into blocks.

    Attributes:
        block_tokens: tokens of a block.
        num_blocks: blocks of the split.
        num_documents: documents of the split.
        num_cut: documents that are longer than a block, cut into several pieces.
        num_pieces: pieces of all documents.
        filled_fraction: tokens as a share of what all blocks could hold, 0 to 1.
    """

    block_tokens: int
    num_blocks: int
    num_documents: int
    num_cut: int
    num_pieces: int
    filled_fraction: float


class DatasetProfile(FrozenModel):
    """What a split holds, in numbers; the plan is made from this and the report shows it.

    Attributes:
        split: what the rows are for.
        file: the file that they come from.
        sha256: its digest.
        shape: how its rows are read.
        shape_reason: why they are read so.
        num_rows: rows of the file.
        num_examples: what a step counts: rows, pairs or blocks that are left.
        num_dropped: rows that are left out as too long.
        dropped_ids: the ids of these.
        num_truncated: rows that are cut at the context.
        truncated_ids: the ids of these.
        num_tokens: tokens of all examples.
        num_trained_tokens: tokens that are learned.
        max_tokens: tokens of the longest sequence.
        mean_tokens: tokens of a sequence on average.
        packed: how documents fill blocks, where the examples are blocks; None where they are rows.
        num_cut: rows of which the template needs a sequence for each answer.
        num_sequences: sequences of all rows, where any is cut; 0 where none is.
        num_with_thought: sequences whose answer holds a thought.
        num_skipping_thought: sequences that answer without a thought where the prompt lets the model think.
        num_joined: rows whose answers were joined into one sequence (data.reset_template).
        joined_differs: how earlier answers of these differ from what inference shows, the most frequent first.
    """

    split: Split
    file: str
    sha256: str
    shape: Shape
    shape_reason: str
    num_rows: int
    num_examples: int
    num_dropped: int
    dropped_ids: tuple[str, ...] = ()
    num_truncated: int = 0
    truncated_ids: tuple[str, ...] = ()
    num_tokens: int
    num_trained_tokens: int
    max_tokens: int
    mean_tokens: float
    packed: PackedProfile | None = None
    num_cut: int = 0
    num_sequences: int = 0
    num_with_thought: int = 0
    num_skipping_thought: int = 0
    num_joined: int = 0
    joined_differs: tuple[str, ...] = ()

    @property
    def unused_fields(self) -> set[str]:
        """Unset fields of this split: plans from before these fields keep their hash."""
        names = (
            "packed", "num_cut", "num_sequences", "num_with_thought", "num_skipping_thought", "num_joined",
            "joined_differs",
        )  # fmt: skip
        return {name for name in names if not getattr(self, name)}

    @property
    def rows_per_example(self) -> float:
        """Tokenised rows of an example on average; 0 where there are none."""
        total = self.mean_tokens * self.num_examples
        return self.num_tokens / total if total else 0.0

    @property
    def sequences_per_example(self) -> float:
        """How many sequences an example is on average, of rows that are not pairs."""
        return self.num_sequences / self.num_examples if self.num_sequences and self.num_examples else 1.0


def reading_notes(splits: Iterable[tuple[str, str]]) -> list[str]:
    """What a person should know of how files were read: columns under other names, unused ones, delimiter, encoding.

    Args:
        splits: file and `shape_reason` of each split. One note a file, none where every column is a field of its shape.
    """
    noted = [f"{PurePath(file).name}: {reason}" for file, reason in splits if " (" in reason or "; read as" in reason]
    return list(dict.fromkeys(noted))


def sequence_notes(profile: DatasetProfile) -> list[tuple[str, str]]:
    """What a person should know of how the template wrote a split, each with a short name for it."""
    found, name = [], profile.split.replace("_", "-")
    if profile.num_cut:
        what = f"{profile.num_examples:,} {name} rows are {profile.num_sequences:,} sequences"
        found.append(("cut_rows", f"{what}; {profile.num_cut:,} of them have one for each answer: {CUT_REASON}"))
    if profile.num_joined:
        found.append(
            ("joined_rows", joined_note(profile.num_joined, profile.num_examples, profile.joined_differs, name))
        )
    if profile.num_skipping_thought:
        of = profile.num_sequences or profile.num_examples
        found.append(
            (
                "answers_without_thought",
                f"{profile.num_skipping_thought:,} of {of:,} {name} sequences answer at once where the prompt lets the "
                "model think: trained on many of these it may stop thinking. Give the rows thoughts "
                "(reasoning_content); or, for answers without, turn thinking off in training and in use by an option "
                "of the template (data.template_options, such as enable_thinking: false) where it has one",
            )
        )
    return found


def joined_note(num_joined: int, num_rows: int, differs: Sequence[str], name: str = "") -> str:
    """A sentence about rows whose answers were joined into one sequence.

    Args:
        num_joined: rows that were joined.
        num_rows: all rows.
        differs: how the prompts of later answers differ from those of inference; empty where they do not.
        name: of the split; empty for rows without one.
    """
    rows = f"{name} rows" if name else "rows"
    seen = "each answer follows exactly the prompt of inference"
    if differs:
        seen = f"later answers see the earlier ones not as inference shows them, but with {'; '.join(differs)}"
    return (
        f"{num_joined:,} of {num_rows:,} {rows} are one sequence where the template needs one for each answer "
        f"(data.reset_template: training): {seen}"
    )


def profile_tokens(
    rows: Sequence[TokenisedExample], *, rows_per_example: int = 1, row_counts: Sequence[int] = ()
) -> dict[str, Any]:
    """The counts of a profile: totals, longest, mean (tokens a row, of which an example may have several).

    Args:
        rows: the rows that are counted.
        rows_per_example: rows of each example, where all have equally many.
        row_counts: how many rows each example is, where that differs, because the template needs a row for each answer.
    """
    found = dict.fromkeys(
        ("num_tokens", "num_trained_tokens", "max_tokens", "num_with_thought", "num_skipping_thought", "num_joined"), 0
    )
    differs: Counter[str] = Counter()
    for row in rows:  # one pass: the rows may be in files
        found["num_tokens"] += row.num_tokens
        found["num_trained_tokens"] += row.num_trained_tokens
        found["max_tokens"] = max(found["max_tokens"], row.num_tokens)
        found["num_with_thought"] += row.has_thought
        found["num_skipping_thought"] += row.skips_thought
        found["num_joined"] += row.is_joined
        differs.update(row.differs)
    return {
        **found,
        "num_examples": len(row_counts) or len(rows) // rows_per_example,
        "mean_tokens": found["num_tokens"] / len(rows) if len(rows) else 0.0,
        # row_counts is empty where no row was cut: then there are no sequences to tell apart from rows.
        "num_cut": sum(num > 1 for num in row_counts),
        "num_sequences": len(rows) if row_counts else 0,
        # The three most frequent ways in which joined answers differ from what inference shows.
        "joined_differs": tuple(name for name, _ in differs.most_common(3)),
    }


Judging = Literal["validation", "held_out"]
"""The sides that judge: one while a run trains, one at its end."""
_NO_PROOF_DO: Final = "to have that proved, split the rows first and train with the sides of the split"


class SplitProvenance(FrozenModel):
    """A proved split whose training side a run learns from.

    Attributes:
        covers: The judging sides of the run that are sides of the same split, by their digests.
        rows_sha256: SHA-256 of the file that was split.
        num_rows: Rows that were read back for the proof.
        seed: Of the split.
        near_threshold: Jaccard similarity from which rows are near-duplicates; None where they were not searched for.
        grouped_by: The field whose values stay on one side; None where rows have no groups.
        exact, near_duplicate, same_group: Texts, clusters and groups on more than one side; None where not searched.
        same_prompt: Rows of the judging sides whose prompt the training side answers otherwise.
    """

    covers: tuple[Judging, ...]
    rows_sha256: str
    num_rows: int
    seed: int
    near_threshold: float | None = None
    grouped_by: str | None = None
    exact: int = 0
    near_duplicate: int | None = None
    same_group: int | None = None
    same_prompt: int = 0

    @property
    def summary(self) -> str:
        """What is on two sides of the split, as text."""
        parts = [f"{self.exact} texts"]
        if self.near_duplicate is not None:
            parts.append(f"{self.near_duplicate} near-duplicates (Jaccard {self.near_threshold:g} and up)")
        if self.same_group is not None:
            parts.append(f"{self.same_group} groups")
        unsearched = "" if self.near_duplicate is not None else "; near-duplicates were not searched for"
        return f"{', '.join(parts)} are on two sides of its {self.num_rows:,} rows{unsearched}"


def provenance_from(document: dict[str, Any], train_sha256: str, judging: dict[Judging, str]) -> SplitProvenance | None:
    """The provenance of files by the document of a split (`split.json`); None where the split did not make them.

    Args:
        document: The contents of split.json.
        train_sha256: Digest of the training file.
        judging: Digest of each file that judges.

    Raises:
        KeyError, TypeError, ValueError: the document is no split.json.
    """
    # By content: sides may have been renamed or moved since the split.
    made = {side["sha256"]: name for name, side in document["sides"].items()}
    # An evaluation file that equals the training file is not a separate side.
    covers = tuple(name for name, digest in judging.items() if digest in made and digest != train_sha256)
    if train_sha256 not in made or not covers:
        return None
    proof = document["proof"]
    return SplitProvenance(
        covers=covers,
        rows_sha256=document["sha256"],
        num_rows=proof["num_rows"],
        seed=document["seed"],
        near_threshold=document["near_threshold"],
        grouped_by=document["grouped_by"],
        exact=proof["exact"],
        near_duplicate=proof["near_duplicate"],
        same_group=proof["same_group"],
        same_prompt=proof["same_prompt"],
    )


def coverage(data: DataPlan) -> str:
    """Whether the proof of a split covers the held-out rows of a run, in a sentence; empty where it has none."""
    if data.held_out is None:
        return ""
    if is_proved(data):
        assert data.split is not None
        return f"the held-out rows are a side of a proved split: {data.split.summary}"
    if data.held_out.sha256 == data.train.sha256:
        return (
            "no proof of a split covers the held-out rows: they are a share of the training rows; equal rows "
            f"stay together, near-duplicates do not; {_NO_PROOF_DO}"
        )
    return (
        "no proof of a split covers the held-out rows: rows that are also in the training file are searched for, "
        f"near-duplicates of these are not; {_NO_PROOF_DO}"
    )


def is_proved(data: DataPlan) -> bool:
    """Whether the proof of a split covers the held-out rows."""
    return data.split is not None and "held_out" in data.split.covers
