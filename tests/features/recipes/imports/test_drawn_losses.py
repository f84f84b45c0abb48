"""Losses of GRPO that have the same gradient where answers are used for one update, as their formulas show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from luthier.core.errors import RecipeError
from luthier.features.recipes.imports.drawn_losses import WEIGHTINGS
from luthier.features.recipes.imports.service import Imported, import_recipe

LENGTHS = torch.tensor([3.0, 5.0, 2.0])
MASK = (torch.arange(5) < LENGTHS[:, None]).double()
ADVANTAGES = torch.tensor([[0.7], [-1.2], [0.4]], dtype=torch.float64)


def gradient(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """With respect to the log-probabilities of tokens, [answers, tokens], where they are those of the draw."""
    logps = -torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logps.requires_grad_()
    loss(logps, logps - logps.detach()).backward()  # type: ignore[no-untyped-call]
    assert logps.grad is not None
    return logps.grad * MASK


def by_token(each: torch.Tensor) -> torch.Tensor:
    return (each * MASK).sum() / MASK.sum()


def by_sample(each: torch.Tensor) -> torch.Tensor:
    return ((each * MASK).sum(-1) / LENGTHS).mean()


def sequence_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    return ((log_ratio * MASK).sum(-1, keepdim=True) / LENGTHS[:, None]).exp()


def clipped(ratio: torch.Tensor) -> torch.Tensor:
    return -torch.min(ratio * ADVANTAGES, ratio.clamp(0.8, 1.2) * ADVANTAGES)


def soft(ratio: torch.Tensor, temperature: float = 1.05) -> torch.Tensor:
    return -(torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature) * ADVANTAGES


@pytest.mark.parametrize("mean", [by_token, by_sample])
def test_ratios_of_tokens_and_of_whole_answers_have_the_same_gradient(mean: Callable[[torch.Tensor], Any]) -> None:
    tokens = gradient(lambda _, log_ratio: mean(clipped(log_ratio.exp())))
    answers = gradient(lambda _, log_ratio: mean(clipped(sequence_ratio(log_ratio)).expand(3, 5)))
    assert torch.allclose(tokens, answers, atol=1e-15)
    assert tokens.norm() > 0.1


def test_sapo_has_the_gradient_of_grpo_and_cispo_that_of_dapo() -> None:
    grpo = gradient(lambda _, log_ratio: by_sample(clipped(log_ratio.exp())))
    assert torch.allclose(gradient(lambda _, log_ratio: by_sample(soft(log_ratio.exp()))), grpo, atol=1e-15)
    dapo = gradient(lambda _, log_ratio: by_token(clipped(log_ratio.exp())))

    def cispo(high: float) -> torch.Tensor:
        return gradient(lambda logps, ratio: by_token(-ratio.exp().clamp(max=high).detach() * ADVANTAGES * logps))

    assert torch.allclose(cispo(5.0), dapo, atol=1e-15)
    assert torch.allclose(cispo(0.2), 0.2 * dapo, atol=1e-15)


def trl_recipe(tmp_path: Path, **more: Any) -> Imported:
    path = tmp_path / "grpo.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "org/base", "dataset_name": "rows.jsonl"} | more))
    return import_recipe(path, target=tmp_path, trainer="grpo", overrides=["objective.rewards=[exact_match]"])


@pytest.mark.parametrize("loss", WEIGHTINGS)
def test_each_loss_becomes_its_weighting(tmp_path: Path, loss: str) -> None:
    found = trl_recipe(tmp_path, loss_type=loss, epsilon_high=5.0, importance_sampling_level="sequence")
    assert found.keys["objective"]["loss_weighting"] == WEIGHTINGS[loss]


@pytest.mark.parametrize("more", [{}, {"epsilon_high": 0.28}])
def test_cispo_that_scales_the_gradient_is_refused(tmp_path: Path, more: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="cispo scales the gradient"):
        trl_recipe(tmp_path, loss_type="cispo", **more)


def test_luspo_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="known here: dapo, bnpo, cispo"):
        trl_recipe(tmp_path, loss_type="luspo")


def test_several_updates_are_translated_with_their_clipping_and_numbers_of_steps(tmp_path: Path) -> None:
    found = trl_recipe(tmp_path, num_iterations=4, epsilon_high=0.28, max_steps=100, warmup_steps=10, save_steps=6)
    objective, training = found.keys["objective"], found.keys["training"]
    assert (objective["num_iterations"], objective["clip_ratio_low"], objective["clip_ratio_high"]) == (4, 0.2, 0.28)
    assert (training["max_steps"], training["warmup_steps"], training["checkpoint_every_steps"]) == (25, 3, 2)
    assert any("learning rate changes with each step" in note for note in found.notes)
    both = trl_recipe(tmp_path, num_iterations=4, epsilon=0.1).keys["objective"]
    assert (both["clip_ratio_low"], both["clip_ratio_high"]) == (0.1, 0.1)
    neither = trl_recipe(tmp_path, num_iterations=2).keys["objective"]
    assert (neither["clip_ratio_low"], neither["clip_ratio_high"]) == (0.2, 0.2)
    assert "clip_ratio_low" not in trl_recipe(tmp_path, num_iterations=1, epsilon=0.1, delta=2.0).keys["objective"]


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"max_steps": 10}, "10 updates are not a whole number of samples with 4 updates"),
        ({"loss_type": "sapo"}, "known here where num_iterations is above 1: dapo"),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, "known here where num_iterations is above 1: dapo"),
        ({"importance_sampling_level": "sequence"}, "known here where num_iterations is above 1: token"),
        ({"delta": 1.5}, "a second end of clipping"),
    ],
)
def test_what_several_updates_would_change_is_refused(tmp_path: Path, more: dict[str, Any], refused: str) -> None:
    with pytest.raises(RecipeError, match=refused):
        trl_recipe(tmp_path, num_iterations=4, **more)
