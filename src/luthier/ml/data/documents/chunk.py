"""Cut a text into chunks of a limited number of tokens, at the ends of sentences, with whole sentences as overlap.

A chunk that continues a table begins with the names of its columns, since values without them say nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.text.sentences import sentence_spans

CountTokens = Callable[[Sequence[str]], list[int]]
MIN_TOKENS = 16
# Hardly a tokenizer makes tokens of more characters on average: longer pieces are cut before they are counted.
_MAX_CHARACTERS_A_TOKEN = 32
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# A Markdown table: the names of its columns with the line below them, and its rows.
_TABLE: Final = re.compile(r"^(\|[^\n]*\n\|(?:[ \t]*:?-{3,}:?[ \t]*\|)+[ \t]*\n)((?:\|[^\n]*(?:\n|\Z))+)", re.MULTILINE)
_MOST_OF_A_CHUNK: Final = 4
"""Names of columns that take more than this part of a chunk are not repeated."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text.

    Attributes:
        text: its heading lines, the column names of a table that it continues, then text[start:end] of the whole.
        start: first character in the whole text.
        end: behind its last character.
        num_tokens: of `text`, as counted.
        num_overlap_characters: how many of its characters the chunk before holds, too.
        is_cut: it begins or ends within a sentence, which alone was longer than a chunk may be.
        num_headings_left_out: outer headings that did not fit into half of the chunk.
    """

    text: str
    start: int
    end: int
    num_tokens: int
    num_overlap_characters: int
    is_cut: bool
    num_headings_left_out: int


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Tables:
    """The tables of a text whose column names are repeated.

    Attributes:
        starts: where the rows of each begin, ascending.
        ends: where they end.
        headers: the lines with the names, with their ends.
        counts: tokens of these.
    """

    starts: Sequence[int]
    ends: Sequence[int]
    headers: Sequence[str]
    counts: Sequence[int]

    def at(self, start: int) -> tuple[str, int]:
        """The names that belong to a chunk that begins at a place, and their tokens; none outside of rows."""
        place = bisect_right(self.starts, start) - 1
        return (self.headers[place], self.counts[place]) if place >= 0 and start < self.ends[place] else ("", 0)


_NO_TABLES: Final = _Tables((), (), (), ())


def count_words(texts: Sequence[str]) -> list[int]:
    """How many words each text has; of Chinese, Japanese and Korean each character counts as one."""
    return [sum(1 for _ in _WORD.finditer(text)) for text in texts]


def check_sizes(max_tokens: int, overlap_tokens: int) -> None:
    """Check that chunks of such sizes can be made.

    Raises:
        RequestError: fewer than 16 tokens, or an overlap of more than half of a chunk.
    """
    if max_tokens < MIN_TOKENS:
        raise RequestError(
            f"chunks of {max_tokens} tokens", expected=f"at least {MIN_TOKENS}", do="ask for longer ones"
        )
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise RequestError(
            f"an overlap of {overlap_tokens} tokens in chunks of {max_tokens}",
            expected=f"0 to {max_tokens // 2}, half of a chunk",
            do="ask for less overlap or for longer chunks",
        )


def chunk(
    text: str, *, count_tokens: CountTokens, max_tokens: int, overlap_tokens: int, headings: Sequence[str] = ()
) -> list[Chunk]:
    """Chunks of `text` in order; together they hold every sentence of it.

    A chunk takes as many whole sentences as fit. A sentence that alone does not fit is cut at a line end, else between
    words, else between characters, and `is_cut` marks it. The sentences at the end of a chunk that have at most
    `overlap_tokens` in all begin the next one again. The headings come first, each on a line, and count as tokens;
    where they take more than half of a chunk, outer ones are left out, and all of them where even the last is too long.
    Then come the column names of a table that began in an earlier chunk, unless they take more than a quarter.

    Args:
        text: the whole text.
        count_tokens: tokens of each of several texts.
        max_tokens: most tokens of a chunk, its headings included.
        overlap_tokens: most tokens that a chunk repeats from the one before.
        headings: of the text, the outermost first.

    Raises:
        RequestError: fewer than 16 tokens, or an overlap of more than half of a chunk.
    """
    check_sizes(max_tokens, overlap_tokens)
    context, left_out = _context(headings, count_tokens, max_tokens // 2)
    room = max_tokens - (count_tokens([context])[0] if context else 0)
    tables = _tables(text, count_tokens, room // _MOST_OF_A_CHUNK)
    pieces = _pieces(text, count_tokens, room)
    if not pieces:
        return []
    # Counted with the blanks that follow, so that the sum of a run of pieces is close to what the run counts.
    ends = [piece.start for piece in pieces[1:]] + [len(text.rstrip())]
    counts = count_tokens([text[piece.start : end] for piece, end in zip(pieces, ends, strict=True)])
    chunks: list[Chunk] = []
    first = new = 0
    while new < len(pieces):
        named = tables
        last = _fill(counts, first, new, room - named.at(pieces[first].start)[1])
        body, num_tokens = _join(text, pieces, first, last, context, named, count_tokens)
        while num_tokens > max_tokens:
            # The parts of a text may have fewer tokens than the whole: leave out overlap first, then the last sentence.
            if first < new:
                first += 1
            elif last > new + 1:
                last -= 1
            elif named.at(pieces[first].start)[1]:
                named = _NO_TABLES  # a whole row is worth more than the names of its columns
            elif pieces[new].end - pieces[new].start > 1:
                halves = _halves(text, pieces[new])
                pieces[new : new + 1] = halves
                # The halves replace the piece in place; the loop continues with the first of them.
                counts[new : new + 1] = count_tokens([text[half.start : half.end] for half in halves])
                last = new + 1
            else:
                break
            body, num_tokens = _join(text, pieces, first, last, context, named, count_tokens)
        inside = pieces[first:last]
        chunks.append(
            Chunk(
                text=body,
                start=inside[0].start,
                end=inside[-1].end,
                num_tokens=num_tokens,
                num_overlap_characters=max(0, chunks[-1].end - inside[0].start) if chunks else 0,
                is_cut=any(piece.is_cut for piece in inside),
                num_headings_left_out=left_out,
            )
        )
        first, new = _overlap_from(counts, pieces, first, last, overlap_tokens), last
    return chunks


def _fill(counts: Sequence[int], first: int, new: int, room: int) -> int:
    """The end of the run that begins at `first`, takes `new` in any case, and has at most `room` tokens."""
    total, last = sum(counts[first : new + 1]), new + 1
    while last < len(counts) and total + counts[last] <= room:
        total, last = total + counts[last], last + 1
    return last


def _overlap_from(counts: Sequence[int], pieces: Sequence[_Piece], first: int, last: int, overlap: int) -> int:
    start, total = last, 0
    # Never the whole chunk again, and no parts of a cut sentence.
    while start - 1 > first and not pieces[start - 1].is_cut and total + counts[start - 1] <= overlap:
        start -= 1
        total += counts[start]
    return start


def _join(
    text: str,
    pieces: Sequence[_Piece],
    first: int,
    last: int,
    context: str,
    tables: _Tables,
    count_tokens: CountTokens,
) -> tuple[str, int]:
    start = pieces[first].start
    body = context + tables.at(start)[0] + text[start : pieces[last - 1].end]
    return body, count_tokens([body])[0]


def _tables(text: str, count_tokens: CountTokens, most: int) -> _Tables:
    found = list(_TABLE.finditer(text))
    counts = count_tokens([match[1] for match in found]) if found else []
    kept = [(match, num) for match, num in zip(found, counts, strict=True) if num <= most]
    matches, kept_counts = [match for match, _ in kept], [num for _, num in kept]
    starts, ends = [match.start(2) for match in matches], [match.end(2) for match in matches]
    return _Tables(starts, ends, [match[1] for match in matches], kept_counts)


def _context(headings: Sequence[str], count_tokens: CountTokens, most: int) -> tuple[str, int]:
    for left_out in range(len(headings)):
        context = "\n".join(headings[left_out:]) + "\n\n"
        if count_tokens([context])[0] <= most:
            return context, left_out
    return "", len(headings)


def _pieces(text: str, count_tokens: CountTokens, room: int) -> list[_Piece]:
    """The sentences, and parts of those that have more than `room` tokens."""
    # One token less: joined with a heading or a blank before it a sentence may have one more.
    fits, too_long = room - 1, _MAX_CHARACTERS_A_TOKEN * room
    # Pieces are counted in rounds, since one call for many texts is far faster than many calls.
    done: list[_Piece] = []
    spans = [_Piece(start, end, False) for start, end in sentence_spans(text)]
    while spans:
        short = [piece for piece in spans if piece.end - piece.start <= too_long]
        counts = count_tokens([text[piece.start : piece.end] for piece in short])
        done += [
            piece for piece, count in zip(short, counts, strict=True) if count <= fits or piece.end - piece.start == 1
        ]
        over = [
            piece for piece, count in zip(short, counts, strict=True) if count > fits and piece.end - piece.start > 1
        ]
        over += [piece for piece in spans if piece.end - piece.start > too_long]
        spans = [half for piece in over for half in _halves(text, piece)]
    return sorted(done, key=lambda piece: piece.start)


def _halves(text: str, piece: _Piece) -> list[_Piece]:
    """Two parts, cut at the line end, else the blank, else the character that is nearest to the middle."""
    # A blank is sought in the middle half only, so that each round shortens a piece by a quarter at least.
    middle, quarter = (piece.start + piece.end) // 2, max((piece.end - piece.start) // 4, 1)
    low, high = max(middle - quarter, piece.start + 1), min(middle + quarter, piece.end - 1)
    for find in ("\n", " ", "\t", "\u3000", "\u00a0"):
        before, after = text.rfind(find, low, middle), text.find(find, middle, high)
        found = [at for at in (before, after) if at >= 0]
        if found:
            middle = min(found, key=lambda at: abs(at - middle))
            break
    parts = []
    for start, end in ((piece.start, middle), (middle, piece.end)):
        body = text[start:end]
        if stripped := body.strip():
            offset = start + len(body) - len(body.lstrip())
            parts.append(_Piece(offset, offset + len(stripped), True))
    return parts
