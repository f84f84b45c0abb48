"""How much memory the models that answer may take together: that of the machine, and that of its accelerator.

The engines transformers and vLLM hold their models on an accelerator where there is one, llama.cpp in the memory of the
machine. vLLM reserves its part of a card when it starts, whatever its model needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.stream import Served

_WEIGHTS: Final = (".safetensors", ".gguf")
_OF_DEVICE: Final = 0.9
"""Of an accelerator's memory; as much as vLLM takes by itself."""
_ON_HOST: Final = "llama_cpp"


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Limits of the models in memory.

    Attributes:
        host_bytes: Of those in the memory of the machine; of all where there is no accelerator.
        device_bytes: Of those on the accelerator; None where there is none, and where one limit is set for all.
        vllm_bytes: What each vLLM reserves of the accelerator.
        card_bytes: Of those on the accelerator, beside one limit that is set for all. The weights of vLLM count in that
            limit, and what it reserves counts here.
    """

    host_bytes: int
    device_bytes: int | None = None
    vllm_bytes: int = 0
    card_bytes: int | None = None

    def limit_of(self, model: Served) -> int:
        """The memory that the models of its place may take."""
        return self.host_bytes if self.device_bytes is None or model.engine == _ON_HOST else self.device_bytes

    def needed_by(self, model: Served, num_bytes: int) -> int:
        """What a model takes of its place. num_bytes: Its own memory, or an estimate."""
        return num_bytes if self.device_bytes is None else self._reserved_by(model, num_bytes)

    def share_place(self, model: Served, other: Served) -> bool:
        """Whether two models are held in the same memory."""
        return self.device_bytes is None or (model.engine == _ON_HOST) == (other.engine == _ON_HOST)

    def is_over(self, taken: Mapping[Served, int], model: Served) -> bool:
        """Whether the models in the memory of this one take more than they may. taken: The memory of each in bytes."""
        own = (self.needed_by(one, num) for one, num in taken.items() if self.share_place(one, model))
        return sum(own) > self.limit_of(model) or self._has_full_card(taken, model)

    def makes_room(self, one: Served, taken: Mapping[Served, int], model: Served) -> bool:
        """Whether closing one model helps another for which there is no room. taken: As of `is_over`."""
        return one.engine != _ON_HOST if self._has_full_card(taken, model) else self.share_place(one, model)

    def _has_full_card(self, taken: Mapping[Served, int], model: Served) -> bool:
        """Whether several models on the card, this one among them, take more of it than they may."""
        if self.card_bytes is None or model.engine == _ON_HOST:
            return False
        own = [self._reserved_by(one, num) for one, num in taken.items() if one.engine != _ON_HOST]
        return len(own) > 1 and sum(own) > self.card_bytes

    def _reserved_by(self, model: Served, num_bytes: int) -> int:
        return max(num_bytes, self.vllm_bytes) if model.engine == "vllm" else num_bytes


def read_budget(asked_bytes: int, device_bytes: Sequence[int], num_vllm: int) -> MemoryBudget:
    """The limits of this process.

    Args:
        asked_bytes: One limit for all, as it is set; 0 takes what this machine can spare.
        device_bytes: Memory of each accelerator; models are on the first.
        num_vllm: As for `vllm_share`.
    """
    if not device_bytes:
        return MemoryBudget(host_bytes(asked_bytes))
    card = int(_OF_DEVICE * device_bytes[0])
    # Rounded down, so that as many as divide the card fit.
    each = card // max(1, num_vllm)
    if asked_bytes:
        # The limit says nothing of what vLLM reserves: two that each take nearly all of a card cannot both start.
        return MemoryBudget(host_bytes(asked_bytes), vllm_bytes=each, card_bytes=card)
    return MemoryBudget(host_bytes(), card, each)


def vllm_share(num_vllm: int) -> float | None:
    """The part of a card that one vLLM may reserve; None leaves it to vLLM, which takes nearly all.

    Args:
        num_vllm: How many are in memory at once; 0 where it is not known: then they take turns.
    """
    # Rounded down: together they must not ask for more than the card has.
    return int(1000 * _OF_DEVICE / num_vllm) / 1000 if num_vllm > 1 else None


def host_bytes(asked_bytes: int = 0) -> int:
    """The limit as it is set, else half of the memory of this machine, or of its container.

    The other half is for answers, and for training.
    """
    from luthier.core.system.machine_memory import memory_bytes

    return asked_bytes or memory_bytes()[0] // 2


def weight_bytes(path: str | None) -> int:
    """Estimated memory of the weights in a file or folder, from file sizes; 0 if it is not on this machine."""
    place = Path(path or "")
    if path is None or not place.exists():
        return 0
    files = [place] if place.is_file() else [one for one in place.iterdir() if one.suffix in _WEIGHTS]
    return sum(one.stat().st_size for one in files)
