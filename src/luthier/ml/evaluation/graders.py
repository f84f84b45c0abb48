"""Graders: a function from a generated text and its row to a number, made from the grader's description in a recipe.

Templates such as `{{sample.output_text}}` and `{{item.reference}}` are filled in, `text_similarity` compares one pair
of texts (0 to 1), and the formula of a `multi` grader is arithmetic over the scores of others: it is parsed, never
passed to Python's `eval`.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from luthier.core.errors import RequestError, library_reason
from luthier.core.graders import (
    Grader,
    ModelGrader,
    MultiGrader,
    MultiReward,
    PythonGraderSpec,
    Similarity,
    StringCheck,
    TextSimilarity,
)
from luthier.ml.evaluation.metrics.rouge import common_subsequence_length, rouge_l, rouge_n

_INDEXED = re.compile(r"([^\[\]]*)((?:\[\d{1,6}\])+)")
_MAX_FILLED_CHARACTERS: Final = 1 << 22
_MAY_LACK: Final = re.compile(r"output_(tools|json)\b")
SAMPLE_FIELDS: Final = ("output_text", "output_json", "output_tools", "choices", "model", "finish_reason")
"""What `{{sample.FIELD}}` may refer to where a whole answer is graded; `output_json` is the text, parsed."""
WRITTEN_FIELDS: Final = ("output_text", "output_json", "output_tools")
"""The same where a recipe or a suite grades what a model has written: its text, that as JSON, its calls of tools."""


def item_fields(template: str, sample_fields: Sequence[str] = WRITTEN_FIELDS) -> tuple[str, ...]:
    """The row fields that a template uses: `{{item.answer.value}}` uses `answer`.

    Args:
        template: text with placeholders.
        sample_fields: what a placeholder may refer to of the answer.

    Raises:
        RequestError: a placeholder refers neither to the row nor to the generated text.
    """
    names = []
    for _, _, place in _placeholders(template):
        kind, _, rest = place.partition(".")
        first = rest.split(".")[0].partition("[")[0]
        if kind == "sample" and first in sample_fields:
            continue
        if kind != "item" or not first:
            raise RequestError(
                f"a grader with the place {{{{{place}}}}}",
                expected=f"{{{{sample.{'|'.join(sample_fields)}}}}} or {{{{item.FIELD}}}} with a field of the row",
                do="correct the template of the grader (in a recipe: objective.rewards)",
            )
        names.append(first)
    return tuple(dict.fromkeys(names))


def num_answer_placeholders(template: str) -> int:
    """How many placeholders of a template the answer, or a part of it, fills."""
    return sum(place.partition(".")[0] == "sample" for _, _, place in _placeholders(template))


def _placeholders(template: str) -> Iterator[tuple[int, int, str]]:
    """The placeholders of a template: where each begins and ends, and what is in it, without spaces around.

    By hand and not by a regular expression: `{{` before thousands of spaces would take one hours, and templates come
    from requests.
    """
    place = 0
    while (start := template.find("{{", place)) >= 0 and (end := template.find("}}", start + 2)) >= 0:
        inner = template[start + 2 : end].strip()
        if "\n" in inner and (last := template.rfind("{{", start + 1, end)) > start:
            # No placeholder goes over lines: this one may begin later.
            start, inner = last, template[last + 2 : end].strip()
        place = end + 2
        if "\n" not in inner:
            yield start, place, inner


def filled(
    template: str, output: str | Mapping[str, Any], item: Mapping[str, Any], *, missing: str | None = None
) -> str:
    """The template with its placeholders filled; non-text values are written as JSON.

    Args:
        template: text with placeholders.
        output: the generated text, or the fields of the whole answer.
        item: the fields of the row.
        missing: what is written for a place in a call of a tool, or in the answer as JSON, that the answer does not
            have; None refuses it.

    Raises:
        RequestError: the row, or the answer, has no such field, or the text becomes too long.
    """
    sample = sample_of_text(output) if isinstance(output, str) else output
    # One pass: placeholders inside inserted text are not expanded.
    parts: list[str] = []
    position = num_characters = 0
    for start, end, place in _placeholders(template):
        kind, _, rest = place.partition(".")
        try:
            found = value_at(sample if kind == "sample" else item, rest, kind)
        except RequestError:
            if missing is None or kind != "sample" or not _MAY_LACK.match(rest):
                raise
            found = missing
        parts += [template[position:start], found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)]
        num_characters += len(parts[-1]) + len(parts[-2])
        # A long field that a template names thousands of times would fill the memory.
        if num_characters > _MAX_FILLED_CHARACTERS:
            raise _too_long("template has")
        position = end
    return "".join([*parts, template[position:]])


def all_filled(templates: Iterable[str], output: str | Mapping[str, Any], item: Mapping[str, Any]) -> list[str]:
    """The templates of one grader, filled as by `filled`; together they may be as long as one.

    Args:
        templates: such as the messages to a grading model.
        output: as of `filled`.
        item: the fields of the row.

    Raises:
        RequestError: the row, or the answer, has no such field, or the texts become too long.
    """
    texts: list[str] = []
    for template in templates:
        texts.append(filled(template, output, item))
        # A hundred messages that each name one long field are a hundred times its size.
        if sum(map(len, texts)) > _MAX_FILLED_CHARACTERS:
            raise _too_long("messages have")
    return texts


def _too_long(what: str) -> RequestError:
    return RequestError(
        f"a grader whose {what} more than {_MAX_FILLED_CHARACTERS:,} characters with the fields of a row",
        expected=f"at most {_MAX_FILLED_CHARACTERS:,} characters",
        do="name fewer or shorter fields in the template of the grader",
    )


def sample_of_text(output: str) -> dict[str, Any]:
    """The fields of an answer of which only the text is known; `output_json` where that is JSON."""
    try:
        return {"output_text": output, "output_json": json.loads(output)}
    except (ValueError, RecursionError):
        return {"output_text": output}


def written_sample(text: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of an answer that a model has written.

    Args:
        text: The answer without its calls of tools.
        calls: These, in OpenAI's format.
    """
    return sample_of_text(text) | {"output_tools": list(calls)}


def written_out(template: str, output: str | Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """As `filled`; a place in a call, or in JSON, that the answer does not have is an empty text."""
    return filled(template, output, item, missing="")


def value_at(fields: Mapping[str, Any], path: str, kind: str = "item") -> Any:
    """What a path such as `answer.value` or `turns[0].content` refers to.

    Args:
        fields: of the row, or of the answer.
        path: names by dots; `[n]` is a place in a list.
        kind: what the fields are of, for the message.

    Raises:
        RequestError: there is no such field.
    """
    found: Any = fields
    for step in _steps(path):
        is_there = (
            isinstance(found, list | tuple) and step < len(found)
            if isinstance(step, int)
            else isinstance(found, Mapping) and step in found
        )
        if not is_there:
            known = ", ".join(sorted(map(str, found))) if isinstance(found, Mapping) else type(found).__name__
            of = "a row" if kind == "item" else "an answer"
            raise RequestError(
                f"a grader refers to {kind}.{path}, and {of} has no {step!r}",
                expected=f"one of {known}",
                do="correct the template (in a recipe: objective.rewards), or give every row that field",
            )
        found = found[step]
    return found


def _steps(path: str) -> list[str | int]:
    found: list[str | int] = []
    for name in path.split("."):
        match = _INDEXED.fullmatch(name)
        if match is None:
            found.append(name)
            continue
        found += [match[1]] if match[1] else []
        found += [int(number) for number in re.findall(r"\d+", match[2])]
    return found


_MAX_CHARACTERS: Final = 1000
_OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


class Formula:
    """A formula, parsed once: numbers, names, + - * / ** ^, and min, max, abs, floor, ceil, exp, sqrt, log.

    Args:
        text: the formula.
        names: variables that it may use.

    Raises:
        RequestError: the formula contains anything else.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self.text, self._names = text, frozenset(names)
        try:
            if len(text) > _MAX_CHARACTERS:
                raise ValueError(f"{len(text)} characters")
            # OpenAI's formulas write powers with ^, which binds less than a sum in Python.
            self._tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
            self._check(self._tree)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise RequestError(
                f"calculate_output {text[:100]!r}: {library_reason(error)}",
                expected=f"arithmetic over {', '.join(sorted(names))}, with {', '.join(_FUNCTIONS)}",
                do="correct objective.rewards",
            ) from error

    def __call__(self, values: Mapping[str, float]) -> float:
        """The result for these values.

        Raises:
            RequestError: the result is undefined, such as a division by zero.
        """
        try:
            found = float(self._value(self._tree, values))
        except (ArithmeticError, ValueError, TypeError) as error:
            found, reason = math.nan, str(error)
        else:
            reason = f"gives {found}"
        if not math.isfinite(found):
            raise RequestError(
                f"calculate_output {self.text!r} with {dict(values)}: {reason}",
                expected="a finite number for every answer",
                do="correct objective.rewards",
            )
        return found

    def _check(self, node: ast.AST) -> None:
        # type(), since True is an int to isinstance.
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return
        if isinstance(node, ast.Name) and node.id in self._names:
            return
        if isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in _OPERATORS:
            parts = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        elif isinstance(node, ast.Call) and _function_of(node) is not None and not node.keywords and node.args:
            parts = node.args
        else:
            raise ValueError(f"cannot use {ast.unparse(node)!r}")
        for part in parts:
            self._check(part)

    def _value(self, node: ast.AST, values: Mapping[str, float]) -> Any:
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](self._value(node.left, values), self._value(node.right, values))
        if isinstance(node, ast.UnaryOp):
            return _OPERATORS[type(node.op)](self._value(node.operand, values))
        assert isinstance(node, ast.Call)
        function = _function_of(node)
        assert function is not None
        # Python integers are unbounded, so powers of them could grow without limit
        return float(function(*(self._value(part, values) for part in node.args)))


def _function_of(node: ast.Call) -> Callable[..., Any] | None:
    return _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else None


_ROUGE_ORDERS: Final = 5
_GLEU_ORDERS: Final = 4


def similarity(kind: Similarity) -> Callable[[str, str], float]:
    """The function (output, reference) -> 0 to 1 of that name."""
    plain: dict[str, Callable[[str, str], float]] = {"fuzzy_match": fuzzy_match, "bleu": sentence_bleu, "gleu": gleu}
    plain |= {"rouge_l": rouge_l} | {f"rouge_{order}": rouge_n(order) for order in range(1, _ROUGE_ORDERS + 1)}
    return plain[kind]


def sentence_bleu(output: str, reference: str) -> float:
    """Sentence BLEU divided by 100, with exponential smoothing and at most as many orders as the output has words.

    Source: Post, 2018, arXiv:1804.08771 (sacrebleu's sentence_bleu).
    """
    import sacrebleu

    return min(1.0, max(0.0, float(sacrebleu.sentence_bleu(output, [reference]).score) / 100.0))


def gleu(output: str, reference: str) -> float:
    """The smaller of precision and recall over all n-grams of 1 to 4 words, split at white space.

    Source: Wu et al., 2016, "Google's Neural Machine Translation System", arXiv:1609.08144, section 7.3.
    """
    said, meant = _grams(output.split()), _grams(reference.split())
    most = max(said.total(), meant.total())
    return (said & meant).total() / most if most else 1.0


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[i : i + order]) for order in range(1, _GLEU_ORDERS + 1) for i in range(len(words) - order + 1)
    )


def fuzzy_match(output: str, reference: str) -> float:
    """2 L / (m + n) with L the length of the longest common subsequence of characters; 1 for two empty texts.

    One minus the insertions and deletions between the two, as a share of all characters.
    """
    if not output and not reference:
        return 1.0
    return 2.0 * common_subsequence_length(output, reference) / (len(output) + len(reference))


Grade = Callable[[str | Mapping[str, Any], Mapping[str, Any]], float]
"""(output, item) -> score. output: the text, or the fields of the answer (`written_sample`). item: the row's fields,
and its answer as `reference`."""


def fields_of(grader: Grader | MultiGrader) -> tuple[str, ...]:
    """The row fields that a grader uses.

    Raises:
        RequestError: a placeholder cannot be filled.
    """
    return tuple(dict.fromkeys(name for text in texts_to_fill(grader) for name in item_fields(text)))


def texts_to_fill(grader: Grader | MultiGrader) -> tuple[str, ...]:
    """The templates that a grader fills for each answer."""
    parts = list(grader.graders.values()) if isinstance(grader, MultiGrader | MultiReward) else [grader]
    texts: list[str] = []
    for part in parts:
        if isinstance(part, ModelGrader):
            texts += [turn.content for turn in part.input]
        elif not isinstance(part, PythonGraderSpec):
            texts += [part.input, part.reference]
    return tuple(texts)


def make_grader(grader: StringCheck | TextSimilarity | MultiGrader) -> Grade:
    """The function of a grader that asks no model.

    Raises:
        RequestError: a formula is invalid.
    """
    if isinstance(grader, StringCheck):
        return _checked(grader)
    if isinstance(grader, TextSimilarity):
        return _similar(grader)
    made = {name: make_grader(part) for name, part in grader.graders.items()}
    formula = Formula(grader.calculate_output, list(made))
    return lambda output, item: formula({name: part(output, item) for name, part in made.items()})


def _checked(grader: StringCheck) -> Grade:
    def grade(output: str | Mapping[str, Any], item: Mapping[str, Any]) -> float:
        said, meant = written_out(grader.input, output, item), written_out(grader.reference, output, item)
        if grader.operation == "ilike":
            return float(meant.casefold() in said.casefold())
        if grader.operation == "like":
            return float(meant in said)
        # One comparison for eq and ne.
        return float((said == meant) == (grader.operation == "eq"))

    return grade


def _similar(grader: TextSimilarity) -> Grade:
    measure = similarity(grader.evaluation_metric)

    def grade(output: str | Mapping[str, Any], item: Mapping[str, Any]) -> float:
        return measure(written_out(grader.input, output, item), written_out(grader.reference, output, item))

    return grade
