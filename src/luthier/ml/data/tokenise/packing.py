"""Documents of any length become blocks to train on: long ones are cut, short ones share a block, nothing is lost.

    document of 2.4 blocks      [########] [########] [###.....]
    documents of like length                          [### ## #]   each its own row, none sees another

A block holds a limited number of tokens, so that every step learns about as many. Its pieces are side by side as rows
(or end to end where the device is faster so): attention never crosses from one document into another, which it would
where they are simply joined. Pieces that share a block are of like length, so that rows side by side need little
padding.

Cutting only what is longer than a block, and filling blocks with whole pieces: Ding et al., 2024, "Fewer Truncations
Improve Language Modeling", arXiv:2404.10830, section 3, there with the fullest block first.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from luthier.core.dataset import Example, PackedProfile, TokenisedExample
from luthier.core.errors import RecipeError
from luthier.core.ports import Progress
from luthier.ml.data.files.sequences import selected
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.template import Template
from luthier.ml.data.tokenise.token_store import Units, lengths_of, row_writer
from luthier.ml.data.tokenise.tokenised_rows import tokenise_all

MIN_BLOCK_TOKENS = 16
_MARGIN = 8


@dataclass(frozen=True, slots=True)
class Packed:
    """Blocks of pieces, those of the longest pieces first.

    Attributes:
        rows: all pieces, block after block; a tuple, or a sequence in files where they are larger than memory.
        row_counts: pieces of each block.
        profile: counts, and how full the blocks are.
    """

    rows: Sequence[TokenisedExample]
    row_counts: tuple[int, ...]
    profile: PackedProfile

    @property
    def blocks(self) -> Units:
        """The pieces of each block, together at most `block_tokens` tokens."""
        return Units(self.rows, row_counts=self.row_counts)


def pack(
    documents: Sequence[TokenisedExample],
    block_tokens: int,
    *,
    beginning: int | None = None,
    spill: Spill | None = None,
) -> Packed:
    """Cut documents and fill blocks. Equal documents give equal blocks.

    Args:
        documents: tokenised texts of any length.
        block_tokens: most tokens of a block, 16 or more.
        beginning: id of the token that the model wants before every text (BOS), put before each piece of a cut
            document, too; None where there is none.
        spill: the budget of memory, and where pieces beyond it go; None keeps all of them in memory.

    Raises:
        RecipeError: blocks of fewer than 16 tokens.
        StorageFullError: the pieces need more memory than the budget and more disk than there is.
    """
    if block_tokens < MIN_BLOCK_TOKENS:
        raise RecipeError(
            f"blocks of {block_tokens} tokens",
            expected=f"{MIN_BLOCK_TOKENS} or more",
            do="raise training.max_length_tokens",
        )
    writer, num_cut = row_writer(spill), 0
    for document in documents:
        pieces = _pieces(document, block_tokens, beginning)
        num_cut += len(pieces) > 1
        for piece in pieces:
            writer.append(piece)
    made = writer.sequence()
    lengths = lengths_of(made)
    # A stable sort, so equal lengths keep the order of the documents and blocks are reproducible.
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    counts: list[int] = []
    room = 0
    for num_tokens in lengths[order].tolist():
        # Next-fit, not best-fit: only the last block is open, so that the pieces of a block are of similar length.
        if num_tokens > room:
            counts.append(0)
            room = block_tokens
        counts[-1] += 1
        room -= num_tokens
    rows = selected(made, order)
    return Packed(
        tuple(rows) if isinstance(rows, list) else rows,
        tuple(counts),
        PackedProfile(
            block_tokens=block_tokens,
            num_blocks=len(counts),
            num_documents=len(documents),
            num_cut=num_cut,
            num_pieces=len(rows),
            filled_fraction=int(lengths.sum()) / (block_tokens * len(counts)) if counts else 0.0,
        ),
    )


def pack_texts(
    examples: Sequence[Example], template: Template, block_tokens: int, progress: Progress, spill: Spill | None = None
) -> Packed:
    """Tokenise texts and pack them into blocks.

    Args:
        examples: plain texts.
        template: encodes them.
        block_tokens: most tokens of a block, 16 or more.
        progress: shows the tokenising.
        spill: the budget of memory, and where rows beyond it go; None keeps all of them in memory.

    Raises:
        DataError: a text has nothing to learn.
        RecipeError: blocks of fewer than 16 tokens.
        StorageFullError: the rows need more memory than the budget and more disk than there is.
    """
    made = tokenise_all(
        examples, template, max_length_tokens=sys.maxsize, overlong="error", progress=progress, spill=spill
    )
    # A first token that covers no character was added by the tokenizer: it is the BOS token.
    ids, offsets = template.encode("a")
    return pack(made.examples, block_tokens, beginning=ids[0] if offsets[0] == (0, 0) else None, spill=spill)


def piece_of(row_id: str) -> str:
    """The id of the document that a piece was cut from."""
    return re.sub(r" part \d+ of \d+$", "", row_id)


def split_text(example: Example, template: Template, most_tokens: int) -> tuple[Example, ...]:
    """A text that is longer than `most_tokens` tokens as several, which joined are the text again.

    For judging, where a text must fit into a model's context. A piece that another follows ends without the
    end-of-text token.
    """
    text = example.text or ""
    ids, offsets = template.encode(text)
    if len(ids) < most_tokens:  # one is left for the end-of-text token
        return (example,)
    # Cuts only where no token shares a character with the one before it (bytes of one character overlap).
    clean = [start for (_, end), (start, _) in pairwise(offsets) if start >= end > 0]
    # Reversed, so that the first of several tokens at one character wins.
    tokens_at = {start: number for number, (start, _) in reversed(list(enumerate(offsets)))}
    cuts, since = [0], 0
    for place, following in zip(clean, [*clean[1:], None], strict=True):
        # Cut here if the piece up to the next possible cut would no longer fit.
        ahead = len(ids) if following is None else tokens_at[following]
        if ahead - since > most_tokens - _MARGIN:  # cut again, a text may have a few tokens more than it had
            cuts.append(place)
            since = tokens_at[place]
    pieces = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return tuple(
        example.model_copy(
            update={"id": f"{example.id} part {n} of {len(pieces)}", "text": piece, "goes_on": n < len(pieces)}
        )
        for n, piece in enumerate(pieces, 1)
    )


def _pieces(document: TokenisedExample, block_tokens: int, beginning: int | None) -> list[TokenisedExample]:
    """The document in as few pieces as there must be, each but the last one full.

    Of each piece all but its first token is learned: nothing precedes that. A piece of one token would teach
    nothing, so the last one has two at least.
    """
    if document.num_tokens <= block_tokens:
        return [document]
    ids = document.input_ids
    # The document's own BOS is taken off and put before each piece alike.
    first = 1 if beginning is not None and ids[0] == beginning else 0
    ids = ids[first:]
    ahead = array("i", [] if beginning is None else [beginning])
    room = block_tokens - len(ahead)
    cuts = list(range(0, len(ids), room))
    # Only without BOS: with it a piece of one token still has two, one of which is learned.
    if not ahead and len(ids) - cuts[-1] == 1:
        cuts[-1] -= 1
    made = [ahead + ids[a:b] for a, b in zip(cuts, [*cuts[1:], len(ids)], strict=True)]
    return [
        TokenisedExample(f"{document.id} part {n} of {len(made)}", piece, b"\0" + b"\1" * (len(piece) - 1))
        for n, piece in enumerate(made, 1)
    ]
