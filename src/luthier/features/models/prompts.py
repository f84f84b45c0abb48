"""Prompts of a candidate that is evaluated: instruction, examples, and what they add to each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from luthier.core.conversation import Conversation
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.evaluation_plan import Prompting, ShownTurn
from luthier.core.ports import Prompt
from luthier.features.recipes.checks import have_text_answers

if TYPE_CHECKING:
    from luthier.features.models.resolve import Candidate
    from luthier.ml.data.tokenise.loss_mask import Learning
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def with_few_shot(
    base: Candidate, pool: Sequence[Example], num: int, seed: int, *, held_out: Sequence[Example]
) -> Candidate:
    """The same model with `num` examples from the pool before each prompt, none of them asked in the held-out rows.

    Args:
        base: the model.
        pool: rows to choose from; those with a prompt of the held-out rows are left out.
        num: examples before each prompt.
        seed: of the choice.
        held_out: the evaluated rows.
    """
    from luthier.ml.evaluation.few_shot import choose_shots

    # Shots equal to a held-out row, or with its prompt, would give the answer away.
    shots = choose_shots(pool, num, seed, held_out=held_out)
    return replace(base, name=f"{base.name} + {len(shots)} examples", shots=shots)


def with_nearest(
    base: Candidate, pool: Sequence[Example], num: int, *, held_out: Sequence[Example]
) -> Candidate | None:
    """The same model with the `num` examples of the pool that are nearest to each prompt, the nearest one last.

    Args:
        base: the model.
        pool: rows to choose from; those with a prompt of the held-out rows are left out.
        num: examples a prompt; fewer where the pool has fewer.
        held_out: the rows to be evaluated.

    Returns:
        None where no example can be shown, and where prompts hold no words by which one is nearer than another.
    """
    from luthier.ml.baselines.nearest import have_words
    from luthier.ml.evaluation.few_shot import usable_shots

    shown = tuple(usable_shots([row for row in pool if row.conversation is not None], held_out).values())
    num = min(num, len(shown))
    if not num or not have_words(shown):
        return None
    name = f"{base.name} + {num} nearest example{'s' if num != 1 else ''}"
    return replace(base, name=name, nearest_from=shown, num_nearest=num)


def prompts_of(
    candidate: Candidate, examples: Sequence[Example], template: ChatTemplate
) -> tuple[int, Callable[[int], list[Example]]]:
    """How many examples a candidate has for each row, and what gives the rows with that many of them, or fewer."""
    from luthier.ml.evaluation.few_shot import with_shots

    shown = _shown(candidate, examples, template)
    instructed = _instruction_of(candidate, template)

    def with_examples(num: int) -> list[Example]:
        # Of nearest examples the last ones are kept, which are nearest to the prompt.
        kept = slice(-num, None) if candidate.num_nearest and num else slice(num)
        return [instructed(with_shots(e, own[kept])) for e, own in zip(examples, shown, strict=True)]

    return max(map(len, shown), default=0), with_examples


def _shown(candidate: Candidate, examples: Sequence[Example], template: ChatTemplate) -> list[tuple[Example, ...]]:
    """The examples before each row's prompt, as the template takes them."""
    from luthier.ml.baselines.nearest import nearest_examples
    from luthier.ml.inference.engine_prompts import rewritten_examples

    if not candidate.num_nearest:
        return [tuple(rewritten_examples(candidate.opted_turns, candidate.shots, template))] * len(examples)
    pool = rewritten_examples(candidate.opted_turns, candidate.nearest_from, template)
    return nearest_examples(pool, examples, candidate.num_nearest)


def _instruction_of(candidate: Candidate, template: ChatTemplate) -> Callable[[Example], Example]:
    """What puts a candidate's instruction before all else in a prompt, its examples included."""
    from luthier.ml.prompting.instructions import takes_system_turns, with_instruction

    if not candidate.instruction:
        return lambda example: example
    return partial(with_instruction, instruction=candidate.instruction, as_system=takes_system_turns(template))


def prompting_of(
    candidate: Candidate,
    num_shots: int,
    examples: Sequence[Example],
    tokenised: Sequence[TokenisedExample],
    template: ChatTemplate,
    learning: Learning,
) -> Prompting | None:
    """What the prompts contain besides the rows' text, with the tokens that this takes; None for nothing.

    Args:
        candidate: with its shots and its instruction.
        num_shots: that are shown: fewer than the candidate has, where the longest row does not fit.
        examples: the evaluated rows.
        tokenised: the same rows with their whole prompts.
        template: of the model.
        learning: which tokens of a row are its answer.
    """
    from luthier.ml.data.tokenise.loss_mask import tokenise_sides
    from luthier.ml.evaluation.few_shot import shown_turns
    from luthier.ml.evaluation.systems import num_prompt_tokens

    if not (candidate.shots or candidate.num_nearest or candidate.instruction or candidate.search_tokens is not None):
        return None
    has_pairs = any(example.rejected is not None for example in examples)
    bare = [tokenise_sides(example, template, learning)[0 if has_pairs else -1] for example in examples]
    added = [num_prompt_tokens(own) - num_prompt_tokens(other) for own, other in zip(tokenised, bare, strict=True)]
    # Even if no example fits, this is the request: a few-shot system of none.
    kind: Literal["few_shot", "instruction", "optimised_prompt"] = "few_shot"
    if candidate.search_tokens is not None:
        kind = "optimised_prompt"
    elif candidate.instruction and not num_shots:
        kind = "instruction"
    chosen: Literal["none", "drawn", "nearest"] = "nearest" if candidate.num_nearest else "drawn"
    drawn = () if candidate.num_nearest else candidate.shots[:num_shots]
    return Prompting(
        kind=kind,
        instruction=candidate.instruction,
        examples=chosen if num_shots else "none",
        num_draws=candidate.num_draws,
        extra_prompt_tokens=sum(added) / len(added) if added else 0.0,
        search_tokens=candidate.search_tokens or 0,
        reflection_model=candidate.reflection_model,
        turns=tuple(ShownTurn(role=t.role, content=t.content or "") for one in drawn for t in shown_turns(one)),
    )


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts of a system, the rows' own answers, and the prompts as a person reads them; all empty for plain text
    that is only scored."""

    prompts: tuple[Prompt, ...] = ()
    references: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        seen: Sequence[Example],
        examples: Sequence[Example],
        rests: Sequence[str],
        room: Sequence[int],
        max_thinking_tokens: int | None,
    ) -> PromptSet:
        if rests:
            texts = tuple(e.text or "" for e in examples)
            prompts = tuple(Prompt(text=t, max_new_tokens=n) for t, n in zip(texts, room, strict=True))
            return cls(prompts, tuple(rests), texts)
        if not have_text_answers(examples):
            return cls()
        return cls(
            tuple(
                Prompt(conversation=e.prompt, max_new_tokens=n, max_thinking_tokens=max_thinking_tokens)
                for e, n in zip(seen, room, strict=True)
            ),
            tuple(e.reference or "" for e in examples),
            tuple(readable(e.prompt) for e in examples),
        )


def readable(prompt: Conversation | None) -> str:
    """A prompt as a person reads it: a single turn without, several with their roles."""
    messages = prompt.messages if prompt else ()
    if len(messages) == 1:
        return messages[0].content or ""
    return "\n\n".join(f"[{m.role}] {m.content or ''}" for m in messages)
