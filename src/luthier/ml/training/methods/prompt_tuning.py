"""Prompt tuning: trained embeddings before each text; the model itself is unchanged.

Lester et al., 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691, section 2. Created
and saved by PEFT; it starts from embeddings of random vocabulary tokens (section 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.ml.inference.accelerator import seed_random
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.training.body import last_hidden_states
from luthier.ml.training.methods.lora import ADAPTER
from luthier.ml.training.methods.peft_adapter import adapter_tensors, write_adapter
from luthier.ml.training.methods.protocol import PlainMethod

if TYPE_CHECKING:
    from luthier.ml.training.methods.protocol import RowLayout


class PromptTuning(PlainMethod):
    """Trains `num_virtual_tokens` embeddings."""

    # The prompt would have to precede the shared prefix, which layouts do not support.
    can_share_prefix: ClassVar[bool] = False
    prompt: Tensor

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Freeze the model and create the prompt, in the precision of the base, from tokens sampled by `seed`."""
        seed_random(seed)
        config = PromptTuningConfig(
            num_virtual_tokens=self.plan.num_virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            task_type="CAUSAL_LM",
        )
        with quiet_peft():
            adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
        self.prompt = adapted.prompt_encoder[ADAPTER].embedding.weight
        self.prompt.data = self.prompt.data.to(model.dtype)
        return adapted  # type: ignore[no-any-return]

    def hidden(
        self,
        body: nn.Module,
        input_ids: Tensor,
        positions: Tensor,
        layout: RowLayout | None = None,  # noqa: ARG002 - never given, see above
    ) -> Tensor:
        """Run the body on prompt and texts; return the hidden states of the texts only.

        Args:
            body: the model without its head.
            input_ids: [batch, T] int64.
            positions: [1 or batch, T], without the prompt.
            layout: never given.

        Returns:
            [batch, T, width].
        """
        num = self.prompt.shape[0]
        texts = body.get_input_embeddings()(input_ids)  # type: ignore[operator]
        # texts: [batch, T, width]
        both = torch.cat([self.prompt.expand(len(texts), -1, -1), texts], 1)  # [batch, num + T, width]
        ahead = torch.arange(num, device=positions.device)[None].expand(len(positions), -1)
        places = torch.cat([ahead, positions + num], 1)  # [1 or batch, num + T]
        return last_hidden_states(body, places, inputs_embeds=both)[:, num:]

    def virtual_prompt(self) -> Tensor | None:
        """The trained prompt."""
        return self.prompt

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write the adapter as PEFT reads it."""
        assert isinstance(model, PeftModel)
        return write_adapter(folder, adapter_tensors(model), model.peft_config[ADAPTER], base_path)
