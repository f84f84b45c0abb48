"""Where an extra is not installed, what needs it names it with the command that brings it, and nothing else fails."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from fsspec.registry import _registry

from luthier.core.errors import LuthierError
from luthier.core.registry import TRACKERS
from luthier.core.system.extras import EXTRAS, missing_modules
from tests.vacuous import nonempty

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "luthier"

IMPORTERS: Final[dict[str, dict[str, str]]] = {
    "authlib": {"platform/auth/oidc.py": "platform/auth/oidc.py: _check_installed"},
    "bitsandbytes": {"ml/inference/models/quantised.py": "missing_extra"},
    "eyecite": {"ml/evaluation/grounding/find.py": "has_eyecite"},
    "executorch": {
        "ml/export/exporters/executorch.py": "require_extra",
        "ml/export/runtimes/executorch_runtime.py": "missing_extra",
    },
    "liger_kernel": {"ml/training/kernels.py": "has_liger"},
    "llama_cpp_py_sync": {
        "ml/export/exporters/gguf_worker.py": "ml/export/exporters/gguf.py: missing_extra",
        "ml/inference/llama_cpp/library.py": "missing_extra",
    },
    "lm_eval": {
        "features/suites/lm_eval.py": "require_extra",
        "ml/inference/lm_eval_model.py": "features/suites/lm_eval.py: require_extra",
    },
    "mlflow": {"ml/tracking/mlflow_client.py": "ml/tracking/protocol.py: check_installed"},
    "onnx": {"ml/export/exporters/head_onnx.py": "ml/export/exporters/head_formats.py: missing_modules"},
    "onnxruntime_genai": {"ml/export/runtimes/onnx_runtime.py": "missing_extra"},
    "opentelemetry": {"features/traffic/log.py": "install_command"},
    "pg8000": {"platform/db/database.py": "missing_extra"},
    "presidio_analyzer": {"ml/data/personal_data/find.py": "why_not"},
    "ray": {
        "ml/data/files/ray_workers.py": "require_extra",
        "ml/training/ray_train.py": "require_ray",
    },
    "tensorboard": {"ml/tracking/tensorboard.py": "ml/tracking/protocol.py: check_installed"},
    "trackio": {"ml/tracking/trackio_client.py": "ml/tracking/protocol.py: check_installed"},
    "wandb": {"ml/tracking/wandb_client.py": "ml/tracking/protocol.py: check_installed"},
    "webauthn": {"platform/auth/passkeys.py": "require_extra"},
    "xllamacpp": {"ml/inference/llama_cpp/server.py": "missing_extra"},
}
"""Who imports what an extra brings: the file, and what it calls before; `FILE: NAME` where another file has."""
CHILD_PROGRAMS = {"ml/inference/lm_eval_model.py"}
"""Modules that import such a library at their top: imported where it is known to be there."""


def optional_imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """The optional libraries that a module imports, and whether at its top; not for types alone."""
    libraries = {module.split(".")[0] for extra in EXTRAS.values() for module in extra.modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                asked = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0):
                asked = [module]
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                asked = [module]
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.JoinedStr() as text, *_],
            ):
                asked = ["liger_kernel"] if "LIGER_PACKAGE" in ast.unparse(text) else []
            case _:
                continue
        for module in asked:
            if module.split(".")[0] in libraries:
                yield module.split(".")[0], id(node) in top


def test_each_import_of_an_optional_library_comes_after_a_check() -> None:
    found: dict[str, set[str]] = {}
    at_top = set()
    for path in nonempty(sorted(PACKAGE.rglob("*.py"))):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        if place.startswith("testing/"):
            continue
        if any(module.split(".")[0] in text for extra in EXTRAS.values() for module in extra.modules):
            for library, is_top in optional_imports(ast.parse(text)):
                found.setdefault(library, set()).add(place)
                at_top |= {place} if is_top else set()
    assert {library: sorted(places) for library, places in sorted(found.items())} == {
        library: sorted(places) for library, places in IMPORTERS.items()
    }, "name here what checks that the library is installed, before it is imported"
    assert at_top == CHILD_PROGRAMS
    for places in nonempty(IMPORTERS.values()):
        for place, guard in nonempty(places.items()):
            file, _, name = guard.rpartition(": ")
            assert f"{name}(" in (PACKAGE / (file or place)).read_text(encoding="utf-8"), guard


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes the modules of an extra away, also those that are loaded."""

    def block(extra: str) -> None:
        for module in EXTRAS[extra].modules:
            for name in [module, *(one for one in list(sys.modules) if one.startswith(f"{module}."))]:
                monkeypatch.setitem(sys.modules, name, None)
        if extra in ("s3", "gs", "azure"):
            # fsspec keeps the class that an earlier test has loaded.
            monkeypatch.delitem(_registry, "az" if extra == "azure" else extra, raising=False)
        assert missing_modules(extra) == EXTRAS[extra].modules

    return block


def said(work: Callable[[], Any]) -> str:
    """What an error tells a person to do, or what the work returns."""
    try:
        return str(work())
    except LuthierError as error:
        return error.do


def masked_names() -> Any:
    from luthier.ml.data.repair.request import masked_kinds

    return masked_kinds(mask=["names"])


def four_bits() -> Any:
    from luthier.ml.planning.resolve_method import choose_quantisation

    return choose_quantisation("nf4", "cpu")


def packed_layer() -> Any:
    from torch import nn

    from luthier.ml.inference.models.quantised import Nf4Linear

    return Nf4Linear(nn.Linear(64, 64))


def training_on_ray() -> Any:
    from luthier.ml.training.ray_train import require_ray

    return require_ray()


def data_on_ray() -> Any:
    from luthier.ml.data.files.ray_workers import ray_workers

    with ray_workers():
        return None


def citations() -> Any:
    from luthier.core.results.suite import CitationsTask
    from luthier.ml.evaluation.tasks.citations import Citations

    task = CitationsTask(kind="citations", name="cited", data="rows.jsonl", corpus="documents", forms=("us_case",))
    return " ".join(Citations().cautions(task))


def database() -> Any:
    from luthier.platform.db.database import Database

    return Database.open("postgresql://user:secret@127.0.0.1/name")


def bucket(protocol: str) -> Callable[[], Any]:
    from luthier.core.system.artifact_transfer import open_root

    return lambda: open_root(f"{protocol}://bucket/folder")


def export_to(format: str) -> Callable[[], Any]:
    def work() -> Any:
        from luthier.ml.export.exporters.registry import need_packages

        return need_packages(format)

    return work


def head_to_onnx() -> Any:
    from luthier.core.records.export import ExportSource
    from luthier.ml.export.exporters.head_formats import head_format

    return head_format(ExportSource.model_construct(name="run", task_head="classify"), "onnx")


def llama_cpp_likelihoods() -> Any:
    from luthier.ml.inference.llama_cpp.library import _binding

    return _binding()


def harness() -> Any:
    from luthier.core.results.suite import LmEvalTask
    from luthier.features.suites.lm_eval import check_lm_eval

    return check_lm_eval([LmEvalTask(kind="lm_eval", name="arc", task="arc_easy")], [], folder=Path())


def sign_in() -> Any:
    from luthier.platform.auth.oidc import Provider
    from luthier.platform.home.settings import Settings

    return Provider.of(Settings(oidc_issuer="https://id.example.org", oidc_client_id="luthier"))


def passkey() -> Any:
    from luthier.platform.auth.passkeys import _check_installed

    return _check_installed()


def tracker(name: str) -> Callable[[], Any]:
    def work() -> Any:
        import luthier.ml.tracking.registry  # noqa: F401 - declares the trackers

        return TRACKERS.declaration(name).check_installed(name)

    return work


NEEDS: Final[list[tuple[str, Callable[[], Any]]]] = [
    ("names", masked_names),
    ("nf4", four_bits),
    ("nf4", packed_layer),
    ("ray", training_on_ray),
    ("ray", data_on_ray),
    ("law", citations),
    ("postgresql", database),
    ("s3", bucket("s3")),
    ("gs", bucket("gs")),
    ("azure", bucket("az")),
    ("gguf", export_to("gguf")),
    ("gguf", llama_cpp_likelihoods),
    ("onnx", export_to("onnx")),
    ("onnx", head_to_onnx),
    ("executorch", export_to("executorch")),
    ("lm-eval", harness),
    ("oidc", sign_in),
    ("passkeys", passkey),
    *((name, tracker(name)) for name in ("tensorboard", "mlflow", "wandb", "trackio")),
]


@pytest.mark.parametrize(("extra", "work"), NEEDS)
def test_what_needs_an_extra_names_it(without: Callable[[str], None], extra: str, work: Callable[[], Any]) -> None:
    without(extra)
    assert f"pip install 'luthier[{extra}]'" in said(work)


NOT_ASKED_FOR: Final = {
    "sandbox": "without it the own sandbox is used, and `luthier doctor` says which one",
    "otel": "a line of the log: tests/features/traffic/service/test_spans.py",
    "gpu": "kernels that are used where they are there",
}


def test_every_extra_is_tried() -> None:
    assert {extra for extra, _ in NEEDS} | set(NOT_ASKED_FOR) == set(EXTRAS)


def test_extras_that_nobody_asks_for_by_name_are_shown_by_doctor(without: Callable[[str], None]) -> None:
    from types import SimpleNamespace

    from luthier.features.doctor.cli import _extras

    for extra in NOT_ASKED_FOR:
        without(extra)
    found: Any = SimpleNamespace(extras={name: not missing_modules(name) for name in EXTRAS})
    line = _extras(found)
    missing = line.partition("not installed: ")[2]
    assert all(extra in missing for extra in NOT_ASKED_FOR)
    assert "pip install 'luthier[NAME]'" in missing
