"""IA3: a trained factor for each key, each value and each activation of the MLP.

Liu et al., 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
arXiv:2205.05638, section 3.3. Implemented by PEFT.
"""

from __future__ import annotations

from pathlib import Path

from peft import IA3Config, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from luthier.ml.inference.accelerator import seed_random
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.models.structure import FEED_FORWARD_OUTPUTS
from luthier.ml.training.methods.lora import ADAPTER
from luthier.ml.training.methods.peft_adapter import (
    adapter_tensors,
    planned_targets,
    refuse_other_targets,
    write_adapter,
)
from luthier.ml.training.methods.protocol import PlainMethod


class Ia3(PlainMethod):
    """Trains scaling factors of outputs, and of the inputs of an MLP's last matrix; all start at 1."""

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Add the factors in the precision of the base; their initialisation is not random.

        Raises:
            RequestError: PEFT adapted other modules than the plan lists.
        """
        seed_random(seed)
        config = IA3Config(
            target_modules=list(self.plan.targets),
            feedforward_modules=[t for t in self.plan.targets if t.rpartition(".")[2] in FEED_FORWARD_OUTPUTS],
            task_type="CAUSAL_LM",
        )
        planned = planned_targets(model, self.plan)
        with quiet_peft():
            adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
        refuse_other_targets(adapted, planned)
        return adapted  # type: ignore[no-any-return]

    def decays(self, name: str) -> bool:
        """Factors do not: PEFT stores a vector as a matrix with one side of 1, and at 0 it silences what it scales."""
        return ".ia3_l." not in name

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write the adapter as PEFT reads it."""
        assert isinstance(model, PeftModel)
        return write_adapter(folder, adapter_tensors(model), model.peft_config[ADAPTER], base_path)
