"""Chat templates as untrusted code: a bounded jinja sandbox, a fixed clock, and the names that a template reads.

Sandbox. transformers renders templates in jinja's sandbox, which keeps them from files and from Python, but not from
time and memory: `{{ 'a' * 9999999999 }}`, loops in loops. `use_bounded_sandbox` makes it use the environment of this
module instead, in which

    a loop          counts its rounds, all loops of one rendering together, over any iterable
    * ** %          and the string methods and filters that pad or repeat are rejected if their result would be huge

The rendered text is identical, except for the date. Doubling a text by `+`, `~` or `set` blocks is not limited here:
that, and anything else that takes long, is detected when the model is pulled, by `probe`, in a separate
process.

Clock. Some templates write the date. Training data and comparisons must not depend on the date: a run resumed tomorrow
has to see the tokens that it saw today. So `strftime_now` returns a fixed date in all renderings of Luthier, and
engines that render themselves get the template with the clock removed.

Names. Options and message fields are read from the syntax tree of the template, so that an option that it never reads
is rejected before anything is rendered.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.core.errors import RequestError

FIXED_DAY: Final = datetime.datetime(2025, 1, 1)
FILLED_BY_LLAMA_CPP: Final = ("date_string", "datetime")
"""Variables that llama.cpp sets to today's date for every template (`common_chat_extra_context`)."""
_FUNCTION: Final = "strftime_now"
_CALL: Final = re.compile(_FUNCTION + r"\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
_ANY_CALL: Final = re.compile(_FUNCTION + r"\s*\(")
_TEXT: Final = re.compile(r"(?P<quote>['\"])(?P<text>[^'\"\n]*%[^'\"\n]*)(?P=quote)")
_OWN: Final = "luthier_"
_LEXER: Final = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701 - nothing is rendered with it


def fixed_strftime(format: str) -> str:
    """The fixed date, formatted as requested by a template's `strftime_now`."""
    return FIXED_DAY.strftime(str(format))


def reads_clock(template: str | Mapping[str, str] | None) -> bool:
    """Whether a template, or one of several named ones, reads the date."""
    texts: Iterable[str] = template.values() if isinstance(template, Mapping) else (template or "",)
    return any(_ANY_CALL.search(text) is not None for text in texts)


def filled_names(template: str) -> tuple[str, ...]:
    """The variables of a template that llama.cpp would fill with today's date."""
    read = {text for text, is_variable in _tokens(template) if is_variable}
    return tuple(name for name in FILLED_BY_LLAMA_CPP if name in read)


def without_clock(template: str) -> str:
    """The template with the fixed date, for an engine that would read the clock itself.

    Calls of `strftime_now` are replaced by their result for that date. Variables that llama.cpp fills with the date are
    renamed to `own_name`, which it does not know: they are then unset, as in training.
    """
    # As a JSON string, which is a jinja literal too.
    text = _CALL.sub(lambda call: json.dumps(fixed_strftime(call["format"]), ensure_ascii=False), template)
    if _ANY_CALL.search(text) is not None:  # a format in a variable: one of the string literals of the template
        formats = {found["text"]: fixed_strftime(found["text"]) for found in _TEXT.finditer(text)}
        table = json.dumps(formats, ensure_ascii=False)
        text = f"{{%- macro {_FUNCTION}(format) -%}}{{{{- {table}[format] -}}}}{{%- endmacro %}}{text}"
    if not filled_names(text):
        return text
    return "".join(own_name(part) if is_variable else part for part, is_variable in _tokens(text))


def own_name(option: str) -> str:
    """The name of a template's option after `without_clock`."""
    return f"{_OWN}{option}" if option in FILLED_BY_LLAMA_CPP else option


def _tokens(template: str) -> Iterator[tuple[str, bool]]:
    """The tokens of the template, and which of them are variable names; empty if it does not parse."""
    before = ""
    try:
        for _, kind, text in list(_LEXER.lex(template)):
            yield text, kind == "name" and before != "."
            before = text
    except jinja2.TemplateError:
        return


MAX_ITERATIONS: Final = 2_000_000
"""Limit over all loops of one rendering: a hundred times what the longest conversations need."""
MAX_REPEATED: Final = 1_000_000
"""Maximum characters or items that a repetition or a padding may produce."""
_MAX_BITS: Final = 10_000
_LOOP: Final = "luthier_bounded_loop"
_SIZED: Final = (str, bytes, list, tuple, dict, range, set, frozenset)
_COUNTED: Final[tuple[type[Sized], ...]] = (*_SIZED, type({}.keys()), type({}.values()), type({}.items()))
_PADDING: Final = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))
_WIDE: Final = re.compile(r"%[-+ #0]*(?:\d{7,}|\*)|%[-+ #0\d]*\.(?:\d{7,}|\*)|\{[^{}]*\d{7,}[^{}]*\}|\{[^{}]*:[^{}]*\{")
# Replaces transformers' function, which reads the clock: values of a rendering take precedence over the environment's.
_CLOCK: Final = {"strftime_now": fixed_strftime}
_left: Final[ContextVar[list[int] | None]] = ContextVar("iterations_left", default=None)


def use_bounded_sandbox() -> None:
    """Make transformers render chat templates in the bounded environment, in this process from now on."""
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment


@contextmanager
def _counted() -> Iterator[None]:
    before = _left.set([MAX_ITERATIONS])
    try:
        yield
    finally:
        _left.reset(before)


class BoundedTemplate(jinja2.Template):
    """A template with a loop counter per rendering and a fixed clock."""

    def render(self, *_args: Any, **_kwargs: Any) -> str:
        """Render as in jinja, with the fixed date.

        Raises:
            SecurityError: the rendering exceeds a limit.
        """
        with _counted():
            return super().render(*_args, **_kwargs, **_CLOCK)

    def generate(self, *_args: Any, **_kwargs: Any) -> Iterator[str]:
        """Generate as in jinja, piece by piece, with the fixed date."""
        with _counted():
            yield from super().generate(*_args, **_kwargs, **_CLOCK)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja's sandbox with limits on loops, repetitions and paddings."""

    template_class = BoundedTemplate
    intercepted_binops = frozenset(("*", "**", "%"))  # not +: the overhead would dominate the rendering

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__(*_args, **_kwargs)
        self.filters[_LOOP] = _loop_over
        for name in ("center", "indent", "format", "wordwrap", "truncate"):
            self.filters[name] = _padded(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            # `for x in y` becomes `for x in y | luthier_bounded_loop`.
            counted = nodes.Filter(loop.iter, _LOOP, [], [], None, None, lineno=loop.lineno)
            # In the syntax tree rather than the text, which could be written in many ways.
            loop.iter = counted.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The value of `left operator right`.

        Raises:
            SecurityError: it would be huge.
        """
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *_args: Any, **_kwargs: Any) -> Any:
        """The result of a call.

        Raises:
            SecurityError: a method pads a text beyond the limit, or a recursive loop is too long.
        """
        # `loop(x)` of a recursive loop iterates over x without the filter that `_parse` inserts.
        if isinstance(obj, LoopContext) and _args:
            _args = (_loop_over(_args[0]), *_args[1:])
        # The bound method: a template may store it in a variable first.
        holder = getattr(obj, "__self__", None)
        if isinstance(holder, str) and getattr(obj, "__name__", "") in _PADDING:
            _check_widths((*_args, *_kwargs.values()))
        return super().call(context, obj, *_args, **_kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The `format` method of a text, guarded as in jinja.

        Raises:
            SecurityError: a width of millions.
        """
        guarded = super().wrap_str_format(value)
        if guarded is not None:
            _check_format(value.__self__)
        return guarded


def _loop_over(iterable: Any) -> Any:
    """The iterable of a loop, counted at the start if its length is known, otherwise per iteration."""
    left = _left.get()
    if left is None:
        return iterable
    # Only types with a fast and correct `len`; jinja's own `loop` would consume the remaining items for it.
    if isinstance(iterable, _COUNTED):
        _spend(left, len(iterable))
        return iterable
    # `iter` here and not in the generator: non-iterable or undefined values fail where they failed before.
    return _each_counted(iter(iterable), left)


def _each_counted(items: Iterator[Any], left: list[int]) -> Iterator[Any]:
    for item in items:
        _spend(left, 1)
        yield item


def _spend(left: list[int], num_rounds: int) -> None:
    left[0] -= num_rounds
    if left[0] < 0:
        raise _too_much(f"more than {MAX_ITERATIONS:,} rounds of its loops")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for one, times in ((left, right), (right, left)):
            # Checked before Python allocates: afterwards the memory is gone.
            if isinstance(one, _SIZED) and isinstance(times, int) and len(one) * times > MAX_REPEATED:
                raise _too_much(f"a text or list repeated {times:,} times")
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
            raise _too_much("a number of thousands of digits")
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > _MAX_BITS:
            raise _too_much("a number of thousands of digits")
    elif operator == "%" and isinstance(left, str):
        _check_format(left)


def _padded(filter_of_jinja: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with widths of millions rejected."""
    is_format = filter_of_jinja.__name__ == "do_format"

    def bounded(*_args: Any, **_kwargs: Any) -> Any:
        if is_format:
            _check_format(str(_args[0]))
        _check_widths((*_args, *_kwargs.values()))
        return filter_of_jinja(*_args, **_kwargs)

    # The first argument from jinja (environment, context) is marked on the function.
    bounded.__dict__.update(filter_of_jinja.__dict__)
    return bounded


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise _too_much("a format with a width of millions")


def _check_widths(values: Any) -> None:
    if any(isinstance(value, int) and value > MAX_REPEATED for value in values):
        raise _too_much(f"a width of more than {MAX_REPEATED:,} characters")


def _too_much(what: str) -> SecurityError:
    return SecurityError(f"it asks for {what}")


GIVEN: Final = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
"""Variables of every rendering, which are not options."""
_TOKENS: Final = "_token"
_FUNCTIONS: Final = frozenset(("raise_exception", "strftime_now", "dict", "namespace"))
_OF_TRANSFORMERS: Final = frozenset(
    ("conversation", "chat_template", "continue_final_message", "tokenize", "padding", "truncation", "max_length",
     "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
     "strftime_now")
)  # fmt: skip


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a template.

    Args:
        options: by name.

    Raises:
        RequestError: one of them is set by every rendering itself.
    """
    taken = sorted((GIVEN | _OF_TRANSFORMERS) & set(options))
    if taken:
        raise RequestError(
            f"template option {taken[0]!r}",
            expected="a name of the template's own, such as enable_thinking; all else comes from the rows",
            do=f"remove {taken[0]!r} from template_options",
        )
    return dict(options)


@dataclass(frozen=True, slots=True)
class TemplateNames:
    """Names in a chat template.

    Attributes:
        options: variables that the template expects from outside.
        fields: all attribute names and keys that it looks up.
    """

    options: frozenset[str]
    fields: frozenset[str]


@lru_cache(maxsize=32)
def names_of(template: str) -> TemplateNames:
    """The names that a template reads; empty if it does not parse, which rendering reports."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    try:
        tree = environment.parse(template)
        undeclared = meta.find_undeclared_variables(tree)
    except jinja2.TemplateError:
        return TemplateNames(frozenset(), frozenset())
    # a name that some branch sets is local to the template, unless it tests whether the name is defined
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"} - _asked_for(tree)
    options = {name for name in undeclared if not name.endswith(_TOKENS)} - GIVEN - _FUNCTIONS - own
    return TemplateNames(frozenset(options), frozenset(_fields(tree)))


def _asked_for(tree: nodes.Template) -> set[str]:
    """Names in `x is defined`, `x is undefined` and `x | default(...)`."""
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined")]
    asked += [found.node for found in tree.find_all(nodes.Filter) if found.name in ("default", "d") and found.node]
    return {node.name for node in asked if isinstance(node, nodes.Name)}


def _fields(tree: nodes.Template) -> set[str]:
    found = {node.attr for node in tree.find_all(nodes.Getattr)}
    return found | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}` that transformers adds to jinja, replaced by its content."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> Any:
        """The nodes of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
