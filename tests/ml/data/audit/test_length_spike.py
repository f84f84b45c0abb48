"""Limits on the length of texts, against what smooth tails give: false alarms and recall, simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl
import pytest

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.truncated_completion import check, find_spike

Lengths = Callable[[np.random.Generator, int], np.ndarray]

LENGTHS: Final[dict[str, Lengths]] = {
    "lognormal": lambda rng, num: rng.lognormal(np.log(220), 0.5, num),
    "gamma": lambda rng, num: rng.gamma(3, 60, num),
    "normal": lambda rng, num: rng.normal(150, 12, num),
    "exponential": lambda rng, num: 10 + rng.exponential(90, num),
    "bounded": lambda rng, num: 280 * rng.beta(3, 1, num),
}


def _prose(rng: np.random.Generator) -> str:
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size)) for size in rng.integers(2, 11, 500)]
    return " ".join(words[at] + (". " if rng.random() < 0.06 else "") for at in rng.integers(0, 500, 20_000))


def _texts(rng: np.random.Generator, prose: str, lengths: np.ndarray, end: str) -> list[str]:
    lengths = np.maximum(lengths.astype(int), 5)
    starts = rng.integers(0, len(prose) - int(lengths.max()), len(lengths))
    texts = (prose[start : start + length] for start, length in zip(starts, lengths, strict=True))
    return [text[:-1].strip() + (end or "x") for text in texts]


@pytest.mark.parametrize("end", [".", ""])
def test_natural_files_are_left_alone_and_planted_limits_are_found(end: str) -> None:
    rng = np.random.default_rng(7)
    prose = _prose(rng)
    num_files = num_alarms = num_planted = num_found = 0
    for draw in LENGTHS.values():
        for number in range(40):
            texts = _texts(rng, prose, draw(rng, 400), end)
            num_files += 1
            num_alarms += find_spike(pl.Series(texts)) is not None
            share = (0.05, 0.1, 0.25, 0.4)[number % 4]
            limit = int(np.quantile([len(text) for text in texts], 1 - share))
            if limit < 100:
                continue
            found = find_spike(pl.Series([text[:limit] for text in texts]))
            num_planted += 1
            num_found += found is not None and (found.unit, found.length) == ("characters", limit)
    assert num_files == 200
    assert num_alarms <= 0.01 * num_files
    assert num_planted > 100
    assert num_found >= 0.95 * num_planted


def test_large_files_whose_lengths_rise_to_their_end_are_left_alone() -> None:
    rng = np.random.default_rng(3)
    texts = _texts(rng, _prose(rng), 280 * rng.beta(6, 1, 40_000), "")
    assert find_spike(pl.Series(texts)) is None


def test_bytes_and_words_have_limits_too() -> None:
    rng = np.random.default_rng(5)
    prose = _prose(rng)
    texts = _texts(rng, prose, LENGTHS["gamma"](rng, 400), ".")
    cut = [" ".join(text.split(" ")[:40]) for text in texts]
    found = find_spike(pl.Series(cut))
    assert found is not None
    assert (found.unit, found.length) == ("words", 40)
    accents = [text.replace("e", "é").replace("a", "漢") for text in texts]
    cut = [text.encode()[:300].decode(errors="ignore") for text in accents]
    found = find_spike(pl.Series(cut))
    assert found is not None
    assert (found.unit, found.length) == ("bytes", 300)


def test_a_few_longer_texts_do_not_hide_a_limit() -> None:
    rng = np.random.default_rng(9)
    texts = _texts(rng, _prose(rng), LENGTHS["lognormal"](rng, 400), ".")
    found = find_spike(pl.Series([text[:254] if at > 2 else text + "more" * 100 for at, text in enumerate(texts)]))
    assert found is not None
    assert (found.unit, found.length) == ("characters", 254)


@pytest.mark.parametrize(
    "text",
    [
        "Thank you for your order {:06}, which has left our house today and will be with you within three days.",
        "Thank you for your order, which has left our house and will be with you in some days; its number: X{:05}-B",
    ],
)
def test_forms_that_a_template_fills_are_complete(text: str) -> None:
    others = [
        f"{'Some other answer of a length of its own. ' * (1 + at % 3)}{'and so on ' * (at % 7)}." for at in range(60)
    ]
    assert find_spike(pl.Series([*others, *(text.format(at) for at in range(40))])) is None


def test_complete_stock_answers_were_cut_by_nothing(pairs: Callable[..., AuditRequest]) -> None:
    own = [f"This is a complete answer of usual length, number {at}." for at in range(40)]
    stock = [
        "Thank you for your message. We have passed it on to the team that is responsible, which will be in touch...",
        "Please have a look at the page of questions and answers first, where most of what people ask is answered so",
        "We are sorry that this has happened to you, and we will make up for it as soon as we know what went wrong o",
    ]
    assert {len(text) for text in stock} == {107}
    assert check(pairs(*own, *(text for text in stock for _ in range(6)))) == []


def test_a_prompt_and_a_plain_text_may_be_cut_too(
    pairs: Callable[..., AuditRequest], audited: Callable[..., AuditRequest]
) -> None:
    rng = np.random.default_rng(11)
    texts = _texts(rng, _prose(rng), LENGTHS["lognormal"](rng, 400), ".")
    limit = int(np.quantile([len(text) for text in texts], 0.75))
    for column, rows in (
        ("prompt", [{"text": text[:limit], "label": "ab"[at % 2]} for at, text in enumerate(texts)]),
        ("text", [{"text": text[:limit]} for text in texts]),
    ):
        found = check(audited(*rows))
        assert not isinstance(found, Skipped)
        (finding,) = found
        assert (finding.details["column"], finding.details["unit"], finding.details["limit"]) == (
            column,
            "characters",
            limit,
        )
        assert 90 <= finding.count <= 110
        assert f"exactly as long as the longest: {limit} characters" in finding.message
    assert isinstance(check(audited(*({"text": text} for text in texts))), Skipped)
