"""A row is encoded by its own length, whatever rows lie beside it: positions of LongRoPE change beyond a border."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import MethodPlan
from luthier.ml.training.methods.full import Full
from luthier.ml.training.methods.prompt_tuning import PromptTuning
from luthier.ml.training.model import TrainableModel, collate

BORDER = 24
FULL = MethodPlan(name="full", rank=0, alpha=0.0, dropout=0.0, targets=(), num_trainable_parameters=1)


def model_of(border: int, method: str = "full") -> TrainableModel:
    """A tiny Phi 3 with other positions beyond the border."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
        "attention_factor": 1.0, "original_max_position_embeddings": border,
    }  # fmt: skip
    config = Phi3Config(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, original_max_position_embeddings=border,
        rope_parameters=rope, initializer_range=0.3, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    base = Phi3ForCausalLM(config).eval()
    if method == "full":
        return TrainableModel(base, Full(FULL), seed=0)
    plan = FULL.model_copy(update={"name": "prompt_tuning", "num_virtual_tokens": 4})
    return TrainableModel(base, PromptTuning(plan), seed=0)


def rows(*lengths: int) -> list[TokenisedExample]:
    """Rows of random ids that begin alike, and of which the first 12 tokens are not learned."""
    ids = torch.randint(3, 128, (max(lengths),), generator=torch.Generator().manual_seed(5)).tolist()
    return [
        TokenisedExample(
            str(n), array("i", [*ids[: length - 3], n + 3, n + 4, n + 5]), b"\0" * 12 + b"\1" * (length - 12)
        )
        for n, length in enumerate(lengths)
    ]


def losses(model: TrainableModel, examples: Sequence[TokenisedExample], cuts: tuple[int, ...] = ()) -> list[float]:
    """The loss of each learned token, the rows in one micro-batch."""
    batch = collate(examples, model.pad_id, "cpu", prefix_lengths=cuts)
    with torch.no_grad():
        logits = model.states(batch) @ model.head.t()
    return torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").tolist()


@pytest.mark.parametrize("cuts", [(), (0,)], ids=["side by side", "end to end"])
def test_a_row_has_the_loss_that_it_has_alone(cuts: tuple[int, ...]) -> None:
    model, examples = model_of(BORDER), rows(40, 20, 24, 25)
    assert model.path.attention == "fast"
    alone = [loss for example in examples for loss in losses(model, [example])]
    assert losses(model, examples, cuts) == pytest.approx(alone, abs=1e-4)
    # The border is one: as long rows, short ones have another loss.
    assert losses(model_of(8), examples[1:2]) != pytest.approx(losses(model, examples[1:2]), abs=1e-2)


def test_rows_that_share_a_beginning_are_as_the_longest_of_them() -> None:
    model, (long, short) = model_of(BORDER), rows(40, 20)
    found = losses(model, [long, short], (10,))
    alone = [*losses(model, [long]), *losses(model_of(8), [short])]
    assert found == pytest.approx(alone, abs=1e-4)


def test_a_trained_prompt_counts_as_part_of_each_row() -> None:
    model, examples = model_of(BORDER, "prompt_tuning"), rows(22, 20, 21)  # behind four tokens
    alone = [loss for example in examples for loss in losses(model, [example])]
    assert losses(model, examples) == pytest.approx(alone, abs=1e-4)
