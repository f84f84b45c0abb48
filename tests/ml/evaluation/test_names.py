import pytest

from luthier.core.evaluation import SystemResult
from luthier.ml.evaluation.verdict_text import listed, system_title


def system(name, *, model="m", shots=0, adapter=None):
    return SystemResult(
        name=name, model=model, adapter=adapter, num_few_shot=shots, num_samples=1, metrics={}, seconds=1.0
    )


def test_few_shot_systems_are_named_after_their_model():
    base, shots = system("base"), system("base + 1 examples", shots=1)
    tuned, other = system("tuned", adapter="a"), system("x + 4 examples", model="x", shots=4)
    results = [base, shots, tuned, other]
    assert system_title(tuned, results) == "the tuned model"
    assert system_title(shots, results) == "the base model with 1 example in its prompt"
    assert system_title(other, results) == "x + 4 examples"


@pytest.mark.parametrize(("words", "said"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_lists(words, said):
    assert listed(list(words)) == said
