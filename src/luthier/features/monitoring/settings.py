"""What an operator has said of a model that is watched, as it is kept."""

from __future__ import annotations

from typing import Final

from luthier.core.records.monitor_settings import WatchSettings
from luthier.platform.home.context import Context

SETTINGS: Final = "signals"
"""The kind of the documents in `watches` that hold the settings of a model."""


def model_settings(context: Context, project_id: str, model: str) -> WatchSettings:
    """The settings of a model; the defaults of `WatchSettings` where none are stored."""
    document = context.watches.get(project_id, SETTINGS, model)
    return WatchSettings() if document is None else WatchSettings.model_validate_json(document)
