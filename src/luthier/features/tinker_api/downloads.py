"""Adapters as files for other programs, by addresses that need no key and hold for an hour.

GET /tinker/api/v1/training_runs/.../external_weights/NAME/external_weights_urls     needs a key
GET /tinker/weights/TOKEN/FILE                                                       needs the token in the address
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.features.tinker_api.records import CheckpointKind, parse_path
from luthier.features.tinker_api.service import find_base, folder_of, hub_name
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import Id

router = APIRouter(prefix="/tinker", tags=["tinker"])

_CONFIG: Final = "adapter_config.json"
_FILES: Final = (_CONFIG, "adapter_model.safetensors")


def make_urls(
    context: Context, caller: Caller, model_id: str, kind: CheckpointKind, name: str, root: str
) -> dict[str, Any]:
    """Addresses of the files of an adapter that was saved for other programs.

    Args:
        context: The home.
        caller: Whose project has saved it.
        model_id: The training client that has saved it.
        kind: What it was saved for.
        name: As the client has named it.
        root: What the addresses begin with: scheme, host and a slash at the end.

    Raises:
        NotFoundError: The project has no such checkpoint.
        RequestError: It was saved for training or sampling.
    """
    if kind != "external":
        raise RequestError(
            f"addresses of a checkpoint for {'training' if kind == 'training' else 'sampling'}",
            expected="a path of save_weights_external: tinker://MODEL/external_weights/NAME",
            do="save the weights with save_weights_external",
        )
    one = context.tinker.checkpoint(caller.project_id, model_id, kind, name)
    model = context.tinker.model(caller.project_id, model_id)
    base_name, _ = find_base(context, model.base_model)
    folder = Path(folder_of(context, one, model)) / "adapter"
    token, expires_at = context.tinker_sessions.downloads.add(folder, hub_name(base_name) or base_name)
    with context.database.transaction():
        record(context, caller, "tinker_checkpoint.downloaded", one.checkpoint_id, {"path": one.path})
    urls = {file: f"{root}tinker/weights/{token}/{file}" for file in _FILES}
    return {"urls": urls, "expires": datetime.fromtimestamp(expires_at, UTC).isoformat()}


@router.get(
    "/api/v1/training_runs/{training_run_id}/checkpoints/{tinker_kind}/{tinker_name}/external_weights_urls",
    response_model=dict[str, Any],
    responses=documented(404),
)
def external_weights_urls(
    training_run_id: Id, tinker_kind: Id, tinker_name: Id, request: Request, caller: Trainer, context: HomeContext
) -> dict[str, Any]:
    """Addresses of the files of a saved adapter, which hold for an hour."""
    named = parse_path(f"tinker://{training_run_id}/{tinker_kind}/{tinker_name}")
    return make_urls(context, caller, *named, str(request.base_url))


@router.get("/weights/{token}/{file}", response_model=None, include_in_schema=False)
def download(token: str, file: str, context: HomeContext) -> Response:
    """A file of a saved adapter. The token in the address is the permission."""
    found = context.tinker_sessions.downloads.find(token)
    place = found.folder / file
    if file not in _FILES or not place.is_file():
        raise NotFoundError(
            f"no file {file[:100]!r}", expected=f"one of {', '.join(_FILES)}", do="save the weights again"
        )
    if file != _CONFIG:
        return FileResponse(place, filename=file)
    # The path of the base on this machine says nothing elsewhere.
    config = json.loads(place.read_text(encoding="utf-8")) | {"base_model_name_or_path": found.base_name}
    return Response(json.dumps(config, indent=2), media_type="application/json")
