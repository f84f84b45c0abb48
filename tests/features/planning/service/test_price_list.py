"""The prices that the pages show are those that plans reckon with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.features.planning.prices_pages import price_list
from luthier.ml.planning.devices import load_prices
from luthier.platform.home.context import Context


def test_every_price_has_a_title_and_serving_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_SERVING_USD_PER_MILLION_NEW_TOKENS", "0.6")
    with Context.open(tmp_path / "home") as context:
        found = price_list(context)
    assert found.table == load_prices()
    assert all(nonempty(found.titles[name] for name in found.table.devices))
    assert (found.usd_per_million_prompt_tokens, found.usd_per_million_new_tokens) == (None, 0.6)
