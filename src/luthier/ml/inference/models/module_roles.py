"""What each matrix of a model is, and whose weight is read past its forward: the ground on which adapters are placed.

A linear layer of the language model's blocks, a router that chooses experts, a matrix that other code reads past its
module, the matrices of experts that lie in one tensor, or a part outside the language model (a tower for pictures
or sound, and what joins it). Measured on the model itself: decided by shapes, by where a module lies and by what its
owner does with it.

A module represents more than its call where other code reads `.weight` itself: Mamba's kernel takes the matrix of
`out_proj`, Gemma 3n clamps its correction coefficients, RWKV divides two matrices of every block in evaluation. An
adapter is part of the call, and would be ignored there; a packed matrix holds integers, which such code would take for
the weights. Two views see different things: the source of the classes shows what runs elsewhere only (a kernel that is
not installed here, the branch of training); watching a pass shows what the source hides (helpers, names made at run
time).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from luthier.ml.inference.models.architecture import outside_modules
from luthier.ml.inference.models.structure import LinearLayer, Role

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_SELF: Final = "self"
_STARTING: Final = ("_init_weights", "__init__")
"""Methods that fill weights before any is used."""
_FILLS: Final = ("init", "nn.init", "torch.nn.init")
_ASKS: Final = frozenset(("dtype", "is_floating_point", "itemsize", "element_size", "nbytes"))
"""Attributes of a tensor by which code asks for its precision without computing with it."""
_SAME: Final = frozenset(("device", "is_cuda", "is_meta", "shape", "size", "ndim", "dim", "requires_grad"))
"""Attributes that do not show how a matrix is held, or that only the slow branches of a few old models ask for."""


@dataclass(frozen=True, slots=True)
class WeightReads:
    """Names of modules by what other code does with their weight.

    A slice of a weight counts as neither: it is the slow branch of a few old models, and where that runs, watching
    finds it.

    Attributes:
        used: it computes with it, or changes it; an adapter would be ignored.
        asked: it asks for its precision, which packing changes.
    """

    used: frozenset[str]
    asked: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """One read in the source: by which chain of names behind which variable, and whether a value is taken."""

    root: str
    chain: tuple[str, ...]
    is_used: bool


def weight_reads(model: nn.Module) -> WeightReads:
    """What the classes of a model read, by their source; where they have none, nothing is found."""
    names = [name for name, _ in model.named_modules()]
    used: set[str] = set()
    asked: set[str] = set()
    for prefix, module in model.named_modules():
        kind: Any = type(module)
        for read in _class_reads(kind):
            (used if read.is_used else asked).update(_meant(prefix, read, names))
    return WeightReads(frozenset(used), frozenset(asked - used))


def _meant(prefix: str, read: _Read, names: list[str]) -> list[str]:
    """The modules below a module that a chain of names means: exactly for `self.`, else by how their names end."""
    inside = f"{prefix}." if prefix else ""
    end = ".".join(read.chain)
    if read.root == _SELF:
        return [name for name in names if name == f"{inside}{end}"]
    return [name for name in names if name.startswith(inside) and name.endswith(f".{end}")]


@lru_cache(maxsize=512)
def _class_reads(kind: Any) -> tuple[_Read, ...]:
    # Base classes too: a subclass inherits their reads.
    return tuple(read for one in kind.__mro__ if _is_of_a_model(one) for read in _own_reads(one))


def _is_of_a_model(kind: type) -> bool:
    """Whether a class is a model's own, and no base class of a library, whose code is for all models."""
    where = f"{kind.__module__}."
    return where.startswith("transformers.models.") or not where.startswith(("torch.", "transformers.", "builtins."))


@lru_cache(maxsize=512)
def _own_reads(kind: Any) -> tuple[_Read, ...]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return ()
    reads = _Reads()
    reads.visit(tree)
    return tuple(dict.fromkeys(reads.found))


@dataclass
class _Reads(ast.NodeVisitor):
    """Collects each `X.Y.weight` of a class. Of a variable alone (`layer.weight`) nobody can say whose it is."""

    found: list[_Read] = field(default_factory=list)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in _STARTING:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if owner is None or ast.unparse(owner) not in _FILLS:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Attribute) and node.value.attr == "weight"):
            self.visit(node.value)
        self.visit(node.slice)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        is_of_weight = isinstance(node.value, ast.Attribute) and node.value.attr == "weight"
        if is_of_weight and node.attr in _SAME:
            return
        if node.attr in _ASKS and self._note(node.value, is_used=False):
            return
        if not self._note(node, is_used=True):
            self.generic_visit(node)

    def _note(self, node: ast.expr, *, is_used: bool) -> bool:
        """Keep the read, if it is one."""
        if not (isinstance(node, ast.Attribute) and node.attr == "weight"):
            return False
        chain: list[str] = []
        inner = node.value
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or len(chain) < (1 if inner.id == _SELF else 2):
            return False
        self.found.append(_Read(inner.id, tuple(chain), is_used))
        return True


@contextmanager
def watched_reads(model: nn.Module, kind: type[nn.Module]) -> Iterator[set[str]]:
    """Inside this block, names of modules of that kind gather whose weight is read while their own forward is not run.

    Their classes are exchanged for ones that watch, and given back at the end; results are the same.
    """
    seen: set[str] = set()
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    names = {id(module): name for name, module in model.named_modules() if isinstance(module, kind)}
    running: list[int] = []
    made: dict[type[nn.Module], type[nn.Module]] = {}

    def watching(own: type[nn.Module]) -> type[nn.Module]:
        def _forward(self: nn.Module, *given: Any, **named: Any) -> Any:
            running.append(id(self))
            try:
                return own.forward(self, *given, **named)
            finally:
                running.pop()

        def read(self: nn.Module, name: str) -> Any:
            # Parameters are not in __dict__, so that reading one always comes here.
            if name == "weight" and id(self) not in running:
                seen.add(names[id(self)])
            return own.__getattr__(self, name)

        return type(own.__name__, (own,), {"forward": _forward, "__getattr__": read})

    for module in [m for m in model.modules() if id(m) in names]:
        own = type(module)
        changed.append((module, own))
        # A subclass of its own class: reads are seen, and nothing of the module's state is touched.
        module.__class__ = made.setdefault(own, watching(own))
    try:
        yield seen
    finally:
        for module, own in changed:
            module.__class__ = own


def linear_layers(model: PreTrainedModel, experts: tuple[LinearLayer, ...]) -> tuple[LinearLayer, ...]:
    """Every linear layer but the output head, with its role, in the order of the model; also transformers' Conv1D.

    Args:
        model: may be on torch's meta device.
        experts: as `expert_layers` gives them.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, outside = model.get_output_embeddings(), _prefixes(outside_modules(model))
    flat = _flat_experts(model)
    counts = {layer.num_matrices for layer in experts} | set(flat.values())
    routed = {part for layer in experts for part in _owners(layer.name)}
    routed |= {part for name in flat for part in (name, name.rpartition(".")[0])}
    past = weight_reads(model).used
    found = []
    for name, module in model.named_modules():
        if module is head or not isinstance(module, (nn.Linear, Conv1D)):
            continue
        # Conv1D of GPT-2 holds its matrix as [in, out], a linear layer as [out, in].
        rows, columns = module.weight.shape
        inputs, outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
        parent = name.rpartition(".")[0]
        role: Role = "block"
        if f"{name}.".startswith(outside):
            role = "outside"
        # By shape and place, since routers have no common name or class.
        elif outputs in counts and _chooses(model, parent, routed):
            role = "router"
        elif name in past:
            role = "kernel"
        found.append(LinearLayer(name, inputs, outputs, role))
    return tuple(found)


def expert_layers(model: PreTrainedModel) -> tuple[LinearLayer, ...]:
    """The matrices of experts of the language model that lie in one tensor, the expert as its first dimension.

    Such a tensor is a parameter of three dimensions, no kernel of a convolution, whose owner or whose name says
    "expert", or that shares its first dimension with one that does.
    """
    tensors = list(_stacked(model, _prefixes(outside_modules(model))))
    # A tensor without "expert" in its name still belongs to experts if it has one entry for each.
    sizes = {t.shape[0] for name, owner, t in tensors if _says_expert(name, owner)}
    found = []
    for name, owner, tensor in tensors:
        if tensor.shape[0] not in sizes:
            continue
        rows, columns = tensor.shape[1:]
        inputs, outputs = (rows, columns) if getattr(owner, "is_transposed", False) else (columns, rows)
        found.append(LinearLayer(name, inputs, outputs, "expert", tensor.shape[0]))
    return tuple(found)


def _flat_experts(model: PreTrainedModel) -> dict[str, int]:
    """Modules of experts that state their number, such as those of DBRX, whose tensors have two dimensions.

    Returns:
        Name of the module -> number of its experts.
    """
    return {
        name: value
        for name, module in model.named_modules()
        if "expert" in type(module).__name__.lower()
        for key, value in vars(module).items()
        if key.endswith("num_experts") and isinstance(value, int)
    }


def _chooses(model: PreTrainedModel, parent: str, routed: set[str]) -> bool:
    """Whether a linear layer with as many outputs as there are experts lies beside them, or alone in a module there."""
    if parent in routed:
        return True
    return parent.rpartition(".")[0] in routed and len(list(model.get_submodule(parent).children())) == 1


def _stacked(model: PreTrainedModel, outside: tuple[str, ...]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    from torch.nn.modules.conv import _ConvNd

    for prefix, module in model.named_modules():
        if isinstance(module, _ConvNd) or (outside and f"{prefix}.".startswith(outside)):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and min(parameter.shape) > 1:
                yield f"{prefix}.{own}", module, parameter


def _says_expert(name: str, owner: nn.Module) -> bool:
    return "expert" in f"{name} {type(owner).__name__}".lower()


def _owners(name: str) -> tuple[str, str]:
    """The module that holds a tensor of experts, and the one around it, where the router is."""
    holder = name.rpartition(".")[0]
    return holder, holder.rpartition(".")[0]


def _prefixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)
