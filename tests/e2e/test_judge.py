"""SmolLM2-135M is too small to judge. Held against people it must be found out: its figures may not enter a gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.assessed import write_ratings

from luthier.core.results.human_eval import RatingRow

pytestmark = pytest.mark.e2e

# A question, a good answer, and one that nobody takes for better.
PAIRS = (
    ("What is the capital of France?", "Paris.", "France is a country in Europe."),
    ("How many days has a week?", "Seven.", "A week has five days."),
    ("Which wood is the front of a violin made of?", "Of spruce.", "Of steel, mostly."),
    ("What do bees make?", "Honey and wax.", "Bees make a noise that bears like to hear."),
    ("Name a colour of the rainbow.", "Red.", "The rainbow is seen after rain."),
    ("What is 12 plus 7?", "19", "It is 21."),
    ("When does water boil at sea level?", "At 100 degrees Celsius.", "Water boils in a kettle, as a rule."),
    ("Who wrote Hamlet?", "William Shakespeare.", "Hamlet is a prince of Denmark."),
    ("What is the opposite of hot?", "Cold.", "Hotter."),
    ("Is a whale a fish?", "No, whales are mammals.", "Yes, since it swims."),
    ("How do I open a glued joint of a violin?", "With a thin warm knife, slowly.", "Strike it with a hammer."),
    ("What is a group of wolves called?", "A pack.", "Wolves are grey."),
    ("Which planet is nearest to the sun?", "Mercury.", "The moon is."),
    ("Spell the word 'cat' backwards.", "tac", "cat"),
    ("How many legs has a spider?", "Eight.", "Six, as all insects have."),
    ("What is ice made of?", "Frozen water.", "Of cold."),
    ("Name the largest ocean.", "The Pacific.", "Oceans are large and blue."),
    ("Translate 'merci' from French.", "Thank you.", "It is a French word."),
    ("What do I do when milk smells sour?", "Throw it away.", "Drink it at once."),
    ("Which month follows May?", "June.", "April, or May again."),
)


def ratings(file: Path) -> Path:
    """Three people who read; one of them is not sure about every tenth pair. Sides take turns."""
    rows = []
    for item, (prompt, good, bad) in enumerate(PAIRS):
        is_first = item % 2 == 0
        answers = (good, bad) if is_first else (bad, good)
        for rater in ("ann", "bob", "eve"):
            word = "tie" if rater == "eve" and item % 10 == 9 else "a" if is_first else "b"
            document = {
                "panel_id": "panel-1", "kind": "pairwise", "item": item, "row_id": f"r{item}", "rater": rater,
                "prompt": prompt, "system_a": "one", "answer_a": answers[0], "system_b": "two",
                "answer_b": answers[1], "preference": word,
            }  # fmt: skip
            rows.append(RatingRow.model_validate(document))
    return write_ratings(rows, file)


@pytest.mark.drill
def test_a_judge_that_is_too_small_is_found_out(luthier: Callable[..., Any], model: Any, tmp_path: Path) -> None:
    (found,) = luthier("judge", "calibrate", "--ratings", ratings(tmp_path / "ratings.csv"), "--judge", model.name)
    assert found["no_verdict"] == {}, "it is kept to the form, whatever it thinks"
    assert found["num_items"] == len(PAIRS)
    assert not found["may_enter_gate"]
    assert found["agreement"]["value"] < 0.4 < found["people"]["value"]
    assert any("must be at least 0.4" in reason for reason in found["reasons"])
    bias = found["bias"]
    assert bias["num_flipped"] > len(PAIRS) / 2, "it goes by the place, not by the answer"
