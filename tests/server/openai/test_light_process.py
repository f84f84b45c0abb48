"""The process that answers HTTP computes nothing: whatever it is asked, torch is not loaded in it."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.ports import SilentProgress
from luthier.core.system import process_setup
from luthier.ml.inference.models.sources import pull
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context

HEAVY = ("torch", "transformers", "peft", "scipy", "nltk", "sklearn")
SCRIPT = """
import json, sys
from fastapi.testclient import TestClient
from luthier.server.api import create_app
from luthier.platform.home.context import Context
from luthier.server.home import preload

home, key = sys.argv[1:]
grader = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "reference": "a", "operation": "eq"}
methods = [
    {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "learning_rate_multiplier": 2.0}}},
    {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
    {"type": "reinforcement", "reinforcement": {"grader": grader}},
]
with Context.open(home) as context:
    with TestClient(create_app(context), headers={"Authorization": f"Bearer {key}"}) as client:
        file = {"file": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\\n')}
        training_file = client.post("/v1/files", files=file, data={"purpose": "fine-tune"}).json()["id"]
        made = []
        for method in methods:
            body = {"model": "tiny", "training_file": training_file, "method": method}
            made.append(client.post("/v1/fine_tuning/jobs", json=body).json()["id"])
        codes = [client.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader}).status_code]
        for path in ("jobs", f"jobs/{made[0]}", f"jobs/{made[0]}/events", f"jobs/{made[0]}/checkpoints"):
            codes.append(client.get(f"/v1/fine_tuning/{path}").status_code)
        codes += [client.get(path).status_code for path in ("/v1/models", "/v1/files", "/api/v1/runs", "/healthz")]
        codes.append(client.post(f"/v1/fine_tuning/jobs/{made[0]}/cancel").status_code)
        preload()
        before = set(sys.modules)
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}}
        criterion = {"type": "string_check", "name": "g", "input": "{{item.a}}", "reference": "a", "operation": "eq"}
        source = {"type": "custom", "item_schema": schema}
        body = {"name": "e", "data_source_config": source, "testing_criteria": [criterion]}
        codes.append(client.post("/v1/evals", json=body).status_code)
        for kind in ("rouge_1", "rouge_l", "bleu", "gleu", "fuzzy_match"):
            alike = {"type": "text_similarity", "name": "s", "input": "{{sample.output_text}}", "reference": "cats run"}
            body = {"grader": alike | {"evaluation_metric": kind}, "model_sample": "a cat runs"}
            codes.append(client.post("/v1/fine_tuning/alpha/graders/run", json=body).status_code)
        late = sorted(n for n in set(sys.modules) - before if "site-packages" in (sys.modules[n].__file__ or ""))
        able = {one["id"]: one["capabilities"]["thinking"] for one in client.get("/v1/models").json()["data"]}
said = {"made": made, "codes": codes, "thinks": able, "late": late}
print(json.dumps(said | {"loaded": [name for name in json.loads(%r) if name in sys.modules]}))
"""


THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def thinker(home: Context, tiny_model: Path, tmp_path: Path) -> str:
    """A model whose template has a place for thoughts, which `/v1/models` shows."""
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_model, folder)
    made = pull(str(folder), home.home, SilentProgress())
    (folder / "chat_template.jinja").write_text(THINKS, encoding="utf-8")
    return made.name


def test_no_request_about_jobs_and_models_loads_what_computes(home: Context, thinker: str) -> None:
    key = create_key(home, "light", scopes=("admin",))[1]
    command = [sys.executable, "-c", SCRIPT % json.dumps(HEAVY), str(home.home), key]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert len(said["made"]) == 3
    assert len(said["codes"]) == 16
    assert all(job.startswith("ftjob-") for job in said["made"])
    assert set(said["codes"]) == {200, 201}, said["codes"]  # 201: an eval was made
    assert said["loaded"] == []
    # What evals and graders need is loaded by the thread that the server starts, not by the first request.
    assert said["late"] == []
    # Measured on its template, in the same process.
    assert [said["thinks"][name] for name in ("tiny", Path(thinker).name)] == [False, True]


@pytest.mark.parametrize("module", ["luthier.server.home", "luthier.server.standalone_http"])
def test_a_process_that_answers_http_leaves_its_memory_to_the_system(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it down lasted longer on a busy machine than the grace that the process has to end."""
    ended: list[Callable[[], object]] = []
    monkeypatch.setattr(process_setup, "run_to_end", ended.append)
    monkeypatch.delitem(sys.modules, module, raising=False)
    runpy.run_module(module, run_name="__main__")
    assert len(ended) == 1
