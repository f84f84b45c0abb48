from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from luthier.features.evaluations.label_scores import untrained_base
from luthier.features.evaluations.systems import measure_kl
from luthier.features.models.resolve import Candidate


def test_another_run_that_fully_tuned_the_model_is_not_the_base_to_be_distant_from() -> None:
    base = Candidate(
        name="tiny",
        model_name="tiny",
        model_path="/models/tiny",
        adapter_path=None,
        template="auto",
        precision="float32",
        device="cpu",
        context_length_tokens=512,
    )
    earlier = replace(base, name="run-20261124-093000-aaaaaa", model_path="/runs/earlier/model")
    judged = replace(base, name="run-20261125-093000-bbbbbb", model_path="/runs/judged/model")
    nothing: Any = None

    def notes(beside: Candidate) -> tuple[str, ...]:
        # Other tokens than those of the judged model: nothing is loaded, but a base is told apart by its note.
        rows: Any = [
            SimpleNamespace(tokenised=[SimpleNamespace(input_ids=[number], num_trained_tokens=1)]) for number in (1, 2)
        ]
        return measure_kl(nothing, [beside, judged], rows, nothing)[1]

    assert notes(earlier) == ()
    checkpoint = replace(earlier, name="ft:tiny:default::one:ckpt-step-5")
    assert notes(checkpoint) == ()
    assert [untrained_base([one, judged]) for one in (earlier, checkpoint, base)] == [None, None, 0]
    assert len(notes(base)) == 1
