"""Dialogues of hh_rlhf (Bai et al., 2022, arXiv:2204.05862, MIT licence) as preference rows that training takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from luthier.ml.data.files.bad_field import BadFieldError
from luthier.ml.data.rows.preference_rows import preference_sides


def hh_rows(file: Path, *, most_characters: int = 1200) -> list[dict[str, Any]]:
    """Rows of message lists (prompt, chosen, rejected) in the file's order.

    Left out: rows that Luthier refuses (an empty side, an answer with turns of another dialogue in it), and dialogues
    of more than so many characters.
    """
    rows = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            if max(len(fields["chosen"]), len(fields["rejected"])) > most_characters:
                continue
            try:
                chosen, rejected = preference_sides(fields)
            except BadFieldError:
                continue
            turns = [{"role": message.role, "content": message.content} for message in chosen.messages]
            answer = {"role": "assistant", "content": rejected.messages[-1].content}
            rows.append({"prompt": turns[:-1], "chosen": turns[-1:], "rejected": [answer]})
    return rows
