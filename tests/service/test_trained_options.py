"""A model that was trained with options of its template is asked with them, and a difference is told in the log."""

from __future__ import annotations

import logging

import pytest

from luthier.core.stream import Served, TextRequest
from luthier.service.serving import as_trained

PLAIN = Served(path="m", sha256="s", adapter_path="a")
TRAINED = PLAIN.model_copy(update={"template_options": (("enable_thinking", False),)})


def test_a_model_without_options_is_asked_as_it_is() -> None:
    request = TextRequest(text="a", template_options={"enable_thinking": True})
    assert as_trained(PLAIN, request) == (PLAIN, request)


def test_options_of_the_training_go_with_the_request_and_not_with_the_base() -> None:
    served, request = as_trained(TRAINED, TextRequest(text="a"))
    assert served == PLAIN
    assert (request.trained_options, request.template_options) == ({"enable_thinking": False}, {})


@pytest.mark.parametrize(
    ("wishes", "is_told"),
    [
        ({}, False),
        ({"template_options": {"enable_thinking": False}}, False),
        ({"template_options": {"enable_thinking": True}}, True),
        ({"template_options": {"other": 1}}, True),
        ({"reasoning_effort": "high"}, True),
    ],
)
def test_a_difference_is_told_in_the_log(
    wishes: dict[str, object], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="luthier.service"):
        as_trained(TRAINED, TextRequest.model_validate({"text": "a", **wishes}))
    told = [record.getMessage() for record in caplog.records]
    assert bool(told) == is_told
    assert all("trained with the template options {'enable_thinking': False}" in one for one in told)
