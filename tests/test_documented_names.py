"""Commands, options, variables, addresses, keys, files, headings and extras that the documentation names exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.aliases import VARIABLES, new_key
from luthier.core.errors import LuthierError
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.system.extras import EXTRAS
from luthier.platform.auth.first_key import GIVEN_KEY
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from tests import documented_names as names
from tests.documented_names import ROOT, Addresses, Offence, Page
from tests.surface.gather import commands, keys_of, routes
from tests.vacuous import nonempty

HISTORY = {"CHANGELOG.md", "docs/log.md"}
"""What was there at the time; links and headings are held all the same."""
OTHER_ADDRESSES = {
    *("/tokenize", "/pause"),  # of vLLM
    *("/reset", "/undo", "/quit"),  # typed in `luthier chat`
    "/plug-ins/",  # below which plug-ins have their pages
    *(
        "bin",
        "data",
        "dev",
        "etc",
        "home",
        "lib",
        "mnt",
        "opt",
        "proc",
        "run",
        "shared",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    ),
}
"""Addresses of other programs, and folders of systems."""
OTHER_OPTIONS = {
    *("--chat-template-kwargs", "--rdzv-id"),  # of llama.cpp and torchrun
    *("--gpus", "--no-healthcheck", "--profile", "--stop-timeout", "--target"),  # of Docker and Compose
    *("--force-reinstall", "--platform", "--scale", "--hypothesis-profile"),  # of pip, mypy, Compose and Hypothesis
    "--torch-backend",  # of uv
}
RECIPE: dict[str, Any] = {
    "base_model": "smollm2-135m-instruct",
    "data": {"train": "train.jsonl", "validation": 0.1, "held_out": 0.1},
}
"""What an excerpt of a recipe leaves out."""


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found = [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in sorted(paths)]
    return {place: Page(place, text) for place, text in found}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The Python of package, tests and scripts."""
    folders = ("src", "tests", "benchmarks", "docsite", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def checks(
    pages: dict[str, Page], sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Callable[[Page], Iterator[Offence]]]:
    """Each check by what it is about, with what the code has."""
    from luthier.server.api import create_app
    from luthier.server.pages import create_pages

    every = commands()
    options = {option for some in every.values() for option in some}
    scripts = {
        option
        for place, text in sources.items()
        if not place.startswith("src/")
        for option in re.findall(r"[\"'](--[a-z][\w-]*)[\"']", text)
    }
    read = {name for text in sources.values() for name in re.findall(r"[\"'](LUTHIER_[A-Z0-9_]+)[\"']", text)}
    variables = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields} | read | {GIVEN_KEY, *VARIABLES}
    folder = tmp_path_factory.mktemp("names")
    with Context.open(folder / "home") as home:
        addresses = Addresses([*routes(create_app(home)), *routes(create_pages(home))])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = "".join(text for place, text in sources.items() if place.startswith("src/"))
    values = yaml.safe_load((ROOT / "deploy" / "helm" / "luthier" / "values.yaml").read_text(encoding="utf-8"))
    # Sources of a plan are named by their place, also where a plan has no field of that name.
    named = r"[\"']((?:data|method|objective|training|evaluation)(?:\.[a-z_]+)+)[\"']"
    keys = recipe_places() | set(re.findall(named, declared))
    return {
        "commands": lambda page: names.command_offences(page, every),
        "options": lambda page: names.option_offences(page, options | scripts | OTHER_OPTIONS),
        "variables": lambda page: names.variable_offences(page, variables),
        "addresses": lambda page: names.address_offences(page, addresses, OTHER_ADDRESSES),
        "keys": lambda page: iter(()) if "docs/moving/" in page.path else names.key_offences(page, keys),
        "JSON and TOML": names.json_offences,
        "Python": names.python_offences,
        "YAML": lambda page: yaml_offences(page, folder),
        "paths": names.path_offences,
        "links": lambda page: names.link_offences(page, pages),
        "extras": lambda page: names.extra_offences(page, set(extras)),
        "targets of make": lambda page: names.target_offences(page, set(re.findall(r"^([\w/-]+):", makefile, re.M))),
        "metrics": lambda page: names.metric_offences(page, declared),
        "values of the chart": lambda page: (
            names.chart_offences(page, values) if page.path.endswith("/containers.md") else iter(())
        ),
    }


def recipe_places() -> set[str]:
    """Every dotted place of recipes and plans, by new names, and of the documents that the surface test holds."""
    surface = json.loads((ROOT / "tests" / "surface" / "surface.json").read_text(encoding="utf-8"))
    held = [place for documents in ("answers", "documents") for some in surface[documents].values() for place in some]
    found = set(map(new_key, keys_of(Recipe.model_json_schema())))
    found |= set(map(new_key, keys_of(Plan.model_json_schema(mode="serialization"))))
    # A document nests a plan or an evaluation: its places are known from there on.
    found |= {place[match.start() :] for place in held for match in re.finditer(r"(?:^|(?<=\.))[a-z_]+", place)}
    return found | {re.sub(r"\[\]|\.\*", "", place) for place in found} | {"data.fraction"}  # of a search


def yaml_offences(page: Page, folder: Path) -> Iterator[Offence]:
    """Blocks of YAML that are no recipe, part of a recipe, suite, gate, case or space of a search."""
    for block in page.blocks:
        is_ours = block.language in ("yaml", "yml") and not page.path.startswith("docs/moving/")
        if is_ours and (problem := problem_of(block.text, folder)):
            yield block.line, problem


def problem_of(text: str, folder: Path) -> str | None:
    """Why a text in YAML is none of the files that Luthier reads; None where it is one.

    Args:
        text: The file.
        folder: A folder for it.
    """
    from luthier.features.recipes.service import recipe_from
    from luthier.features.release_gates.service import read_gate
    from luthier.features.roi.service import load_case
    from luthier.features.suites.definition import load_suite

    document = yaml.safe_load(text)
    file = folder / "file.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        if "parameters" in document:
            unknown = {*document["parameters"], *document.get("without", ())} - recipe_places()
            return f"no keys: {sorted(unknown)}" if unknown else None
        for key, read in (("tasks", load_suite), ("rules", read_gate), ("calls", load_case)):
            if key in document:
                read(file)
                return None
        data = document.get("data", {})
        recipe_from(RECIPE | document | {"data": data if "train" in data else RECIPE["data"] | data}, base_dir=folder)
    except LuthierError as error:
        return str(error)
    return None


def test_what_the_documentation_names_exists(pages: dict[str, Page], checks: dict[str, Any]) -> None:
    offenders = [
        f"{place}:{number}: {what}"
        for place, page in pages.items()
        for about, check in checks.items()
        if place not in HISTORY or about == "links"
        for number, what in check(page)
    ]
    assert offenders == []


def test_each_kind_of_name_is_found_in_the_documentation(pages: dict[str, Page]) -> None:
    """So that no check passes because it sees nothing."""
    every = list(pages.values())
    assert len(every) > 100
    assert sum(1 for page in every for _ in names.command_lines(page)) > 400
    assert sum(len(page.spans) for page in every) > 4000
    assert sum(len(page.links) for page in every) > 800
    assert sum(len(page.anchors) for page in every) > 700
    languages = {block.language for page in every for block in page.blocks}
    assert {"", "console", "python", "yaml", "json", "toml", "bash"} <= languages


def test_every_variable_that_is_read_is_on_the_page_of_settings(
    monkeypatch: pytest.MonkeyPatch, pages: dict[str, Page], sources: dict[str, str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module("settings_page")
    read = {
        name
        for place, text in sources.items()
        if place.startswith("src/")
        for name in re.findall(r"[\"'](LUTHIER_[A-Z0-9_]+)[\"']", text)
    }
    named = set(re.findall(r"^\| `(LUTHIER_\w+)`", pages["docs/settings.md"].text, re.MULTILINE))
    assert {f"LUTHIER_{name.upper()}" for name in Settings.model_fields} | {GIVEN_KEY, *VARIABLES} <= named
    assert (read - named, page.INTERNAL - read) == (page.INTERNAL, set())


def test_every_extra_is_on_the_page_of_the_installation(pages: dict[str, Page]) -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \|$", pages["docs/install.md"].text, re.MULTILINE))
    assert rows.pop("all") == "all of the following but `gpu`"
    assert rows == {name: extra.purpose for name, extra in EXTRAS.items()}


def test_scripts_to_copy_import_what_is_there() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}"
        for path in nonempty(sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]))
        for number, what in names.import_offences(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_yaml_of_examples_is_what_luthier_reads(tmp_path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in nonempty(sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "recipes").glob("*.yaml")]))
        if "work" not in path.parts and (problem := problem_of(path.read_text(encoding="utf-8"), tmp_path))
    ]
    assert found == []


def test_messages_name_commands_that_exist(sources: dict[str, str]) -> None:
    """What errors, help texts and pages tell a user to type."""
    every = commands()
    shown = {place: text for place, text in sources.items() if place.startswith("src/")}
    for path in (ROOT / "src").rglob("*.html"):
        shown[path.relative_to(ROOT).as_posix()] = re.sub(r"<code>([^<{]*)", r"`\1`", path.read_text(encoding="utf-8"))
    named = {
        place: Page(place, "\n".join(f"`{one}`" for one in re.findall(r"`(luthier [a-z][^`{\n\"]*)[`{]", text)))
        for place, text in shown.items()
        if "`luthier " in text
    }
    assert sum(len(page.spans) for page in named.values()) > 150
    found = [f"{place}: {what}" for place, page in named.items() for _, what in names.command_offences(page, every)]
    assert found == []


@pytest.mark.parametrize(
    ("about", "text", "what"),
    [
        ("commands", "    luthier runs lisst", "no command: luthier runs lisst"),
        ("commands", "`luthier train x.yaml --bugdet-hours 2`", "luthier train has no --bugdet-hours"),
        (
            "commands",
            "```console\n$ luthier data audit a.jsonl \\\n    --htlm b.html\n```",
            "luthier data audit has no --htlm",
        ),
        ("commands", "`luthier runs list | shew RUN`", "no command: luthier shew RUN"),
        ("options", "with `--bugdet-hours 3`", "no command has --bugdet-hours"),
        ("variables", "Set LUTHIER_HOMES to it.", "nothing reads LUTHIER_HOMES"),
        ("addresses", "`GET /v1/modles`", "no route: GET /v1/modles"),
        ("addresses", "`POST /v1/models`", "no route: POST /v1/models"),
        ("keys", "`training.epoch`", "no key: training.epoch"),
        ("keys", "`luthier train x.yaml --set method.ranks=8`", "no key: method.ranks"),
        ("JSON and TOML", '```json\n{"a": 1,}\n```', "no json"),
        ("Python", "```python\nfrom luthier.core.recipe import Receipt\n```", "luthier.core.recipe has no Receipt"),
        ("Python", "```python\nimport luthier\n\nluthier.trian(1)\n```", "luthier has no trian"),
        ("YAML", "```yaml\ntraining: {epoch: 2}\n```", "training.epoch"),
        ("paths", "```console\n$ cat examples/shop/cases.yaml\n```", "no file: examples/shop/cases.yaml"),
        ("links", "[a](docs/nowhere.md)", "no file: docs/nowhere.md"),
        ("links", "[a](docs/recipe.md#nothing-of-it)", "no heading: docs/recipe.md#nothing-of-it"),
        ("extras", "`pip install 'luthier[gguff]'`", "no extra: gguff"),
        ("targets of make", "`make tests`", "no target: make tests"),
        ("metrics", "`luthier_job`", "no metric: luthier_job"),
    ],
)
def test_what_does_not_exist_is_found(checks: dict[str, Any], about: str, text: str, what: str) -> None:
    page = Page("README.md", text)
    found = [found for _, found in checks[about](page)]
    assert len(found) == 1, found
    assert what in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "`luthier runs list | show RUN | rm RUN`, `luthier runs`, `luthier VERB --help`",
        "`luthier plan recipe.yaml --compare | --on a100-80g:4 | --probe`",
        "    luthier traffic list [--model support] [--since 7d]   # --newest first\n",
        "    luthier human-eval create --systems $RUN,$MODEL --data a.jsonl \\\n        --most-rows ${RATED:-25}\n",
        "`GET /v1/models/{model}`, `/api/v1/runs/RUN/verdict`, `/v1`, `LUTHIER_HOME`, `training.max_grad_norm`",
        "[a](docs/recipe.md), [b](https://example.org/x.md#y), `make test`, `luthier[gguf,onnx]`",
    ],
)
def test_what_exists_is_let_pass(checks: dict[str, Any], text: str) -> None:
    assert [found for check in checks.values() for found in check(Page("README.md", text))] == []
