"""/runs/import: a file of another tool becomes a recipe for a new run, as `luthier import` makes one.

Nothing of this machine is looked up by what the file says: its rows and its base model are chosen in the form.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.system.files import scratch_folder
from luthier.core.text.plain_yaml import has_alias
from luthier.features.recipes.imports import trl
from luthier.features.recipes.imports.service import TOOLS, Imported, RefusedKeysError, import_recipe
from luthier.features.recipes.service import MAX_CHARACTERS, write_text
from luthier.features.run_drafts import choices as draft_choices
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redacted_errors
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.settings_tabs import whole_number
from luthier.platform.ui.visitor import HomeContext, Trainer

_ADDRESS: Final = "/runs/import"
router = APIRouter(prefix=_ADDRESS)

_MAX_FIELDS: Final = 1000
"""Each refused key of a file has a box and a field."""
_MAX_ADDRESS_CHARACTERS: Final = 4000
"""Longer recipes are sent by a form: the address of a new run takes no more."""
_MAX_DEVICES: Final = 4096
_SETTING: Final = "set:"
"""What the names of fields begin with that set a key of the recipe."""


@dataclass(frozen=True, slots=True)
class Given:
    """The form as it was sent.

    Attributes:
        text: The other tool's file.
        tool: Its name in `TOOLS`; empty to recognise it by the keys of the file.
        trainer: Of TRL; empty to recognise it by the keys of the file.
        base_model: The base model by its name on this server; empty for that of the file.
        rows: The id of the file with the training rows; empty for none.
        devices: On how many devices the file is run.
        left_out: Keys of the file to leave out.
        settings: Values of the recipe's keys, as text.
    """

    text: str = ""
    tool: str = ""
    trainer: str = ""
    base_model: str = ""
    rows: str = ""
    devices: str = "1"
    left_out: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


async def _given(request: Request) -> Given:
    """The fields of the form; a chosen file takes the place of the text."""
    async with request.form(max_files=1, max_fields=_MAX_FIELDS) as found:  # closes the file
        return await _read(found)


async def _read(found: FormData) -> Given:
    plain = {name: value for name, value in found.items() if isinstance(value, str)}
    text, file = plain.get("text", "").replace("\r\n", "\n"), found.get("file")
    if isinstance(file, UploadFile) and file.filename:
        # What is not UTF-8 becomes a mark, which `_check` refuses.
        text = (await file.read()).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    names = ("tool", "trainer", "base_model", "rows", "devices")
    settings = {
        name.removeprefix(_SETTING): value.strip()
        for name, value in plain.items()
        if name.startswith(_SETTING) and value.strip()
    }
    left_out = tuple(one for one in found.getlist("leave_out") if isinstance(one, str))
    return Given(
        text=text, left_out=left_out, settings=settings, **{name: plain.get(name, "").strip() for name in names}
    )


@router.get("")
def show(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """The form, and the recipe of the file that was sent before."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post("")
def take(request: Request, context: HomeContext, caller: Trainer, given: Annotated[Given, Depends(_given)]) -> Response:
    """Translate a file; of one with keys that have no counterpart, ask what to do with each."""
    try:
        imported = _translated(context, caller, given)
    except RefusedKeysError as error:
        return _page(request, context, caller, {"given": given, "refused": error.entries}, status_of(error))
    except LuthierError as error:
        return _page(request, context, caller, {"given": given, "error": error}, status_of(error))
    return redirect(request, shown_once(request).put(request, _ADDRESS, {"given": given, "imported": imported}))


def _translated(context: Context, caller: Caller, given: Given) -> Imported:
    """The recipe of a form.

    Raises:
        RefusedKeysError: Keys of the file have no counterpart, and are neither left out nor settled.
        RequestError: The form, the file or the recipe is wrong.
        NotFoundError: The project has no such rows.
    """
    _check(given)
    given_devices = whole_number(given.devices, "the number of devices")
    num_devices = 1 if given_devices is None else given_devices
    if not 1 <= num_devices <= _MAX_DEVICES:
        raise RequestError(
            f"the file is run on {num_devices:,} devices", expected=f"1 to {_MAX_DEVICES:,}", do="correct the number"
        )
    overrides = _overrides(context, caller, given)
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-import-") as work:
        name = "file.json" if given.text.lstrip().startswith("{") else "file.yaml"
        path = work / name
        # A form may contain unpaired surrogates, which UTF-8 cannot encode.
        path.write_bytes(given.text.encode("utf-8", "replace"))

        def imported(allowed: tuple[str, ...]) -> Imported:
            return import_recipe(
                path,
                target=work,
                tool=given.tool or None,
                trainer=given.trainer or None,
                overrides=overrides,
                allowed=allowed,
                num_devices=num_devices,
                reads_files=False,
            )

        with redacted_errors({f"{work}/": ""}):
            try:
                return imported(())
            except RefusedKeysError as error:
                refused = tuple(entry.key for entry in error.entries)
                if not set(refused) <= set(given.left_out):
                    raise
            return imported(refused)


def _check(given: Given) -> None:
    if not given.text.strip():
        raise RequestError(
            "no file was chosen", expected="the file that the other tool is started with", do="choose it"
        )
    if len(given.text) > MAX_CHARACTERS:
        raise RequestError(
            f"a file of {len(given.text):,} characters", expected=f"at most {MAX_CHARACTERS:,}", do="leave comments out"
        )
    if "\N{REPLACEMENT CHARACTER}" in given.text:
        raise RequestError("the file has bytes that are not UTF-8", expected="UTF-8 text", do="save it as UTF-8")
    # YAML aliases expand: a few nested ones make billions of values out of a short text.
    if has_alias(given.text):
        raise RequestError("the file repeats a part by its name (`*name`)", expected="plain values", do="write it out")
    if given.tool and given.tool not in TOOLS:
        raise RequestError(f"the tool {given.tool[:40]!r}", expected=f"one of {', '.join(TOOLS)}", do="choose one")
    if given.trainer and given.trainer not in trl.TRAINERS:
        known = ", ".join(trl.TRAINERS)
        raise RequestError(f"the trainer {given.trainer[:40]!r}", expected=f"one of {known}", do="choose one")


def _overrides(context: Context, caller: Caller, given: Given) -> list[str]:
    """What the form settles of the recipe, as `--set` takes it. JSON is YAML, too."""
    found = {place: value for place, value in given.settings.items() if "=" not in place}
    if given.rows:
        file = files.get_file(context, caller.project_id, given.rows)
        found["data.train"] = json.dumps(file.file_id)
        if columns := context.datasets.columns_of_file(caller.project_id, file.file_id):
            found["data.columns"] = json.dumps(columns)
    if given.base_model:
        if given.base_model not in draft_choices.model_choices(context, caller):
            raise RequestError(
                f"the base model {given.base_model[:80]!r}", expected="a base model of this server", do="choose one"
            )
        found["base_model"] = json.dumps(given.base_model)
    return [f"{place}={value}" for place, value in found.items()]


def _page(request: Request, context: Context, caller: Caller, values: Mapping[str, Any], status: int = 200) -> Response:
    known: dict[str, Any] = {"given": Given(), "imported": None, "refused": (), "error": None, "is_shown_before": False}
    known |= values
    found, imported = draft_choices.file_choices(context, caller), known["imported"]
    text = "" if imported is None else write_text(imported.keys, {one.file_id: one.comment for one in found})
    more = {
        "text": text,
        "is_long": len(text) > _MAX_ADDRESS_CHARACTERS,
        "files": found,
        "models": draft_choices.model_choices(context, caller),
        "tools": TOOLS,
        "trainers": trl.TRAINERS,
        "as_text": _as_text,
        "command": _command(known["given"]),
    }
    return render(request, "run_drafts/import.html", known | more, status=status)


def _command(given: Given) -> str:
    """The command that does the same."""
    options = [f"--from {given.tool}"] if given.tool in TOOLS else []
    options += [f"--trainer {given.trainer}"] if given.trainer in trl.TRAINERS else []
    options += [f"--devices {given.devices}"] if given.devices.isdecimal() and given.devices != "1" else []
    return " ".join(["luthier import FILE -o recipe.yaml", *options, "--set data.train=ROWS"])


def _as_text(value: Any) -> str:
    """A value of the file or of the recipe in one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
