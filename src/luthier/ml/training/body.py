"""The body of a model, which maps tokens to hidden states, called with exactly the arguments that it accepts.

Bodies differ in what they accept: those with ALiBi or a recurrent state derive positions themselves and take none.
Leaving an argument out cannot change the result unnoticed: `forward_proof` compares it with the model's own forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from luthier.ml.inference.models.forward import accepted

if TYPE_CHECKING:
    from luthier.ml.training.attention import PackedRow
    from luthier.ml.training.prefix_attention import PrefixLayout

    RowLayout = PrefixLayout | PackedRow


def last_hidden_states(
    body: nn.Module,
    positions: Tensor,
    layout: RowLayout | None = None,
    *,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Last hidden states [rows, T, width] of ids [rows, T] or of embeddings [rows, T, width].

    Args:
        body: the transformer without its head.
        input_ids: [rows, T] int64; None where embeddings are given.
        inputs_embeds: [rows, T, width]; None where ids are given.
        positions: [rows or 1, T].
        layout: layout of several examples packed into one row, read by the attention; None for plain rows.
    """
    shared = {} if layout is None else {"prefix_layout": layout}
    inputs = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    also = accepted(body, {"position_ids": positions, "use_cache": False})
    out: Tensor = body(**inputs, **also, **shared).last_hidden_state
    return out
