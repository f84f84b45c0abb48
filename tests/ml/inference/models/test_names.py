"""How a base model is asked for."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError
from luthier.ml.inference.models.catalog import parse


@pytest.mark.parametrize("asked", ["Qwen/Qwen3-0.6B", "qwen/qwen3-0.6b", "Qwen/Qwen3-0.6B@main"])
def test_a_repository_of_the_catalogue_is_answered_with_its_short_name(asked: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        parse(asked)
    assert caught.value.do == "use qwen3-0.6b, its name in the catalogue"


def test_another_repository_is_answered_with_how_to_ask_a_hub() -> None:
    with pytest.raises(NotFoundError) as caught:
        parse("org/tiny")
    assert caught.value.do == "if it is on the hub, use hub:org/tiny"


def test_no_name_is_not_the_current_folder() -> None:
    """As of a variable of the shell that is not set."""
    with pytest.raises(NotFoundError, match="base model ''"):
        parse("")
