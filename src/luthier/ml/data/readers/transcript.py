"""Transcripts with times, as meeting and video programs save them: WebVTT (`.vtt`) and SubRip (`.srt`)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.core.text.counted import counted
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.text import decode

_STAMP: Final = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING: Final = re.compile(rf"^\s*{_STAMP}\s*-->\s*{_STAMP}")
_VOICE: Final = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_INLINE_STAMP: Final = re.compile(rf"<{_STAMP}>")
_TAG: Final = re.compile(
    rf"</?(?:[vcibu]|ruby|rt|lang|font|s)(?:[.\s][^<>]*)?>|<{_STAMP}>|\{{\\[^{{}}]*\}}", re.IGNORECASE
)
_OTHER_BLOCKS: Final = ("NOTE", "STYLE", "REGION")
# A line that begins so is another speaker's, as programs without voice tags write it.
_SPEAKER: Final = re.compile(r"^(?:[-–—>]\s?\S|[^\W\d_][^:]{0,39}:\s)")
_PAUSE_SECONDS: Final = 4.0
"""After a longer one, without a speaker, a paragraph begins."""


@dataclass(slots=True)
class _Cue:
    begin: float
    end: float
    lines: list[str]


def read(path: Path) -> Document:
    """What was said, a paragraph for each time that the speaker changes, without the times.

    Raises:
        DataError: binary data, or no line with times.
    """
    text, warnings = decode(path.read_bytes())
    cues, num_others = _cues(text.split("\n"))
    if not cues:
        raise DataError(
            "no line with times, such as 00:01.000 --> 00:04.000",
            expected="a transcript as WebVTT or SubRip writes it",
            do="save a text without times as .txt",
        )
    # Captions that a program makes while somebody speaks show each line twice: as it comes, and above the next one.
    is_rolling = _INLINE_STAMP.search(text) is not None
    paragraphs, num_repeated = _paragraphs(cues, is_rolling=is_rolling)
    notes = [*warnings]
    if num_others:
        notes.append(f"{counted(num_others, 'note or style', 'notes and styles')} of the file left out")
    if num_repeated:
        notes.append(f"{counted(num_repeated, 'line')} left out that captions repeat while they roll")
    said = "\n\n".join(paragraphs)
    return Document((Section(said),) if said else (), tuple(notes))


def _cues(lines: list[str]) -> tuple[list[_Cue], int]:
    """The texts with their times, and how many blocks are comments, styles or regions."""
    cues: list[_Cue] = []
    num_others, is_other = 0, False
    for number, line in enumerate(lines):
        if (found := _TIMING.match(line)) is not None:
            is_other = False
            cues.append(_Cue(_seconds(found.groups()[:4]), _seconds(found.groups()[4:]), []))
        elif not line.strip():
            is_other = False
        elif line.split(maxsplit=1)[0] in _OTHER_BLOCKS and (number == 0 or not lines[number - 1].strip()):
            num_others += 1
            is_other = True
        elif cues and not is_other and not _is_name_of_cue(lines, number):
            cues[-1].lines.append(line.strip())
    return cues, num_others


def _is_name_of_cue(lines: list[str], number: int) -> bool:
    """Whether a line is the number or name of the next text: between a blank line and one with times."""
    is_last = number + 1 == len(lines)
    is_below_blank = number == 0 or not lines[number - 1].strip()
    return is_below_blank and not is_last and _TIMING.match(lines[number + 1]) is not None


def _paragraphs(cues: list[_Cue], *, is_rolling: bool) -> tuple[list[str], int]:
    paragraphs: list[str] = []
    speaker, before, num_repeated = "", "", 0
    end = 0.0
    for cue in cues:
        is_after_pause = cue.begin - end > _PAUSE_SECONDS
        for who, line in _spoken(cue):
            if is_rolling and line == before:
                num_repeated += 1
                continue
            if who != speaker or not paragraphs:
                paragraphs.append(f"{who}: {line}" if who else line)
            elif (is_after_pause and not who) or _SPEAKER.match(line):
                paragraphs.append(line)
            else:
                paragraphs[-1] += f" {line}"
            speaker, before, is_after_pause = who, line, False
        end = cue.end
    return paragraphs, num_repeated


def _spoken(cue: _Cue) -> Iterator[tuple[str, str]]:
    """Each line with its speaker, who is named by a voice tag and speaks until the next one."""
    who = ""
    for line in cue.lines:
        if (voice := _VOICE.search(line)) is not None:
            who = html.unescape(voice[1]).strip()
        text = " ".join(html.unescape(_TAG.sub("", line)).split())
        if text:
            yield who, text


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
