"""What a walk has found is kept for the next one, as long as nothing that it rests on has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from tests.zoo import __main__ as command
from tests.zoo import kept as kept_module
from tests.zoo.families import FAMILIES
from tests.zoo.kept import KeptOutcomes, family_digest
from tests.zoo.table import BEGIN, END

OUTCOMES: Final[list[dict[str, Any]]] = [
    {"stage": "plan", "status": "works", "path": "x", "reason": "", "seconds": 1.0, "measures": {}}
]


def test_outcomes_are_found_again_for_the_same_stages_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptOutcomes(tmp_path, ["plan"])
    assert kept.find("llama") is None
    kept.keep("llama", OUTCOMES, "abc")
    assert kept.find("llama") == (OUTCOMES, "abc")
    assert kept.find("gpt2") is None
    assert KeptOutcomes(tmp_path, ["plan", "loss"]).find("llama") is None
    monkeypatch.setattr(kept_module, "_code_digest", lambda: "another")
    assert kept.find("llama") is None


def test_a_file_that_was_cut_off_is_as_none(tmp_path: Path) -> None:
    kept = KeptOutcomes(tmp_path, ["plan"])
    kept.keep("llama", OUTCOMES, "abc")
    file = tmp_path / "llama.json"
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert kept.find("llama") is None


def test_the_digest_is_of_family_template_and_stages() -> None:
    digests = {family_digest("llama", ["plan"]), family_digest("llama32", ["plan"]), family_digest("llama", ["loss"])}
    assert len(digests) == 3


def test_a_stopped_walk_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KeptOutcomes(tmp_path / "kept", ["plan"]).keep("llama", OUTCOMES, "abc")
    asked: list[str] = []

    def stopped(names: list[str], *_: object) -> Any:
        asked.extend(names)
        yield "gpt2", OUTCOMES
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "walked", stopped)
    arguments = ["llama", "gpt2", "opt", "--stages", "plan", "--kept", str(tmp_path / "kept"), "--resume", "--cold"]
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    assert asked == ["gpt2", "opt"]

    def ends(names: list[str], *_: object) -> Any:
        assert names == ["opt"]
        yield "opt", OUTCOMES

    monkeypatch.setattr(command, "walked", ends)
    assert command.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    assert list(json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))) == ["llama", "gpt2", "opt"]

    left: list[list[str]] = []
    monkeypatch.setattr(command, "walked", lambda names, *_: iter(left.append(names) or ()))
    assert command.main(arguments) == 0
    assert left == [[]]


def test_without_a_folder_there_is_nothing_to_go_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["llama", "--resume"])
    assert "--kept" in capsys.readouterr().err


def test_the_table_is_of_all_families_on_the_commits_that_they_were_walked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main(["llama", "--docs", str(page)])
    assert "all families" in capsys.readouterr().err
    monkeypatch.setattr(command, "FAMILIES", {"llama": FAMILIES["llama"], "gpt2": FAMILIES["gpt2"]})
    monkeypatch.setattr(command, "this_commit", lambda: "def")
    monkeypatch.setattr(command, "walked", lambda names, *_: ((name, OUTCOMES) for name in names))
    KeptOutcomes(tmp_path / "kept", ["plan"]).keep("llama", OUTCOMES, "abc")
    arguments = ["--stages", "plan", "--kept", str(tmp_path / "kept"), "--resume", "--cold", "--docs", str(page)]
    assert command.main(arguments) == 0
    assert "Of 2 families 1 were walked on commit abc; on def: gpt2." in page.read_text(encoding="utf-8")


def test_the_commit_is_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_module.this_commit().removesuffix("-dirty").isalnum()
    monkeypatch.setattr(kept_module, "_ROOT", tmp_path)
    assert kept_module.this_commit() == "unknown"
