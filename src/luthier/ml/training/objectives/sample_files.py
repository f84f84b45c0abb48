"""A few answers of each step, kept in the run's folder so that a person can see what is rewarded.

    samples/step-00000040.jsonl     all answers to the first two prompts of step 40, one a line

A step that is taken again after a kill writes the same bytes again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from luthier.ml.charts.page import replace_text
from luthier.ml.inference.models.chat_template import ChatTemplate
from luthier.ml.training.objectives.groups import Group

FOLDER: Final = "samples"
NUM_PROMPTS: Final = 2


def keep_samples(folder: Path, step: int, groups: Sequence[Group], template: ChatTemplate) -> None:
    """Write the answers to the first prompts of a step. Raises StorageFullError."""
    lines = []
    for group in groups[:NUM_PROMPTS]:
        first = group.answers[0]
        ids = first.row.input_ids[: first.sample.num_prompt_tokens].tolist()
        prompt = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for answer in group.answers:
            line = {
                "step": step,
                "row_id": answer.sample.row_id,
                "prompt": prompt,
                "output": answer.sample.attempt.text,
                "reward": answer.grade.reward,
                "parts": answer.grade.parts,
                "advantage": answer.advantage,
                "num_new_tokens": answer.sample.attempt.num_new_tokens,
                "finish_reason": "stop" if answer.sample.attempt.ended else "length",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    replace_text(folder / FOLDER / f"step-{step:08d}.jsonl", "".join(lines))
