"""Bad input through the command line: an exit code, one document, three parts of an answer, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.hub_server import Hub, read_files, serving

from luthier.core.system import download
from luthier.core.system.files import file_lock
from luthier.ml.training import checkpoint
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record

Row = dict[str, Any]
UNKNOWN_RUN = "run-20260101-000000-abcdef"
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Cremona"}'}}


def chat(question: str, answer: str | None, **extra: Any) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **extra}]}


def count(number: int) -> Row:
    return chat(f"What comes after {number}?", f"After {number} comes {number + 1}.")


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


GOOD = [count(number) for number in range(24)]
UNJUDGED = {"train": "train.jsonl", "validation": "valid.jsonl"}
"""The data of a run that no held-out rows judge, where the test is about its training alone."""


@dataclass(frozen=True)
class Job:
    """A recipe that would work, and the folder of its rows, to be spoilt."""

    folder: Path
    model: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def write(self, name: str, content: bytes) -> Path:
        file = self.folder / name
        file.write_bytes(content)
        return file

    def ask(self, **sections: Any) -> Path:
        """The recipe with some of its sections replaced."""
        recipe = {
            "base_model": str(self.model),
            "data": {"train": "train.jsonl", "validation": "valid.jsonl", "held_out": "test.jsonl"},
            "method": {"name": "lora", "rank": 2},
            "training": {"epochs": 2, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32",
                         "num_threads": 1, "validate_every_steps": 3, "checkpoint_every_steps": 2},
            "evaluation": {"few_shot": 1, "max_new_tokens": 4},
        } | sections  # fmt: skip
        return self.write("recipe.yaml", yaml.safe_dump(recipe).encode())


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> Job:
    made = Job(tmp_path / "work", tiny_model)
    made.folder.mkdir()
    made.write("train.jsonl", lines(GOOD))
    made.write("valid.jsonl", lines([count(n) for n in range(100, 104)]))
    made.write("test.jsonl", lines([count(n) for n in range(200, 204)]))
    made.ask()
    return made


def refused(done: Any, *words: str, code: int = 2, kind: str | None = None) -> dict[str, Any]:
    """Checks how a command under --json refused, and returns the error's document."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert set(done.document) == {"error"}
    error: dict[str, Any] = done.document["error"]
    assert all(error[part].strip() for part in ("type", "came", "expected", "do"))
    assert kind is None or error["type"] == kind
    for part in ("Error: ", "expected: ", "what to do: "):
        assert part in done.err
    for word in words:
        assert word in error["came"] + error["expected"] + error["do"]
    return error


BAD_FILES = {
    "empty": (b"", ["empty"]),
    "only blank lines": (b"\n  \n\n", ["train.jsonl"]),
    "not JSON": (b"Dear Sir or Madam,\nplease train this.\n", ["train.jsonl:1"]),
    "rubbish": (bytes(range(128, 256)) * 9, ["train.jsonl"]),
    "a list a line": (b"[1, 2]\n[3, 4]\n", ["train.jsonl", "one JSON object on each line"]),
    "cut short": (lines(GOOD)[:-20], ["train.jsonl:24"]),
    "Latin-1": (lines(GOOD) + '{"messages": "caf\u00e9"}\n'.encode("latin-1"), ["train.jsonl:25", "UTF-8"]),
    "UTF-16, cut short": (lines(GOOD).decode().encode("utf-16")[:-1], ["UTF-16"]),
    "unknown shape": (lines([{"colour": "red", "size": 3}]), ["colour", "size"]),
    "no assistant turn": (lines([*GOOD, {"messages": [{"role": "user", "content": "Hm?"}]}]), ["train.jsonl:25"]),
    "empty conversation": (lines([*GOOD, {"messages": []}]), ["train.jsonl:25", "messages"]),
    "unknown role": (lines([{"messages": [{"role": "robot", "content": "Beep."}]}]), ["train.jsonl:1", "robot"]),
    "a number for a text": (lines([*GOOD, chat("Why?", 7)]), ["train.jsonl:25", "content", "7"]),  # type: ignore[arg-type]
    "nothing is learned": (lines([chat("Why?", "So.", weight=0)]), ["train.jsonl:1", "weight"]),
    "one bad line of 10,000": (
        lines([count(n) for n in range(6_999)])
        + b'{"messages": [}\n'
        + lines([count(n) for n in range(7_000, 10_000)]),
        ["train.jsonl:7000", "10,000"],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_rows(luthier, job: Job, name: str) -> None:  # type: ignore[no-untyped-def]
    content, words = BAD_FILES[name]
    file = job.write("train.jsonl", content)
    refused(luthier("train", job.recipe, "--json"), *words, kind="DataError")
    refused(luthier("data", "preview", file, "--model", job.model, "--json"), *words, kind="DataError")
    assert luthier("runs", "list", "--json").document == []
    text = luthier("train", job.recipe)
    assert (text.code, text.out) == (2, "")


def test_a_gzip_file_that_is_cut_short(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    import gzip

    job.write("train.jsonl.gz", gzip.compress(lines(GOOD))[:-30])
    job.ask(data={"train": "train.jsonl.gz"})
    refused(luthier("train", job.recipe, "--json"), "train.jsonl.gz", kind="DataError")


def test_a_row_longer_than_the_context(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    job.ask(data=UNJUDGED)
    long = chat("Why?", "Because " * 300)
    job.write("train.jsonl", lines([*GOOD, long]))
    error = refused(luthier("train", job.recipe, "--json"), "train.jsonl:25", "512", kind="OverlongError")
    assert [problem["line"] for problem in error["problems"]] == [25]
    file = job.write("held.jsonl", lines([count(1), long]))
    refused(luthier("eval", job.model, "--data", file, "--json"), "held.jsonl:2", "512", kind="OverlongError")
    dropped = luthier("train", job.recipe, "--set", "training.on_overlong=drop", "--json")
    assert dropped.code == 0, dropped.err
    assert any("1 train rows were dropped" in warning for warning in dropped.document["warnings"])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"base_model": "smollm2-135m-instrct"}, ["smollm2-135m-instrct", "smollm2-135m-instruct"]),
        ({"base_model": "/no/such/folder"}, ["/no/such/folder"]),
        ({"base_model": 7}, ["base_model", "7"]),
        ({"trainning": {"epochs": 1}}, ["trainning", "nearest known: training"]),
        ({"training": {"epocs": 1}}, ["training.epocs", "nearest known: training.epochs"]),
        ({"training": {"epochs": "many"}}, ["training.epochs", "many"]),
        ({"training": {"epochs": -2}}, ["training.epochs", "-2"]),
        ({"training": {"learning_rate": -1e-4}}, ["training.learning_rate", "-0.0001"]),
        ({"training": {"global_batch_size": 0}}, ["training.global_batch_size", "0"]),
        ({"training": {"max_length_tokens": 99_999}}, ["99,999", "512"]),
        ({"training": ["epochs", 2]}, ["training"]),
        ({"method": {"name": "lora", "rank": 2.5}}, ["method.rank", "2.5"]),
        ({"method": {"name": "qlorra"}}, ["method.name", "qlorra"]),
        ({"method": {"name": "lora", "targets": "no-such-layer"}}, ["no-such-layer"]),
        ({"data": {"train": "trian.jsonl"}}, ["trian.jsonl"]),
        ({"data": {"train": "."}}, ["work"]),
        ({"data": {"train": "train.jsonl", "held_out": 1.5}}, ["data.held_out", "1.5"]),
        ({"data": {}}, ["data.train", "missing"]),
        ({"evaluation": {"metrics": ["rogue"]}}, ["evaluation.metrics", "rogue"]),
        ({"evaluation": {"few_shot": 60}}, ["60 few-shot examples", "24"]),
    ],
)
def test_bad_recipes(luthier, job: Job, sections: dict[str, Any], words: list[str]) -> None:  # type: ignore[no-untyped-def]
    recipe = job.ask(**sections)
    refused(luthier("plan", recipe, "--json"), *words)
    refused(luthier("train", recipe, "--json"), *words)
    assert luthier("runs", "list", "--json").document == []


@pytest.mark.parametrize(
    "content", [b"", b"base_model: [", b"- a\n- b\n", b"\xff\xfe\x00", b"base_model: a\nbase_model: b\n"]
)
def test_recipes_that_are_none(luthier, job: Job, content: bytes) -> None:  # type: ignore[no-untyped-def]
    refused(luthier("train", job.write("recipe.yaml", content), "--json"), "recipe.yaml", kind="RecipeError")


def test_a_recipe_that_is_a_folder(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    refused(luthier("train", job.folder, "--json"), str(job.folder))


def test_no_room_at_a_checkpoint(luthier, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    job.ask(data=UNJUDGED)
    expected = luthier("train", job.recipe, "--json").document["adapter_sha256"]
    real, num_calls = checkpoint.save_file, 0

    def full_disk(tensors: Any, path: Path) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 4:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full_disk)
        refused(luthier("train", job.recipe, "--json"), "no room", "resume", code=1, kind="StorageFullError")
    run = luthier("runs", "list", "--json").document[0]
    assert run["status"] == "failed"
    again = luthier("train", "--resume", run["run_id"], "--json")
    assert (again.code, again.document["adapter_sha256"]) == (0, expected)


def paused(luthier: Callable[..., Any], job: Job, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run that got SIGTERM after its checkpoint of step 4."""
    real = CheckpointStore.save

    def save_then_terminate(self: CheckpointStore, state: Any, *parts: Any) -> Any:
        saved = real(self, state, *parts)
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", save_then_terminate)
        done = luthier("train", job.recipe, "--json")
    assert done.code == 0, done.err
    assert done.document["status"] == "paused"
    document: dict[str, Any] = done.document
    return document


@pytest.fixture
def checkpoints(home: Path) -> Callable[[str], list[Path]]:
    return lambda run_id: sorted((home / "runs" / run_id / "checkpoints").glob("step-*"))


def test_a_damaged_checkpoint(luthier, job: Job, checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    job.ask(data=UNJUDGED)
    expected = luthier("train", job.recipe, "--json").document["adapter_sha256"]
    run_id = paused(luthier, job, monkeypatch)["run_id"]
    newest = checkpoints(run_id)[-1] / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    done = luthier("train", "--resume", run_id, "--json")
    assert done.code == 0, done.err
    assert any("step-00000004 is damaged" in warning for warning in done.document["warnings"])
    assert done.document["adapter_sha256"] == expected


def test_no_checkpoint_that_can_be_trusted(luthier, job: Job, checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    job.ask(data=UNJUDGED)
    run_id = paused(luthier, job, monkeypatch)["run_id"]
    for folder in checkpoints(run_id):
        (folder / "state.json").write_text("{}")
    refused(luthier("train", "--resume", run_id, "--json"), "damaged", code=1, kind="CheckpointError")


def test_two_processes_on_one_run(luthier, home: Path, run: str) -> None:  # type: ignore[no-untyped-def]
    with file_lock(home / "runs" / run / "lock", what="a test", timeout_seconds=1):
        refused(luthier("train", "--resume", run, "--json"), run, "another process", kind="ConflictError")


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(read_files(tiny_model))
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(download.time, "sleep", lambda _: None)
        yield served


def test_a_download_that_breaks_off(luthier, hub: Hub) -> None:  # type: ignore[no-untyped-def]
    hub.cut_after, hub.num_cuts = {"model.safetensors": 0}, -1
    refused(luthier("models", "pull", "hub:org/tiny", "--json"), "are kept", code=1, kind="ModelSourceError")
    assert [model for model in luthier("models", "list", "--json").document if model["name"].startswith("hub:")] == []
    hub.num_cuts = 0
    assert luthier("models", "pull", "hub:org/tiny", "--json").code == 0
    hub.corrupt = {"model.safetensors"}
    assert luthier("models", "rm", "hub:org/tiny", "--json").code == 0
    refused(luthier("models", "pull", "hub:org/tiny", "--json"), "digest", code=1, kind="ModelSourceError")


def test_a_damaged_model_in_the_cache(luthier, hub: Hub, job: Job) -> None:  # type: ignore[no-untyped-def]
    document = luthier("models", "pull", "hub:org/tiny", "--json").document
    weights = Path(document["path"]) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    words = ["model.safetensors", "has 1000 bytes", "luthier models pull"]
    refused(luthier("models", "show", "hub:org/tiny", "--json"), *words, code=1, kind="ModelSourceError")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(luthier("models", "show", "hub:org/tiny", "--json"), "was changed", code=1, kind="ModelSourceError")
    done = luthier("train", job.ask(base_model="hub:org/tiny", data=UNJUDGED), "--json")  # fetches it again
    assert done.code == 0, done.err
    assert weights.read_bytes() == whole


def test_a_damaged_folder_of_the_users_own(luthier, job: Job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(job.model, tmp_path / "mine"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    recipe = job.ask(base_model=str(folder))
    refused(luthier("train", recipe, "--json"), str(weights), "damaged", code=1, kind="ModelSourceError")
    weights.unlink()
    refused(luthier("train", recipe, "--json"), str(folder), code=1, kind="ModelSourceError")


def test_a_template_that_drops_tool_calls(luthier, job: Job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(job.model, tmp_path / "mine"))
    turn = "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}"
    template = "{%- for message in messages -%}" + turn + "{%- endfor -%}"
    template += "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    (folder / "chat_template.jinja").write_text(template)
    file = job.write("train.jsonl", lines([*GOOD, chat("Weather?", None, tool_calls=[CALL])]))
    refused(luthier("train", job.ask(base_model=str(folder)), "--json"), "train.jsonl:25", kind="TemplateError")
    shown = luthier("data", "preview", file, "--model", folder, "--num-rows", 99, "--json")
    refused(shown, "train.jsonl:25", kind="TemplateError")


def test_held_out_rows_in_the_training_file(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    held_out = job.write("test.jsonl", lines([count(n) for n in (3, 200, 4, 201)]))
    error = refused(luthier("train", job.recipe, "--json"), "2 of 4", "data.allow_leakage", kind="LeakageError")
    assert [problem["line"] for problem in error["problems"]] == [1, 3]
    forced = luthier("train", job.recipe, "--set", "data.allow_leakage=true", "--json")
    assert forced.code == 0, forced.err
    assert any("training" in caveat for caveat in forced.document["verdict"]["caveats"])
    asked = ("eval", forced.document["run_id"], "--data", held_out, "--against", job.model, "--json")
    refused(luthier(*asked), "2 of 4", "--allow-leakage", kind="LeakageError")
    judged = luthier(*asked, "--allow-leakage", "--max-new-tokens", 4)
    assert judged.code == 0, judged.err
    assert any("training" in caveat for caveat in judged.document["verdict"]["caveats"])


def test_runs_that_cannot_be_judged(luthier, job: Job, home: Path) -> None:  # type: ignore[no-untyped-def]
    data = ("--data", job.folder / "test.jsonl", "--json")
    refused(luthier("eval", UNKNOWN_RUN, *data), UNKNOWN_RUN, kind="NotFoundError")
    with Context.open(home) as context:
        context.runs.create(make_record(status="paused"), make_plan())
    refused(luthier("eval", RUN_ID, *data), "no trained weights", f"--resume {RUN_ID}", kind="ConflictError")
    refused(luthier("eval", "smolm2", *data), "smolm2", "smollm2-135m-instruct", kind="NotFoundError")
    refused(luthier("eval", job.model, "--data", "none.jsonl", "--json"), "none.jsonl", kind="NotFoundError")
    refused(luthier("eval", job.model, "--json"), "--data", kind="RequestError")


def test_few_shot_examples_without_a_source(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    held_out = job.folder / "test.jsonl"
    asked = ("eval", job.model, "--data", held_out, "--few-shot", 2, "--json")
    refused(luthier(*asked), "--few-shot 2", "--few-shot-from")
    refused(luthier(*asked, "--few-shot-from", held_out), "held-out rows", kind="DataError")
    few = job.write("few.jsonl", lines([count(1)]))
    refused(luthier(*asked, "--few-shot-from", few), "2 few-shot examples asked, 1 of 1")


def test_a_model_against_itself(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    asked = ("eval", job.model, "--against", job.model, "--data", job.folder / "test.jsonl", "--json")
    refused(luthier(*asked), str(job.model), "name each system once")


def test_plain_text_is_judged_by_likelihood_unless_asked_otherwise(luthier, job: Job) -> None:  # type: ignore[no-untyped-def]
    file = job.write("text.jsonl", lines([{"text": f"{n} and {n + 1} are neighbours."} for n in range(5)]))
    done = luthier("eval", job.model, "--data", file, "--json")
    assert done.code == 0, done.err
    assert set(done.document["systems"][0]["metrics"]) == {"perplexity", "bits_per_byte"}
    refused(
        luthier("eval", job.model, "--data", file, "--metrics", "rouge,perplexity", "--json"), "rouge", "plain text"
    )
    few = ("--few-shot", 1, "--few-shot-from", job.folder / "train.jsonl")
    refused(luthier("eval", job.model, "--data", file, *few, "--json"), "plain text")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tarin", "recipe.yaml"),
        ("train", "recipe.yaml", "--epochs", "3"),
        ("eval", "tiny", "--data", "t.jsonl", "--few-shot", "-1"),
        ("eval", "tiny", "--data", "t.jsonl", "--max-new-tokens", "many"),
        ("data", "preview", "t.jsonl"),
        ("runs", "show"),
        ("runs", "show", "../../etc/passwd"),
        ("runs", "compare", UNKNOWN_RUN, UNKNOWN_RUN),
        ("models", "pull", "hub:../..@main"),
    ],
)
def test_bad_command_lines(luthier, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    refused(luthier(*arguments, "--json"))
