"""What was forgotten, in a sentence with its figures."""

from __future__ import annotations

import pytest

from luthier.core.evaluation import Comparison, Metric, SystemResult, VerdictWord
from luthier.ml.evaluation.tasks_verdict import forgetting


def system(name: str, bits: float, rows: int = 40) -> SystemResult:
    metric = Metric(value=bits, low=bits - 0.1, high=bits + 0.1, unit="bits a byte", higher_is_better=False)
    return SystemResult(name=name, model="tiny", num_samples=rows, metrics={"bits_per_byte": metric}, seconds=1.0)


def compared(difference: float, word: VerdictWord) -> Comparison:
    return Comparison(
        baseline="base", candidate="tuned", metric="bits_per_byte", difference=difference,
        low=difference - 0.02, high=difference + 0.02, p_value=0.01, verdict=word,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "word", "opening"),
    [
        (1.1, "worse", "It forgot:"),
        (0.9, "better", "It forgot nothing"),
        (1.01, "not distinguishable", "No forgetting"),
    ],
)
def test_the_sentence(after: float, word: VerdictWord, opening: str) -> None:
    found = forgetting(
        [system("base", 1.0), system("tuned", after)], [compared(after - 1, word)], file="g.jsonl", sha256="0" * 64
    )
    assert found.word == word
    assert found.sentence.startswith(opening)
    assert f"from 1.000 to {after:.3f} ({after - 1:+.3f}, 95% interval {after - 1.02:+.3f} to " in found.sentence
    assert "on 40 general rows bits" in found.sentence


def test_what_it_rests_on_is_said() -> None:
    systems = [system("base", 1.0, 20), system("tuned", 1.1, 20)]
    found = forgetting(
        systems, [compared(0.1, "worse")], file="g", sha256="0" * 64, num_leaked=3, num_in_file=50
    ).sentence
    assert "20 general rows of 50" in found
    assert "3 of them were trained on" in found
