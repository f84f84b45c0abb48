"""A pair of format and precision is known, or refused with what would be right."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.ml.export.exporters.registry import FORMATS, choose_precision, format_of, needed_bytes


def test_each_format_has_a_precision_of_its_own(make_source):
    for name, known in nonempty(FORMATS.items()):
        assert choose_precision(name, None, make_source()) in known.precisions
    assert choose_precision("merged", None, make_source(precision="bfloat16", adapter_path=None)) == "bfloat16"
    assert choose_precision("merged", None, make_source(precision="float32")) == "float32"
    assert choose_precision("gguf", None, make_source()) == "float16"
    assert choose_precision("gguf", "q4_k_m", make_source()) == "q4_k_m"


def test_a_small_update_is_not_rounded_away_by_default(make_source):
    assert choose_precision("merged", None, make_source(precision="bfloat16")) == "float16"


def test_an_unknown_pair_is_refused_with_the_format_that_has_it(make_source):
    with pytest.raises(RequestError, match="--quantise q4_k_m for the format merged") as caught:
        choose_precision("merged", "q4_k_m", make_source())
    assert "float32, float16, bfloat16" in caught.value.expected
    assert "gguf" in caught.value.do
    with pytest.raises(RequestError, match="--quantise q3 for the format gguf") as caught:
        choose_precision("gguf", "q3", make_source())
    assert "leave --quantise out" in caught.value.do
    with pytest.raises(RequestError, match="--to keras"):
        format_of("keras")


def test_fewer_bits_need_less_room():
    assert needed_bytes("merged", "bfloat16", 1000) == 2000
    assert needed_bytes("gguf", "q4_k_m", 1000) < needed_bytes("gguf", "float16", 1000)
