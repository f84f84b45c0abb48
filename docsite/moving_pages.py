"""docs/moving/: a page for each tool that `luthier import` reads, from the tables that it translates by.

python docsite/moving_pages.py        # write them; a test holds the pages and the tables together
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "moving"

_COMMON: Final = """Every key of the file has one of three results: it is translated, it is not needed (with the
reason), or it is refused. If {title} has a default that changes training, its value is written into the recipe, so that
a later default of Luthier does not change it. Keys that are in no table of this page are also refused. For a refused
key, set the recipe's own key with `--set KEY=VALUE`, which takes precedence, or leave it out with
`--allow-missing KEY`. `--devices N` says on how many devices the file was used: a factor of the batch size,
1 by default. `--json` lists each key with its result. Luthier looks for a relative path of rows beside the file and in
the current folder.
"""

PAGES: Final[dict[str, tuple[str, str]]] = {
    "axolotl": (
        "luthier import config.yaml -o recipe.yaml --set data.train=rows.jsonl",
        """- **Rows.** Files and datasets of the hub (`name`, `split`, `revision`, `data_files`) become `data.train`;
  several `datasets` become [sources](../sources.md), each with the columns of its type. `split: train[:1000]` and
  `train[:10%]` become `rows` and `fraction`: as many rows, chosen by a hash of each and not from the beginning.
  Types with fields become `data.columns`; `chat_template` with `from` and `value` is the format ShareGPT, with
  `role` and `content` the format of chats.
- **`sample_packing`.** In axolotl a packed batch counts sequences of several rows, and becomes
  `training.global_batch_tokens`: `micro_batch_size` x `gradient_accumulation_steps` x devices x `sequence_len`. A step
  then has as many rows as have that many tokens on average; axolotl's has slightly fewer tokens, since rows do not fill
  sequences entirely. Packing here (`training.packing`) never changes what is trained.
- **`type: alpaca`.** axolotl writes a fixed text around the row; Luthier uses the model's chat template, in
  training and in use.
- **`chat_template`.** Luthier uses the model's own chat template instead of axolotl's copy of that of its family.
  Templates of no family (`chatml`, `alpaca`) are refused: `--set data.template=chat` uses the model's own.
- **`special_tokens`.** A token that the tokenizer has in that role anyway is not needed, nor is an `eos_token` that the
  chat template writes behind each answer. The tokenizer's own are known for a model in a folder, and for Llama 2, Code
  Llama and OpenLLaMA; other tokens are refused.
- **`quantize_moe_experts`.** Experts whose matrices are in one tensor keep 16 bits: more exact, with more memory, which
  the plan counts. `lora_target_linear: true` becomes `all-linear`, which gives these experts
  [adapters, too](../methods.md#which-matrices-carry-an-adapter); axolotl leaves them out.
- **`tokenizer_use_mistral_common`.** `--set data.template=chat` uses the model's own chat template and tokenizer.json
  instead.
- **`tensor_parallel_size`, `context_parallel_size`.** Devices that hold one copy of the model share its rows:
  `--devices` is divided by both.
- **`model_config`, `eta_min`** and other keys that axolotl does not read change nothing. The loss of routers is
  `objective.router_aux_loss`, the end of a schedule `training.min_lr_ratio`.
- **`train_on_inputs: true`** is refused. For plain texts use the type `completion`, with which both programs learn the
  whole text.
""",
    ),
    "llama_factory": (
        "luthier import qwen3_lora_sft.yaml -o recipe.yaml",
        """- **Rows.** `dataset` is looked up in `dataset_info.json` (in `dataset_dir`, beside the file, above it, or
  in the current folder). Files, `hf_hub_url` with `subset` and `split`, and files in an object store become
  `data.train`, and columns `data.columns`; several datasets become [sources](../sources.md) with their own columns.
- **`max_samples`, `num_samples`** become `rows` of a source with more rows than that: as many rows, chosen by a hash of
  each.
- **`template`.** Luthier uses the model's own chat template instead of the template of its family. Templates of no
  family (`alpaca`, `default`, `vicuna`) are refused: `--set data.template=chat` uses the model's own.
- **`packing`, `neat_packing`** become `training.global_batch_tokens`: rows x accumulated x devices x `cutoff_len`. A
  step then has as many rows as have that many tokens on average. With `packing` alone, rows of a sequence see each
  other there; here they never do, as with `neat_packing`.
- **`lora_target: all`** becomes `all-linear`, which gives the experts of a mixture
  [adapters, too](../methods.md#which-matrices-carry-an-adapter).
- **KTransformers and Megatron** (`use_kt`, `tensor_model_parallel_size` and others) are refused: their trainers have
  adapters, losses and batches of their own.
- **`mask_history: true`** is refused: give earlier answers of a row `weight: 0`.
- **`stage: ppo`** is refused; see [reinforcement](../reinforcement.md) for `grpo`.
""",
    ),
    "trl": (
        "luthier import sft.yaml --trainer sft -o recipe.yaml",
        """- **The trainer** is in TRL's command (`trl dpo --config FILE`), not in the file: `--trainer` names it
  if no key shows it.
- **Rows.** A `dataset_name` of the hub becomes a [remote source](../sources.md); `train[:1000]` and `train[:10%]`
  become `rows` and `fraction`: as many rows, chosen by a hash of each and not from the beginning.
- **`lora_target_modules`.** Without it, PEFT chooses by the architecture. The same matrices are taken for a model in a
  folder, by its `config.json`, and for families of the hub (Llama 2 and 3, Qwen 1.5 to 3 without experts, Mistral 7B,
  SmolLM, Gemma 1 and 2, OPT, Pythia); of other models they must be named.
- **`eos_token: <|im_end|>`** of Qwen's models becomes `data.template: chat`, which ends each answer with it.
- **What is learned.** For rows with `messages` TRL learns every turn unless `assistant_only_loss` is true; Luthier
  learns the assistant's turns.
- **`packing`** becomes `training.global_batch_tokens`: rows x accumulated x devices x `max_length`. A step then has as
  many rows as have that many tokens on average. `packing_strategy` other than `bfd` divides rows and is refused.
- **`max_length: null`** cuts no row: `training.max_length_tokens` is left out, and a row that is longer than the
  model's context is an error.
- **grpo.** Rewards are Python functions there: name metrics or graders instead, `--set
  'objective.rewards=[exact_match]'`. TRL's batch counts answers and a recipe's counts prompts, so it is divided by
  `num_generations`. With `num_iterations` above 1 an update is a step there; here a step has all updates with its
  answers, so numbers of steps are divided by it.
""",
    ),
    "unsloth": (
        "luthier import notebook.yaml -o recipe.yaml",
        """Write the arguments of the calls in your notebook as YAML, with a section for each call:

```yaml
from_pretrained: {model_name: unsloth/Llama-3.2-1B-Instruct, max_seq_length: 2048, load_in_4bit: true}
get_peft_model: {r: 16, lora_alpha: 16, lora_dropout: 0, target_modules: [q_proj, k_proj, v_proj, o_proj]}
load_dataset: {path: rows.jsonl}
SFTConfig: {per_device_train_batch_size: 2, gradient_accumulation_steps: 4, max_steps: 60, learning_rate: 2.0e-4}
train_on_responses_only: {instruction_part: "<|start_header_id|>user", response_part: "<|start_header_id|>assistant"}
```

- **`model_name`** with 4-bit weights (`-bnb-4bit`) is refused: name the 16-bit model; `load_in_4bit` becomes
  `method: qlora`.
- **`dataset_text_field`** with `train_on_responses_only` is refused: provide the conversations (`messages`) and
  not their text.
- **Rows.** Files and datasets of the hub (with `name`, `split`, `revision` and `data_files`) become `data.train`;
  `train[:1000]` and `train[:10%]` become `rows` and `fraction`: as many rows, chosen by a hash of each.
- **`packing`** becomes `training.global_batch_tokens`: rows x accumulated x devices x `max_seq_length`. A step then has
  as many rows as have that many tokens on average.
""",
    ),
    "openai": (
        "luthier import job.json -o recipe.yaml --set base_model=smollm2-135m-instruct --set data.train=rows.jsonl",
        """- **The file** is the body of `POST /v1/fine_tuning/jobs`, or a retrieved job.
- **Model and files.** A model that only OpenAI has, and ids of files, need `--set base_model=...` and `--set
  data.train=...`. Luthier reads rows in OpenAI's format of chats, preferences and tools.
- **`auto`** means Luthier's own default, which `luthier plan` shows with its reason.
- **Graders** become `objective.rewards`. What `score_model` and `label_model` ask must be a model of this machine
  ([models that grade](../reinforcement.md#models-that-grade)), and `python` runs only where that is allowed ([code that
  grades](../reinforcement.md#code-that-grades)).
- **Rows of `prompt` and `completion`** become a turn of the user and its answer, in the chat template of the model.
  Ask the tuned model by `/v1/chat/completions`, with the prompt as the user's message: `/v1/completions` continues the
  text as it is, without the template, which is not the prompt that the model has learned.
- **Token ids** are those of the model's own tokenizer, in `/v1/embeddings` and `/v1/completions`. LangChain's
  `OpenAIEmbeddings` sends ids of OpenAI's tokenizer unless it is made with `check_embedding_ctx_length=False`: the
  vectors would be those of other texts.
- **Evals** can be moved as they are, or as suites: [evals](../evals.md#moving-an-openai-eval-here).
""",
    ),
}
"""The command to begin with, and what differs, by the name of the tool."""


FIRST: Final[dict[str, str]] = {
    "openai": """\
There are two ways. You can keep your program and send it to your own server: only the address and the key change. Or
you turn a job into a [recipe](#turn-a-job-into-a-recipe), for the command line.

## Keep your program

```bash
luthier models pull smollm2-135m-instruct        # a model that jobs may name
luthier up                                       # prints a key, once
export OPENAI_BASE_URL=http://127.0.0.1:8520/v1 OPENAI_API_KEY=KEY
python your_program.py
```

OpenAI's clients for Python and JavaScript read both variables, so the program itself does not change; `base_url` and
`api_key` of the client do the same. [An example](../../examples/openai/README.md) uploads rows, trains, and asks the
result. What you have to know:

- **`model` of a job** is a base model on the server, by its name in `GET /v1/models`. Another name is refused (400,
  `model_not_found`).
- **Files.** Ids (`file-...`) are those of this server: upload the files again. Rows of chats, preferences and tools are
  read as they are.
- **Tuned models** (`ft:gpt-...`) have to be trained again. The job shows the new name, `ft:BASE:PROJECT:SUFFIX:ID`.
- **Reinforcement fine-tuning** takes the graders of the hosted service, `python` where the operator allows it. The
  model that a `score_model` or `label_model` names is one of this server; a deployment may have the name of the hosted
  model ([jobs](../server.md#fine-tuning-jobs)).
- **`auto` and `learning_rate_multiplier`** refer to Luthier's own defaults ([jobs](../server.md#fine-tuning-jobs)).
- **Inference**: chat, responses, completions, embeddings, streams, tools and structured output are the same calls
  ([inference](../server.md#inference)).
- **Batches, evals and graders** are the same calls, too ([evals and batches](../evals.md)). Moderations need
  [a classifier of your own](../server.md#moderations).
- **Webhooks** have the same events and signatures. Register the address at `POST /api/v1/webhooks`
  ([webhooks](../server.md#webhooks)).
- **Older code** keeps working: `functions` and `function_call` are answered in [their own
  form](../server.md#the-older-form-of-tools).
- **Not supported** are images, audio, assistants, vector stores and hosted tools. [Every
  parameter](../server.md#every-parameter) says what is accepted and what is refused, and [every
  address](../server.md#addresses-that-only-the-hosted-service-has) what to use instead.

## Turn a job into a recipe

""",
}
"""What comes before the command, where a tool has another way as well."""


def text(name: str) -> str:
    """The whole page of a tool."""
    from luthier.features.recipes.imports.service import TOOLS

    tool = TOOLS[name]
    first, (command, differences) = FIRST.get(name, ""), PAGES[name]
    parts = [
        f"# Moving from {tool.title}\n\n{first}".rstrip() + "\n",
        f"`luthier import` turns a configuration of {tool.title} into a recipe. The tables are for {tool.version}.\n",
        f"```bash\n{command}\nluthier plan recipe.yaml\n```\n",
        _COMMON.format(title=tool.title),
        f"## What to know\n\n{differences}",
        *_tables(tool.keys),
    ]
    return "\n".join(parts)


def _tables(keys: Any) -> Iterator[str]:
    yield "## Translated\n\n| key | in the recipe | how |\n|---|---|---|"
    for name, key in keys.items():
        if key.kind == "translated":
            yield f"| `{name}` | {_names(key.places)} | {_cell(key.note)} |"
    yield "\n## Not needed\n\n| keys | why |\n|---|---|"
    yield from _grouped(keys, "harmless")
    yield "\n## No counterpart\n\nRefused, unless the value does not change training.\n"
    yield "| keys | what is missing |\n|---|---|"
    yield from _grouped(keys, "missing")
    yield ""


def _grouped(keys: Any, kind: str) -> Iterator[str]:
    by_note: dict[str, list[str]] = {}
    for name, key in keys.items():
        if key.kind == kind:
            by_note.setdefault(key.note, []).append(name)
    for note, names in by_note.items():
        yield f"| {_names(names)} | {_cell(note)} |"


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(note: str) -> str:
    return note.replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
