"""Ids in addresses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
"""The id of anything; what has another form is the id of nothing and goes no further."""
