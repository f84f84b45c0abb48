"""Training clients of the Tinker API and what they have saved, as stored; and paths of the form tinker://..."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan

CheckpointKind = Literal["training", "sampler", "external"]
SEGMENTS: Final[dict[CheckpointKind, str]] = {
    "training": "weights",
    "sampler": "sampler_weights",
    "external": "external_weights",
}
"""The middle part of a path, by the kind of what it names."""
_SCHEME: Final = "tinker://"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ALPHA: Final = 32.0
"""The scale of every adapter is alpha / rank, as the SDK's users know it."""


class AdapterOptions(FrozenModel):
    """The adapter of a training client.

    Attributes:
        rank: of every matrix.
        seed: of its initial weights.
        train_mlp: whether matrices of MLPs carry it.
        train_attn: whether matrices of attention carry it.
        train_unembed: whether the output head carries it.
    """

    rank: int = Field(ge=1, le=4096)
    seed: int = Field(default=0, ge=0, lt=2**31)
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


class TinkerModel(FrozenModel):
    """A training client.

    Attributes:
        model_id: `SESSION:train:NUMBER`.
        project_id: the project that owns it.
        session_id: the session that made it.
        run_id: the run that its saved states belong to.
        base_model: the name of the base model in the API.
        options: its adapter.
        plan: the settings of its training.
        user_metadata: labels of the client.
        owner: the name of the key that made it.
        created_at: seconds since 1970.
    """

    model_id: str
    project_id: str
    session_id: str
    run_id: str
    base_model: str
    options: AdapterOptions
    plan: Plan
    user_metadata: dict[str, Any] | None = None
    owner: str = ""
    created_at: float = 0.0


class TinkerCheckpoint(FrozenModel):
    """What a training client has saved under a name.

    Attributes:
        checkpoint_id: its id, the name of its folder in that of the run.
        model_id: the training client.
        project_id: the project that owns it.
        kind: `training` to continue with, `sampler` to sample from, `external` to download.
        name: given by the client.
        step: optimizer steps before it.
        num_bytes: of its files.
        served_name: the name by which it answers at the routes of OpenAI's API.
        user_metadata: labels of the client.
        created_at, expires_at: seconds since 1970; None for never.
    """

    checkpoint_id: str
    model_id: str
    project_id: str
    kind: CheckpointKind
    name: str
    step: int
    num_bytes: int
    served_name: str
    user_metadata: dict[str, str] | None = None
    created_at: float = 0.0
    expires_at: float | None = None

    @property
    def path(self) -> str:
        """`tinker://MODEL/weights/NAME`."""
        return f"{_SCHEME}{self.model_id}/{SEGMENTS[self.kind]}/{self.name}"

    @property
    def short_path(self) -> str:
        """`weights/NAME`: what the SDK calls the id of a checkpoint."""
        return f"{SEGMENTS[self.kind]}/{self.name}"


def checked_name(name: str | None) -> str:
    """The name of a checkpoint.

    Raises:
        RequestError: it is missing or has another form.
    """
    if name is None or not _NAME.fullmatch(name):
        raise RequestError(
            f"a checkpoint called {(name or '')[:120]!r}",
            expected="1 to 100 letters, digits, `.`, `_` and `-`, the first a letter or digit",
            do="choose another name",
        )
    return name


def parse_path(path: str) -> tuple[str, CheckpointKind, str]:
    """The model, kind and name that a path `tinker://MODEL/KIND/NAME` has.

    Raises:
        RequestError: it has another form.
    """
    parts = path.removeprefix(_SCHEME).split("/")
    if path.startswith(_SCHEME) and len(parts) == 3:
        for kind, segment in SEGMENTS.items():
            if parts[1] == segment:
                return parts[0], kind, parts[2]
    raise RequestError(
        f"the path {path[:200]!r}",
        expected="tinker://MODEL/weights/NAME or tinker://MODEL/sampler_weights/NAME",
        do="give a path as save_state or save_weights_for_sampler has returned it",
    )
