"""Numbers of layers as a person says them."""

from __future__ import annotations


def layers_in_words(layers: tuple[int, ...]) -> str:
    """`layer 3`, or `layers 0 to 3, 7`. layers: numbers in rising order, at least one."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return "layers " + ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in runs)
