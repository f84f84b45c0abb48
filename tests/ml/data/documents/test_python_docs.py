"""The quickstart's dataset: what becomes a row, what is left out and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.ports import SilentProgress
from luthier.ml.data.documents.python_docs import INSTRUCTION, PythonDocs, build_python_docs, split_python_docs
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.outputs import write_rows

_GOOD = '''
class Shop:
    @staticmethod
    def price(wood, hours):
        """return the price of a :class:`Violin` made
        of ``wood``, e.g. spruce. More is said here.

        And here.
        """

        # A comment stays.
        if wood == "spruce":
            return 10 * hours
        return 20 * hours
'''


def _build(folder: Path, **files: str) -> PythonDocs:
    for name, source in files.items():
        path = folder / (name.replace("__SLASH__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return build_python_docs(folder, progress=SilentProgress())


def test_a_function_becomes_a_row_without_its_docstring(tmp_path: Path) -> None:
    made = _build(tmp_path, shop=_GOOD)
    (row,) = made.rows
    source = (
        "@staticmethod\ndef price(wood, hours):\n    # A comment stays.\n"
        '    if wood == "spruce":\n        return 10 * hours\n    return 20 * hours'
    )
    assert row["messages"][0] == {"role": "user", "content": f"{INSTRUCTION}\n\n```python\n{source}\n```"}
    assert row["messages"][1] == {
        "role": "assistant",
        "content": "Return the price of a Violin made of wood, e.g. spruce.",
    }
    assert (row["module"], row["function"]) == ("shop", "Shop.price")


def _function(doc: str, body: str = "return 1", name: str = "f") -> str:
    return f'def {name}():\n    """{doc}"""\n    {body}\n'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n    return 1\n", "no docstring"),
        ('def f():\n    """Only says what it is."""\n', "nothing but a docstring"),
        ('def f(): "Says what it does."; return 1\n', "docstring shares its line with code"),
        (_function("Does it."), "summary too short"),
        (_function("word " * 26), "summary too long"),
        (_function("See the other one for more."), "boilerplate or broken summary"),
        (_function("f(x) -> the value of x"), "docstring without a summary sentence"),
        (_function("Return the café of the day."), "not ASCII"),
        (_function("Return a long value.", "return '" + "x" * 1_500 + "'"), "source too long"),
        (_function("Return the same value.", "return 'return the same value'"), "answer is in the source"),
        ("def f(:\n", "file that is not UTF-8 Python"),
    ],
)
def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, source: str, reason: str) -> None:
    made = _build(tmp_path, module=source)
    assert made.rows == ()
    assert made.num_left_out == {reason: 1}


def test_repeats_are_left_out(tmp_path: Path) -> None:
    same = _function("Return the first of all numbers.")
    many = "".join(_function("Return a number again.", f"return {n}", f"g{n}") for n in range(5))
    made = _build(tmp_path, a=same, b=same, c=many)
    assert [(row["module"], row["function"]) for row in made.rows] == [
        ("a", "f"),
        ("c", "g0"),
        ("c", "g1"),
        ("c", "g2"),
    ]
    assert made.num_left_out == {"same source as an earlier row": 1, "answer that occurs 3 times already": 2}


def test_form_feeds_do_not_shift_the_lines(tmp_path: Path) -> None:
    (row,) = _build(tmp_path, a="x = 1\n\x0c\n" + _function("Return the number one.")).rows
    assert row["messages"][0]["content"].endswith("```python\ndef f():\n    return 1\n```")


def test_tests_and_installed_packages_are_skipped(tmp_path: Path) -> None:
    good = _function("Return the number one.")
    made = _build(tmp_path, keep__SLASH____init__=good, test__SLASH__a=good, **{"site-packages__SLASH__b": good})
    assert [row["module"] for row in made.rows] == ["keep"]


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no Python file under"):
        build_python_docs(tmp_path, progress=SilentProgress())


def test_some_rows_are_spread_over_all(tmp_path: Path) -> None:
    for module in "abcde":
        body = "".join(_function(f"Return number {n} of {module}.", f"return {n}", f"{module}{n}") for n in range(10))
        (tmp_path / f"{module}.py").write_text(body)
    few = build_python_docs(tmp_path, progress=SilentProgress(), max_rows=5)
    assert [row["module"] for row in few.rows] == list("abcde")
    assert few.num_left_out == {"not among the requested rows": 45}
    assert build_python_docs(tmp_path, progress=SilentProgress(), max_rows=5) == few


def test_the_standard_library_gives_thousands_of_rows(tmp_path: Path) -> None:
    made = build_python_docs(progress=SilentProgress())
    assert len(made.rows) > 2_000
    assert made.num_modules > 100
    for row in made.rows:
        question, answer = (message["content"] for message in row["messages"])
        assert answer.isascii()
        assert 3 <= len(answer.split()) <= 25
        assert answer[-1] in ".!?"
        assert answer.rstrip(".") not in question

    parts = split_python_docs(made.rows, validation=0.05, held_out=0.1, seed=0)
    modules = [{row["module"] for row in part} for part in parts.values()]
    assert sum(len(part) for part in parts.values()) == len(made.rows)
    assert sum(len(names) for names in modules) == made.num_modules
    assert 0.08 < len(parts["held_out"]) / len(made.rows) < 0.12

    path = tmp_path / "new" / "train.jsonl"
    assert write_rows(parts["train"], path) == len(parts["train"])
    loaded = load_file(path, group_by="module")
    assert loaded.shape == "chat"
    assert {example.group for example in loaded.examples} == modules[0]


def test_rows_with_more_characters_are_left_out_and_counted(tmp_path: Path) -> None:
    long = '"""Give the tenth of it."""\n    ' + "\n    ".join(f"value_{i} = {i}" for i in range(60))
    source = f'def short(x):\n    """Give what came in."""\n    return x\n\n\ndef long(x):\n    {long}\n    return x\n'
    (tmp_path / "module.py").write_text(source, encoding="utf-8")
    everything = build_python_docs(tmp_path, progress=SilentProgress())
    assert {row["function"] for row in everything.rows} == {"short", "long"}
    found = build_python_docs(tmp_path, progress=SilentProgress(), max_characters=400)
    assert [row["function"] for row in found.rows] == ["short"]
    assert found.num_left_out["more than 400 characters"] == 1
