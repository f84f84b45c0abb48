"""The model behind a server that the operator has configured (`LUTHIER_TEACHER`), as pages offer it.

A form sends the word `CONFIGURED` for it, never its address: so no visitor can have the server send texts, and the
operator's key, to an address of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from luthier.core.data_sources import LOOPBACK
from luthier.core.errors import ConflictError
from luthier.features.generation.engines import parse_address
from luthier.platform.home.context import Context

CONFIGURED: Final = ":teacher"
"""What a form sends for the model that the operator has configured; no model has such a name."""


@dataclass(frozen=True, slots=True)
class ConfiguredTeacher:
    """The model that LUTHIER_TEACHER names: the only one behind an address that pages and their forms may choose.

    Attributes:
        address: `http(s)://host:port/v1#MODEL`, in one form.
        name: As people know it: the model, and its server.
        is_here: Whether its server is this machine.
        prompt_usd: US dollars for a million tokens of prompts; None where no price is configured.
        new_usd: US dollars for a million tokens of replies; None where no price is configured.
    """

    address: str
    name: str
    is_here: bool
    prompt_usd: float | None
    new_usd: float | None

    @property
    def value(self) -> str:
        """What a form sends for it."""
        return CONFIGURED

    @property
    def has_prices(self) -> bool:
        """Whether both prices are configured."""
        return self.prompt_usd is not None and self.new_usd is not None


def configured_teacher(context: Context) -> ConfiguredTeacher | None:
    """The model behind a server that the operator has configured; None where there is none.

    Args:
        context: The home.

    Raises:
        RequestError: Its address has no model, or a key in it.
    """
    settings = context.settings
    if not settings.teacher:
        return None
    url, model = parse_address(settings.teacher)
    return ConfiguredTeacher(
        address=f"{url}#{model}",
        name=f"{model} at {urlsplit(url).netloc}",
        is_here=urlsplit(url).hostname in LOOPBACK,
        prompt_usd=settings.teacher_usd_per_million_prompt_tokens,
        new_usd=settings.teacher_usd_per_million_new_tokens,
    )


def check_is_configured(context: Context, address: str) -> None:
    """Check that a model that was chosen on a page is still the one that the operator has configured.

    Args:
        context: The home.
        address: Of the model, as `ConfiguredTeacher.address` was.

    Raises:
        ConflictError: The operator has configured another one since, or none.
    """
    now = configured_teacher(context)
    if now is None or now.address != address:
        raise ConflictError(
            f"the model {address} is no longer configured",
            expected="the model that LUTHIER_TEACHER names now",
            do="choose another model",
        )
