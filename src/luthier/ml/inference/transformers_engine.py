"""In-process inference with transformers: the engine that can evaluate every model Luthier can train."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import OverlongError, RequestError, StoppedError
from luthier.core.plan import Quantisation
from luthier.core.ports import Generation, Progress, ProgressTask, Prompt, Score, StopCheck
from luthier.core.system.process_setup import collect_as_usual
from luthier.ml.inference.answer_row import ConstraintFactory
from luthier.ml.inference.batch_generate import DEFAULT_BATCH_TOKENS, batch_generate
from luthier.ml.inference.batches import Shared, shared_batches
from luthier.ml.inference.decode import Continuation, Decoder, Prefix, Request
from luthier.ml.inference.engine_prompts import WholeAnswers, prompts_with_tools, rewritten, text_of
from luthier.ml.inference.likelihood import SCORES, ScoreBatches, Scorer, shared_states
from luthier.ml.inference.models.architecture import context_tokens, padding_id
from luthier.ml.inference.models.attention_proof import why_eager
from luthier.ml.inference.models.forward import ScaledHead
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import virtual_tokens
from luthier.ml.inference.models.task_head import refuse_task_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.models.templates.thinking import ThoughtAndAnswer
from luthier.ml.inference.side_by_side import BatchRunner, Form, SideBySide, can_fork, one_after_another
from luthier.ml.inference.stored_answers import StoredAnswers, continuations_of
from luthier.ml.inference.thoughts import Thoughts
from luthier.ml.inference.tool_calls.forms import form_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

_Found = TypeVar("_Found")

# Scoring uses no KV cache: batches are limited so that activations fit the processor's caches.
MAX_SCORE_TOKENS = 2048


class TransformersEngine:
    """A base model, with or without an adapter, that generates text and scores likelihoods.

    A trained prompt precedes every text, as virtual tokens after the vocabulary; it is never counted as part of a
    prompt.

    Args:
        model: in evaluation mode; with an adapter it is a PeftModel.
        template: renders conversations and contains the tokenizer.
        batch_tokens: maximum tokens in the KV cache of a batch, including prompts, padding and new tokens.
        opted_turns: which turns are rewritten before rendering, as in training.
        stop: called after each batch; its reason makes `generate`, `score` and `hidden_states` raise StoppedError.

    Attributes:
        share_prefix: whether what all prompts of a call begin with is computed once.
        num_workers: processes that compute the batches of a call side by side, each with one thread, on a CPU alone
            (`side_by_side`); they are forked by the thread that calls. 1 computes them here, with all threads.
        stored_answers: stores the answers of each call batch by batch, so that a later process which makes the same
            call computes the other batches alone, with the same result; None stores none.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        template: ChatTemplate,
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        opted_turns: OptedTurns = AS_THEY_ARE,
        stop: StopCheck | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise RequestError(f"batch_tokens={batch_tokens}", expected="at least 1", do="pass a larger number")
        self._model: PreTrainedModel | PeftModel | None = model
        self._trained_prompt = virtual_tokens(model)
        self._template, self._opted = template, opted_turns
        self._answers = WholeAnswers(template)
        self._batch_tokens, self._stop = batch_tokens, stop
        self._pad_id = padding_id(self._causal, template.tokenizer.pad_token_id)
        self._context_tokens = context_tokens(model.config)
        self.share_prefix = True
        self.num_workers = 1
        self.stored_answers: StoredAnswers | None = None
        self._notes: dict[str, None] = {}
        # Recorded for the report: eager attention is slower, and the user should see why it was chosen.
        reason = why_eager(self._causal)
        self.note(not reason, f"is computed by its eager attention ({reason})")

    @classmethod
    def open(
        cls,
        model_path: str,
        *,
        adapter_path: str | None = None,
        template: Literal["auto", "chat", "plain"] = "auto",
        template_options: Mapping[str, Any] | None = None,
        opted_turns: OptedTurns = AS_THEY_ARE,
        dtype: Literal["float32", "bfloat16"],
        device: str = "cpu",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        quantisation: Quantisation | None = None,
        stop: StopCheck | None = None,
        for_task_head: bool = False,
    ) -> TransformersEngine:
        """Load a transformers folder, optionally quantised, and optionally an adapter.

        Args:
            model_path: folder of the base.
            adapter_path: folder of a PEFT adapter; None for the base alone.
            template: "auto" uses the model's chat template if it has one, otherwise the plain layout.
            template_options: variables of the chat template, such as `enable_thinking`.
            opted_turns: which turns are rewritten before rendering, as in training.
            dtype: of the weights.
            device: such as "cpu" or "cuda".
            batch_tokens: as for the constructor.
            quantisation: how the base is packed on loading; None for no packing.
            stop: as for the constructor.
            for_task_head: whether the states are for the head of these files (`TaskModel`) and no text is generated.

        Raises:
            NotFoundError, ModelSourceError: the folder or the adapter is missing or damaged.
            RequestError: a chat template but the model has none, or text but the files have a task head.
        """
        if writes := not for_task_head:
            refuse_task_model(adapter_path or model_path)
        collect_as_usual()  # from here on garbage may hold a model, for which the next one must not wait
        model = load_model(
            model_path, dtype=dtype, attention="sdpa", device=device, quantisation=quantisation, writes=writes
        )
        if adapter_path is not None:
            model = attach_adapter(model, adapter_path)
        written = ChatTemplate.load(model_path, template, options=template_options)
        return cls(model, written, batch_tokens=batch_tokens, opted_turns=opted_turns, stop=stop)

    @property
    def name(self) -> str:
        """`transformers`, the name in the table of engines."""
        return "transformers"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, such as where the fast path could not be verified and why."""
        return tuple(self._notes)

    @property
    def template(self) -> ChatTemplate:
        """The template that renders prompts."""
        return self._template

    def generate(
        self, prompts: Sequence[Prompt], progress: Progress, *, returns_token_ids: bool = False
    ) -> list[Generation]:
        """Generate one answer per prompt, in order.

        Prompts run in batches of similar length. A common prefix of all prompts is computed once if it has at least 32
        tokens. Neither changes the output, except for the last bits of floating-point sums. Answers are returned
        without their calls of tools and their reasoning, which may take `max_thinking_tokens` in addition.

        Args:
            prompts: conversations or texts with their limits.
            progress: advanced by each answer.
            returns_token_ids: whether generations include token ids.

        Raises:
            RequestError: a prompt is empty, or has both text and conversation, or impossible limits.
            OverlongError: a prompt plus its new tokens exceeds the model's context.
            TemplateError: the template cannot write a conversation.
            DivergedError: the model's logits are NaN.
            StoppedError: the stop check returned a reason.
        """
        with_tools = prompts_with_tools(prompts, self._template, self._opted)
        requests = [self._request(prompt, number) for number, prompt in enumerate(with_tools)]
        if not requests:
            return []
        decoder = self.open_decoder()
        known, keep = continuations_of(self.stored_answers, prompts)
        with progress.task("Writing answers", len(requests), "answers", done=len(known)) as task:
            found = batch_generate(
                decoder,
                requests,
                partial(self._advance, task),
                batch_tokens=self._batch_tokens,
                shares_prefix=self.share_prefix,
                run=self._runner(sum(len(request.ids) + request.max_new_tokens for request in requests)),
                known=known,
                keep=keep,
            )
        # Known only now: which path a batch takes is decided when its first tokens are computed and verified.
        for path in decoder.paths:
            self.note(path.kind == "batched", f"writes {path.describe()}")
        made = [self._generation(*one) for one in zip(prompts, requests, found, strict=True)]
        if not returns_token_ids:
            return made
        # Only where asked for: generations are stored, and ids would be most of their bytes.
        ids = [tuple(one.ids) for one in found]
        return [one.model_copy(update={"token_ids": own}) for one, own in zip(made, ids, strict=True)]

    def open_decoder(self, *, may_diverge: bool = False) -> Decoder:
        """A decoder over this model, for token-by-token generation."""
        end_ids = self._template.end_of_turn_ids
        return Decoder(self._causal, end_ids=end_ids, pad_id=self._pad_id, may_diverge=may_diverge)

    @property
    def causal(self) -> PreTrainedModel:
        """The language model itself, for access to its layers.

        Raises:
            RequestError: once closed.
        """
        return self._causal

    @property
    def num_logits(self) -> int:
        """The number of logits per token: the rows of the head, including vocabulary padding."""
        causal = self._causal
        head = causal.get_output_embeddings()
        # A model without its own output layer shares the matrix of its input embeddings (tied weights).
        return int((causal.get_input_embeddings() if head is None else head).weight.shape[0])

    def request_within_context(self, prompt: Prompt, template: ChatTemplate | None = None, name: str = "") -> Request:
        """The prompt in the decoder's format; its new tokens are limited by the context.

        Args:
            prompt: the prompt.
            template: overrides the engine's template.
            name: of the prompt in errors.

        Raises:
            RequestError: it is empty.
            OverlongError: not even one more token fits into the context.
        """
        # Checked with one new token; the actual limit is then reduced to the remaining room instead of raising.
        shortest = prompt.model_copy(update={"max_new_tokens": 1, "max_thinking_tokens": 0})
        return self._within_room(self._request(shortest, 0, template, name or "the prompt"), prompt.max_new_tokens)

    def request_of_ids(self, ids: Sequence[int], max_new_tokens: int, name: str = "the prompt") -> Request:
        """Like `request_within_context`, for tokens; also raises RequestError for ids that do not exist."""
        # The vectors of a trained prompt are rows after the vocabulary, which requests must not use.
        vocabulary = self._causal.get_input_embeddings().weight.shape[0] - len(self._trained_prompt)
        if wrong := next((token for token in ids if not 0 <= token < vocabulary), None):
            raise RequestError(
                f"the token id {wrong}",
                expected=f"ids of this model's own tokenizer, 0 to {vocabulary - 1}",
                do="make the tokens with the tokenizer of this model, or send the prompt as text",
            )
        return self._within_room(self._checked(list(ids), name, Prompt(text="", max_new_tokens=1)), max_new_tokens)

    def room_behind(self, request: Request) -> int:
        """The number of tokens that fit into the context after the prompt of a request."""
        return self._context_tokens - len(request.ids)

    def _within_room(self, request: Request, max_new_tokens: int) -> Request:
        return replace(request, max_new_tokens=min(max_new_tokens, self.room_behind(request)))

    @property
    def num_virtual_tokens(self) -> int:
        """The number of ids of every request that represent a trained prompt."""
        return len(self._trained_prompt)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """One score per example, in order: nats over its learned tokens, their number, and correct predictions.

        Raises:
            RequestError: an example is longer than the model's context, or has a token that the model does not know.
        """
        if not examples:
            return []
        scorer = Scorer(self._causal, pad_id=self._pad_id)
        self.note(scorer.path.by_head, f"is scored by {scorer.path.describe()}")
        with progress.task("Scoring", len(examples), "rows") as task:
            return self._in_batches(examples, scorer, scorer.score, task, lambda _: SCORES)

    def hidden_states(self, examples: Sequence[TokenisedExample], task: ProgressTask) -> list[Tensor]:
        """For each example, the states that predict its learned tokens: [learned tokens, width], in order.

        Args:
            examples: tokenised rows.
            task: advanced by each example.

        Raises:
            RequestError: an example is longer than the context, has an unknown token, or the logits are not states
                times one matrix.
            DivergedError: a state is NaN or infinite.
            StoppedError: the stop check returned a reason.
        """
        if not examples:
            return []
        scorer = Scorer(self._causal, pad_id=self._pad_id)
        # Sizes of the results in advance: workers write states into shared memory, [learned tokens, width] a row.
        counts = [example.num_trained_tokens for example in examples]
        return self._in_batches(examples, scorer, scorer.states, task, partial(shared_states, counts, scorer))

    def head(self) -> Tensor:
        """The matrix [vocabulary, width] that maps hidden states to logits.

        Raises:
            RequestError: the model's logits are not its states times one matrix.
        """
        return Scorer(self._causal, pad_id=self._pad_id).head

    def scaled_head(self) -> ScaledHead:
        """The scale and soft cap of the product of hidden states and `head`, if any."""
        return Scorer(self._causal, pad_id=self._pad_id).scaled

    def _advance(self, task: ProgressTask, amount: float = 1) -> None:
        """Report a finished batch. Raises StoppedError if the stop check requests a stop."""
        task.advance(amount)
        if self._stop is not None and (reason := self._stop()) is not None:
            raise StoppedError(reason)

    def _in_batches(
        self,
        examples: Sequence[TokenisedExample],
        scorer: Scorer,
        look: Callable[[Sequence[TokenisedExample], Prefix | None], list[_Found]],
        task: ProgressTask,
        make_form: Callable[[Sequence[Shared]], Form[list[_Found]]],
    ) -> list[_Found]:
        """The result of `look` for each example, in order; called with batches of similar rows."""
        for example in examples:
            self._check_example(example)
        # Rows with the virtual tokens of a trained prompt before them, which count for lengths and batches.
        whole = [self._behind_prompt(example) for example in examples]
        batches = self._score_batches(whole, scorer)
        run, compute = self._runner(sum(row.num_tokens for row in whole)), ScoreBatches(whole, batches, scorer, look)
        made = run(len(batches), compute, partial(self._advance, task), partial(make_form, batches))
        found: dict[int, _Found] = {}
        # Batches are sorted by length; results go back to the places of their rows.
        for batch, own in zip(batches, made, strict=True):
            found.update(zip(batch.rows, own, strict=True))
        return [found[number] for number in range(len(examples))]

    def _runner(self, num_tokens: int) -> BatchRunner:
        """The workers for the batches of a call that reads and writes that many tokens."""
        if self.num_workers < 2 or not can_fork(self._causal):
            return one_after_another
        # Two operations a weight and token; whether forking pays is decided by it.
        flops = 2.0 * num_tokens * sum(one.numel() for one in self._causal.parameters())
        return SideBySide(self._causal, self.num_workers, flops, lambda said: self._notes.update({said: None}))

    def _score_batches(self, whole: Sequence[TokenisedExample], scorer: Scorer) -> list[Shared]:
        """All rows in batches; no batch mixes rows on both sides of a length at which the position encoding changes."""
        border = scorer.border
        sides = [list(range(len(whole)))]
        # Some position encodings (longrope) use other frequencies for the whole row beyond a length.
        if border is not None:
            sides = [
                [row for row in sides[0] if (whole[row].num_tokens > border) is is_over] for is_over in (False, True)
            ]
        batches: list[Shared] = []
        for side in filter(None, sides):
            found = shared_batches(
                [whole[row] for row in side],
                # Two limits: activations of the computed tokens, and the KV cache including the prefix.
                max_tokens=min(self._batch_tokens, MAX_SCORE_TOKENS),
                max_kept_tokens=self._batch_tokens,
                longest_shared=scorer.longest_shared if self.share_prefix else 0,
            )
            batches += [replace(batch, rows=[side[place] for place in batch.rows]) for batch in found]
        return batches

    def note(self, is_usual: bool, what: str) -> None:
        """Add a note on the model, unless all is as usual."""
        self._notes |= {} if is_usual else {f"{type(self._causal).__name__} {what}": None}

    def close(self) -> None:
        """Release the weights. The engine cannot be used afterwards."""
        self._model = None

    @property
    def _causal(self) -> PreTrainedModel:
        """The language model itself, including the layers of an attached adapter."""
        if self._model is None:
            raise RequestError("a closed engine", expected="an open one", do="open the engine again")
        # The `forward` of a PeftModel adds arguments; its base already contains the adapter in its layers.
        unwrap = getattr(self._model, "get_base_model", None)
        return unwrap() if unwrap is not None else self._model

    def _request(self, prompt: Prompt, number: int, template: ChatTemplate | None = None, name: str = "") -> Request:
        prompt.check(number)
        name = name or f"prompt {number + 1}"
        if prompt.conversation is not None:
            used = template or self._template
            conversation = rewritten(self._opted, prompt.conversation, form_of(text_of(used)))
            text = used.render(conversation, add_generation_prompt=True)
        else:
            text = prompt.text or ""
        # Before tokenising, which takes seconds for a text of megabytes.
        self._check_bytes(text, name)
        return self._checked(self._template.ids(text), name, prompt)

    def _check_bytes(self, text: str, name: str) -> None:
        """Reject texts that cannot fit by their bytes, before tokenisation.

        Raises:
            OverlongError: the text has more tokens than the context of the model, by its number of bytes alone.
        """
        least = self._template.least_tokens(text)
        if least >= self._room_tokens:
            raise OverlongError(
                f"{name} has {len(text):,} characters, at least {least:,} tokens of this model",
                expected=f"fewer than {self._room_tokens:,} tokens, the context of the model, so that an answer fits",
                do="shorten the prompt",
                num_tokens=least,
                most_tokens=self._room_tokens,
            )

    def _checked(self, ids: list[int], name: str, prompt: Prompt) -> Request:
        """The request, after checking that it is not empty and fits into the context.

        Args:
            name: of the prompt in errors.
        """
        if not ids:
            raise RequestError(f"{name} is empty", expected="at least one token", do="remove the prompt")
        if len(ids) + prompt.max_new_tokens > self._room_tokens:
            raise OverlongError(
                f"{name} has {len(ids)} tokens and may add {prompt.max_new_tokens}: "
                f"{len(ids) + prompt.max_new_tokens} together",
                expected=f"at most {self._room_tokens}, the context of the model",
                do="shorten the prompt, use fewer few-shot examples, or lower max_new_tokens",
                num_tokens=len(ids),
                most_tokens=self._room_tokens,
            )
        constraint = None if prompt.json_schema is None else self._constraints.of_schema(prompt.json_schema)
        limit, most = None, prompt.max_new_tokens
        if prompt.conversation is not None:
            is_open = self._thoughts.is_open(ids)
            if constraint is not None:
                constraint = self._thoughts.constrained(constraint, is_open=is_open)
            # The reasoning budget is added to the answer's limit, up to the context.
            if thinking := self._thoughts.budget(prompt.max_thinking_tokens, self._room_tokens - len(ids) - most):
                limit = self._thoughts.limit(most, thinking, is_open=is_open)
                most += thinking
        return Request([*self._trained_prompt, *ids], most, prompt.temperature, prompt.seed, constraint, limit)

    @cached_property
    def _thoughts(self) -> Thoughts:
        """Measured once per template."""
        return Thoughts(self._template)

    @cached_property
    def _constraints(self) -> ConstraintFactory:
        """Cached, since preparing the vocabulary takes a second."""
        return ConstraintFactory(self._template.tokenizer, self.num_logits, self._template.end_of_turn_ids)

    @property
    def _room_tokens(self) -> int:
        """The context that remains after the trained prompt, in tokens."""
        return self._context_tokens - len(self._trained_prompt)

    def _behind_prompt(self, example: TokenisedExample) -> TokenisedExample:
        """The example preceded by the trained prompt, which is not learned."""
        if not self._trained_prompt:
            return example
        ids = array("i", [*self._trained_prompt, *example.input_ids])
        return replace(example, input_ids=ids, loss_mask=bytes(len(self._trained_prompt)) + example.loss_mask)

    def _check_example(self, example: TokenisedExample) -> None:
        vocabulary = self._causal.get_input_embeddings().weight.shape[0] - len(self._trained_prompt)
        if not 0 < example.num_tokens <= self._room_tokens or len(example.loss_mask) != example.num_tokens:
            raise RequestError(
                f"{example.id} has {example.num_tokens} tokens and {len(example.loss_mask)} places in its loss mask",
                expected=f"1 to {self._room_tokens} tokens (the context of the model), as many in the mask",
                do="shorten or drop the row",
            )
        if min(example.input_ids) < 0 or max(example.input_ids) >= vocabulary or example.loss_mask[0]:
            raise RequestError(
                f"{example.id} has token ids {min(example.input_ids)} to {max(example.input_ids)}, "
                f"first loss mask {example.loss_mask[0]}",
                expected=f"ids of this model's own tokenizer, 0 to {vocabulary - 1}, the first one not learned",
                do="tokenise the rows with the tokenizer of this model",
            )

    def _generation(self, prompt: Prompt, request: Request, continuation: Continuation) -> Generation:
        if prompt.conversation is None:
            text = self._template.tokenizer.decode(
                continuation.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found, num_thinking = ThoughtAndAnswer(None, str(text), is_closed=True), 0
        else:
            is_open = self._thoughts.is_open(request.ids)
            marks = self._answers.marks(prompt)
            found, num_thinking = self._thoughts.split(continuation.ids, is_open=is_open, marks=marks)
        said, calls = self._answers.split(prompt, found.content)
        return Generation(
            text=said,
            num_prompt_tokens=len(request.ids) - len(self._trained_prompt),
            num_new_tokens=len(continuation.ids),
            finish_reason="stop" if continuation.stopped else "length",
            reasoning=found.reasoning,
            num_thinking_tokens=num_thinking,
            ends_in_thought=not found.is_closed,
            tool_calls=calls,
        )
