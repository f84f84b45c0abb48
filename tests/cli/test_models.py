"""`luthier models`."""

from __future__ import annotations

from pathlib import Path


def test_a_model_comes_and_goes(luthier, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    assert luthier("models", "pull", tiny_model).code == 0
    shown = luthier("models", "show", tiny_model, "--json").document
    assert shown["path"] == str(tiny_model)
    assert shown["licence"]
    assert str(tiny_model) in luthier("models", "list").out
    assert luthier("models", "rm", tiny_model, "--json").document["removed"] == str(tiny_model)
    assert str(tiny_model) not in luthier("models", "list").out
    assert luthier("models", "rm", tiny_model).code == 2


def test_what_is_not_pulled_has_no_path(luthier) -> None:  # type: ignore[no-untyped-def]
    shown = luthier("models", "show", "smollm2-135m-instruct", "--json").document
    assert (shown["path"], shown["licence"]) == (None, "Apache-2.0")
    assert "luthier models pull smollm2-135m-instruct" in luthier("models", "show", "smollm2-135m-instruct").out


def test_an_unknown_name(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("models", "pull", "no-such-model", "--json")
    assert done.code == 2
    assert done.document["error"]["type"] == "NotFoundError"


def test_a_table_in_a_pipe_is_not_cut(luthier) -> None:  # type: ignore[no-untyped-def]
    for view in luthier("models", "list", "--json").document:
        assert view["name"] in luthier("models", "list").out


def test_a_check_prints_one_table_and_its_end_says_whether_all_works(luthier, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("models", "check", tiny_model, "--json")
    document = done.document
    assert set(document) == {
        "model", "path", "architecture", "num_parameters", "context_length_tokens", "layers", "checks", "works",
    }  # fmt: skip
    keys = {"name", "status", "path", "reason", "remedy", "seconds", "measures"}
    assert document["checks"]
    assert all(set(check) == keys for check in document["checks"])
    assert document["works"] == all(check["status"] == "works" for check in document["checks"])
    assert done.code == (0 if document["works"] else 1)
    assert luthier("models", "check", tiny_model, "--rows", "none.jsonl").code == 2
