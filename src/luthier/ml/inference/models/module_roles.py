"""The role of each matrix of a model, and weights that are read outside their module: decides where adapters may go.

A matrix is a linear layer of the language model's blocks, a router that chooses experts, a matrix that other code reads
directly, the stacked matrices of experts, or a part outside the language model (an image or audio tower, and its
projector). The role is measured on the model itself, from shapes, module positions and usage.

A module is more than its call if other code reads `.weight` directly: Mamba's kernel takes the matrix of
`out_proj`, Gemma 3n clamps its correction coefficients, RWKV divides two matrices of every block in evaluation. An
adapter is part of the call and would be ignored there; a packed matrix holds integers, which such code would misread as
weights. Two methods complement each other: the source of the classes shows code that runs only elsewhere (a kernel that
is not installed, the training branch); tracing a pass shows what the source hides (helpers, dynamic names).
"""

from __future__ import annotations

import ast
import copy
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from luthier.ml.inference.models.architecture import outside_modules
from luthier.ml.inference.models.structure import LinearLayer, Role

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_SELF: Final = "self"
_STARTING: Final = ("_init_weights", "__init__")
"""Methods that initialise weights before use."""
_FILLS: Final = ("init", "nn.init", "torch.nn.init")
_PRECISION_ATTRIBUTES: Final = frozenset(("dtype", "is_floating_point", "itemsize", "element_size", "nbytes"))
"""Attributes of a tensor that expose its precision without computing with it."""
_SAME: Final = frozenset(("device", "is_cuda", "is_meta", "shape", "size", "ndim", "dim", "requires_grad"))
"""Attributes that do not depend on how a matrix is stored, or that only slow branches of a few old models read."""
_FEW: Final = 8
"""Number of inputs of a layer in tests."""


@dataclass(frozen=True, slots=True)
class WeightReads:
    """Names of modules by how other code uses their weight.

    A slice of a weight counts as neither: it occurs in the slow branch of a few old models, and tracing finds it if
    that branch runs.

    Attributes:
        used: other code computes with it or changes it; an adapter would be ignored.
        asked: other code reads its precision, which packing changes.
    """

    used: frozenset[str]
    asked: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """One weight access in the source: the variable, the attribute chain, and whether the value is used."""

    root: str
    chain: tuple[str, ...]
    is_used: bool


def weight_reads(model: nn.Module) -> WeightReads:
    """The weight accesses in the source of a model's classes; empty without source."""
    names = [name for name, _ in model.named_modules()]
    used: set[str] = set()
    asked: set[str] = set()
    for prefix, module in model.named_modules():
        kind: Any = type(module)
        for read in _class_reads(kind):
            (used if read.is_used else asked).update(_meant(prefix, read, names))
    return WeightReads(frozenset(used), frozenset(asked - used))


def _meant(prefix: str, read: _Read, names: list[str]) -> list[str]:
    """The submodules that an attribute chain refers to: exact for `self.`, otherwise by name suffix."""
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
    """Whether a class belongs to a model rather than being a library base class shared by all models."""
    where = f"{kind.__module__}."
    return where.startswith("transformers.models.") or not where.startswith(("torch.", "transformers.", "builtins."))


def _own_reads(kind: type) -> tuple[_Read, ...]:
    module = sys.modules.get(kind.__module__)
    return () if module is None else _module_reads(module).get(kind.__qualname__, ())


@lru_cache(maxsize=128)
def _module_reads(module: ModuleType) -> dict[str, tuple[_Read, ...]]:
    """The weight accesses of each class of a module, by qualified name; empty without source.

    `inspect.getsource` of a class would parse the whole file for each class: 2,000 lines for some models.
    """
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, tuple[_Read, ...]] = {}
    for name, node in _classes(tree):
        reads = _Reads()
        reads.visit(node)
        found.setdefault(name, tuple(dict.fromkeys(reads.found)))
    return found


def _classes(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes below a node by qualified name, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{inside}{child.name}", child
            yield from _classes(child, f"{inside}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{inside}{child.name}.<locals>.")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _classes(child, inside)


@dataclass
class _Reads(ast.NodeVisitor):
    """Collects each `X.Y.weight` of a class. The owner of a bare variable (`layer.weight`) is unknown."""

    found: list[_Read] = field(default_factory=list)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in _STARTING:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        owner = _names(node.func.value) if isinstance(node.func, ast.Attribute) else ()
        if ".".join(owner) not in _FILLS:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Attribute) and node.value.attr == "weight"):
            self.visit(node.value)
        self.visit(node.slice)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        is_of_weight = isinstance(node.value, ast.Attribute) and node.value.attr == "weight"
        if is_of_weight and node.attr in _SAME:
            return
        if node.attr in _PRECISION_ATTRIBUTES and self._note(node.value, is_used=False):
            return
        if not self._note(node, is_used=True):
            self.generic_visit(node)

    def _note(self, node: ast.expr, *, is_used: bool) -> bool:
        """Record the access, if it is one."""
        if not (isinstance(node, ast.Attribute) and node.attr == "weight"):
            return False
        root, *chain = _names(node.value) or ("",)
        if not root or len(chain) < (1 if root == _SELF else 2):
            return False
        self.found.append(_Read(root, tuple(chain), is_used))
        return True


def _names(node: ast.expr) -> tuple[str, ...]:
    """The variable and the attributes of `X.Y.Z`; none where it begins with anything but a variable."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return (node.id, *names) if isinstance(node, ast.Name) else ()


@contextmanager
def watched_reads(model: nn.Module, kind: type[nn.Module]) -> Iterator[set[str]]:
    """Within the block, collect the names of modules of that kind whose weight is read outside their forward.

    Their classes are temporarily replaced by tracing subclasses; results are the same.
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
            # Parameters are not in __dict__, so reading one always calls this method.
            if name == "weight" and id(self) not in running:
                seen.add(names[id(self)])
            return own.__getattr__(self, name)

        return type(own.__name__, (own,), {"forward": _forward, "__getattr__": read})

    for module in [m for m in model.modules() if id(m) in names]:
        own = type(module)
        changed.append((module, own))
        # A subclass of its own class: reads are traced without touching the state of the module.
        module.__class__ = made.setdefault(own, watching(own))
    try:
        yield seen
    finally:
        for module, own in changed:
            module.__class__ = own


def linear_layers(model: PreTrainedModel, experts: tuple[LinearLayer, ...]) -> tuple[LinearLayer, ...]:
    """Every linear layer except the output head, including transformers' Conv1D, with its role, in model order.

    Args:
        model: may be on torch's meta device.
        experts: the result of `expert_layers`.
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
        # By shape and position, since routers have no common name or class.
        elif outputs in counts and _chooses(model, parent, routed):
            role = "router"
        elif name in past:
            role = "kernel"
        elif computes_more(module):
            role = "custom"
        found.append(LinearLayer(name, inputs, outputs, role))
    return tuple(found)


def computes_more(layer: nn.Module) -> bool:
    """Whether a linear layer or an embedding does more than multiply with its matrix or look up its rows.

    An adapter adds to a product or to a row: what else such a layer computes (groups, scales, a norm) would be lost in
    training or in merging.
    """
    from torch import nn

    if isinstance(layer, nn.Embedding):
        # A scale by this name is a factor of the adapter in PEFT, too.
        return type(layer).forward is not nn.Embedding.forward and not hasattr(layer, "embed_scale")
    return isinstance(layer, nn.Linear) and not is_product(layer)


def is_product(layer: nn.Linear) -> bool:
    """Whether a layer computes exactly x W^T + bias, in training and in evaluation, tested with a few inputs.

    Args:
        layer: may be on torch's meta device.
    """
    import torch
    from torch import Tensor, nn

    from luthier.ml.inference.models.forward import FORWARD_ERRORS

    if type(layer).forward is nn.Linear.forward:
        return True
    draw = torch.Generator().manual_seed(0)
    # A shallow copy with separate small parameters: the layer keeps its weights.
    few = copy.copy(layer)
    weight = torch.randn(layer.out_features, _FEW, generator=draw)
    bias = None if layer.bias is None else torch.randn(layer.out_features, generator=draw)
    few._parameters = {"weight": nn.Parameter(weight), "bias": None if bias is None else nn.Parameter(bias)}
    x = torch.randn(2, 3, _FEW, generator=draw)
    expected = nn.functional.linear(x, weight, bias)
    for training in (False, True):
        few.training = training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
                found: object = few(x.clone())
        except FORWARD_ERRORS:
            return False
        if not (isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected)):
            return False
    return True


def expert_layers(model: PreTrainedModel) -> tuple[LinearLayer, ...]:
    """The stacked expert matrices of the language model, with the expert as first dimension.

    Such a tensor is a three-dimensional parameter, not a convolution kernel, whose owner or name contains "expert", or
    that shares its first dimension with one that does.
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
    """Expert modules that declare their number of experts, such as those of DBRX, whose tensors have two dimensions.

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
    """Whether a linear layer with one output per expert is a sibling of the experts, or alone in a sibling module."""
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
    """The module that contains an expert tensor, and its parent, which contains the router."""
    holder = name.rpartition(".")[0]
    return holder, holder.rpartition(".")[0]


def _prefixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)
