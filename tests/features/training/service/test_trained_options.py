"""A model that was trained with options of its template is asked with them, and a difference is said."""

from __future__ import annotations

import logging

import pytest

from luthier.core.stream import Served, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import WARNING_HEADER, _warning_header
from luthier.features.serving.models import Routed
from luthier.features.serving.service import as_trained, template_option_warning

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
    serving._warn_once.cache_clear()
    request = TextRequest.model_validate({"text": "a", **wishes})
    with caplog.at_level(logging.WARNING, logger="luthier.service"):
        for _ in range(2):
            as_trained(TRAINED, request)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == is_told  # once, however often it is asked
    assert all('trained with the template options {"enable_thinking": false}' in one for one in told)
    header = _warning_header(Routed("m", "m", TRAINED), [TextRequest(text="b"), request], "transformers", None)
    assert (WARNING_HEADER in header) == is_told


def test_an_adapter_that_was_trained_without_options_says_so_and_a_base_model_does_not() -> None:
    request = TextRequest(text="a", template_options={"tone": "é\n"})
    said = template_option_warning(PLAIN, request)
    assert said is not None
    assert "trained with the chat template's own defaults" in said
    assert template_option_warning(PLAIN, TextRequest(text="a")) is None
    assert template_option_warning(PLAIN.model_copy(update={"adapter_path": None}), request) is None
    value = _warning_header(Routed("m", "m", PLAIN), [request], "transformers", None)[WARNING_HEADER]
    assert value.isascii()
    assert "\n" not in value
