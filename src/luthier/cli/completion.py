"""`luthier completion SHELL`: the script by which a shell completes commands and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

VARIABLE: Final = "_LUTHIER_COMPLETE"
"""Set by the scripts: the program then prints what may follow, and ends."""
_SCRIPTS: Final = {
    "bash": """\
_luthier_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LUTHIER_COMPLETE=complete_bash "$1" ) )
    return 0
}
complete -o default -F _luthier_completion luthier
""",
    "zsh": """\
#compdef luthier
_luthier_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _LUTHIER_COMPLETE=complete_zsh luthier)
}
compdef _luthier_completion luthier
""",
    "fish": (
        "complete --command luthier --no-files --arguments "
        '"(env _LUTHIER_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args '
        '_TYPER_COMPLETE_ARGS=(commandline -cp) luthier)" --condition '
        '"env _LUTHIER_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=is-args '
        '_TYPER_COMPLETE_ARGS=(commandline -cp) luthier"\n'
    ),
    # Variables are of the whole session: one that stayed would make every later command print completions.
    "powershell": """\
Register-ArgumentCompleter -Native -CommandName luthier -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    try {
        $env:_LUTHIER_COMPLETE = 'complete_powershell'
        $env:_TYPER_COMPLETE_ARGS = $commandAst.ToString()
        $env:_TYPER_COMPLETE_WORD_TO_COMPLETE = $wordToComplete
        luthier | Where-Object { $_ } | ForEach-Object {
            $value, $help = $_ -split ':::', 2
            [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $help)
        }
    }
    finally {
        $env:_LUTHIER_COMPLETE = $env:_TYPER_COMPLETE_ARGS = $env:_TYPER_COMPLETE_WORD_TO_COMPLETE = $null
    }
}
""",
}


def prepare() -> None:
    """Make the shells known to Typer, which would do so itself if its own options for that were there."""
    from typer.completion import completion_init  # type: ignore[attr-defined]  # it is public, though not in `__all__`

    completion_init()


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"],
        typer.Argument(metavar="SHELL", help="bash, zsh, fish or powershell."),
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,  # noqa: ARG001 - as every command
) -> Answer:
    """Print the script that completes commands and options in a shell.

    bash: luthier completion bash > ~/.local/share/bash-completion/completions/luthier

    zsh: luthier completion zsh > ~/.zfunc/_luthier, and in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit

    fish: luthier completion fish > ~/.config/fish/completions/luthier.fish

    powershell: luthier completion powershell | Out-String | Invoke-Expression, in the file that $PROFILE names
    """
    script = _SCRIPTS[shell]

    def tell(console: Console) -> None:
        console.print(script, end="", soft_wrap=True, markup=False, highlight=False)

    return Answer(as_json, {"shell": shell, "script": script}, tell)
