"""docs/integrations.md: what Luthier was run against, in which version, and by which test.

    python docsite/integrations_page.py        # write it; a test holds the page to the files that name the versions

Versions come from `constraints.txt` (what the tests run with), from `tests/client_packages.sh` (clients that do not fit
into the test environment), and ranges from `pyproject.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "integrations.md"
_REQUIREMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?P<range>[^;\s]*)")
_PIN: Final = re.compile(r"'(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^']+)'")


@dataclass(frozen=True, slots=True)
class Integration:
    """One package or service of others.

    Attributes:
        title: What people call it.
        package: Its distribution.
        run: What is done with it, and what is compared.
        test: The file.
        pin: Where its version is named: `constraints`, or `clients` for `tests/client_packages.sh`.
    """

    title: str
    package: str
    run: str
    test: str
    pin: str = "constraints"


TRACKERS: Final = (
    Integration(
        "TensorBoard",
        "tensorboard",
        "event files of a run, read back by TensorBoard's own loader",
        "tests/ml/tracking/test_tensorboard.py",
    ),
    Integration(
        "MLflow",
        "mlflow-skinny",
        "run, figures, artifacts and registered model in a file store, read back by MLflow's client",
        "tests/ml/tracking/test_mlflow.py",
    ),
    Integration(
        "MLflow's server",
        "mlflow-skinny",
        "the same at a real `mlflow server`, which is away at first; a drill, with `make build/trackers`",
        "tests/ml/tracking/test_mlflow_server.py",
    ),
    Integration(
        "Weights & Biases",
        "wandb",
        "an offline run, read back from its own records",
        "tests/ml/tracking/test_wandb.py",
    ),
    Integration(
        "Trackio",
        "trackio",
        "a local run, read back by Trackio's storage; runs with the extra `trackio` or `make build/trackers`",
        "tests/ml/tracking/test_trackio.py",
    ),
)
CLIENTS: Final = (
    Integration(
        "openai (newest)",
        "openai",
        "from files and a fine-tuning job to chat and streams; evals in `tests/compat/test_openai_evals.py`",
        "tests/compat/test_openai_clients.py",
    ),
    Integration(
        "openai (oldest)", "openai", "the same, as far as it has them", "tests/compat/story.py", "clients-oldest"
    ),
    Integration(
        "openai, Responses", "openai", "responses, streams, structured output", "tests/compat/test_openai_responses.py"
    ),
    Integration(
        "OpenAI Agents SDK",
        "openai-agents",
        "agents with tools over `/v1/responses`",
        "tests/compat/test_openai_responses.py",
    ),
    Integration(
        "anthropic", "anthropic", "messages and errors of the Messages API", "tests/compat/test_third_parties.py"
    ),
    Integration(
        "LiteLLM",
        "litellm",
        "chat, streams, tools, structured output, both APIs",
        "tests/compat/third_parties.py",
        "clients",
    ),
    Integration(
        "LangChain", "langchain-openai", "chat, streams, tools, embeddings", "tests/compat/third_parties.py", "clients"
    ),
    Integration("Instructor", "instructor", "answers as pydantic models", "tests/compat/third_parties.py", "clients"),
    Integration("llm", "llm", "a configured model at the command line", "tests/compat/third_parties.py", "clients"),
    Integration(
        "Tinker SDK",
        "tinker",
        "loops of the client; its numbers are those of Luthier's own loop",
        "tests/compat/test_tinker.py",
    ),
    Integration(
        "Model Context Protocol",
        "mcp",
        "a project from rows to an answer by the tools, over stdio and HTTP",
        "tests/compat/test_mcp.py",
    ),
)
FORMATS: Final = (
    Integration(
        "transformers",
        "transformers",
        "merged models are loaded and answer alone",
        "tests/ml/export/exporters/test_merged.py",
    ),
    Integration(
        "PEFT", "peft", "outputs, gradients and norms compared with PEFT's", "tests/ml/training/methods/test_dora.py"
    ),
    Integration(
        "llama.cpp",
        "xllamacpp",
        "GGUF files are made, run and compared",
        "tests/ml/export/exporters/test_gguf.py",
    ),
    Integration(
        "ONNX Runtime GenAI",
        "onnxruntime-genai",
        "an export is built and proved in its runtime",
        "tests/ml/export/exporters/test_onnx.py",
    ),
    Integration(
        "lm-evaluation-harness",
        "lm_eval",
        "its tasks give the figures of the harness itself; runs where the extra `lm-eval` is installed",
        "tests/features/suites/service/test_lm_eval.py",
    ),
)
SERVICES: Final = (
    Integration(
        "PostgreSQL",
        "pg8000",
        "the database of a home, against a server of the system's package",
        "tests/platform/db/store/test_postgresql.py",
    ),
    Integration(
        "S3", "s3fs", "artifacts, against the server of moto", "tests/platform/files/store/test_object_storage.py"
    ),
    Integration(
        "Google Cloud Storage",
        "gcsfs",
        "rows by address and by pattern, an interrupted download, checkpoints; against a server of the tests, with "
        "`make build/gcs`",
        "tests/ml/data/remote/test_google_storage.py",
    ),
    Integration(
        "Azure Blob storage",
        "adlfs",
        "rows by address and by pattern, an interrupted download; against a server of the tests, with "
        "`make build/azure`",
        "tests/ml/data/remote/test_azure_storage.py",
    ),
    Integration(
        "Hub of Hugging Face",
        "huggingface_hub",
        "datasets and models by revision, interrupted, gated and converted ones, against a stand-in of the hub",
        "tests/ml/data/remote/test_hub_dataset.py",
    ),
    Integration(
        "Ray",
        "ray",
        "audit, repair and split on a cluster of this machine, with the findings and bytes of one process; runs with "
        "the extra `ray`",
        "tests/ml/data/files/test_ray_workers.py",
    ),
    Integration(
        "OpenTelemetry",
        "opentelemetry-sdk",
        "spans of answers, against a collector of the tests",
        "tests/features/traffic/service/test_spans.py",
    ),
    Integration(
        "OpenID Connect", "Authlib", "sign-in, against a provider of the tests", "tests/fixtures/oidc_provider.py"
    ),
    Integration(
        "Passkeys",
        "webauthn",
        "a passkey is added and signs in, with an authenticator of the tests and with that of Chromium",
        "tests/features/accounts/pages/test_passkeys_pages.py",
    ),
)
_HEAD: Final = """# Integrations

What Luthier is tested with. The version is the one that the tests use (`constraints.txt`, `tests/client_packages.sh`),
and the range is what `pyproject.toml` accepts. Other versions in the range have not been run. (This page is
generated by `docsite/integrations_page.py`.)
"""
_SECTIONS: Final = (
    ("Experiment trackers", "More in [trackers](trackers.md).", TRACKERS),
    ("Clients of the API", "Unmodified packages against a real server. More in [server](server.md).", CLIENTS),
    ("Formats and runtimes", "More in [exports](exports.md).", FORMATS),
    ("Services", "More in [server](server.md).", SERVICES),
)
_END: Final = """## Not run

| what | what was run in its place |
|---|---|
| vLLM on a GPU | vLLM's build for processors, 0.32.0 (`make build/vllm`, `make drill`), and a stand-in |
| the cloud services of Weights & Biases, MLflow, Trackio, Hugging Face | local stores, and a stand-in of the hub |
| S3 of a cloud | the server of moto |
| Google Cloud Storage itself | a server of the tests that speaks its JSON API |
| Azure Blob storage itself | a server of the tests that speaks its API |
| SkyPilot with a cloud | the schema of its files and the signatures of its Python API, 0.14 |
| Slurm | the script itself in bash, with `srun`, `scontrol` and `luthier` replaced |
| spot machines of a cloud | a run that is killed with its disk and continues from the bucket of a local server |
| images, `compose.yaml`, Helm chart, systemd units | linted and rendered: [containers](operations/containers.md) |
| Ollama, LM Studio | llama.cpp over the GGUF file; the template of the `Modelfile` in a renderer of the tests |
| llm-compressor, AutoGPTQ, AutoAWQ | folders in their formats that Luthier and its tests write |
| macOS, Windows, GPUs of Intel and Apple, ROCm | see [platforms](platforms.md) |
"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, words, rows in _SECTIONS:
        parts += [f"## {title}\n\n{words}\n", "\n".join(_table(rows)) + "\n"]
    return "\n".join([*parts, _END])


def version_of(one: Integration) -> str:
    """The version that the tests run with."""
    if one.pin == "constraints":
        return constraints()[one.package.lower()]
    found = [
        match["version"] for match in _PIN.finditer(_read("tests/client_packages.sh")) if match["name"] == one.package
    ]
    return min(found, key=_order) if one.pin == "clients-oldest" else max(found, key=_order)


def constraints() -> dict[str, str]:
    """Versions of `constraints.txt` by the name in small letters."""
    lines = (line.split("==") for line in _read("constraints.txt").splitlines() if "==" in line and line[0] != "#")
    return {name.strip().lower(): version.strip() for name, version in lines}


def ranges() -> dict[str, str]:
    """What `pyproject.toml` accepts, by the name in small letters; an extra for users goes before that for tests."""
    project = tomllib.loads(_read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    groups = [extras["test"], *(rows for name, rows in extras.items() if name != "test"), project["dependencies"]]
    found = {}
    for requirement in (line for rows in groups for line in rows):
        if (match := _REQUIREMENT.match(requirement)) and match["range"]:
            found[match["name"].lower()] = match["range"]
    return found


def _table(rows: Iterable[Integration]) -> Iterator[str]:
    yield "| what | package | version | accepted | what is run | test |"
    yield "|---|---|---|---|---|---|"
    accepted = ranges()
    for one in rows:
        bounds = accepted.get(one.package.lower()) if one.pin == "constraints" else None
        bounds = f"`{bounds}`" if bounds else "a client: no range"
        yield f"| {one.title} | `{one.package}` | {version_of(one)} | {bounds} | {one.run} | `{one.test}` |"


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
