"""`luthier data answer`."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.testing.openai_server import OpenAIServer, serving


def test_what_was_answered_and_refused_is_told(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text('{"question": "Which wood?"}\n{"question": "Why?"}\n')
    with serving(OpenAIServer(answer=lambda asked: "Spruce." if "wood" in asked else "")) as url:
        arguments = ("data", "answer", rows, "--teacher", f"{url}#m", "-o", output, "--map", "prompt=question")
        document = luthier(*arguments, "--json").document
        text = luthier(*arguments, "--force", "--price-input", "1", "--price-output", "2").out
    assert (document["num_answers"], document["refused"]) == (1, {"empty": 1})
    assert json.loads(output.read_text())["messages"][-1] == {"role": "assistant", "content": "Spruce."}
    for words in (
        f"{output}: 1 answer to 2 rows of {rows}",
        f"refused  1, listed in {output}.refused.jsonl",
        "0 prompt + 0 new in 0 requests; from the cache",
        "0.0000 USD: the teacher's new tokens",
    ):
        assert words in text
