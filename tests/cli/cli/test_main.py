"""Every way in which a command can end."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.child_environment import without_coverage
from tests.vacuous import nonempty

import luthier.features.model_browser.cli
from luthier.cli.commands import COMMANDS, Command
from luthier.cli.main import _Commands, _common, command_tree, main
from luthier.core.errors import LuthierError, NotFoundError, RequestError, WorkError
from luthier.core.import_string import import_string
from luthier.features.models import service

HEAVY = ("torch", "transformers", "polars", "pydantic", "sqlalchemy", "numpy", "rich", "matplotlib", "yaml")


@pytest.mark.parametrize("code", ["import luthier.cli.main", "from luthier.cli.main import main; main(['--help'])"])
def test_a_start_imports_nothing_heavy(code: str) -> None:
    code += f"; import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_command_line_imports_the_command_that_it_names_alone() -> None:
    code = (
        "import sys; from luthier.cli.main import main; main(['--help'])\n"
        "def verbs(): return sorted(m for m in sys.modules if m.startswith('luthier.features.') and 'cli' in m)\n"
        "print(verbs(), file=sys.stderr); main(['usage', '--help']); print(verbs(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["[]", "['luthier.features.usage.cli']"]


def test_a_command_line_builds_the_command_that_it_names(luthier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = [], typer.main.get_command_from_info

    def noted(info: Any, **options: Any) -> Any:
        built.append(info.name)
        return build(info, **options)

    monkeypatch.setattr(typer.main, "get_command_from_info", noted)
    assert luthier("runs", "list").code == 0
    assert built == ["list"]
    assert luthier("export", "benchmark", "--help").code == 0
    assert built == ["list", "export benchmark"]


def test_what_is_built_on_lookup_is_what_typer_builds_at_once() -> None:
    def shown(command: Any) -> Any:
        options = [(one.name, one.opts, one.secondary_opts, one.help, one.required) for one in command.params]
        below = [(name, shown(one)) for name, one in getattr(command, "commands", {}).items()]
        return type(command), command.name, command.help, command.short_help, command.epilog, options, below

    app = typer.Typer(name="luthier", cls=_Commands, rich_markup_mode=None, add_completion=False)
    app.callback()(_common)
    for name, entry in nonempty(COMMANDS.items()):
        if isinstance(entry, Command):
            kind = None if entry.kind is None else import_string(entry.kind)
            decorated = app.command(name, cls=kind, short_help=entry.short_help, epilog=entry.epilog)
            decorated(import_string(entry.target))
        else:
            group = typer.Typer(name=name, help=entry.help, rich_markup_mode=None)
            for verbs in entry.verbs:
                for verb, function in import_string(verbs).items():
                    group.command(verb)(function)
            app.add_typer(group)
    assert shown(command_tree())[-1] == shown(typer.main.get_command(app))[-1]


def test_an_option_takes_no_number_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    """Typer reads "nan" and "inf" as numbers."""
    waiting: list[Any] = [command_tree()]
    refused = set()
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        context = typer.Context(command)
        for parameter in () if hasattr(command, "commands") else command.params:
            number = None
            with suppress(typer.BadParameter, LuthierError):  # no number, or a callback that refuses it
                number = parameter.process_value(context, "0.25")
            if isinstance(number, float):
                with pytest.raises((RequestError, typer.BadParameter)):
                    parameter.process_value(context, "nan")
                refused.add(parameter.opts[-1])
    known = {"--budget-hours", "--budget-usd", "--canary", "--min-support", "--temperature", "--attention"}
    assert known <= refused
    assert main(["tune", "recipe.yaml", "--budget-hours", "inf"]) == 2
    assert "--budget-hours inf" in capsys.readouterr().err


def test_every_command_has_a_help_and_takes_json_and_home() -> None:
    app = command_tree()
    leaves = []

    def walk(command: object, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")
        if not hasattr(command, "commands"):
            leaves.append(path)
            options = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
            # What `mcp` prints is its protocol: JSON in any case.
            assert {"--home"} | ({"--json"} if path != "luthier mcp" else set()) <= options, path
            assert command.help, path  # type: ignore[attr-defined]
            assert all(nonempty(getattr(p, "help", None) for p in command.params)), path  # type: ignore[attr-defined]

    walk(app, "luthier")
    assert sorted(leaves) == [
        "luthier alerts list",
        "luthier alerts settings",
        "luthier alerts test",
        "luthier audit-log show",
        "luthier audit-log verify",
        "luthier automl",
        "luthier batches cancel",
        "luthier batches list",
        "luthier batches show",
        "luthier canary",
        "luthier chat",
        "luthier compare-models",
        "luthier completion",
        "luthier data answer",
        "luthier data audit",
        "luthier data cache",
        "luthier data card",
        "luthier data conversations",
        "luthier data diff",
        "luthier data fetch",
        "luthier data forget",
        "luthier data ingest",
        "luthier data preview",
        "luthier data repair",
        "luthier data split",
        "luthier data synthesise",
        "luthier deploy",
        "luthier deployments",
        "luthier distill",
        "luthier doctor",
        "luthier eval",
        "luthier evals import",
        "luthier export",
        "luthier export benchmark",
        "luthier feedback add-rows",
        "luthier feedback import",
        "luthier feedback list",
        "luthier feedback queue",
        "luthier gates remove",
        "luthier gates set",
        "luthier gates show",
        "luthier glossary",
        "luthier human-eval close",
        "luthier human-eval create",
        "luthier human-eval export",
        "luthier human-eval import-labelstudio",
        "luthier human-eval link",
        "luthier human-eval list",
        "luthier human-eval pairs",
        "luthier human-eval status",
        "luthier import",
        "luthier inbox assign",
        "luthier inbox done",
        "luthier inbox list",
        "luthier inbox reopen",
        "luthier inbox snooze",
        "luthier jobs cancel",
        "luthier jobs list",
        "luthier jobs pause",
        "luthier jobs resume",
        "luthier jobs show",
        "luthier jobs submit",
        "luthier judge calibrate",
        "luthier judge list",
        "luthier keys create",
        "luthier keys list",
        "luthier keys revoke",
        "luthier launch",
        "luthier lineage",
        "luthier mcp",
        "luthier models check",
        "luthier models list",
        "luthier models pull",
        "luthier models rm",
        "luthier models show",
        "luthier monitor",
        "luthier monitor check",
        "luthier pipelines list",
        "luthier pipelines show",
        "luthier plan",
        "luthier predict",
        "luthier projects create",
        "luthier projects list",
        "luthier projects quota",
        "luthier projects rename",
        "luthier promote",
        "luthier push",
        "luthier quickstart",
        "luthier recipe schema",
        "luthier report",
        "luthier retrain",
        "luthier rollback",
        "luthier runs compare",
        "luthier runs edit",
        "luthier runs fetch",
        "luthier runs list",
        "luthier runs rm",
        "luthier runs show",
        "luthier runs track",
        "luthier runs upload",
        "luthier runs watch",
        "luthier safety",
        "luthier serve",
        "luthier server prepare",
        "luthier server start",
        "luthier sign",
        "luthier studies apply",
        "luthier studies compare",
        "luthier studies list",
        "luthier studies show",
        "luthier traffic forget-user",
        "luthier traffic list",
        "luthier traffic policy",
        "luthier traffic show",
        "luthier train",
        "luthier tune",
        "luthier up",
        "luthier usage",
        "luthier users add",
        "luthier users groups",
        "luthier users invitations",
        "luthier users invite",
        "luthier users link",
        "luthier users list",
        "luthier users map",
        "luthier users password",
        "luthier users remove",
        "luthier users revoke-invitation",
        "luthier users role",
        "luthier users unmap",
        "luthier verify",
        "luthier worker",
        "luthier worth",
    ]


def test_help_and_version_go_to_stdout(luthier) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["--help"], ["runs", "--help"], ["train", "--help"]):
        done = luthier(*arguments)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("Usage: luthier")
    assert luthier("--version").out.startswith("luthier ")


def test_the_installed_script_works(home: Path) -> None:
    script = Path(sys.executable).with_name("luthier")
    done = subprocess.run([script, "runs", "list", "--json"], capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == ([], "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage: luthier"),
        (["runs"], "Usage: luthier runs"),
        (["modles"], "Did you mean 'models'?"),
        (["runs", "lst"], "Did you mean 'list'?"),
        (["runs", "list", "--jsn"], "--json"),
        (["train", "r.yaml", "--sett", "a=1"], "--set"),
        (["runs", "show"], "Missing argument 'RUN'"),
        (["train", "--resume"], "what to do: see `luthier train --help`"),
        (["data", "audit", "x.jsonl", "--against"], "expected: luthier data audit [OPTIONS]"),
        (["data", "preview", "x.jsonl"], "Missing option '--model'"),
        (["data", "preview", "x.jsonl", "--model", "m", "--num-rows", "0"], "--num-rows"),
        (["data", "preview", "x.jsonl", "--model", "m", "--template", "chatt"], "'chatt' is not one of"),
        (["runs", "list", "extra"], "unexpected extra argument"),
        (["runs", "list", "--limit", "many"], "valid integer"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(luthier, arguments: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err
    told = luthier(*arguments, "--json")
    assert told.code == 2
    assert set(told.document["error"]) == {"type", "came", "expected", "do"}
    assert told.err


ENDINGS = [
    (NotFoundError("no such thing", expected="a thing", do="make one"), 2, "NotFoundError", False),
    (WorkError("it broke", expected="it to hold", do="try again"), 1, "WorkError", False),
    (KeyboardInterrupt(), 130, "Interrupted", False),
    (typer.Abort(), 130, "Interrupted", False),  # Ctrl-C at a question
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "WorkError", False),  # of a connection, not of stdout
    (EOFError("Compressed file ended"), 1, "Bug", True),
    (PermissionError(errno.EACCES, "Permission denied", "/secret"), 1, "PermissionError", False),
    (ZeroDivisionError("division by zero"), 1, "Bug", True),
    (MemoryError(), 1, "MemoryShortError", False),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "MemoryShortError", False),  # of torch
]


@pytest.mark.parametrize(("error", "code", "kind", "has_trace"), ENDINGS)
def test_every_error_has_its_exit_code_and_its_document(  # type: ignore[no-untyped-def]
    luthier, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, kind: str, has_trace: bool
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(service, "list_models", fail)
    plain, told = luthier("models", "list"), luthier("models", "list", "--json")
    assert (plain.code, plain.out, told.code) == (code, "", code)
    assert told.document["error"]["type"] == kind
    for done in (plain, told):
        assert ("Traceback" in done.err) is has_trace
        assert "what to do:" in done.err
    if isinstance(error, LuthierError):
        assert told.document == {"error": error.as_json()}
    if has_trace:
        assert "please report it" in plain.err


def test_what_libraries_print_does_not_reach_a_document(luthier, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def chatter(*_: object) -> list[object]:
        sys.stdout.write("loading weights...\n")
        return []

    monkeypatch.setattr(service, "list_models", chatter)
    done = luthier("models", "list", "--json")
    assert done.document == []
    assert "loading weights" in done.err


def test_json_as_the_value_of_an_option_is_no_wish_for_json(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("runs", "show", "--", "--json")
    assert (done.code, done.out) == (2, "")


def test_control_characters_in_messages_do_not_reach_the_terminal(luthier) -> None:  # type: ignore[no-untyped-def]
    done = luthier("runs", "show", "run\x1b[31m")
    assert done.code == 2
    assert "\x1b" not in done.err


def test_a_home_that_cannot_be_used_is_a_wrong_request(luthier, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    done = luthier("runs", "list", "--home", tmp_path / "file" / "home")
    assert done.code == 2
    assert "--home or LUTHIER_HOME" in done.err
    unknown = luthier("runs", "list", "--home", "~no-such-user/home")
    assert (unknown.code, "--home or LUTHIER_HOME" in unknown.err) == (2, True)
    assert not Path("~no-such-user").exists()


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    script = Path(sys.executable).with_name("luthier")
    with subprocess.Popen([script, "models", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


_WRITES_MUCH = """
import sys
from luthier.cli import main
from luthier.platform.cli.command import Answer, Ending

much = "x" * 1_000_000  # more than a pipe holds
answer = Answer("--json" in sys.argv, much, lambda console: console.print(much))
main._carry_out = lambda _: Ending(1, answer=answer)
main.run()
"""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away_leaves_the_exit_code(options: list[str]) -> None:
    command = [sys.executable, "-c", _WRITES_MUCH, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_that_the_disk_has_no_room_for_is_no_bug_and_no_success(options: list[str]) -> None:
    command = [sys.executable, "-c", _WRITES_MUCH.replace("Ending(1", "Ending(0"), *options]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no room left (No space left on device)")
    assert "Traceback" not in done.stderr


_ENDS = """
import os, sys, types
from luthier.cli.main import run

class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken down\\n")

kept = Kept()
sys.modules["torch"] = types.ModuleType("torch")
sys.argv = ["luthier", "--version"]
PROFILE
run()
"""


@pytest.mark.parametrize(("profile", "ending"), [("", []), ("sys.setprofile(lambda *_: None)", ["taken down"])])
def test_a_command_that_has_loaded_torch_leaves_it_to_the_system(profile: str, ending: list[str]) -> None:
    """Unless it is watched by what has to write at the end."""
    command = [sys.executable, "-c", _ENDS.replace("PROFILE", profile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=without_coverage())
    version, *rest = done.stdout.splitlines()
    assert version.startswith("luthier ")
    assert (rest, done.stderr) == (ending, "")


def test_main_leaves_stdout_as_it_was(home: Path) -> None:
    before = sys.stdout
    assert main(["runs", "list", "--json"]) == 0
    assert sys.stdout is before
    assert luthier.features.model_browser.cli.COMMANDS


def test_the_help_has_every_command_in_one_of_ten_groups() -> None:
    from luthier.cli.help import EXAMPLES, GROUPS

    grouped = [name for some in GROUPS.values() for name in some]
    assert sorted(grouped) == sorted(command_tree().commands)
    assert len(GROUPS) == 10
    for command, _ in nonempty(EXAMPLES):
        assert command.split()[1] in grouped


def test_the_help_begins_with_everyday_commands_and_ends_with_examples(luthier: Any) -> None:
    from luthier.cli.help import GROUPS

    text = luthier("--help").out
    places = [text.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    assert text.index("\n  quickstart ") < text.index("\n  glossary ")
    lines = text.splitlines()
    assert "    luthier train recipe.yaml              train, evaluate, report" in lines
    assert all(len(line) <= 80 for line in nonempty(lines))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("luthier comp", ["compare-models", "completion"]),
        ("luthier exp", ["export"]),
        ("luthier runs tr", ["track"]),
        ("luthier train --budget-u", ["--budget-usd"]),
    ],
)
def test_a_shell_completes_commands_verbs_and_options(
    words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.cli.completion import _SCRIPTS

    assert "_LUTHIER_COMPLETE=complete_bash" in _SCRIPTS["bash"]
    monkeypatch.setenv("_LUTHIER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == expected


def test_the_completion_of_bash_works_in_bash(luthier: Any, tmp_path: Path) -> None:
    script = luthier("completion", "bash").out
    (tmp_path / "completion").write_text(script)
    # The function that the Tab key calls; `env` shows how it asks the program.
    asked = (
        f". {tmp_path}/completion; env() {{ echo $3 $4; }}; COMP_WORDS=(luthier tr); COMP_CWORD=1; "
        '_luthier_completion luthier; echo "${COMPREPLY[@]}"; complete -p luthier'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert "_LUTHIER_COMPLETE=complete_bash luthier" in done.stdout
    assert "-F _luthier_completion luthier" in done.stdout


@pytest.mark.parametrize(
    ("encoding", "arguments", "said"),
    [
        ("cp1252", "print('2 \\u2265 1, \\xe9')", b"2 \\u2265 1, \xe9"),
        ("utf-8", "print('2 \\u2265 1, \\xe9')", "2 ≥ 1, é".encode()),
        # JSON is UTF-8 for the programs that read it.
        (
            "cp1252",
            "Ending(0, Answer(True, {'a': '2 \\u2265 1'}, None)).write_json(sys.stdout)",
            '"a": "2 ≥ 1"'.encode(),
        ),
    ],
)
def test_a_character_that_a_pipe_has_no_place_for_ends_no_command(encoding: str, arguments: str, said: bytes) -> None:
    code = (
        "import sys; from luthier.cli import main; from luthier.platform.cli.command import Answer, Ending\n"
        f"main.main = lambda _: {arguments} or 0\n"
        "main.run()"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert said in done.stdout
