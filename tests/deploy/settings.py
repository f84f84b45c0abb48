"""What files of an installation may name: commands and options of the command line, and settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from luthier.cli.main import command_tree
from luthier.platform.auth.first_key import GIVEN_KEY
from luthier.platform.home.settings import Settings

SETTINGS = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields} | {GIVEN_KEY}


def check_command(arguments: Sequence[str]) -> None:
    """Parse the arguments of `luthier` as its command line does. Raises where it would refuse them."""
    tree = command_tree()
    context = tree.make_context("luthier", list(arguments), resilient_parsing=False)
    while hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None, f"luthier has no command {name}"
        context = command.make_context(name, list(rest), parent=context)


def unknown_variables(names: Collection[str], elsewhere: Collection[str]) -> list[str]:
    """Variables that no setting reads."""
    return sorted(set(names) - SETTINGS - set(elsewhere))
