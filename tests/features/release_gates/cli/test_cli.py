"""`luthier gates`: set, show and remove the rules of a project."""

from __future__ import annotations

from pathlib import Path


def test_rules_are_set_shown_and_removed(luthier, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "no gate" in luthier("gates", "show").out
    file = tmp_path / "gate.yaml"
    file.write_text("rules:\n  - {metric: rouge_l, at_least: 0.3}\n", encoding="utf-8")
    done = luthier("gates", "set", str(file), "--json").document
    assert done["file"] == str(home / "gates" / "default.yaml")
    assert luthier("gates", "show", "--json").document["gate"]["rules"][0]["metric"] == "rouge_l"
    assert "at_least: 0.3" in luthier("gates", "show").out
    file.write_text("rules:\n  - {metric: rouge_l}\n", encoding="utf-8")
    refused = luthier("gates", "set", file)
    assert refused.code == 2
    assert "rules.0: exactly one of at_least and at_most" in refused.err
    assert luthier("gates", "remove", "--json").document == {"file": None}
    assert luthier("gates", "show", "--json").document == {"file": None, "gate": None}
