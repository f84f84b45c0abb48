"""docs/settings.md: every environment variable with its default and what it does, from the settings themselves.

python docsite/settings_page.py        # write it; a test holds the page and `platform/home/settings.py` together
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_HEAD: Final = """# Settings

Made by `docsite/settings_page.py` from `platform/home/settings.py`. Every setting is an environment variable, read by
commands, server and workers alike; one that is set to nothing counts as unset. A value that is refused ends the command
with the reason. Server and workers that share a database need the same settings. How settings are given to
containers and services: [containers](operations/containers.md).
"""
GROUPS: Final[Mapping[str, str]] = {
    "home": "Home, files and limits",
    "fork_server": "Server and workers",
    "max_loaded_models": "Models that answer",
    "teacher": "The model that writes questions",
    "smtp": "Mails and links",
    "oidc_issuer": "Sign-in by a provider",
}
"""The title above a setting and those that follow it."""
OTHER: Final[Mapping[str, str]] = {
    "LUTHIER_ADMIN_KEY": "the first key of a home, 32 characters or more ([containers](operations/containers.md))",
    "LUTHIER_API_KEY": "the key with which `luthier chat` asks a server, and `luthier mcp` acts for its owner",
    "LUTHIER_CATALOG": "a YAML file with more base models ([catalogue](catalog.md))",
    "LUTHIER_LAUNCH_ID": "the name by which a launch finds its run again ([several processes](devices.md))",
    "LUTHIER_SERVE_API_KEY": "the key for `luthier serve` over the model of another server",
    "LUTHIER_TEACHER_API_KEY": "the key of teachers and judges behind an address; else `OPENAI_API_KEY`",
    "LUTHIER_VLLM_COMMAND": "the command of vLLM in an environment of its own ([serving](serving.md#vllm))",
}
"""Variables that are no settings of a home: the commands that need them read them."""
INTERNAL: Final = frozenset(
    {"LUTHIER_CHANNEL_SECRET", "LUTHIER_LONE_SERVER", "LUTHIER_STARTED_BY", "LUTHIER_VLLM_STUB"}
)
"""Between processes of Luthier, and of its tests."""
_ENTRY: Final = re.compile(r"\n {4}(\w+): ")


def text() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_settings(), *_others(), *_old_names()]) + "\n"


def _settings() -> Iterator[str]:
    from luthier.platform.home.settings import Settings

    _, *entries = _ENTRY.split(inspect.cleandoc(Settings.__doc__ or "").partition("Attributes:")[2])
    meanings = dict(zip(entries[::2], entries[1::2], strict=True))
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            yield from ("", f"## {GROUPS[name]}", "", *_top("variable", "default", "what"))
        # What is None in Python is a variable that is not set.
        meaning = re.sub(r"\bNone\b", "none", " ".join(meanings[name].split()).replace("|", "\\|"))
        yield f"| `LUTHIER_{name.upper()}` | {_shown(field.default)} | {meaning} |"


def _others() -> Iterator[str]:
    yield from ("", "## Read by single commands", "", *_top("variable", "what"))
    yield from (f"| `{name}` | {what} |" for name, what in OTHER.items())


def _old_names() -> Iterator[str]:
    from luthier.core.aliases import VARIABLES

    yield from ("", "## Names of earlier versions", "", "They still work, with one line of warning.", "")
    yield from _top("variable", "now")
    yield from (f"| `{old}` | `{new}` |" for old, new in VARIABLES.items())


def _top(*titles: str) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"


def _shown(default: Any) -> str:
    """A default as one would type it; large numbers of bytes with their unit."""
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int) and default >= 1 << 20 and default % (1 << 20) == 0:
        size = f"{default >> 30} GiB" if default % (1 << 30) == 0 else f"{default >> 20} MiB"
        return f"`{default}` ({size})"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
