"""The replacements are the same functions, and what does not prove equal is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from luthier.ml.training import kernels
from luthier.ml.training.kernels import RmsNorm, SwiGlu


def test_rms_norm_gradients_are_the_derivatives() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: RmsNorm.apply(a, w, 1e-6)[0], (x, weight))


def test_swiglu_gradients_are_the_derivatives() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(SwiGlu.apply, (gate, up))


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_gradients_of_a_trained_product_are_the_derivatives(has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 5), (4, 5), (4,))
    )
    parts = (x, weight, bias) if has_bias else (x, weight, None)
    assert torch.autograd.gradcheck(kernels.TrainedProduct.apply, parts)
    assert torch.equal(kernels.TrainedProduct.apply(*parts), torch.nn.functional.linear(*parts))


def test_a_trained_matrix_reads_its_input_from_what_that_is_made_of() -> None:
    """A frozen one, and one that no mark says how to make its input again, are left as they are."""
    trained, frozen = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
    assert kernels.install(nn.Sequential(trained, frozen)) == {}
    assert "forward" not in vars(frozen)
    one, other = torch.randn(2, 4, requires_grad=True), torch.randn(4)
    plain = trained(one * other)
    assert type(plain.grad_fn).__name__ != "TrainedProductBackward"
    marked = trained(kernels.mark_recomputable(one * other, torch.mul, one, other))
    assert type(marked.grad_fn).__name__ == "TrainedProductBackward"
    assert torch.equal(plain, marked)
    kernels.uninstall(nn.Sequential(trained))
    assert "forward" not in vars(trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_installed_model_computes_what_the_plain_one_does(tiny_model: Path, dtype: torch.dtype) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).eval()
    fast = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype).eval()
    swapped = kernels.install(fast)
    assert swapped == {"LlamaRMSNorm": 5, "LlamaMLP": 2}
    ids = torch.arange(24).reshape(2, 12)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(fast(ids).logits, plain(ids).logits, atol=tolerance, rtol=tolerance)


class OtherRMSNorm(nn.Module):
    """Looks like a norm that we know, but scales by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.5))
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


def test_a_module_that_computes_something_else_is_kept() -> None:
    module = OtherRMSNorm()
    before: Callable[[Tensor], Tensor] = module.forward
    assert kernels.install(nn.Sequential(module)) == {"OtherRMSNorm (kept)": 1}
    assert module.forward == before


class GeluMlp(nn.Module):
    """Has the projections of a SwiGLU block, but another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act_fn = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


def test_another_activation_is_kept() -> None:
    assert kernels.install(GeluMlp()) == {"GeluMlp (kept)": 1}


class ClampedMlp(nn.Module):
    """A SwiGLU block with limits that no ordinary input reaches, as DeepSeek V4 and Step 3.7 have them."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act_fn, self.limit = nn.SiLU(), limit

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x).clamp(max=self.limit), self.up_proj(x).clamp(-self.limit, self.limit)
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_limit_that_ordinary_inputs_do_not_reach_is_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = ClampedMlp(10.0).to(dtype), torch.randn(64, 8, dtype=dtype)
    assert float(torch.cat([module.gate_proj(x), module.up_proj(x)]).detach().abs().max()) < 10
    assert kernels.install(nn.Sequential(module), recomputes_trained=False) == {"ClampedMlp (kept)": 1}
    without = ClampedMlp(float("inf")).to(dtype)
    assert kernels.install(nn.Sequential(without), recomputes_trained=False) == {"ClampedMlp": 1}


class DroppingMlp(ClampedMlp):
    """A SwiGLU block with dropout of its own, as Seed-OSS has it."""

    def __init__(self, probability: float, *, as_module: bool) -> None:
        super().__init__(float("inf"))
        self.probability = 0.0 if as_module else probability
        self.dropout = nn.Dropout(probability if as_module else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(super().forward(x))
        return nn.functional.dropout(out, self.probability, self.training)


@pytest.mark.parametrize("as_module", [True, False])
def test_dropout_within_a_module_is_kept_and_nothing_is_drawn_for_the_proof(as_module: bool) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for probability, said in ((0.1, "DroppingMlp (kept)"), (0.0, "DroppingMlp")):
        module = DroppingMlp(probability, as_module=as_module).eval()
        torch.set_rng_state(state)
        assert kernels.install(nn.Sequential(module), recomputes_trained=False) == {said: 1}
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(part.training for part in module.modules())
