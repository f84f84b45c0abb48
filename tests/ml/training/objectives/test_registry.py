"""Every objective that is declared has a class for the loop."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.import_string import import_string
from luthier.core.plan import ObjectivePlan
from luthier.ml.training.objectives.rules import RULES, load_objective


@pytest.mark.parametrize("name", RULES)
def test_every_implementation_can_be_loaded(name: str) -> None:
    assert isinstance(import_string(RULES[name].implementation), type)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"'dpoo'[\s\S]*sft"):
        load_objective(ObjectivePlan.model_construct(name="dpoo"))
