"""Transcripts with times: who said what, without times, numbers, styles and repeated captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.ml.data.readers import transcript
from luthier.ml.data.readers.document import Document


def _read(folder: Path, text: str, name: str = "a.vtt") -> Document:
    path = folder / name
    path.write_bytes(text.encode())
    return transcript.read(path)


def _said(folder: Path, text: str, name: str = "a.vtt") -> list[str]:
    (section,) = _read(folder, text, name).sections
    return section.text.split("\n\n")


TEAMS = """\ufeffWEBVTT

NOTE made by a program
over two lines

STYLE
::cue { color: red }

5a1c-0
00:00:01.000 --> 00:00:03.000
<v Anna Öz>The meter shows</v>

5a1c-1
00:00:03.000 --> 00:00:05.000 align:start
<v Anna Öz>nothing &amp; <i>blinks</i>.</v>

5a1c-2
01:05.500 --> 01:07.000
<v.loud Ben>Which one?
2024
</v>
"""


def test_voices_of_a_meeting_are_paragraphs_with_their_speaker(tmp_path: Path) -> None:
    for text in (TEAMS, TEAMS.replace("\n", "\r\n")):
        found = _read(tmp_path, text)
        assert found.sections[0].text == "Anna Öz: The meter shows nothing & blinks.\n\nBen: Which one? 2024"
        assert found.warnings == ("2 notes and styles of the file left out",)


def test_subrip_with_numbers_styles_and_pauses(tmp_path: Path) -> None:
    text = (
        "1\n00:00:01,000 --> 00:00:02,000\n{\\an8}<font color=red>Change it</font>\n\n2\n"
        "00:00:02,100 --> 00:00:03,000\nat once. 3 < 4\n\n"
        "3\n00:00:09,000 --> 00:00:10,000\nThen close it.\n\n4\n00:00:10,000 --> 00:00:11,000\n"
        "- Really?\n- Yes.\n\n5\n00:00:11,000 --> 00:00:12,000\nBen Ott: Fine.\n"
    )
    assert _said(tmp_path, text, "a.srt") == [
        "Change it at once. 3 < 4",
        "Then close it.",
        "- Really?",
        "- Yes.",
        "Ben Ott: Fine.",
    ]


def test_lines_that_captions_repeat_while_they_roll_are_left_out_and_counted(tmp_path: Path) -> None:
    text = (
        "WEBVTT\nKind: captions\n\n00:00.000 --> 00:02.000\nhello<00:00.500><c> there</c>\n\n"
        "00:02.000 --> 00:02.010\nhello there\n\n00:02.010 --> 00:04.000\nhello there\nand<00:03.000><c> welcome</c>\n"
    )
    found = _read(tmp_path, text)
    assert found.sections[0].text == "hello there and welcome"
    assert found.warnings == ("2 lines left out that captions repeat while they roll",)


def test_what_somebody_says_twice_stays(tmp_path: Path) -> None:
    text = "WEBVTT\n\n00:00.000 --> 00:01.000\nNo.\n\n00:01.000 --> 00:02.000\nNo.\n"
    assert _said(tmp_path, text) == ["No. No."]


def test_a_file_without_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line with times"):
        _read(tmp_path, "WEBVTT\n\nhello\n")


@given(
    st.lists(
        st.text(alphabet="ab <>:-&", min_size=1, max_size=12).filter(lambda line: "a" in line), min_size=1, max_size=5
    )
)
def test_no_letter_that_was_said_is_lost(lines: list[str]) -> None:
    cues = [transcript._Cue(number, number + 1.0, [line]) for number, line in enumerate(lines)]
    paragraphs, _ = transcript._paragraphs(cues, is_rolling=False)
    tags = sum(
        len(found.group()) - len(found.group().replace("a", ""))
        for line in lines
        for found in transcript._TAG.finditer(line)
    )
    assert "".join(paragraphs).count("a") == sum(line.count("a") for line in lines) - tags
