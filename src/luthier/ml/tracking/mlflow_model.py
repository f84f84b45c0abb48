"""How MLflow loads a model that a run has logged: `mlflow.pyfunc.load_model("models:/NAME/VERSION")`.

An adapter is loaded on its base model, which is not part of what was logged: its folder is the one of the machine that
trained, or `model_config={"base_model": FOLDER}`. Answers are greedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import Prompt, SilentProgress

COLUMN: Final = "prompt"
DEFAULT_NEW_TOKENS: Final = 256


class TunedModel:
    """A tuned model that answers prompts: a frame with the column `prompt`, a list of texts, or one text."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """One answer a prompt, in order.

        Raises:
            RequestError: There is no column of prompts.
        """
        texts = _texts(model_input)
        max_new_tokens = int((params or {}).get("max_new_tokens", DEFAULT_NEW_TOKENS))
        is_chat = self._engine.template.kind == "chat"
        prompts = [
            Prompt(
                conversation=Conversation(messages=(Message(role="user", content=text),)),
                max_new_tokens=max_new_tokens,
            )
            if is_chat
            else Prompt(text=text, max_new_tokens=max_new_tokens)
            for text in texts
        ]
        return [one.text for one in self._engine.generate(prompts, SilentProgress())]


def _texts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if hasattr(given, "columns"):
        if COLUMN not in given.columns:
            raise RequestError(
                f"columns {', '.join(map(str, given.columns))}",
                expected=f"a column {COLUMN!r}",
                do=f"name the column of prompts {COLUMN!r}",
            )
        given = given[COLUMN]
    return [str(one[COLUMN] if isinstance(one, Mapping) else one) for one in given]


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> TunedModel:
    """What MLflow calls. data_path: the logged weights.

    Raises:
        NotFoundError: The base model is not on this machine.
    """
    from luthier.ml.inference.transformers_engine import TransformersEngine

    config, own = model_config or {}, Path(data_path) / "adapter_config.json"
    is_adapter, base = own.is_file(), data_path
    if is_adapter:
        named = json.loads(own.read_text(encoding="utf-8")).get("base_model_name_or_path")
        base = str(config.get("base_model") or named or "")
    if not Path(base).is_dir():
        raise NotFoundError(
            f"no base model in {base!r}",
            expected="the folder of the base model that the adapter was trained on",
            do="name it: mlflow.pyfunc.load_model(uri, model_config={'base_model': FOLDER})",
        )
    template: Any = config.get("template") or "auto"
    adapter = data_path if is_adapter else None
    return TunedModel(TransformersEngine.open(base, adapter_path=adapter, template=template, dtype="float32"))
