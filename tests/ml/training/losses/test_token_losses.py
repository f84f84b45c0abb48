"""The losses of given target tokens: values by hand, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.errors import OverlongError, RequestError
from luthier.ml.training.losses.token_losses import LOSSES, MAX_TARGETS, Datum, checked, find_loss

LOG_P = torch.tensor([-0.5, -1.0, -2.0])
GIVEN = {
    "weights": torch.tensor([1.0, 0.0, 0.5]),
    "logprobs": torch.tensor([-1.0, -1.0, -1.0]),
    "advantages": torch.tensor([2.0, -1.0, -1.0]),
}
RATIOS = [math.exp(0.5), 1.0, math.exp(-1.0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", 0.5 + 0.5 * 2.0),
        ("importance_sampling", -(2 * RATIOS[0] - RATIOS[1] - RATIOS[2])),
        # The first ratio is above 1.2 and the last one below 0.8; the minimum takes the clipped one in both.
        ("ppo", -(2 * 1.2 - 1.0 - 0.8)),
        # Only ratios above 4 are clipped.
        ("cispo", -(2 * RATIOS[0] * -0.5 + 1.0 + RATIOS[2] * 2.0)),
    ],
)
def test_the_sum_by_hand(name: str, expected: float) -> None:
    loss, settings = find_loss(name, {})
    assert float(loss.compute(LOG_P, GIVEN, settings)) == pytest.approx(expected, rel=1e-6)


def test_cispo_clips_where_a_client_says_so() -> None:
    loss, settings = find_loss("cispo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})
    found = float(loss.compute(LOG_P, GIVEN, settings))
    assert found == pytest.approx(-(2 * 1.2 * -0.5 + 1.0 + 0.8 * 2.0), rel=1e-6)
    loss, settings = find_loss("cispo", {})
    far = torch.tensor([2.0, -1.0, -9.0])  # ratios of e^3, 1 and e^-8
    expected = -(2 * 4.0 * 2.0 + 1.0 + 9 * math.exp(-8))
    assert float(loss.compute(far, GIVEN, settings)) == pytest.approx(expected, rel=1e-6)


def test_no_gradient_flows_through_the_clipped_ratio_of_cispo() -> None:
    log_p = LOG_P.clone().requires_grad_()
    loss, settings = find_loss("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 10.0})
    loss.compute(log_p, GIVEN, settings).backward()
    assert log_p.grad is not None
    expected = [-ratio * advantage for ratio, advantage in zip(RATIOS, [2.0, -1.0, -1.0], strict=True)]
    assert log_p.grad.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_clipped_token_of_ppo_has_no_gradient() -> None:
    log_p = LOG_P.clone().requires_grad_()
    loss, settings = find_loss("ppo", {"clip_high_threshold": 1.1})
    loss.compute(log_p, GIVEN, settings).backward()
    assert log_p.grad is not None
    assert log_p.grad.tolist() == [0.0, pytest.approx(1.0), 0.0]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gspo", {}, "'gspo'"),
        ("cross_entropy", {"beta": 1.0}, "'beta'"),
        ("ppo", {"clip_low_threshold": float("nan")}, "nan"),
        ("ppo", {"clip_low_threshold": "low"}, "'low'"),
        ("ppo", {"clip_low_threshold": 1.5}, "above clip_high_threshold"),
    ],
)
def test_an_unknown_loss_or_setting_is_refused_by_name(name: str, settings: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        find_loss(name, settings)


def datum(num: int = 3, **inputs: Any) -> Datum:
    given = {"target_tokens": np.arange(num)} | inputs
    return Datum(np.arange(num, dtype=np.int32), {name: np.asarray(value) for name, value in given.items()})


def check(one: Datum, name: str = "cross_entropy") -> Datum:
    return checked(one, 4, LOSSES[name], vocabulary=10, context_tokens=8)


def test_missing_weights_are_one() -> None:
    assert check(datum()).inputs["weights"].tolist() == [1.0, 1.0, 1.0]


def test_several_targets_a_token_are_taken() -> None:
    found = check(datum(target_tokens=[[1, 2], [3, 4], [5, 6]], weights=np.ones((3, 2), dtype=np.float32)))
    assert found.targets.shape == (3, 2)


@pytest.mark.parametrize(
    ("one", "name", "words"),
    [
        (datum(weights=np.ones(2)), "cross_entropy", r"datum 4 has weights of shape \[2\]"),
        (datum(target_tokens=[1, 2]), "cross_entropy", r"3 tokens and target_tokens of shape \[2\]"),
        (Datum(np.zeros(0, dtype=np.int32), {}), "cross_entropy", "datum 4 has no tokens"),
        (Datum(np.zeros(2, dtype=np.int32), {}), "cross_entropy", "datum 4 has no target_tokens"),
        (datum(), "ppo", "datum 4 has no logprobs"),
        (datum(mask=np.ones(3)), "cross_entropy", "'mask'"),
        (datum(weights=[1.0, math.inf, 1.0]), "cross_entropy", "not finite"),
        (datum(target_tokens=[1, 2, 10]), "cross_entropy", "token id 10 in target_tokens of datum 4"),
        (datum(target_tokens=[1, -1, 3]), "cross_entropy", "token id -1"),
    ],
)
def test_wrong_data_is_refused_with_its_place(one: Datum, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check(one, name)


def test_so_many_targets_that_memory_runs_out_are_refused() -> None:
    one = Datum(np.zeros(3, dtype=np.int32), {"target_tokens": np.zeros((3, MAX_TARGETS // 3 + 1), dtype=np.int64)})
    with pytest.raises(RequestError, match="datum 4 has 262,146 target_tokens"):
        check(one, "cross_entropy")


def test_a_sequence_beyond_the_context_is_refused() -> None:
    with pytest.raises(OverlongError, match="datum 4 has 9 tokens"):
        check(datum(9))
