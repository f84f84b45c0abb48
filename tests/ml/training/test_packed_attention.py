"""FlexAttention over a row of several examples is attention over separate rows, by the blocks of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from luthier.ml.training import attention
from luthier.ml.training.attention import PackedRow, allowed_blocks, block_mask, causal_attention, packed_row, tokens_of
from luthier.ml.training.prefix_attention import PrefixLayout

CPU = torch.device("cpu")


def draw(layout: PrefixLayout, num_heads: int = 6, num_kv_heads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    num_tokens = sum(layout.prefix_tokens) + sum(layout.suffix_tokens)
    shapes = [(1, heads, num_tokens, 8) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)


def whole_mask(layout: PrefixLayout, window: int | None) -> NDArray[np.bool_]:
    """Which key each query may look at, pair by pair, from what the layout means."""
    tokens: list[tuple[int, int | None, int]] = []  # group, suffix (None in the beginning), position
    for group, size in enumerate(layout.prefix_tokens):
        tokens += [(group, None, place) for place in range(size)]
    for number, size in enumerate(layout.suffix_tokens):
        group = number // layout.num_suffixes
        tokens += [(group, number, layout.prefix_tokens[group] + place) for place in range(size)]
    allowed = np.zeros((len(tokens), len(tokens)), bool)
    for q, (group, own, at) in enumerate(tokens):
        for k, (other, whose, place) in enumerate(tokens):
            is_seen = group == other and (whose is None or whose == own) and place <= at
            allowed[q, k] = is_seen and (window is None or at - place < window)
    return allowed


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's own formula, uncompiled. On a CPU torch refuses its gradient, though the formula has one."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: torch_flex.flex_attention)


@pytest.mark.usefixtures("flex_on_cpu")
@pytest.mark.parametrize("window", [None, 40, 1000])
@pytest.mark.parametrize(
    "layout",
    [
        PrefixLayout((0,), (90, 20, 130, 41)),
        PrefixLayout((70,), (90, 20, 130, 41)),
        PrefixLayout((30, 0, 200), (9, 20, 130, 1, 40, 3)),
    ],
    ids=str,
)
def test_flex_attention_equals_attention_in_two_parts(window: int | None, layout: PrefixLayout) -> None:
    """What a CPU computes of the same layout, which test_prefix_attention.py holds against separate rows."""
    tensors = draw(layout, num_heads=4)
    expected, _ = causal_attention(nn.Identity(), *tensors, None, sliding_window=window, prefix_layout=layout)
    row = packed_row(layout, CPU)
    out, _ = causal_attention(nn.Identity(), *tensors, None, sliding_window=window, prefix_layout=row)
    torch.testing.assert_close(out, expected)
    for one, other in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("kept_max", [1024, 0])
def test_rows_with_nothing_in_common_are_separate_rows(
    window: int | None, kept_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: suffixes of a beginning of no tokens."""
    lengths = (4, 1, 6, 3)
    tensors = draw(PrefixLayout((0,), lengths))
    parts = [t.split(lengths, 2) for t in tensors]
    rows = [causal_attention(nn.Identity(), *row, None, sliding_window=window)[0] for row in zip(*parts, strict=True)]
    expected = torch.cat(rows, 1)
    monkeypatch.setattr("luthier.ml.training.attention.KEPT_MAX_TOKENS", kept_max)
    layout = PrefixLayout((0,), lengths)
    out, _ = causal_attention(nn.Identity(), *tensors, None, sliding_window=window, prefix_layout=layout)
    torch.testing.assert_close(out, expected)
    for one, other in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@st.composite
def layouts(draw: st.DrawFn) -> PrefixLayout:
    prefixes = draw(st.lists(st.integers(0, 25), min_size=1, max_size=3))
    num = draw(st.integers(1, 3))
    suffixes = draw(st.lists(st.integers(1, 30), min_size=num * len(prefixes), max_size=num * len(prefixes)))
    return PrefixLayout(tuple(prefixes), tuple(suffixes))


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), window=st.none() | st.integers(1, 40), block=st.sampled_from([4, 8, 16]))
def test_blocks_are_those_of_the_whole_mask(layout: PrefixLayout, window: int | None, block: int) -> None:
    found, mask = allowed_blocks(layout, window, block), whole_mask(layout, window)
    num = -(-len(mask) // block)
    padded = np.zeros((num * block, num * block), bool)
    padded[: len(mask), : len(mask)] = mask
    squares = padded.reshape(num, block, num, block).transpose(0, 2, 1, 3).reshape(num, num, -1)
    assert np.array_equal(found.partial | found.full, squares.any(-1))
    assert not (found.partial & found.full).any()
    assert (squares.all(-1) | ~found.full).all()  # what is called whole is whole
    if not any(layout.prefix_tokens):
        assert np.array_equal(found.full, squares.all(-1))


@settings(max_examples=20, deadline=None)
@given(layout=layouts(), window=st.none() | st.integers(1, 40))
def test_the_mask_function_is_the_whole_mask(layout: PrefixLayout, window: int | None) -> None:
    expected = whole_mask(layout, window)
    made = torch_flex.create_mask(block_mask(layout, window, CPU).mask_mod, 1, 1, *expected.shape, "cpu")
    assert np.array_equal(made[0, 0].numpy(), expected)


@pytest.mark.parametrize("lengths", [(300, 7, 200, 90), (256, 128, 384)])
def test_the_block_mask_is_the_one_that_torch_makes_of_the_whole_mask(lengths: tuple[int, ...]) -> None:
    ours = block_mask(PrefixLayout((0,), lengths), 150, CPU)
    theirs = torch_flex.create_block_mask(ours.mask_mod, None, None, sum(lengths), sum(lengths), "cpu")
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_rows_of_other_lengths_do_not_compile_again() -> None:
    """One kernel for all rows but those of a single block, whose sizes of one torch always takes apart."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(torch_flex.flex_attention, backend=counter, dynamic=True)
    counts = []
    with torch.no_grad():
        for lengths in ((90, 20), (100, 200, 30), (500,), (3, 4, 5, 1000), (7, 8), (256,)):
            layout = PrefixLayout((0,), lengths)
            q, k, v = (t.detach().float() for t in draw(layout, 4, 2))
            compiled(q, k, v, block_mask=block_mask(layout, None, CPU), scale=0.1, enable_gqa=True)
            counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2, 2, 2]


def test_positions_are_those_of_the_layout() -> None:
    layout = PrefixLayout((3, 2), (2, 3, 1, 2))
    found = tokens_of(layout)
    assert found.position.tolist() == layout.positions(CPU)[0].tolist()
    assert found.segment.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5]
    assert found.before.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]


def test_a_mask_is_made_once_and_only_where_it_hides_something() -> None:
    row = PackedRow(PrefixLayout((0,), (3, 2)), CPU)
    assert row.mask(None) is row.mask(3)  # no example is longer than three
    assert row.mask(2) is row.mask(2)
    assert row.mask(2) is not row.mask(None)
