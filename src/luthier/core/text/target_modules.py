"""Target modules of an adapter as text for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.core.plan import MethodPlan


def target_summary(method: MethodPlan) -> str:
    """The target modules of a method as text: `q_proj, v_proj of layers 0 to 3`, or `q_proj; lm_head in whole`."""
    parts = [format_target_modules(method.targets)] if method.targets else []
    if method.expert_targets:
        parts.append(f"{format_target_modules(method.expert_targets)} (rank {method.expert_rank} each)")
    if method.modules_to_save:
        parts.append(f"{', '.join(method.modules_to_save)} in whole")
    return "; ".join(parts)


def format_target_modules(targets: Sequence[str]) -> str:
    """The names as text: `q_proj, v_proj`, `experts.down_proj`, or `q_proj, v_proj of layers 0 to 3`."""
    whole = [name for name in targets if "." not in name]
    single: dict[tuple[int, ...], list[str]] = {}
    kinds: dict[str, list[int]] = {}
    for name in targets:
        # `model.layers.3.self_attn.q_proj`: a name with a number means one layer, one without all of them.
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            kinds.setdefault(name.rpartition(".")[2], []).append(int(number[1]))
        elif "." in name:
            whole.append(name)
    for kind, layers in sorted(kinds.items()):
        # Kinds with the same layers are shown together.
        single.setdefault(tuple(sorted(layers)), []).append(kind)
    parts = [", ".join(whole)] if whole else []
    parts += [f"{', '.join(names)} of {_format_layers(layers)}" for layers, names in single.items()]
    return "; ".join(parts)


def _format_layers(layers: tuple[int, ...]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return "layers " + ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in runs)
