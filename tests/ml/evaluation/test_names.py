import pytest

from luthier.core.evaluation import SystemResult
from luthier.ml.evaluation.plain_names import plain_name
from luthier.ml.evaluation.result_views import base_of
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


def test_a_fully_tuned_run_beside_the_judged_one_is_not_called_the_untuned_model():
    # Neither has an adapter, and both are of the same model.
    earlier, judged = system("run-20261124-093000-aaaaaa"), system("run-20261125-093000-bbbbbb")
    assert plain_name(judged, [earlier, judged]) == "the tuned model"
    assert plain_name(earlier, [earlier, judged]) == earlier.name
    own = system("m")
    assert base_of([earlier, own, judged], judged.name) == "m"
    assert base_of([system("acme-support"), own, judged], judged.name) == "m"


def test_a_fully_tuned_checkpoint_beside_the_judged_one_is_not_called_the_untuned_model():
    earlier, judged = system("ft:m:default::one:ckpt-step-1"), system("ft:m:default::one:ckpt-step-2")
    assert base_of([earlier, judged], judged.name) is None
    assert plain_name(judged, [earlier, judged]) == "the tuned model"
    assert plain_name(earlier, [earlier, judged]) == earlier.name
    assert base_of([earlier, system("m"), judged], judged.name) == "m"
