"""Where a proof draws its lines: how far is too far, when two texts are the same, what is not recommended."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.ml.export.conftest import MakeSource
from tests.vacuous import nonempty

from luthier.core.dataset import Example
from luthier.core.estimate import Estimate
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ParityReport
from luthier.ml.export.exporters.registry import FORMATS, WHOLE, format_of
from luthier.ml.export.parity import NOTEWORTHY_LOSS_NATS, compare, parity_warnings
from luthier.ml.export.runtimes.protocol import LogProbabilities
from luthier.ml.export.runtimes.transformers_runtime import TransformersRuntime
from luthier.ml.export.source_side import ObservedSource, observe_source


class Shifted(TransformersRuntime):
    """A true export whose likelihoods are shifted and whose greedy text is changed at one place.

    What the export itself computes is the same for every shift, and is computed once.
    """

    shift = 0.0
    other_token: int | None = None
    place = 0

    @cache  # noqa: B019 - there is one for all tests
    def computed(self, ids: tuple[int, ...], start: int) -> LogProbabilities:
        return super().log_probabilities(ids, start)

    @cache  # noqa: B019
    def written(self, ids: tuple[int, ...], num_new_tokens: int) -> tuple[int, ...]:
        return tuple(super().greedy(ids, num_new_tokens))

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        return self.computed(tuple(ids), start) + np.float32(self.shift)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        written = list(self.written(tuple(ids), num_new_tokens))
        if self.other_token is None or self.place >= len(written):
            return written
        return [*written[: self.place], self.other_token, *[7] * (num_new_tokens - self.place - 1)]


@pytest.fixture(scope="module")
def runtime(merged: Path) -> Shifted:
    return Shifted(merged)


@pytest.fixture(scope="module")
def observed(make_source: MakeSource, examples: list[Example]) -> ObservedSource:
    return observe_source(make_source(), examples[:2], SilentProgress())


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shift=st.floats(-1, 1))
def test_what_lies_within_the_bound_passes_and_nothing_else(
    shift: float, runtime: Shifted, observed: ObservedSource
) -> None:
    runtime.shift, runtime.other_token = shift, None
    report = compare(observed, runtime, "merged", "bfloat16", SilentProgress())
    assert report.max_difference_nats == pytest.approx(abs(shift), abs=1e-3)
    if abs(abs(shift) - 0.5) > 1e-3:
        assert any("Log-probabilities differ" in reason for reason in report.reasons) == (abs(shift) > 0.5)


def test_a_near_tie_counts_as_equal_and_a_clear_choice_does_not(runtime: Shifted, observed: ObservedSource) -> None:
    ids, nats = observed.answers[0].greedy_top.ids[0], observed.answers[0].greedy_top.nats[0]
    gap = float(nats[0] - nats[1])
    runtime.shift, runtime.other_token, runtime.place = 0.0, int(ids[1]), 0
    tight = compare(observed, runtime, "merged", "float32", SilentProgress())
    assert gap > 0.01
    assert tight.num_texts_equal < len(observed.answers)
    assert "likelier by" in tight.reasons[-1]
    never = next(token for token in range(384) if token not in ids)
    runtime.other_token = never
    assert not compare(observed, runtime, "merged", "bfloat16", SilentProgress()).passed


class EndsEarlier(TransformersRuntime):
    """A true export whose runtime ends answers at one more token, or gives up for no reason after some."""

    more_ends: frozenset[int] = frozenset()
    most = 1_000_000

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        written = super().greedy(ids, num_new_tokens)[: self.most]
        return written[: next((n for n, token in enumerate(written) if token in self.more_ends), None)]


def test_an_end_token_of_the_runtime_alone_is_a_warning_and_a_lost_end_is_not(
    merged: Path, observed: ObservedSource
) -> None:
    runtime, written = EndsEarlier(merged), observed.answers[0].greedy_ids
    token = next(one for one in written if one not in runtime.end_ids)
    runtime.more_ends = frozenset({token})
    runtime.end_ids |= runtime.more_ends
    report = compare(observed, runtime, "merged", "float32", SilentProgress())
    assert report.passed, report.reasons
    assert report.earlier_ends == (token,)
    assert f"ends an answer at token {token}, too" in " ".join(parity_warnings(report))
    cut = EndsEarlier(merged)
    cut.most = 1
    report = compare(observed, cut, "merged", "float32", SilentProgress())
    assert "greedy text" in " ".join(report.reasons)
    assert report.earlier_ends == ()


@pytest.mark.parametrize(
    ("value", "low", "is_named"),
    [
        (NOTEWORTHY_LOSS_NATS * 2, 0.001, True),
        (NOTEWORTHY_LOSS_NATS * 2, -0.001, False),
        (NOTEWORTHY_LOSS_NATS / 2, 0.001, False),
    ],
)
def test_a_sure_and_noteworthy_loss_is_not_recommended(value: float, low: float, is_named: bool) -> None:
    report = ParityReport(
        format="gguf",
        precision="q4_k_m",
        runtime="llama.cpp",
        runtime_version="1",
        num_prompts=32,
        num_prompts_same_tokens=32,
        num_texts_equal=3,
        max_difference_nats=1.0,
        mean_difference_nats=0.1,
        bound_nats=None,
        nll_increase_nats=Estimate(value=value, low=low, high=value + 0.01),
        source_perplexity=3.0,
        export_perplexity=3.2,
        passed=True,
    )
    warnings = parity_warnings(report)
    assert bool(warnings) == is_named
    if is_named:
        assert "gguf q4_k_m is not recommended for this model" in warnings[0]


def test_every_bound_has_its_reason_and_fewer_bits_have_none() -> None:
    bounds = {
        (name, precision): (how.bound_nats, how.why)
        for name, one in FORMATS.items()
        for precision, how in one.precisions.items()
        if precision in WHOLE
    }
    assert all(nonempty(bound is not None and bound > 0 and len(why) > 20 for bound, why in bounds.values()))
    gguf = format_of("gguf").precisions
    assert gguf["q4_k_m"].bound_nats is None
    assert bounds["gguf", "float32"] < bounds["gguf", "float16"] < bounds["gguf", "bfloat16"]
