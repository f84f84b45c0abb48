"""Liger Kernel's operations, compiled layers and 4-bit matrices compute what the plain ones do."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.ml.training.test_packing import loss_and_gradients, shaken
from tests.vacuous import nonempty
from torch import nn

from luthier.core.plan import Plan
from luthier.ml.inference.models.quantised import Nf4Linear
from luthier.ml.training import kernels
from luthier.ml.training.equivalence import why_not_compiled, why_not_packed
from luthier.ml.training.losses.cross_entropy import cross_entropy_sum
from luthier.ml.training.low_rank import LoraProduct
from luthier.ml.training.model import TrainableModel

needs_liger = pytest.mark.skipif(find_spec(kernels.LIGER_PACKAGE) is None, reason="liger-kernel is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernels need CUDA")
needs_nf4 = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@needs_liger
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_liger_is_taken_for_every_norm_and_mlp(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], device: str, precision: str
) -> None:
    model = make_model(make_plan("lora", device=device, precision=precision))
    assert model.replaced == {"LlamaRMSNorm (liger)": 5, "LlamaMLP (liger)": 2}
    assert model.product_loss is kernels.liger_cross_entropy_sum


@needs_liger
@needs_cuda
@pytest.mark.parametrize("trained", [False, True])
def test_the_loss_of_liger_is_ours(trained: bool) -> None:
    torch.manual_seed(0)
    head, hidden = torch.randn(5000, 256, device="cuda") / 16, torch.randn(700, 256, device="cuda")
    targets = torch.randint(5000, (700,), device="cuda")
    found = []
    for loss in (cross_entropy_sum, kernels.liger_cross_entropy_sum):
        x, w = hidden.clone().requires_grad_(), head.clone().requires_grad_(trained)
        total, correct = loss(x, w, targets)
        (total / 700).backward()
        found.append((total.detach(), correct, x.grad, w.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_models_own_kernels_train_the_same(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], device: str, method: str
) -> None:
    model, rows = shaken(make_model(make_plan(method, device=device))), [random_examples(9, seed=3, longest=60)]
    loss, gradients = loss_and_gradients(model, rows)
    kernels.uninstall(model.module)
    model.product_loss = cross_entropy_sum
    plain_loss, plain = loss_and_gradients(model, rows)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert float((gradients - plain).norm() / plain.norm()) < 1e-4


@needs_cuda
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("packs", [False, True])
def test_compiled_layers_train_the_same(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    device: str,
    method: str,
    packs: bool,
) -> None:
    torch._dynamo.reset()
    model = shaken(make_model(make_plan(method, device=device)))
    assert not packs or why_not_packed(model) is None
    prefix_lengths = (0,) if packs else ()
    batches = [[random_examples(3 + n, seed=n, longest=60)] for n in range(3)]
    plain = [loss_and_gradients(model, batch, prefix_lengths) for batch in batches]
    assert why_not_compiled(model) is None
    for batch, (loss, gradients) in zip(batches, plain, strict=True):
        found_loss, found = loss_and_gradients(model, batch, prefix_lengths)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        assert float((found - gradients).norm() / gradients.norm()) < 1e-4


@needs_nf4
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_over_a_base_in_4_bits_are_those_over_the_unpacked_one(device: str, dtype: torch.dtype) -> None:
    """The reference multiplies with the unpacked matrix in float64; only rounding may differ."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 128, bias=False, device=device, dtype=dtype)
    packed = Nf4Linear(layer)
    a, b = torch.randn(8, 256, device=device, dtype=dtype) / 16, torch.randn(128, 8, device=device, dtype=dtype) / 3
    x, back = torch.randn(40, 256, device=device, dtype=dtype), torch.randn(40, 128, device=device, dtype=dtype)
    matrix = packed.unpacked(dtype).double()
    found, wanted = [], []
    inputs = [t.clone().requires_grad_() for t in (x, a, b)]
    out = LoraProduct.apply(inputs[0], packed, None, inputs[1], inputs[2], None, 2.0)
    found = [out, *torch.autograd.grad(out, inputs, back)]
    wide = [t.double().requires_grad_() for t in (x, a, b)]
    expected = wide[0] @ matrix.t() + 2.0 * (wide[0] @ wide[1].t()) @ wide[2].t()
    wanted = [expected, *torch.autograd.grad(expected, wide, back.double())]
    for one, other in nonempty(zip(found, wanted, strict=True)):
        error = float((one.double() - other).norm() / other.norm())
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)
