"""Every parameter of the clients' request types, and what the server does with it: the table of docs/server.md.

A test holds the table of the documentation against this one, this one against the types of the installed clients, and
each row against what the server answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["supported", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class Row:
    """Parameters of one request that are treated alike.

    Attributes:
        request: What is requested.
        names: Of the parameters, separated by blanks.
        state: supported: works as in the documentation of the API. accepted: validated, but has no effect on answers.
            refused: an error names it.
        note: Limits and exceptions, as the documentation shows them.
    """

    request: str
    names: str
    state: State
    note: str = ""


TABLE: Final[tuple[Row, ...]] = (
    Row(
        "chat",
        "messages model temperature top_p n seed stop max_tokens max_completion_tokens frequency_penalty "
        "presence_penalty logit_bias logprobs top_logprobs stream stream_options response_format tools tool_choice "
        "parallel_tool_calls",
        "supported",
        "`n` to 16, `stop` to 4, `logit_bias` to 1,024 tokens, `tools` to 128, `messages` to 2,048",
    ),
    Row("chat", "user safety_identifier", "supported", "select the target of a deployment"),
    Row("chat", "modalities", "supported", '`["text"]` alone'),
    Row(
        "chat",
        "reasoning_effort",
        "supported",
        "sets the corresponding option of the model's chat template; "
        "a model without one rejects all values except `none`",
    ),
    Row(
        "chat",
        "functions function_call",
        "supported",
        "[the older form](#the-older-form-of-tools) of `tools` and `tool_choice`",
    ),
    Row("chat", "metadata", "supported", "up to 16 texts; kept with an answer that is stored"),
    Row("chat", "store", "supported", "`true` [stores the answer](evals.md#stored-chat-completions)"),
    Row(
        "chat",
        "prompt_cache_key prompt_cache_retention prompt_cache_options prediction",
        "accepted",
        "could only make an answer faster",
    ),
    Row(
        "chat",
        "service_tier",
        "accepted",
        "only `auto` and `default`; the answer says `default`, the one tier; other tiers are rejected",
    ),
    Row("chat", "verbosity", "accepted", "`medium` alone, the default"),
    Row("chat", "audio moderation web_search_options", "refused"),
    Row(
        "completions",
        "prompt model temperature top_p n seed stop max_tokens frequency_penalty "
        "presence_penalty logit_bias logprobs stream stream_options user",
        "supported",
        "up to 2,048 prompts",
    ),
    Row("completions", "best_of", "accepted", "as many as `n` alone"),
    Row("completions", "echo", "supported", "[prompts with their likelihoods](#prompts-with-their-likelihoods)"),
    Row("completions", "suffix", "refused"),
    Row(
        "embeddings",
        "input model encoding_format dimensions user",
        "supported",
        "up to 2,048 inputs; `dimensions` as many as the model has, or [was trained for](serving.md)",
    ),
    Row("moderations", "input", "supported", "texts, or text parts; images are refused"),
    Row(
        "moderations",
        "model",
        "supported",
        "none or one of OpenAI's names: the classifier of the settings; "
        "otherwise [a classifier](#moderations) of the project",
    ),
    Row("files", "file purpose expires_after", "supported"),
    Row("files list", "after limit order purpose", "supported"),
    Row("uploads", "bytes filename mime_type purpose expires_after", "supported"),
    Row("upload parts", "data", "supported", "to 64 MiB"),
    Row("upload completions", "part_ids md5", "supported"),
    Row(
        "jobs",
        "model training_file validation_file suffix seed metadata method hyperparameters",
        "supported",
        "settings without effect on a reinforcement job are reported by an event with the level `warn`",
    ),
    Row(
        "jobs",
        "integrations",
        "supported",
        "one, with the server's key of Weights & Biases; an empty list or null is accepted",
    ),
    Row("jobs list", "after limit metadata", "supported"),
    Row("job events list", "after limit", "supported"),
    Row("job checkpoints list", "after limit", "supported"),
    Row("checkpoint permissions", "project_ids", "supported"),
    Row("checkpoint permissions list", "after limit order project_id", "supported"),
    Row("grader runs", "grader model_sample item", "supported", "[graders](#graders): which ones"),
    Row("grader checks", "grader", "supported"),
    Row("stored update", "metadata", "supported"),
    Row("stored messages list", "after limit order", "supported"),
    Row(
        "stored list",
        "after limit metadata model order",
        "supported",
        "[stored chat completions](evals.md#stored-chat-completions)",
    ),
    Row(
        "evals",
        "data_source_config testing_criteria metadata name",
        "supported",
        "[evals](evals.md): which sources and graders; others are refused by name",
    ),
    Row("evals update", "metadata name", "supported"),
    Row("evals list", "after limit order order_by", "supported"),
    Row("eval runs", "data_source metadata name", "supported", "[rows](evals.md#rows): which sources"),
    Row("eval runs list", "after limit order status", "supported"),
    Row("output items list", "eval_id after limit order status", "supported"),
    Row(
        "responses",
        "input model instructions previous_response_id tools tool_choice parallel_tool_calls max_output_tokens "
        "temperature top_p top_logprobs store stream stream_options metadata",
        "supported",
        "[responses](#responses): `input` to 2,048 items with those of earlier responses, "
        "`tools` (functions alone) to 128",
    ),
    Row(
        "responses",
        "text",
        "supported",
        "`format`: text, `json_object`, `json_schema`; `verbosity` is `medium` or left out",
    ),
    Row(
        "responses",
        "reasoning",
        "supported",
        "`effort` as `reasoning_effort` of chat; `summary` (`auto`, `detailed`) returns the reasoning as the summary, "
        "in full; `concise` is refused",
    ),
    Row(
        "responses",
        "truncation",
        "supported",
        "`auto` leaves out the oldest turns of a conversation that is too long, and reports how many messages "
        "(`num_dropped_messages`)",
    ),
    Row(
        "responses",
        "include",
        "supported",
        "`message.output_text.logprobs`, `reasoning.encrypted_content`; those of tools of the hosted service and of "
        "images add nothing, and the header `x-luthier-warning` says so; unknown ones are refused",
    ),
    Row("responses", "user safety_identifier", "supported", "select the target of a deployment"),
    Row("responses", "background", "accepted", "`false` alone"),
    Row(
        "responses",
        "context_management",
        "accepted",
        "no conversation is compacted, and the header `x-luthier-warning` says so; `truncation: auto` leaves out the "
        "oldest turns",
    ),
    Row("responses", "max_tool_calls", "accepted", "limits tools of the hosted service, of which there are none"),
    Row(
        "responses",
        "prompt_cache_key prompt_cache_retention prompt_cache_options",
        "accepted",
        "could only make an answer faster",
    ),
    Row("responses", "service_tier", "accepted", "only `auto` and `default`; other tiers are rejected"),
    Row(
        "responses",
        "conversation",
        "supported",
        "[conversations](#conversations): an id or `{id}`, without `previous_response_id`",
    ),
    Row("responses", "access_programs background_options image moderation prompt", "refused"),
    Row(
        "response counts",
        "input model instructions previous_response_id conversation tools tool_choice parallel_tool_calls text "
        "reasoning truncation",
        "supported",
        "as of responses; `input` and `model` are required",
    ),
    Row("response counts", "personality", "refused"),
    Row("response", "include", "supported", "as of responses"),
    Row(
        "response",
        "stream include_obfuscation starting_after",
        "supported",
        "`false` alone, or left out: a stored response is returned whole",
    ),
    Row("response items list", "after include limit order", "supported"),
    Row("conversations", "items metadata", "supported", "[conversations](#conversations): to 20 items at a time"),
    Row("conversation update", "metadata", "supported"),
    Row("conversation items", "items include", "supported", "1 to 20 items; `include` as of responses"),
    Row("conversation items list", "after include limit order", "supported"),
    Row("conversation item", "conversation_id include", "supported"),
    Row(
        "batches",
        "input_file_id endpoint completion_window metadata output_expires_after",
        "supported",
        "[batches](evals.md#batches): chat completions, completions, embeddings, responses and moderations",
    ),
    Row("batches list", "after limit", "supported"),
    Row(
        "messages",
        "messages model max_tokens stream system stop_sequences tools tool_choice thinking",
        "supported",
        "[Messages](#messages): which blocks, tools and kinds of thinking; others are refused by name",
    ),
    Row(
        "messages",
        "output_config",
        "supported",
        "`format` as `response_format` of chat, `effort` as its `reasoning_effort`",
    ),
    Row("messages", "metadata", "supported", "`user_id` selects the target of a deployment"),
    Row("messages", "cache_control", "accepted", "could only make an answer faster; also on blocks and tools"),
    Row("messages", "service_tier", "accepted", "`auto` and `standard_only`: there is one tier"),
    Row("messages", "speed", "accepted", "`standard` alone"),
    Row("messages", "container diagnostics inference_geo", "refused"),
    Row("messages", "user_profile_id workspace_id", "refused", "headers: a key belongs to one project"),
    Row(
        "messages tokens",
        "messages model system tools tool_choice thinking output_config",
        "supported",
        "as of messages",
    ),
    Row("messages tokens", "cache_control", "accepted"),
    Row("messages tokens", "speed", "accepted", "`standard` alone"),
    Row("messages tokens", "user_profile_id workspace_id", "refused", "headers: a key belongs to one project"),
    Row("messages models", "after_id before_id lifecycle limit", "supported", "every model is `active`"),
    Row("messages models", "workspace_id", "refused", "a header: a key belongs to one project"),
)


def parameters() -> Iterator[tuple[str, str, State]]:
    """(request, parameter, state) of each parameter."""
    for row in TABLE:
        for name in row.names.split():
            yield row.request, name, row.state


def as_markdown() -> str:
    """The table as the documentation has it."""
    lines = ["| request | parameter | | |", "|---|---|---|---|"]
    for row in TABLE:
        names = ", ".join(f"`{name}`" for name in row.names.split())
        lines.append(f"| {row.request} | {names} | {row.state} | {row.note} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"
