"""The image: two targets, no build tools in the last stages, no root, a health check, and commands that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.deploy.settings import check_command
from tests.vacuous import nonempty

from luthier.core.system.extras import command_for, install_command

ROOT = Path(__file__).parents[2]
BUILD_TOOLS = re.compile(r"\b(gcc|g\+\+|build-essential|make|cmake|git|curl|wget|nodejs|npm|python3-dev|cargo|rustc)\b")
INSTRUCTIONS = {
    *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"),
    *("ENTRYPOINT", "CMD"),
}


def instructions() -> list[tuple[str, str]]:
    """The instructions with their arguments, continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#") and line.strip()]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Of each stage what it begins from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        elif name:
            found[name][1].append((word, rest))
    return found


def whole(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage with those of the stages that it begins from."""
    base, own = stages()[stage]
    return [*(whole(base) if base in stages() else []), *own]


def test_each_instruction_is_known_and_each_source_is_there() -> None:
    known = stages()
    assert {word for word, _ in instructions()} <= INSTRUCTIONS
    for word, rest in nonempty(instructions()):
        if word == "COPY" and (source := re.search(r"--from=(\S+)", rest)):
            assert source[1] in known, rest
        elif word == "COPY":
            ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
            for path in nonempty(rest.split()[:-1]):
                assert (ROOT / path).exists(), path
                assert f"!{path.split('/')[0]}" in ignored, f"{path} is not in the context of the build"


def test_images_are_pinned_to_a_version() -> None:
    defaults = [rest for word, rest in instructions() if word == "ARG" and "IMAGE" in rest]
    for one in nonempty(defaults):
        assert re.fullmatch(r"\w+=[a-z]+:\d[\w.-]+", one), one
    for name, (base, _) in nonempty(stages().items()):
        assert base in stages() or re.fullmatch(r"\$\{\w+_IMAGE\}", base), name


def test_the_last_stages_have_no_build_tools_and_no_root() -> None:
    for target in nonempty(("cpu", "cuda")):
        found = whole(target)
        for word, rest in nonempty(found):
            if word == "RUN":
                assert not BUILD_TOOLS.search(rest), rest
                assert "pip install" not in rest
                assert "apt-get" not in rest or "rm -rf /var/lib/apt/lists/*" in rest
        assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
        assert f"--from=environment-{target} /opt/luthier /opt/luthier" in found[-1][1]
        health = [json.loads(rest[rest.index("[") :]) for word, rest in found if word == "HEALTHCHECK"]
        assert health[0][0] == "python"
        assert "/healthz" in health[0][-1]
        compile(health[0][-1], "health check", "exec")


def test_the_command_is_one_of_luthier() -> None:
    (entry,) = [json.loads(rest) for word, rest in whole("cpu") if word == "ENTRYPOINT"]
    (command,) = [json.loads(rest) for word, rest in whole("cpu") if word == "CMD"]
    assert entry == ["tini", "--", "luthier"]
    check_command(command)
    (port,) = [rest for word, rest in whole("cpu") if word == "EXPOSE"]
    assert port == command[command.index("--port") + 1]


def test_the_extras_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [rest.partition("=")[2] for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRAS=")]
    assert len(named) == 2
    for one in nonempty(named):
        assert set(one.split(",")) <= set(extras)


def test_extras_are_an_argument_of_the_build_that_messages_name(tmp_path: Path) -> None:
    """In a container nothing can be installed for good: `pip install` would be the wrong advice."""
    for target in nonempty(("cpu", "cuda")):
        (default,) = [rest for word, rest in whole(f"environment-{target}") if rest.startswith("EXTRAS=")]
        (made,) = [rest for word, rest in whole(f"environment-{target}") if "image-options" in rest]
        assert '[${EXTRAS}]" ${PACKAGES}' in made
        written, place = re.search(r'echo "([^"]+)" > (\S+)', made).groups()  # type: ignore[union-attr]
        assert place == "/opt/luthier/image-options"
        (tmp_path / "image-options").write_text(written.replace("${EXTRAS}", default.removeprefix("EXTRAS=")) + "\n")
        command = f"docker build --target {target} -t luthier:{target} --build-arg {default}"
        assert install_command("mlflow", str(tmp_path)) == f"{command},mlflow ."
        assert command_for("gcsfs", str(tmp_path)) == f"{command} --build-arg PACKAGES=gcsfs ."
