"""Batched inference with many low-rank adapters over one base, each row with its own adapter, in one pass.

The matrices of the base are multiplied once for all rows. In addition, A of all adapters in use are stacked into one
matrix, and B into another: two products for all rows, with the columns of other adapters set to zero in between. So
every adapter is read once per step however many rows use it, and nothing is gathered per row; because of the zeros a
row gets the same result as alone, except for the order of floating-point sums.

A matrix that sees tokens without their rows (for example behind the router of a mixture of experts) cannot know which
row they belong to. If an adapter changes such a matrix, all rows of a pass must use the same adapter (`mixes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from luthier.core.errors import ConflictError, ModelSourceError
from luthier.ml.inference.decoding_proof import text_part
from luthier.ml.inference.low_rank import LowRank, read_low_rank
from luthier.ml.inference.models.forward import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# An idle adapter stays stacked for this many passes: adding one rebuilds the stacks of all adapters in use.
_IDLE_PASSES: Final = 256
_PROBE: Final = ((1, 2, 3), (4, 5, 6))


class MixedAdapters:
    """The adapters of one model. The model is changed in place: adapted layers are wrapped.

    Not thread-safe: one thread loads, unloads and runs the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._loaded: dict[str, dict[str, LowRank]] = {}
        self._folders: dict[str, Path] = {}
        self._wrapped: dict[str, _MixedLinear] = {}
        self._in_use: dict[str, int] = {}  # by name: number of passes since it was last requested
        self._rows: tuple[str | None, ...] = ()
        self._mixes = True

    @property
    def mixes(self) -> bool:
        """Whether rows with different adapters may share a batch."""
        return self._mixes

    def load(self, name: str, path: str) -> None:
        """Load an adapter in the precision of the base; no effect if it is already loaded from this path.

        Raises:
            NotFoundError: the folder has no weights.
            DivergedError: the adapter contains NaN or infinity, which would reach the answers of others.
            ModelSourceError: it is damaged, or does not fit the base.
            ConflictError: the name belongs to another adapter.
        """
        folder = Path(path).resolve()
        if (known := self._folders.get(name)) is not None:
            if known == folder:
                return
            raise ConflictError(
                f"adapter {name!r} from {folder}, and from {known} before",
                expected="one adapter a name",
                do="unload it first, or load the other one under another name",
            )
        # The embedding is never packed: its dtype is the compute dtype.
        weight = self._model.get_input_embeddings().weight
        found = read_low_rank(path)
        own = _own_names(self._model, found)
        products = {
            own[name]: LowRank(one.a.to(weight.device, weight.dtype), one.b.to(weight.device, weight.dtype), one.scale)
            for name, one in found.items()
        }
        # All are checked before anything is wrapped: a mismatch leaves the model unchanged.
        for module, product in products.items():
            self._check(path, module, product)
        new = [module for module in products if module not in self._wrapped]
        for module in new:
            self._wrapped[module] = self._wrap(module)
        self._loaded[name], self._folders[name] = products, folder
        # Wrapped layers stay wrapped, so once false it stays false.
        if new and self._mixes:
            self._mixes = all(self._sees_rows(new))

    def unload(self, name: str) -> None:
        """Unload an adapter; no effect if it is not loaded."""
        self._loaded.pop(name, None)
        self._folders.pop(name, None)
        if self._in_use.pop(name, None) is not None:
            self._lay()

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    @property
    def num_bytes(self) -> int:
        """Memory of all loaded adapters in bytes, including the stacked copies of those in use."""
        return sum(self.bytes_of(name) * (2 if name in self._in_use else 1) for name in self._loaded)

    def bytes_of(self, name: str) -> int:
        """Memory of one adapter in bytes, without stacked copies."""
        return sum(int(one.a.nbytes) + int(one.b.nbytes) for one in self._loaded[name].values())

    def use(self, rows: Sequence[str | None]) -> None:
        """Set the adapter of each row of the next passes; None for the base. All must be the same without `mixes`."""
        wanted = {name for name in rows if name is not None}
        for name in self._in_use:
            self._in_use[name] = 0 if name in wanted else self._in_use[name] + 1
        # The stacks fit these rows and contain no adapter that has been idle for long.
        is_right = wanted <= self._in_use.keys() and max(self._in_use.values(), default=0) < _IDLE_PASSES
        if tuple(rows) == self._rows and is_right:
            return
        if not is_right:
            # Sorted, so that equal sets of new adapters are stacked in one order.
            kept = {name: since for name, since in self._in_use.items() if since < _IDLE_PASSES}
            self._in_use = kept | dict.fromkeys(sorted(wanted - kept.keys()), 0)
            self._lay()
        self._rows = tuple(rows)
        # Matrices with the same adapters in the same order share one scale tensor.
        scales: dict[tuple[tuple[str, int, float], ...], Tensor | None] = {}
        for linear in self._wrapped.values():
            if linear.layout not in scales:
                scales[linear.layout] = self._scales(linear.layout)
            linear.scales = scales[linear.layout]

    def _scales(self, layout: tuple[tuple[str, int, float], ...]) -> Tensor | None:
        """[rows, 1, columns]: the scale of the row's own adapter in its columns, 0 in all others."""
        weight = self._model.get_input_embeddings().weight
        if not any(name in self._rows for name, _, _ in layout):
            return None
        lines = [
            [scale if name == row else 0.0 for name, rank, scale in layout for _ in range(rank)] for row in self._rows
        ]
        return torch.tensor(lines, dtype=weight.dtype, device=weight.device)[:, None]

    def _lay(self) -> None:
        """Stack the adapters in use, for every matrix."""
        for module, linear in self._wrapped.items():
            known = [(name, self._loaded[name][module]) for name in self._in_use if module in self._loaded[name]]
            linear.lay(known)
        self._rows = ()

    def _sees_rows(self, modules: Sequence[str]) -> list[bool]:
        """Whether the input of each of these matrices is [rows, tokens, width], tested with two rows of a few tokens.

        A matrix without input in the test, such as an expert that gets no token, counts as false.
        """
        seen: dict[str, bool] = {}
        hooks = []
        for name in modules:
            # `name` as a default argument: a closure would see the loop's last name in every hook.
            def look(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                seen[name] = seen.get(name, True) and inputs[0].ndim == 3 and len(inputs[0]) == len(_PROBE)

            hooks.append(self._wrapped[name].register_forward_pre_hook(look))
        self.use([None] * len(_PROBE))
        text = text_part(self._model)
        try:
            with torch.inference_mode():
                tokens = torch.tensor(_PROBE, device=self._model.device)
                text(input_ids=tokens, **accepted(text, {"use_cache": False}))
        finally:
            for hook in hooks:
                hook.remove()
        return [seen.get(name, False) for name in modules]

    def _check(self, path: str, module: str, product: LowRank) -> None:
        try:
            base = self._model.get_submodule(module)
        except AttributeError:
            base = None
        base = base.base if isinstance(base, _MixedLinear) else base
        # Packed layers keep these two attributes although their weights have other shapes.
        shape = (getattr(base, "in_features", None), getattr(base, "out_features", None))
        if shape != (product.a.shape[1], product.b.shape[0]):
            has = "no such matrix" if None in shape else f"one of {shape[0]} x {shape[1]}"
            raise ModelSourceError(
                f"{path}: it adds to {module} a product of {product.a.shape[1]} x {product.b.shape[0]}; this base has "
                f"{has}",
                expected="an adapter that was trained on this base",
                do="ask for it with its own base",
            )

    def _wrap(self, module: str) -> _MixedLinear:
        parent, _, own = module.rpartition(".")
        wrapped = _MixedLinear(self._model.get_submodule(module))
        setattr(self._model.get_submodule(parent), own, wrapped)
        return wrapped


class _MixedLinear(nn.Module):
    """A linear layer of the base with the low-rank products of the adapters in use.

    Attributes:
        _a: [sum of ranks, in], _b: [sum of ranks, out], stacked over adapters.
        scales: [rows, 1, sum of ranks]; None if no row of the pass has an adapter for this layer.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.layout: tuple[tuple[str, int, float], ...] = ()
        self.scales: Tensor | None = None
        self._a: Tensor | None = None
        self._b: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The matrix of the base, for code that reads it directly: RWKV scales it, others read its dtype."""
        found: Tensor = self.base.weight  # type: ignore[assignment]
        return found

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base."""
        return self.base.bias  # type: ignore[return-value]

    def lay(self, products: Sequence[tuple[str, LowRank]]) -> None:
        self.layout = tuple((name, one.rank, one.scale) for name, one in products)
        self.scales = None
        self._a = torch.cat([one.a for _, one in products]) if products else None
        # Transposed once here: `addmm_` takes [sum of ranks, out] without a copy per step.
        self._b = torch.cat([one.b for _, one in products], 1).T.contiguous() if products else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.scales is None or self._a is None or self._b is None:
            return y
        # tokens without rows all belong to one adapter
        scales = self.scales if x.ndim == self.scales.ndim else self.scales[0]
        # [rows, tokens, sum of ranks]; scales are zero in the columns of other adapters, which masks them out
        narrow = nn.functional.linear(x, self._a).mul_(scales)
        # In place: y is the base's own output, which nothing else reads. Flat, since addmm takes matrices.
        return y.view(-1, y.shape[-1]).addmm_(narrow.view(-1, narrow.shape[-1]), self._b).view(y.shape)


def _own_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The name of the module that each name in the file of an adapter refers to.

    It may be that of a published checkpoint, which transformers and PEFT rename where they load it.
    """
    known = {name for name, _ in model.named_modules()}
    own = {name: name for name in names}
    if known.issuperset(own):
        return own
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [one for one in get_model_conversion_mapping(model) if type(one) is WeightRenaming]
    for name in own.keys() - known:
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        if renamed in known:
            own[name] = renamed
    return own
