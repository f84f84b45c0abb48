"""YAML text -> plain document and back, without the traps of YAML 1.1.

What differs from PyYAML's safe loader, each because it hurt people:
    2e-4, 1e5       numbers (YAML 1.1 requires a dot and a sign: it reads them as text)
    yes, no, on     text (they become true and false there), so that a check of types can refuse them
    010, 1:30       10, and text (octal and base 60 there)
    2026-11-25      text (a date there)
    a key twice     an error (the last one wins there)
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from luthier.core.errors import RequestError, first_line


def parse_yaml(
    place: str, text: str, *, refuse: type[RequestError] = RequestError, has_switch_words: bool = False
) -> tuple[Any, dict[str, int]]:
    """The value that a YAML text holds, and the line (from 1) of each dotted key; None for an empty text.

    What is in a list goes by its place: `tasks[0].name`.

    Args:
        place: names the text in errors, which are of the class `refuse`.
        text: the YAML text.
        refuse: the class of the errors.
        has_switch_words: whether yes, no, on and off are true and false, as in files of programs that read YAML 1.1.
    """
    try:
        loader = (_LoaderOfSwitchWords if has_switch_words else _Loader)(text)
        # Composed and constructed in two steps: nodes still know their lines, values do not.
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[str, int] = {}
        _note_lines(node, "", lines, depth=0)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # Marks of PyYAML count from 0.
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        words = " ".join(filter(None, (error.context, error.problem)))
        raise refuse(
            f"{where} is not valid YAML: {words}",
            expected="keys and values, each key once",
            do="correct this line; check its indentation, colons and brackets",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise refuse(
            f"{place} is not valid YAML: {first_line(error)}", expected="plain YAML text", do="correct it"
        ) from error
    # What Python says of a whole number of thousands of digits, and PyYAML's constructors of `!!int x`, `!!bool x` and
    # `!!timestamp x`: these are errors of the text, too.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise refuse(
            f"{place} is not valid YAML: a number has too many digits, or a value does not fit its tag (such as !!int)",
            expected="plain YAML text",
            do="write the value without a tag, or a shorter number",
        ) from error


def has_alias(text: str) -> bool:
    """Whether a YAML text repeats a part by its name, `*name`: a short text can represent a very large value so.

    Raises nothing: of a text that is not right YAML, what can be read counts.
    """
    try:
        return any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return False


def write_yaml(value: Any) -> str:
    """A plain value as YAML that `parse_yaml` reads as the same: keys in their order, short lists in one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], depth: int) -> None:
    # No document of ours is deeper than five levels, and a cycle of aliases has no end.
    if isinstance(node, yaml.SequenceNode) and depth <= 5:
        for place, item in enumerate(node.value):
            if isinstance(item, yaml.MappingNode):
                lines[f"{prefix[:-1]}[{place}]"] = item.start_mark.line + 1
                _note_lines(item, f"{prefix[:-1]}[{place}].", lines, depth + 1)
    if not isinstance(node, yaml.MappingNode) or depth > 5:
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            _note_lines(value, f"{name}.", lines, depth + 1)


def _resolvers(switches: str = "true|True|TRUE|false|False|FALSE") -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Which plain scalars are more than text, by their first character (as PyYAML keeps it)."""
    number = r"[0-9]+(_[0-9]+)*"
    kinds = (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", switches, sorted({word[0] for word in switches.split("|")})),
        ("int", rf"[-+]?{number}", list("-+0123456789")),
        ("float", rf"[-+]?(\.[0-9]+|{number}(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
        ("merge", r"<<", ["<"]),
    )
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, firsts in kinds:
        for first in firsts:
            # PyYAML looks a resolver up by the first character of the scalar, and takes the first pattern that matches.
            entry = (f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"))
            resolvers.setdefault(first, []).append(entry)
    return resolvers


def _construct_int(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # Base 10 explicitly: PyYAML's own constructor reads 010 as octal and 1:30 as base 60.
    return int(node.value, 10)


def _construct_float(_: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and unique keys."""

    yaml_implicit_resolvers = _resolvers()
    yaml_constructors = {  # noqa: RUF012 - PyYAML reads it from the class
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _construct_int,
        "tag:yaml.org,2002:float": _construct_float,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader does, but a key that occurs twice is an error."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _LoaderOfSwitchWords(_Loader):
    """The loader above, with the words for true and false of PyYAML, whose constructor knows them all."""

    yaml_implicit_resolvers = _resolvers(
        "|".join(f"{word}|{word.capitalize()}|{word.upper()}" for word in ("true", "false", "yes", "no", "on", "off"))
    )


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes what the loader above would take for more than text."""

    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, _: Any) -> bool:
        """Write everything out, also repeated objects."""
        return True


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), str(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _write_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML breaks lines at these where it does not quote, and reads them as a space
    style = '"' if any(mark in value for mark in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _write_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    # Lists of plain values in one line, as people write them in recipes.
    is_flat = all(not isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_flat)


_Dumper.add_representer(float, _write_float)
_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(list, _write_list)
