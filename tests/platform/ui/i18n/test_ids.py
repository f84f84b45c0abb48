"""Ids that pages show as words: checks, repairs, kinds of personal data and reasons have a German word each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import pytest

from luthier.core.results.audit import Severity
from luthier.ml.data.audit.run import BUILT_IN
from luthier.ml.data.personal_data.recognizers import KINDS
from luthier.ml.data.repair.request import ACTIONS
from luthier.ml.data.synthesis.synthesise import ReasonCode
from luthier.platform.ui.i18n.catalog import catalog


@pytest.mark.parametrize(
    "ids",
    [BUILT_IN, ACTIONS, KINDS, get_args(ReasonCode), get_args(Severity)],
    ids=["checks", "repairs", "kinds", "reasons", "severities"],
)
def test_each_id_has_a_german_word(ids: Iterable[str]) -> None:
    words = [one.replace("_", " ") for one in ids]
    assert [word for word in words if catalog("de").sentence(word, str) is None] == []
