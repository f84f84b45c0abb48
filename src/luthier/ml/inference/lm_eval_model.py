"""Adapter of our engines to the model interface of EleutherAI's lm-evaluation-harness (extra `lm-eval`).

Texts are tokenised as in the harness's transformers model (`lm_eval.models.huggingface.HFLM`), so that the same tokens
are scored; scores and generated text come from the engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ports import Engine, Progress, Prompt

DEFAULT_NEW_TOKENS: Final = 256
"""The harness's default limit of generated tokens."""
_KNOWN: Final = frozenset(("until", "max_gen_toks", "do_sample", "temperature"))
_HARMLESS: Final = frozenset(("top_p", "top_k", "num_beams", "num_return_sequences", "use_cache"))


class LmEvalModel(TemplateLM):  # type: ignore[misc]
    """Serves the harness's three request types with an engine.

    Args:
        engine: generates and scores.
        tokenizer: the model's own; None for a server.
        context_length_tokens: the longest row, including its last token.
        progress: shows the engine's progress.
        max_new_tokens: limit of an answer if the task sets none.

    Attributes:
        num_truncated: number of prompts and rows that were truncated at their beginning to fit into the context.
    """

    def __init__(
        self, engine: Engine, tokenizer: Any, *, context_length_tokens: int, progress: Progress, max_new_tokens: int
    ) -> None:
        super().__init__()
        self._engine, self.tokenizer, self._progress = engine, tokenizer, progress
        self._context_tokens, self._max_new_tokens = context_length_tokens, max_new_tokens
        self.num_truncated = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text whose first token is also scored."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """The key under which the harness caches prepared prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """The tokenizer's default ids, unless requested otherwise."""
        asked = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        # A chat template has already written the beginning-of-text token: the tokenizer must not add a second.
        if add_special_tokens is None and self._begins(string):
            asked = {"add_special_tokens": False}
        found: list[int] = self.tokenizer.encode(string, **asked)
        return found

    def _begins(self, string: str) -> bool:
        begin = self.tokenizer.bos_token
        return begin is not None and string.startswith(begin)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,  # noqa: ARG002 - the harness passes it
    ) -> list[tuple[float, bool]]:
        """For each continuation, its log-likelihood and whether each of its tokens is the likeliest."""
        rows = []
        for number, (_text, context, continuation) in enumerate(requests):
            ids = [*context, *continuation]
            # Truncated at the beginning, as in the harness, but to one token less: the harness predicts the last token
            # without reading it, while `Engine.score` counts the last token of a row in the context.
            if len(ids) > self._context_tokens:
                self.num_truncated += 1
            ids = ids[-self._context_tokens :]
            # The first token of a row has no context and cannot be scored.
            learned = min(len(continuation), len(ids) - 1)
            mask = bytes(len(ids) - learned) + b"\1" * learned
            rows.append(TokenisedExample(f"request {number + 1}", array("i", ids), mask))
        scores = self._engine.score(rows, self._progress)
        return [(-score.nll_nats, score.num_correct == score.num_tokens) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-likelihood of whole texts; texts beyond the context are split into windows that do not overlap."""
        windows, counts = [], []
        for request in requests:
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                # A window's context and prediction together have one token more than `max_seq_len`.
                max_seq_len=self._context_tokens - 1,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(windows))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The text generated after each prompt, up to the first of the task's stop texts."""
        prompts, stops = [], []
        for request in requests:
            context, asked = request.args
            wanted = dict(asked)
            self._refuse_unknown(wanted)
            until = wanted.get("until") or []
            stops.append([until] if isinstance(until, str) else list(until))
            limit = int(wanted.get("max_gen_toks") or self._max_new_tokens)
            # Tasks may set a temperature together with `do_sample: false`; the harness then decodes greedily.
            temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample", True) else 0.0
            text = self._within_context(context, limit)
            prompts.append(Prompt(text=text, max_new_tokens=limit, temperature=temperature))
        written = self._engine.generate(prompts, self._progress)
        return [_cut(one.text, ends) for one, ends in zip(written, stops, strict=True)]

    def _within_context(self, text: str, limit: int) -> str:
        """The end of the prompt, cut so that the answer has room.

        The harness cuts ids and so loses the beginning-of-text token. An engine takes text and adds that token again,
        so one token less of the text is kept.
        """
        if self.tokenizer is None:
            return text
        ids, room = self.tok_encode(text), self._context_tokens - limit
        if len(ids) <= room:
            return text
        num_kept = room
        while num_kept > 0:
            # The end is kept: the question is there, few-shot examples are at the beginning.
            cut = str(self.tokenizer.decode(ids[-num_kept:]))
            # Counted as in the engine: with the first token, and with the pieces of a split character.
            surplus = len(self.tok_encode(cut)) - room
            if surplus <= 0:
                self.num_truncated += 1
                return cut
            num_kept -= surplus
        raise RequestError(
            f"max_gen_toks {limit} for a context of {self._context_tokens} tokens",
            expected="fewer new tokens than the context holds, so that some of the prompt fits",
            do="lower max_gen_toks in the task's generation_kwargs",
        )

    def _refuse_unknown(self, wanted: dict[str, Any]) -> None:
        # Without sampling these options have no effect; with it, omitting them would change the measurement.
        samples = bool(wanted.get("do_sample")) and float(wanted.get("temperature") or 0.0) > 0
        unknown = [name for name in wanted if name not in _KNOWN and (samples or name not in _HARMLESS)]
        if unknown:
            raise RequestError(
                f"generation_kwargs {', '.join(unknown)} of a task of lm-eval",
                expected=f"among {', '.join(sorted(_KNOWN))}",
                do="take them out of the task",
            )


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
