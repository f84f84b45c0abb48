"""Quotes of runs that are only described: a config.json is all there is of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import ModelSourceError, RequestError
from luthier.features.planning.quotes import estimate_quote
from luthier.ml.planning.hypothetical_run import HypotheticalRun

REVIEWS = HypotheticalRun(num_rows=10_000, mean_tokens=200, epochs=1)


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    shape = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return tmp_path


def test_a_config_alone_is_enough(seven_billion: Path) -> None:
    quote = estimate_quote(seven_billion, REVIEWS, on="a100-80g:4")
    assert quote.prediction.fits
    assert quote.prediction.num_steps == 625
    assert quote.prediction.device.num_devices == 4
    assert quote.num_tokens == 2_000_000
    # 7B weights in bf16 are 13.5 GB, whatever else there is
    assert quote.prediction.peak_memory.weights_bytes == pytest.approx(6.74e9 * 2, rel=0.01)
    assert quote.prediction.usd is not None
    assert quote.prediction.usd.value > 0


def test_spot_is_cheaper(seven_billion: Path) -> None:
    usd = [
        estimate_quote(seven_billion, REVIEWS, on="h100", market=market).prediction.usd  # type: ignore[arg-type]
        for market in ("on_demand", "spot")
    ]
    assert usd[0] is not None
    assert usd[1] is not None
    assert usd[1].value < usd[0].value


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"has no config\.json"):
        estimate_quote(tmp_path, REVIEWS, on="h100")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        estimate_quote(tmp_path, REVIEWS, on="h100")


@pytest.mark.parametrize(("on", "told"), [("h10", "did you mean"), ("h100:0", "0 devices"), ("h100:64", "64 devices")])
def test_a_device_that_cannot_be_is_refused(seven_billion: Path, on: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        estimate_quote(seven_billion, REVIEWS, on=on)
