"""Which kinds a repair masks, and how."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS, MaskedKinds
from luthier.ml.data.repair.request import masked_kinds


def test_by_default_what_is_certain_of_the_proved_kinds() -> None:
    assert masked_kinds() == MaskedKinds(DEFAULT_KINDS, "precision", ())
    assert not {"street", "name"} & set(DEFAULT_KINDS)


@pytest.mark.parametrize("name", ["street", "streets"])
def test_a_named_kind_is_masked_whole(name: str) -> None:
    made = masked_kinds((name, "phones"), ("ips",))
    assert made.kinds == ("email", "iban", "card", "ssn", "national_id", "phone", "street")
    assert (made.profile, made.every) == ("precision", ("phone", "street"))


@pytest.mark.parametrize(
    ("mask", "leave", "kind", "words"),
    [
        (("adresses",), (), NotFoundError, "no kind of personal data 'adresses'"),
        (("phone",), ("phones",), RequestError, "phone is in both"),
        ((), DEFAULT_KINDS, RequestError, "no kind of personal data is left"),
    ],
)
def test_what_cannot_be_asked(mask: tuple[str, ...], leave: tuple[str, ...], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        masked_kinds(mask, leave)


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="presidio is installed here")
def test_names_that_nothing_can_find_are_refused() -> None:
    with pytest.raises(RequestError, match="names cannot be masked: presidio is not installed"):
        masked_kinds(("names",))
