"""Answers that are stored batch by batch: work that was stopped goes on behind them, with the same result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import StoppedError
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.decode import Decoder
from luthier.ml.inference.stored_answers import AnswerFile, continuations_of
from luthier.ml.inference.transformers_engine import TransformersEngine

SILENT = SilentProgress()
PROMPTS = [
    Prompt(text=f"{'maple ' * (n % 4)}{n}", max_new_tokens=4 + n % 5, temperature=n % 2, seed=n) for n in range(40)
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_work_goes_on_with_the_same_batches_and_the_same_result(
    tiny: Path, tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, too, where the rows of a batch decide the last bits: batches are those of the whole call."""
    whole = TransformersEngine.open(str(tiny), dtype=precision, batch_tokens=200)
    expected = whole.generate(PROMPTS, SILENT)
    ran: list[int] = []
    run = Decoder.run

    def counted(self: Decoder, requests: Any, *more: Any) -> Any:
        ran.append(len(requests))
        return run(self, requests, *more)

    monkeypatch.setattr(Decoder, "run", counted)
    stops = iter([None] * 9 + ["no time"] * 99)
    engine = TransformersEngine.open(str(tiny), dtype=precision, batch_tokens=200, stop=lambda: next(stops))
    engine.stored_answers = AnswerFile(tmp_path / "answers").of_engine("tiny")
    with pytest.raises(StoppedError):
        engine.generate(PROMPTS, SILENT)
    kept = AnswerFile(tmp_path / "answers")
    num_kept = kept.num_answers
    assert 0 < num_kept < len(PROMPTS)
    ran.clear()
    engine = TransformersEngine.open(str(tiny), dtype=precision, batch_tokens=200)
    engine.stored_answers = kept.of_engine("tiny")
    assert engine.generate(PROMPTS, SILENT) == expected
    assert sum(ran) == len(PROMPTS) - num_kept
    # Once all are there, nothing is computed.
    ran.clear()
    assert engine.generate(PROMPTS, SILENT) == expected
    assert ran == []


def test_answers_count_for_the_same_call_of_the_same_engine_alone(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers")
    known, keep = continuations_of(file.of_engine(("a", 1)), PROMPTS)
    assert known == {}
    from luthier.ml.inference.decode import Continuation

    made = {3: Continuation([1, 2], 7, [-0.1, -1e-9]), 0: Continuation([5], None, [])}
    keep(made)
    again = AnswerFile(tmp_path / "answers")
    assert continuations_of(again.of_engine(("a", 1)), PROMPTS)[0] == made
    assert continuations_of(again.of_engine(("b", 1)), PROMPTS)[0] == {}
    assert continuations_of(again.of_engine(("a", 1)), PROMPTS[1:])[0] == {}
    assert again.of_engine(("a", 1))("text", PROMPTS).known == {}
    assert continuations_of(None, PROMPTS)[0] == {}


def test_a_line_that_a_kill_has_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    call = AnswerFile(path).of_engine("tiny")("text", PROMPTS)
    call.keep({0: "one", 1: "two"})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    again = AnswerFile(path).of_engine("tiny")("text", PROMPTS)
    assert again.known == {0: "one", 1: "two"}
    again.keep({2: "three"})
    counts = Counter(AnswerFile(path).of_engine("tiny")("text", PROMPTS).known.values())
    assert counts == {"one": 1, "two": 1, "three": 1}


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"[1]\n", b'{"call": "a"}\n', b"\xff\n"])
def test_what_follows_on_a_damaged_line_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "answers"
    call = AnswerFile(path).of_engine("tiny")("text", PROMPTS)
    call.keep({0: "one", 1: "two"})
    whole = path.read_bytes()
    path.write_bytes(whole + damage + whole)
    again = AnswerFile(path).of_engine("tiny")("text", PROMPTS)
    assert again.known == {0: "one", 1: "two"}
    again.keep({2: "three"})
    assert path.read_bytes().startswith(whole)
    assert AnswerFile(path).of_engine("tiny")("text", PROMPTS).known == {0: "one", 1: "two", 2: "three"}
